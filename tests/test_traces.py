"""What a loader and its worker leave behind, and whom they talk to: the user's own folders, and nobody."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from recordings import is_whole

LOADER = str(Path(sys.executable).parent / "rerun-loader-sam")
WRITING = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC")
CALLS = (
    "openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,mknod,mknodat,unlink,"
    "unlinkat,socket,connect"
)
NOT_ON_DISK = ("/dev/null", "/dev/tty", "/dev/fd/", "/proc/")

pytestmark = pytest.mark.usefixtures("user")


def traced(arguments: list[str], log: Path, cwd: Path) -> "subprocess.CompletedProcess[bytes]":
    """Run a loader, and the worker that it starts, to their end under strace; skips the test where that cannot be."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace")
    command = [strace, "-f", "-qq", "-s", "4096", "-e", f"trace={CALLS}", "-o", str(log), LOADER]
    # Python would keep the compiled code of a package that nobody has run yet, which pip has done at installation.
    environ = os.environ | {"RERUN_SAM_WORKER_IDLE_S": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    outcome = subprocess.run(
        [*command, *arguments], env=environ, cwd=cwd, capture_output=True, timeout=280, check=False
    )
    if b"ptrace" in outcome.stderr:
        pytest.skip(f"strace may not trace here: {outcome.stderr.decode()[-200:]}")
    return outcome


def written_paths(log: Path, cwd: Path) -> set[str]:
    """The paths that a trace shows made, changed or removed."""
    paths = set()
    for line in log.read_text(errors="replace").splitlines():
        call = re.match(r"\d+ +(\w+)\((.*)\) += (-?\d+)", line)
        if not call or call[3].startswith("-") or call[1] in ("socket", "connect"):
            continue
        if call[1] in ("openat", "open") and not WRITING.search(call[2]):
            continue
        for path in re.findall(r'"([^"]*)"', call[2]):
            paths.add(os.path.normpath(cwd / path))
    return paths


def is_pythons_trial(path: str) -> bool:
    """Whether it is the empty file with which Python's `tempfile`, asked by torch, tries a folder, and removes."""
    folder, name = os.path.split(path)
    return folder == tempfile.gettempdir() and len(name) == 8 and not Path(path).exists()


@pytest.mark.parametrize("way", ["to a pipe", pytest.param("to a file", marks=pytest.mark.slow)])
def test_only_the_users_own_folders_are_written_to_and_nobody_is_called(
    way: str, user: Path, photo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    log = tmp_path / "trace"
    outcome = traced([str(photo)] + (["--save", str(out / "photo.rrd")] if way == "to a file" else []), log, out)
    assert (outcome.returncode, outcome.stderr) == (0, b"")
    allowed = [str(user / name) for name in ("cache", "run")] + ([str(out)] if way == "to a file" else [])
    written = written_paths(log, out)
    assert any(path.startswith(allowed[0]) for path in written), "a trace that shows nothing proves nothing"
    elsewhere = {path for path in written if not path.startswith((*allowed, *NOT_ON_DISK))}
    assert {path for path in elsewhere if not is_pythons_trial(path)} == set()
    calls = log.read_text(errors="replace")
    assert "AF_UNIX" in calls
    assert re.findall(r".*sa_family=AF_INET.*", calls) == []
    assert [path.name for path in out.iterdir()] == (["photo.rrd"] if way == "to a file" else [])


def test_a_machine_without_any_network_does(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unshare = [shutil.which("unshare") or "unshare", "--map-root-user", "--net"]
    with contextlib.suppress(OSError):
        if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode == 0:
            monkeypatch.setenv("RERUN_SAM_DOWNLOAD", "never")
            outcome = subprocess.run([*unshare, LOADER, photo], capture_output=True, timeout=250, check=False)
            assert (outcome.returncode, outcome.stderr) == (0, b"")
            assert is_whole(outcome.stdout)
            return
    pytest.skip("needs unshare and the right to make a network namespace")


@pytest.mark.parametrize("worker", ["1", "0"])
def test_what_killed_processes_leave_is_removed_by_the_next(
    worker: str, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RERUN_SAM_WORKER", worker)
    out = tmp_path / "out"
    out.mkdir()
    others = [out / ".another.rrd.1.part", out / ".photo.rrd.x.part", out / f".photo.rrd.{os.getpid()}.part"]
    for other in others:
        other.touch()
    monkeypatch.setenv("RERUN_SAM_POINTS_PER_SIDE", "128")  # minutes of work
    with subprocess.Popen([LOADER, photo, "--save", out / "photo.rrd"], stderr=subprocess.PIPE) as loader:
        part = out / f".photo.rrd.{loader.pid}.part"
        deadline = time.monotonic() + 100
        while not (part.exists() and part.stat().st_size):
            assert loader.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if worker == "1":  # all at once, so that none of them can tidy up after the other
            pid = (Path(os.environ["XDG_RUNTIME_DIR"]) / "rerun-loader-sam" / "worker.lock").read_text()
            loader.send_signal(signal.SIGSTOP)
            os.kill(int(pid), signal.SIGKILL)
        loader.kill()
    assert part.exists(), "nothing is left behind, and this test shows nothing"
    monkeypatch.setenv("RERUN_SAM_POINTS_PER_SIDE", "2")
    outcome = subprocess.run([LOADER, photo, "--save", out / "photo.rrd"], capture_output=True, check=False)
    assert (outcome.returncode, outcome.stderr) == (0, b"")
    assert set(out.iterdir()) == {*others, out / "photo.rrd"}
