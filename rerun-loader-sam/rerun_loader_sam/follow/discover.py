"""The viewers of this user that run on this machine, and the server port of each."""

import dataclasses
import os
import sys
from pathlib import Path

import psutil

from rerun_loader_sam.follow.command_line import opens_window

_NAME = "rerun"
_TCP_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_LISTEN = "0A"


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


def listening_fingerprint() -> object:
    """Changes whenever a process of this user starts or ends listening; cheap. None where the system has no such."""
    if sys.platform != "linux":
        return None
    user = str(os.getuid())
    sockets = set()
    for table in _TCP_TABLES:
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:  # no IPv6
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and fields[7] == user:
                sockets.add(fields[9])  # the inode
    return frozenset(sockets)


def running_viewers() -> list[RunningViewer]:
    """All of them. A process that listens on several ports is listed with each."""
    found = []
    user = os.getuid()
    for process in psutil.process_iter(["name"]):
        if (process.info["name"] or "").lower() != _NAME:
            continue
        try:
            if process.uids().real != user or not opens_window(process.cmdline()[1:]):
                continue
            connections = getattr(process, "net_connections", process.connections)(kind="tcp")
            ports = {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}
            folder, started_s = Path(process.cwd()), process.create_time()
        except psutil.Error:  # it has just ended
            continue
        found += [RunningViewer(process.pid, started_s, port, folder) for port in sorted(ports)]
    return found
