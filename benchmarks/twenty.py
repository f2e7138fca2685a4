"""Many photographs opened at the same instant: `python benchmarks/twenty.py [--count 20] [--width 4000] [--json]`.

With a real viewer that calls loaders for images (0.24.1, which is installed on first use), first each photograph
alone with a warm worker, then all of them at once: how long it takes, and the most memory that viewer, loaders and
worker held together (proportional set size, three samples a second). A user of its own in a temporary folder, without
the cache of results.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from PIL import Image, ImageOps

from rerun_loader_sam.worker.control import stop_worker, worker_status
from startup import ROOT, become, new_user

sys.path.insert(0, str(ROOT / "tests"))
from recordings import read
from sdks import NATIVE, NEWEST, Sdk, install_sdk


def make_photographs(folder: Path, count: int, width: int) -> list[Path]:
    """Different photographs of 4:3: parts of one, turned and enlarged."""
    with Image.open(ROOT / "examples" / "coffee.jpg") as image:
        photograph = image.convert("RGB")
    paths = []
    for number in range(count):
        left, top = 9 * number % 200, 6 * number % 100
        part = photograph.crop((left, top, left + 400, top + 300))
        if number % 2:
            part = ImageOps.mirror(part)
        path = folder / f"photo{number:02}.jpg"
        part.resize((width, width * 3 // 4), Image.Resampling.BICUBIC).save(path, quality=92)
        paths.append(path)
    return paths


class MemoryMeter:
    """Samples the memory of all processes of a user, told by a variable that only theirs have."""

    def __init__(self, environ: dict[str, str]) -> None:
        self._mark = f"XDG_RUNTIME_DIR={environ['XDG_RUNTIME_DIR']}".encode()
        self._is_done = threading.Event()
        self.peak_mib = 0.0
        self.ours_mib = 0.0
        self.by_program_mib: dict[str, float] = {}
        self._thread = threading.Thread(target=self._sample_all)

    def __enter__(self) -> "MemoryMeter":
        """Begin to sample."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End it."""
        self._is_done.set()
        self._thread.join()

    def _sample_all(self) -> None:
        while not self._is_done.wait(0.3):
            sample: dict[str, float] = {}
            for process in Path("/proc").iterdir():
                if process.name.isdecimal():
                    try:
                        if self._mark in (process / "environ").read_bytes().split(b"\0"):
                            name = program_of((process / "cmdline").read_bytes())
                            sample[name] = sample.get(name, 0.0) + pss_mib(process)
                    except OSError:  # ended meanwhile
                        continue
            self.ours_mib = max(self.ours_mib, sample.get("worker", 0.0) + sample.get("loader", 0.0))
            if sum(sample.values()) > self.peak_mib:
                self.peak_mib, self.by_program_mib = sum(sample.values()), sample


def program_of(command: bytes) -> str:
    """viewer, loader or worker."""
    if b"worker.server" in command:
        return "worker"
    return "loader" if b"rerun-loader-sam" in command else "viewer"


