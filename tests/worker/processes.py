"""Loaders and workers as processes, and photographs for them."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageOps

from rerun_loader_sam.worker.control import worker_status

LOADER = str(Path(sys.executable).parent / "rerun-loader-sam")
EXAMPLE = Path(__file__).parents[2] / "examples" / "coffee.jpg"
PATIENCE_S = 240.0
"""Until then whatever a test waits for has happened, on the busiest machine; what goes well takes no time of it."""


def make_photos(folder: Path, count: int, width: int = 300) -> list[Path]:
    """Different photographs: parts of one, turned."""
    folder.mkdir(exist_ok=True)
    with Image.open(EXAMPLE) as image:
        photograph = image.convert("RGB")
    paths = []
    for number in range(count):
        left = 7 * number % (photograph.width // 3)
        part = photograph.crop((left, 5 * number % 90, left + photograph.width // 2, photograph.height - 60))
        if number % 2:
            part = ImageOps.mirror(part)
        path = folder / f"photo{number:03}.jpg"
        part.resize((width, round(width * part.height / part.width))).save(path, quality=90)
        paths.append(path)
    return paths


def wait_until(what: Callable[[], object], describe: Callable[[], object] = lambda: "") -> None:
    """Wait until `what` gives something true."""
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, describe()
        time.sleep(0.02)


def least(count: Callable[[], int]) -> int:
    """The least that `count` gives within a second: what was just used is let go a moment later."""
    deadline = time.monotonic() + 1.0
    found = count()
    while time.monotonic() < deadline:
        found = min(found, count())
        time.sleep(0.02)
    return found


def load(*arguments: str | Path) -> "subprocess.CompletedProcess[bytes]":
    """Run a loader to its end."""
    return subprocess.run([LOADER, *map(str, arguments)], capture_output=True, timeout=PATIENCE_S, check=False)


def status() -> dict[str, object]:
    """Of the worker that has to be there."""
    answer = worker_status()
    assert answer is not None, "no worker is running"
    return answer


def held(pid: int) -> list[str]:
    """What a process has open; a worker is not asked, for that takes a connection."""
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(descriptor.readlink()))
    return sorted(found)


def worker_pids() -> set[int]:
    """The worker processes of this test's user, also those that are about to leave."""
    return pids_with(b"rerun_loader_sam.worker.server")


def pids_with(program: bytes) -> set[int]:
    """The processes of this test's user with `program` in their command line."""
    found = set()
    mine = f"XDG_RUNTIME_DIR={os.environ['XDG_RUNTIME_DIR']}".encode()
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            is_it = program in (process / "cmdline").read_bytes()
            if is_it and mine in (process / "environ").read_bytes().split(b"\0"):
                found.add(int(process.name))
    return found


@dataclasses.dataclass
class Loading:
    """A loader that runs; what it has written so far is read as it comes."""

    process: "subprocess.Popen[bytes]"

    def read_image(self) -> int:
        """Read the RRD stream until the message with the image, and return that one's size."""
        stdout = self.process.stdout
        assert stdout is not None
        assert stdout.read(12)[:4] == b"RRF2"
        while True:
            head = stdout.read(16)
            assert len(head) == 16, "the stream ended before an image"
            length = int.from_bytes(head[8:], "little")
            stdout.read(length)
            if length > 1 << 14:
                return length

    def finish(self) -> tuple[int, bytes, str]:
        """Exit code, the rest of the output, and standard error."""
        out, error = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, error.decode()
