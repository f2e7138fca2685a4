"""Broken images by the thousand: `python benchmarks/hostile.py [--inputs 300] [--opens 10] [--only PNG] [--json]`.

Of each kind of image that `tests/corpus.py` makes, `--inputs` mutations are read as the loader reads them, in a
process of their own: how many were read, refused in one line, or not taken for an image; the slowest; the process's
peak memory. Then `--opens` of them are opened with the loader and a worker: exit code, standard error, a recording
that is empty or whole, and after each kind a good image. A user of its own in a temporary folder, the shipped model.
Exit code 1 where something is not as it should be.
"""

import argparse
import dataclasses
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rerun_loader_sam import sniff
from rerun_loader_sam.errors import UserError
from rerun_loader_sam.images import load_image
from rerun_loader_sam.settings import Settings
from rerun_loader_sam.worker.control import stop_worker, worker_status
from soak import PROGRAMS
from startup import ROOT, become, new_user

sys.path.insert(0, str(ROOT / "tests"))
from corpus import KINDS, mutated
from recordings import is_whole

TOO_LONG_S = 60
READ, REFUSED, NOT_OURS = "read", "refused", "not ours"


@dataclasses.dataclass
class Kind:
    """What came of one kind of image."""

    name: str
    read: dict[str, int]
    slowest_s: float
    peak_mib: float
    exit_codes: dict[int, int]
    slowest_open_s: float
    faults: list[str]


def mutations(name: str, count: int, folder: Path) -> Iterator[Path]:
    """Broken images of one kind, the same ones in each run: one file, written anew for each."""
    extension, encode = KINDS[name]
    content = encode()
    rng = random.Random(name)  # noqa: S311
    path = folder / f"broken{extension}"
    for _ in range(count):
        path.write_bytes(mutated(content, rng))
        yield path


def read_one(path: Path) -> str:
    """READ, REFUSED or NOT_OURS, as the loader would; anything else is a fault."""
    if sniff.kind_of(str(path)) == sniff.OTHER:
        return NOT_OURS
    try:
        loaded = load_image(path, Settings().max_megapixels)
    except UserError as error:
        is_right = str(path) in str(error) and "\n" not in str(error)
        return REFUSED if is_right else f"refused with {error}"
    is_right = loaded.pixels.shape[:2] == loaded.rgb.shape[:2] == loaded.size_hw
    return READ if is_right else f"shapes {loaded.pixels.shape}, {loaded.rgb.shape}"


def read_all(name: str, count: int, folder: Path) -> None:
    """As a process of its own: read mutations of one kind and print what came of them, as JSON."""
    outcomes: Counter[str] = Counter()
    slowest_s = 0.0
    for number, path in enumerate(mutations(name, count, folder)):
        signal.alarm(TOO_LONG_S)  # ends the process
        started = time.perf_counter()
        try:
            outcomes[read_one(path)] += 1
        except Exception as error:
            outcomes[f"number {number}: {error!r}"] += 1
        slowest_s = max(slowest_s, time.perf_counter() - started)
    signal.alarm(0)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"outcomes": outcomes, "slowest_s": slowest_s, "peak_mib": peak_mib}))


def open_one(path: Path) -> tuple[int, str]:
    """Exit code of the loader, and what was wrong with it, if anything."""
    ended = subprocess.run([PROGRAMS / "rerun-loader-sam", path], capture_output=True, check=False)
    lines = ended.stderr.decode(errors="replace").splitlines()
    is_right = {
        0: not lines and is_whole(ended.stdout),
        1: len(lines) == 1 and str(path) in lines[0] and (not ended.stdout or is_whole(ended.stdout)),
        66: not lines and not ended.stdout,
    }.get(ended.returncode, False)
    return ended.returncode, "" if is_right else f"exit code {ended.returncode}, {len(ended.stdout)} bytes, {lines}"


