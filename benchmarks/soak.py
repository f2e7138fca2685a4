"""One worker for a long day: `python benchmarks/soak.py [--opens 1000] [--at-once 50] [--rounds 4] [--json]`.

First image after image, each a file of its own: one in ten is damaged, one in twenty is opened by a loader that is
killed meanwhile, one in twenty by a reader that goes away. Then many at the same instant, in rounds. A table tells
what the worker holds after each part, when it has had nothing to do for a while: memory (proportional set size), file
descriptors, threads. Then it is stopped, and what is left is counted. A user of its own in a temporary folder, 6 x 6
prompts, the shipped model. Exit code 1 where something is not as it should be.
"""

import argparse
import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from PIL import Image, ImageOps

from rerun_loader_sam.worker.control import stop_worker, worker_status
from startup import ROOT, become, new_user
from twenty import pss_mib

sys.path.insert(0, str(ROOT / "tests"))
from recordings import is_whole

PROGRAMS = Path(sys.executable).parent
REST_S = 6.0  # after 5 s without work the worker gives back what it does not need
WIDTHS = (240, 320, 480, 640)
COMPLETE, REFUSED, KILLED, CLOSED = "complete", "damaged, refused in a line", "killed", "its reader went away"
GROWTH_LIMIT_MIB = 50.0
"""Between the first tenth of the opens, when all has been used once, and the end."""


@dataclasses.dataclass(frozen=True)
class State:
    """What the worker holds at rest."""

    opens: int
    seconds: float
    """That the opens since the state before took."""
    pid: int
    memory_mib: float
    file_descriptors: int
    threads: int
    processes: int
    """Of this user, the worker among them."""
    cache_mib: float
    at_once: int


@dataclasses.dataclass(frozen=True)
class Soak:
    """What came of it."""

    states: list[State]
    outcomes: dict[str, int]
    median_s: float
    slowest_s: float
    left_running: list[str]

    @property
    def growth_mib(self) -> float:
        """By how much the worker's memory grew."""
        return self.states[-1].memory_mib - self.states[0].memory_mib

    def faults(self) -> list[str]:
        """What is not as it should be."""
        expected = (COMPLETE, REFUSED, KILLED, CLOSED)
        faults = [f"{count} times {outcome}" for outcome, count in self.outcomes.items() if outcome not in expected]
        descriptors = [state.file_descriptors for state in self.states]
        workers = {state.pid for state in self.states}
        if self.growth_mib > GROWTH_LIMIT_MIB:
            faults.append(f"the worker's memory grew by {self.growth_mib:.0f} MiB")
        if descriptors[-1] > descriptors[0]:
            faults.append(f"file descriptors, state by state: {descriptors}")
        if len(workers) != 1:
            faults.append(f"workers, one after the other: {workers}")
        if self.left_running:
            faults.append(f"left running: {self.left_running}")
        return faults


