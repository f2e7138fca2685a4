"""Which of several loader processes does the work for one opened file. Standard library only.

Viewers from 0.32 on run both `rerun-loader-sam` and `rerun-importer-sam` for a file, and a viewer that opens a
folder runs a loader for the folder and one for each file in it. They know nothing of each other but what the
viewer told them: the same recording id. So each states its claim in a file of that viewer, under a lock.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, TypedDict

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.folders import ensure_private, runtime_dir

_NAME_OF_NEW_VIEWERS = "rerun-importer-sam"


class _Entry(TypedDict):
    name: str  # of the executable
    recording_id: str
    path: str
    is_folder: bool
    is_paired: bool  # the other executable came, and declined


class Process(NamedTuple):
    """A loader's process, which need not be this one."""

    pid: int
    parent_pid: int
    """Of the viewer that started it."""


def claim(name: str, path: Path, recording_id: str, process: Process | None = None) -> frozenset[str] | None:
    """Claim `path` for the executable `name`, on behalf of the viewer that is the parent of `process`, else of this.

    Returns None where another process does the work: the same path claimed under the other name (each claim
    answers one such call, so that a file that is opened twice is segmented twice), or a folder above it.
    Otherwise the paths below it, if it is a folder, that others were faster to claim: they are to be left out.
    Where nothing can be written (a full disk, a home of somebody else) the name that all viewers know does the work.
    """
    loader = process or Process(os.getpid(), os.getppid())
    try:
        return _claim(name, path, recording_id, loader)
    except (UserError, OSError):
        return None if name == _NAME_OF_NEW_VIEWERS else frozenset()


def _claim(name: str, path: Path, recording_id: str, loader: Process) -> frozenset[str] | None:
    resolved, is_folder = os.path.realpath(path), path.is_dir()
    with _entries_of(loader.parent_pid) as entries:
        of_recording = [entry for entry in entries if entry["recording_id"] == recording_id]
        for entry in of_recording:
            if entry["is_folder"] and not is_folder and _is_below(resolved, entry["path"]):
                return None
            if entry["path"] == resolved and entry["name"] != name and not entry["is_paired"]:
                entry["is_paired"] = True
                return None
        if not is_folder and _folder_is_coming(loader, resolved, recording_id):
            return None
        entries.append(
            _Entry(name=name, recording_id=recording_id, path=resolved, is_folder=is_folder, is_paired=False)
        )
        return frozenset(entry["path"] for entry in of_recording if _is_below(entry["path"], resolved))


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


@contextlib.contextmanager
def _entries_of(parent: int) -> Iterator[list[_Entry]]:
    """The claims on behalf of the process `parent`, locked; what they are afterwards is written back.

    Where a process was killed, or the disk was full, while it wrote them, they are forgotten: work that is done twice
    is better than none.
    """
    folder = ensure_private(runtime_dir() / "claims")
    _remove_stale(folder)
    with (folder / f"{parent}-{_start_time(parent)}").open("a+b", buffering=0) as file:
        _lock(file)
        file.seek(0)
        entries: list[_Entry] = []
        with contextlib.suppress(ValueError):
            entries = json.loads(file.read())
        yield entries
        with contextlib.suppress(OSError):
            file.truncate(0)
            file.write(json.dumps(entries).encode())


def _lock(file: IO[bytes]) -> None:
    """Wait for the exclusive lock; closing the file, or the end of the process, gives it back."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


def _start_time(pid: int) -> str:
    """When the process started, where the system tells: a reused process id is then not the same parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "0"


def _remove_stale(folder: Path) -> None:
    """Remove the claims of viewers that have ended."""
    for file in folder.iterdir():
        pid, _, start_time = file.name.partition("-")
        if not pid.isdecimal():
            continue
        try:
            os.kill(int(pid), 0)
            is_alive = _start_time(int(pid)) == start_time
        except PermissionError:
            is_alive = True
        except (OSError, OverflowError):
            is_alive = False
        if not is_alive:
            file.unlink(missing_ok=True)


def _folder_is_coming(loader: Process, path: str, recording_id: str) -> bool:
    """Whether the viewer has also started a loader for a folder above `path`, which has yet to state its claim.

    A viewer starts the loader of a folder before those of its files, but the system may run them in any order.
    """
    folders = [str(parent) for parent in Path(path).parents if parent != parent.parent]
    for command in _sibling_commands(loader):
        if f"--recording-id {recording_id}" in command and any(f" {folder} --" in command for folder in folders):
            return True
    return False


def _sibling_commands(loader: Process) -> Iterator[str]:
    """The command lines of the other processes with the same parent, arguments joined by single spaces."""
    parent, me = loader.parent_pid, loader.pid
    if not Path("/proc/self/stat").exists():
        listing = subprocess.run(
            ["ps", "-axwwo", "ppid=,pid=,command="],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        for line in listing.stdout.splitlines():
            fields = line.split(None, 2)
            if len(fields) == 3 and fields[0] == str(parent) and fields[1] != str(me):
                yield fields[2]
        return
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal() or process.name == str(me):
            continue
        with contextlib.suppress(OSError, IndexError):
            if (process / "stat").read_text().rpartition(")")[2].split()[1] == str(parent):
                command = (process / "cmdline").read_bytes()
                yield os.fsdecode(command.replace(b"\0", b" "))
