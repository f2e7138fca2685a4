"""Finds viewers as they come and has each followed, until told to stop."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from importlib.metadata import version
from types import FrameType
from typing import IO

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.folders import cache_dir, ensure_private
from rerun_loader_sam.follow.announcements import can_ask_viewers
from rerun_loader_sam.follow.discover import RunningViewer, ViewerFinder

LOOK_S = 1.0
_ENDING_S = 5.0


class Watch:
    """One for each user: raises UserError where another one runs.

    ports: follow only viewers on these; all where there are none.
    """

    def __init__(self, ports: frozenset[int] = frozenset()) -> None:
        self._ports = ports
        self._lock = _sole_lock()
        self._finder = ViewerFinder()
        self._stop = threading.Event()
        self._followers: dict[RunningViewer, subprocess.Popen[bytes]] = {}
        self._ending: list[subprocess.Popen[bytes]] = []

    def run(self) -> None:
        """Watch until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        try:
            while not self._stop.is_set():
                self._look()
                self._stop.wait(LOOK_S)
        finally:
            self._end_all()

    def _look(self) -> None:
        running = {viewer for viewer in self._finder.look() if not self._ports or viewer.port in self._ports}
        for viewer in set(self._followers) - running:
            self._ending.append(self._followers.pop(viewer))
        self._ending = [process for process in self._ending if process.poll() is None]
        for viewer in running - set(self._followers):
            # It stays in the table when its follower ends, so that what is no viewer is asked once.
            self._followers[viewer] = subprocess.Popen(
                [sys.executable, "-m", "rerun_loader_sam.follow.attach", str(viewer.pid), str(viewer.port)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )

    def _end_all(self) -> None:
        processes = [*self._followers.values(), *self._ending]
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(_ENDING_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._lock.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop.set()


def check_sdk(undone: str) -> str:
    """The version of the SDK that is installed here. Raises UserError, with what is `undone`, where it is too old."""
    sdk_version = version("rerun-sdk")
    if not can_ask_viewers(sdk_version):
        raise UserError(
            f"rerun-sdk {sdk_version} is installed here, and asking a viewer what it opened came with 0.41; "
            f"{undone}. Install rerun-sdk 0.41 or later into this environment, or start viewers with `rerun-sam view`"
        )
    return sdk_version


def _sole_lock() -> IO[str]:
    path = ensure_private(cache_dir()) / "watch.lock"
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        pid = file.read().strip()
        file.close()
        raise UserError(f"`rerun-sam watch` runs already (process {pid}); nothing was started") from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def watching_pid() -> int | None:
    """The process of this user that runs `rerun-sam watch`, if there is one."""
    path = cache_dir() / "watch.lock"
    try:
        with path.open("r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read().strip() or 0) or None
    except (OSError, ValueError):
        pass
    return None