def pss_mib(process: Path) -> float:
    """What a process takes of the machine's memory: shared pages are shared out."""
    for line in (process / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def served_count() -> int | None:
    """How many images the worker of this process's user has served; None without a worker."""
    status = worker_status()
    return None if status is None else int(str(status["served_count"]))


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def open_in_viewer(
    sdk: Sdk, photographs: list[Path], environ: dict[str, str], out: Path | None = None
) -> tuple[float, MemoryMeter]:
    """Seconds until the viewer has received all, and what was held meanwhile; `out` keeps what it has received.

    The viewer serves what it opens instead of showing it: the same program and the same loaders without a window.
    """
    served = served_count() or 0
    port = str(free_port())
    started = time.perf_counter()
    with MemoryMeter(environ) as meter:
        # Viewers up to 0.24 wait for loaders in a thread pool as large as the machine has cores.
        viewer = subprocess.Popen(
            [sdk.viewer, *photographs, "--serve-grpc", "--port", port],
            env=environ | {"RAYON_NUM_THREADS": "64"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while served_count() != served + len(photographs):
            time.sleep(0.2)
    seconds = time.perf_counter() - started
    print(f"{len(photographs)} in {seconds:.1f} s, {meter.ours_mib:.0f} MiB", file=sys.stderr, flush=True)
    if out is not None:
        save(sdk, port, environ, out)
    viewer.terminate()
    viewer.wait()
    return seconds, meter


def save(sdk: Sdk, port: str, environ: dict[str, str], out: Path) -> None:
    """Write what the viewer that serves on `port` has received into the file `out`."""
    saving = subprocess.Popen(
        [sdk.viewer, f"rerun+http://127.0.0.1:{port}/proxy", "--save", out, "--port", str(free_port())],
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    size = -1
    while not out.exists() or size != (size := out.stat().st_size):
        time.sleep(2)
    saving.terminate()
    saving.wait()


def count_of_complete(out: Path, newest: Sdk) -> int:
    """How many of the lines with which a loader ends are in the file."""
    texts = [text for recording in read(out, newest).recordings for _, text in recording.texts()]
    return sum(" in " in text and " s, by " in text for text in texts)


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--width", type=int, default=4000, help="of the photographs, in pixels")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="twenty-") as name:
        folder = Path(name)
        kept = ROOT / ".pytest_cache" / "d" / "rerun-sdks"  # where the tests keep them
        kept.mkdir(parents=True, exist_ok=True)
        sdk = install_sdk(kept, NATIVE)
        binaries = folder / "bin"
        binaries.mkdir()
        (binaries / "rerun-loader-sam").symlink_to(Path(sys.executable).parent / "rerun-loader-sam")
        environ = new_user(folder) | {
            "PATH": f"{binaries}{os.pathsep}/usr/bin{os.pathsep}/bin",
            "PYTHONPATH": sdk.environment()["PYTHONPATH"],
            "RERUN_SAM_CACHE_MIB": "0",
            "TMPDIR": str(folder),
        }
        become(environ)
        photographs = make_photographs(folder, arguments.count + 1, arguments.width)
        out = folder / "out.rrd"
        try:
            open_in_viewer(sdk, photographs[-1:], environ)  # starts the worker
            single = [open_in_viewer(sdk, [photograph], environ) for photograph in photographs[:-1]]
            total_s, meter = open_in_viewer(sdk, photographs[:-1], environ, out)
            complete = count_of_complete(out, install_sdk(kept, NEWEST))
        finally:
            stop_worker()
    single_s = sum(seconds for seconds, _ in single)
    one = max((one for _, one in single), key=lambda one: one.ours_mib)
    result = {
        "count": arguments.count,
        "megapixels": arguments.width**2 * 3 / 4e6,
        "complete": complete,
        "one_by_one_s": single_s,
        "one_median_s": statistics.median(seconds for seconds, _ in single),
        "at_once_s": total_s,
        "time_ratio": total_s / single_s,
        "one_peak_mib": one.ours_mib,
        "at_once_peak_mib": meter.ours_mib,
        "memory_ratio": meter.ours_mib / one.ours_mib,
        "one_peak_with_viewer_mib": one.peak_mib,
        "at_once_peak_with_viewer_mib": meter.peak_mib,
        "one_viewer_mib": one.by_program_mib.get("viewer", 0.0),
        "at_once_viewer_mib": meter.by_program_mib.get("viewer", 0.0),
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['count']} photographs of {result['megapixels']:.1f} MP: {complete} complete")
    print(f"{'':8}{'one by one':>12}{'at once':>12}{'ratio':>8}{'limit':>7}")
    print(f"{'time':8}{single_s:10.1f} s{total_s:10.1f} s{result['time_ratio']:8.2f}{1.1:7}")
    print(
        f"{'memory':8}{one.ours_mib:8.0f} MiB{meter.ours_mib:8.0f} MiB{result['memory_ratio']:8.2f}{1.5:7}"
        "   loaders and worker"
    )
    print(f"{'':8}{one.peak_mib:8.0f} MiB{meter.peak_mib:8.0f} MiB{'':15}   with the viewer, which keeps all images")


if __name__ == "__main__":
    main()
