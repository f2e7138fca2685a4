"""What it costs to be called: `python benchmarks/startup.py [--runs 40] [--image photo.jpg] [--json]`.

Medians of whole processes beside `python -c pass` of the same interpreter, taken in turns so that a busy machine is
busy for all: a text file declined; an image until its first RRD message is there, with a worker that runs and with
one that has yet to start; the same image, which was segmented before, until the last byte. A user of its own, in a
temporary folder, so that nobody's worker or cache has a part in it.
"""

import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rerun_loader_sam.images import load_image

ROOT = Path(__file__).resolve().parents[1]
STREAM_HEADER_BYTES = 12
MESSAGE_HEAD = struct.Struct("<QQ")  # kind, length of what follows
IMAGE_BYTES_AT_LEAST = 1 << 14  # all else that comes first is smaller


def new_user(folder: Path) -> dict[str, str]:
    """An environment whose user has neither settings nor cache nor worker."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("RERUN", "XDG_"))}
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"):
        place = folder / name.lower()
        place.mkdir(mode=0o700)
        environ[name] = str(place)
    return environ | {"RERUN_SAM_DOWNLOAD": "never"}


def become(environ: dict[str, str]) -> None:
    """Make this process that user too: it asks the worker itself, without a process for each question."""
    os.environ.clear()
    os.environ.update(environ)


def seconds(command: list[str], environ: dict[str, str]) -> float:
    """How long `command` takes, from before it is started until it has ended."""
    started = time.perf_counter()
    subprocess.run(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - started


def seconds_to_image(command: list[str], environ: dict[str, str]) -> tuple[float, float]:
    """How long until the RRD message with the image has been read from `command`, and until its last byte."""
    started = time.perf_counter()
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.read(STREAM_HEADER_BYTES)
        length = 0
        while length < IMAGE_BYTES_AT_LEAST:
            _, length = MESSAGE_HEAD.unpack(process.stdout.read(MESSAGE_HEAD.size))
            process.stdout.read(length)
        image_s = time.perf_counter() - started
        process.stdout.read()
    if process.returncode:
        sys.exit(f"{command} ended with {process.returncode}")
    return image_s, time.perf_counter() - started


def decoding_s(image: Path) -> float:
    """How long the image takes to be read, in a process that has done so before: what no start-up can save."""
    times = []
    for _ in range(10):
        started = time.perf_counter()
        load_image(image, max_megapixels=1000)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def measure(image: Path, runs: int, cold_runs: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of each run, by name."""
    environ = new_user(folder)
    text = folder / "notes.txt"
    text.write_text("not an image\n")
    loader = shutil.which("rerun-loader-sam", path=str(Path(sys.executable).parent))
    rerun_sam = shutil.which("rerun-sam", path=str(Path(sys.executable).parent))
    if loader is None or rerun_sam is None:
        sys.exit(f"no rerun-loader-sam beside {sys.executable}: install the package there")
    # As a viewer calls it.
    shown = [loader, str(image), "--recording-id", "benchmark", "--application-id", "benchmark"]

    times: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        times.setdefault(name, []).append(value)

    try:
        for _ in range(cold_runs):
            subprocess.run([rerun_sam, "worker", "stop"], env=environ, stdout=subprocess.DEVNULL, check=True)
            note("cold_image", seconds_to_image(shown, environ)[0])
        once: list[tuple[str, Callable[[], None]]] = [
            ("python", lambda: note("python", seconds([sys.executable, "-c", "pass"], environ))),
            ("decline", lambda: note("decline", seconds([loader, str(text)], environ))),
        ]
        for _ in range(runs):
            for _, run in once:
                run()
            image_s, all_s = seconds_to_image(shown, environ)
            note("warm_image", image_s)
            note("warm_again", all_s)
    finally:
        subprocess.run([rerun_sam, "worker", "stop"], env=environ, stdout=subprocess.DEVNULL, check=False)
    return times


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--cold-runs", type=int, default=5)
    parser.add_argument("--image", type=Path, default=ROOT / "examples" / "coffee.jpg")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    image = arguments.image.resolve()
    with tempfile.TemporaryDirectory(prefix="startup-") as folder:
        times = measure(image, arguments.runs, arguments.cold_runs, Path(folder))
    decode_s = decoding_s(image)
    python_s = statistics.median(times["python"])
    rows: list[dict[str, Any]] = []
    for name, text, without_s, limit in (
        ("python", "python -c pass", 0.0, None),
        ("decline", "decline a text file", 0.0, 2.0),
        ("warm_image", "warm: image in the viewer's pipe, without decoding", decode_s, 4.0),
        ("warm_again", "warm: an image that was segmented before, all of it", 0.0, None),
        ("cold_image", "cold: image in the viewer's pipe", 0.0, None),
    ):
        median_s = statistics.median(times[name])
        rows.append(
            {
                "name": name,
                "text": text,
                "runs": len(times[name]),
                "median_s": median_s,
                "min_s": min(times[name]),
                "times_python": (median_s - without_s) / python_s,
                "limit_times_python": limit,
            }
        )
    if arguments.json:
        print(json.dumps({"image": image.name, "decode_s": decode_s, "rows": rows}, indent=2))
        return
    print(f"{image.name}: decoding takes {decode_s * 1e3:.1f} ms\n")
    print(f"{'':54}{'median ms':>10}{'min ms':>9}{'x python':>10}{'limit':>7}")
    for row in rows:
        limit_text = f"{row['limit_times_python']:g}" if row["limit_times_python"] else ""
        print(
            f"{row['text']:54}{row['median_s'] * 1e3:10.1f}{row['min_s'] * 1e3:9.1f}{row['times_python']:10.2f}"
            f"{limit_text:>7}"
        )


if __name__ == "__main__":
    main()
