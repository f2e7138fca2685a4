"""The viewers of this user that run on this machine, and the server port of each."""

import dataclasses
import os
from pathlib import Path

import psutil

from rerun_loader_sam.follow.command_line import opens_window

_NAME = "rerun"
_TURNS_TO_BECOME = 3  # a process is forked first, and becomes a viewer then
_TURNS_TO_LISTEN = 60


@dataclasses.dataclass(frozen=True)
class RunningViewer:
    """A process that may be a viewer: it is called `rerun` and listens."""

    pid: int
    started_s: float
    port: int
    folder: Path
    """Its working folder."""

    def is_running(self) -> bool:
        """Whether it has not ended."""
        try:
            process = psutil.Process(self.pid)
            return process.create_time() == self.started_s and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


class ViewerFinder:
    """Finds viewers as they come, looking closely at what is new only: a list of process ids costs nothing."""

    def __init__(self) -> None:
        self._turns: dict[int, int] = {}
        self._found: dict[int, list[RunningViewer]] = {}

    def look(self) -> set[RunningViewer]:
        """All that run."""
        turns = {pid: self._turns.get(pid, 0) + 1 for pid in psutil.pids()}
        self._turns = turns
        self._found = {
            pid: viewers
            for pid, viewers in self._found.items()
            if pid in turns and all(v.is_running() for v in viewers)
        }
        for pid, turn in turns.items():
            if turn <= _TURNS_TO_BECOME and pid not in self._found and _is_viewer(pid):
                self._found[pid] = []
        for pid, viewers in self._found.items():
            if not viewers and turns[pid] <= _TURNS_TO_LISTEN:
                viewers.extend(viewers_of(pid))
        return {viewer for viewers in self._found.values() for viewer in viewers}


def viewers_of(pid: int) -> list[RunningViewer]:
    """A process once for each port that it listens on; none where it has ended."""
    try:
        process = psutil.Process(pid)
        connections = getattr(process, "net_connections", process.connections)(kind="tcp")
        ports = {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}
        folder, started_s = Path(process.cwd()), process.create_time()
    except psutil.Error:
        return []
    return [RunningViewer(pid, started_s, port, folder) for port in sorted(ports)]


def _is_viewer(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        # The program, not the Python script of the same name around it.
        return (
            process.name().lower() == _NAME
            and Path(process.exe()).name.lower() == _NAME
            and process.uids().real == os.getuid()
            and opens_window(process.cmdline()[1:])
        )
    except psutil.Error:
        return False