def make_photograph(path: Path, number: int) -> None:
    """A different photograph for each number: a part of one, turned, with a corner that is its own."""
    with Image.open(ROOT / "examples" / "coffee.jpg") as image:
        photograph = image.convert("RGB")
    left, top = 9 * number % 200, 6 * number % 100
    part = photograph.crop((left, top, left + 400, top + 300))
    if number % 2:
        part = ImageOps.mirror(part)
    width = WIDTHS[number // 2 % len(WIDTHS)]
    part = part.resize((width, width * 3 // 4))
    part.paste((number % 256, number // 256 % 256, 99), (0, 0, 16, 16))
    part.save(path, quality=90)


def open_one(number: int, folder: Path) -> str:
    """Open photograph `number` in the way that falls to it; what came of it."""
    path = folder / f"photo{number}.jpg"
    make_photograph(path, number)
    if number % 10 == 3:
        path.write_bytes(path.read_bytes()[:600])
    command = [PROGRAMS / "rerun-loader-sam", path]
    if number % 10 == 7:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as loader:
            assert loader.stdout is not None
            loader.stdout.read(random.Random(number).randrange(40_000))  # noqa: S311
            if number % 20 == 7:
                loader.kill()
                outcome = KILLED
            else:
                loader.stdout.close()
                outcome = CLOSED
    else:
        ended = subprocess.run(command, capture_output=True, check=False)
        outcome = judged(ended.returncode, ended.stdout, ended.stderr)
    path.unlink()
    return outcome


def judged(code: int, stdout: bytes, stderr: bytes) -> str:
    """COMPLETE, REFUSED, or what else came of a loader."""
    if code == 0 and not stderr and is_whole(stdout):
        return COMPLETE
    if code == 1 and not stdout and stderr.count(b"\n") == 1:
        return REFUSED
    return f"exit code {code}, {len(stdout)} bytes, {stderr!r}"


def open_at_once(numbers: range, folder: Path) -> list[str]:
    """Open these photographs at the same instant; what came of each."""
    paths = [folder / f"photo{number}.jpg" for number in numbers]
    for number, path in zip(numbers, paths, strict=True):
        make_photograph(path, number)
    outputs = [path.with_suffix(".out").open("w+b") for path in paths]
    loaders = [
        subprocess.Popen([PROGRAMS / "rerun-loader-sam", path], stdout=output, stderr=subprocess.PIPE)
        for path, output in zip(paths, outputs, strict=True)
    ]
    outcomes = []
    for path, loader, output in zip(paths, loaders, outputs, strict=True):
        _, stderr = loader.communicate()
        output.seek(0)
        outcomes.append(judged(loader.returncode, output.read(), stderr))
        output.close()
        path.unlink()
        path.with_suffix(".out").unlink()
    return outcomes


def processes_of_user() -> dict[int, str]:
    """The processes of this benchmark's user, and their command lines."""
    mark = f"XDG_RUNTIME_DIR={os.environ['XDG_RUNTIME_DIR']}".encode()
    found = {}
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # ended meanwhile
                continue
    return found


def state_at_rest(opens: int, seconds: float, at_once: int) -> State:
    """What the worker holds when it has had nothing to do for a while."""
    time.sleep(REST_S)
    status = worker_status()
    if status is None or not isinstance(status["pid"], int):
        sys.exit(f"after {opens} opens no worker is running")
    process = Path(f"/proc/{status['pid']}")
    cache = Path(os.environ["XDG_CACHE_HOME"])
    return State(
        opens=opens,
        seconds=seconds,
        pid=status["pid"],
        memory_mib=pss_mib(process),
        file_descriptors=len(list((process / "fd").iterdir())),
        threads=len(list((process / "task").iterdir())),
        processes=len(processes_of_user()),
        cache_mib=sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) / 2**20,
        at_once=at_once,
    )


def soak(opens: int, at_once: int, rounds: int, folder: Path) -> Soak:
    """Open all, and look at the worker ten times on the way and after each round."""
    become(new_user(folder) | {"RERUN_SAM_MODEL": "nano", "RERUN_SAM_POINTS_PER_SIDE": "6"})
    outcomes: Counter[str] = Counter()
    states = []
    times_s = []
    part = max(opens // 10, 1)
    try:
        for first in range(0, opens, part):
            numbers = range(first, min(first + part, opens))
            for number in numbers:
                started = time.perf_counter()
                outcomes[open_one(number, folder)] += 1
                times_s.append(time.perf_counter() - started)
            states.append(state_at_rest(numbers.stop, sum(times_s[first:]), 1))
        for first in range(opens, opens + rounds * at_once, at_once):
            started = time.perf_counter()
            outcomes.update(open_at_once(range(first, first + at_once), folder))
            states.append(state_at_rest(first + at_once, time.perf_counter() - started, at_once))
    finally:
        stop_worker()
    left_running = list(processes_of_user().values())
    return Soak(states, dict(outcomes), statistics.median(times_s), max(times_s), left_running)


def print_table(result: Soak) -> None:
    """For a person."""
    print(
        f"{'opens':>8}{'at once':>9}{'seconds':>9}{'memory':>11}{'descriptors':>13}{'threads':>9}"
        f"{'processes':>11}{'cache':>11}"
    )
    for state in result.states:
        print(
            f"{state.opens:8}{state.at_once:9}{state.seconds:9.1f}{state.memory_mib:7.0f} MiB"
            f"{state.file_descriptors:13}{state.threads:9}{state.processes:11}{state.cache_mib:7.1f} MiB"
        )
    print(
        f"\none by one: median {result.median_s:.2f} s, slowest {result.slowest_s:.2f} s; "
        f"memory grew by {result.growth_mib:.1f} MiB; left running: {len(result.left_running)}"
    )
    for outcome, count in result.outcomes.items():
        print(f"{count:8} {outcome}")


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--opens", type=int, default=1000, help="one after the other")
    parser.add_argument("--at-once", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=4, help="of those at once")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        result = soak(arguments.opens, arguments.at_once, arguments.rounds, Path(folder))
    if arguments.json:
        print(json.dumps(dataclasses.asdict(result) | {"growth_mib": result.growth_mib}, indent=2))
    else:
        print_table(result)
    for fault in result.faults():
        print(f"NOT RIGHT: {fault}", file=sys.stderr)
    sys.exit(1 if result.faults() else 0)


if __name__ == "__main__":
    main()