def try_kind(name: str, inputs: int, opens: int, folder: Path) -> Kind:
    """Both parts, for one kind."""
    faults = []
    command = [sys.executable, __file__, "--inputs", str(inputs), "--read", name, str(folder)]
    reading = subprocess.run(command, capture_output=True, text=True, check=False)
    if reading.returncode:
        faults.append(f"reading ended with {reading.returncode}: {reading.stderr.strip()[-200:]}")
        found: dict[str, Any] = {"outcomes": {}, "slowest_s": 0.0, "peak_mib": 0.0}
    else:
        found = json.loads(reading.stdout)
    faults += [outcome for outcome in found["outcomes"] if outcome not in (READ, REFUSED, NOT_OURS)]
    codes: Counter[int] = Counter()
    slowest_s = 0.0
    for number, path in enumerate(mutations(name, opens, folder)):
        started = time.perf_counter()
        code, fault = open_one(path)
        slowest_s = max(slowest_s, time.perf_counter() - started)
        codes[code] += 1
        if fault:
            faults.append(f"opening number {number}: {fault}")
    if opens:
        code, fault = open_one(ROOT / "examples" / "coffee.jpg")
        if code or fault:
            faults.append(f"a good image afterwards: {fault or code}")
    return Kind(name, found["outcomes"], found["slowest_s"], found["peak_mib"], dict(codes), slowest_s, faults)


def peak_of_worker_mib() -> float:
    """The most memory that the worker has had; 0 where there is none."""
    status = worker_status()
    if status is None:
        return 0.0
    for line in Path(f"/proc/{status['pid']}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=300, help="of each kind, to read")
    parser.add_argument("--opens", type=int, default=10, help="of each kind, through loader and worker")
    parser.add_argument("--only", default="", metavar="TEXT", help="kinds whose name begins with it")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--read", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        read_all(arguments.read[0], arguments.inputs, Path(arguments.read[1]))
        return
    kinds = []
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        folder = Path(name)
        become(new_user(folder) | {"RERUN_SAM_MODEL": "nano", "RERUN_SAM_POINTS_PER_SIDE": "4"})
        workers = set()
        try:
            for kind in (kind for kind in KINDS if kind.startswith(arguments.only)):
                kinds.append(try_kind(kind, arguments.inputs, arguments.opens, folder))
                if arguments.opens:
                    workers.add((worker_status() or {}).get("pid"))
            worker_peak_mib = peak_of_worker_mib()
        finally:
            stop_worker()
    faults = [f"{kind.name}: {fault}" for kind in kinds for fault in kind.faults]
    if len(workers) > 1:
        faults.append(f"workers, one after the other: {workers}")
    if arguments.json:
        print(
            json.dumps(
                {"kinds": list(map(dataclasses.asdict, kinds)), "worker_peak_mib": worker_peak_mib, "faults": faults},
                indent=2,
            )
        )
    else:
        print_table(kinds, worker_peak_mib)
    for fault in faults:
        print(f"NOT RIGHT: {fault}", file=sys.stderr)
    sys.exit(1 if faults else 0)


def print_table(kinds: list[Kind], worker_peak_mib: float) -> None:
    """For a person."""
    print(
        f"{'':36}{READ:>7}{REFUSED:>9}{NOT_OURS:>10}{'slowest':>11}{'peak':>10}"
        f"{'exit 0':>9}{'1':>5}{'66':>5}{'slowest':>10}"
    )
    for kind in kinds:
        counts = [kind.read.get(outcome, 0) for outcome in (READ, REFUSED, NOT_OURS)]
        codes = [kind.exit_codes.get(code, 0) for code in (0, 1, 66)]
        print(
            f"{kind.name:36}{counts[0]:7}{counts[1]:9}{counts[2]:10}{kind.slowest_s * 1e3:8.0f} ms"
            f"{kind.peak_mib:6.0f} MiB{codes[0]:9}{codes[1]:5}{codes[2]:5}{kind.slowest_open_s:8.1f} s"
        )
    inputs, opens = (
        sum(sum(kind.read.values()) for kind in kinds),
        sum(sum(kind.exit_codes.values()) for kind in kinds),
    )
    print(
        f"\n{len(kinds)} kinds: {inputs} inputs read, {opens} opened; the worker's peak {worker_peak_mib:.0f} MiB, "
        f"not as they should be: {sum(len(kind.faults) for kind in kinds)}"
    )


if __name__ == "__main__":
    main()
