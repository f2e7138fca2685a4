"""Segmenting while other programs are busy: `python benchmarks/busy.py [--runs 3] [--busy 0 1 2] [--json]`.

How long a loader takes with a warm worker, whole process, for a photograph of 12 megapixels, alone and beside
programs that each keep a core busy, as a viewer may that draws without a graphics card. A user of its own in a
temporary folder, without the cache of results. `OMP_WAIT_POLICY=ACTIVE` before it shows threads that wait awake.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rerun_loader_sam.worker.control import stop_worker
from startup import become, new_user, seconds_to_image
from twenty import make_photographs


@contextlib.contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """So many programs that do nothing else than keep a core busy."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--busy", type=int, nargs="*", default=[0, 1, 2], help="how many programs are busy")
    parser.add_argument("--width", type=int, default=4000, help="of the photograph, in pixels")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="busy-") as name:
        folder = Path(name)
        (photograph,) = make_photographs(folder, 1, arguments.width)
        environ = new_user(folder) | {"RERUN_SAM_CACHE_MIB": "0"}
        become(environ)
        command = [str(Path(sys.executable).parent / "rerun-loader-sam"), str(photograph)]
        try:
            seconds_to_image(command, environ)  # starts the worker
            for count in arguments.busy:
                with busy_programs(count):
                    times = [seconds_to_image(command, environ)[1] for _ in range(arguments.runs)]
                rows.append({"busy_programs": count, "median_s": statistics.median(times), "slowest_s": max(times)})
        finally:
            stop_worker()
    if arguments.json:
        print(json.dumps({"cores": os.cpu_count(), "runs": arguments.runs, "rows": rows}, indent=2))
        return
    print(f"{os.cpu_count()} cores, {arguments.runs} runs each")
    print(f"{'busy programs':>13}{'median':>10}{'slowest':>10}")
    for row in rows:
        print(f"{row['busy_programs']:13}{row['median_s']:8.1f} s{row['slowest_s']:8.1f} s")


if __name__ == "__main__":
    main()
