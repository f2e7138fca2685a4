"""Where the RRD bytes go: a pipe to the viewer, or a file. Standard library only."""

import contextlib
import os
import select
import signal
import sys
import threading
from pathlib import Path

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.loader import BROKEN_PIPE, INTERRUPTED, cut_short
from rerun_loader_sam.processes import is_running


class RrdPipe:
    """Standard output, for RRD bytes alone.

    From the first stray byte on a viewer drops what a loader sends, so whatever else this process prints is
    kept off the file descriptor. A viewer reads standard error only at the end, and 64 KiB of it would block
    both: there only `error_fd` still leads, unless it is a terminal.
    """

    def __init__(self) -> None:
        sys.stdout.flush()
        self._fd = os.dup(1)
        self.error_fd = os.dup(2)
        with Path(os.devnull).open("wb") as devnull:
            stray_fd = 2 if os.isatty(2) else devnull.fileno()
            os.dup2(stray_fd, 1)
            os.dup2(stray_fd, 2)
        # Ctrl-C in the viewer's terminal reaches its loaders too: they just end.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        threading.Thread(target=_end_with_reader, args=(self._fd,), daemon=True).start()

    def write(self, content: bytes) -> None:
        """Write everything; ends the process quietly where the viewer is gone. Raises UserError for a full disk."""
        remaining = memoryview(content)
        try:
            while remaining:
                remaining = remaining[os.write(self._fd, remaining) :]
        except BrokenPipeError:
            os._exit(BROKEN_PIPE)
        except OSError as error:
            raise UserError(cut_short(error)) from error

    def finish(self) -> None:
        """Everything has been written."""
        os.close(self._fd)

    def abort(self) -> None:
        """Nothing more comes; what was written stays valid."""


class RrdFile:
    """A file that is there when it is complete, or not at all. Raises UserError where it cannot be written."""

    error_fd = 2

    def __init__(self, path: Path) -> None:
        self._path = path
        self.part = path.with_name(f".{path.name}.{os.getpid()}.part")
        _remove_parts_of_the_dead(path)
        try:
            self.part.touch(exist_ok=False)
        except OSError as error:
            raise _unwritable(path, error) from error
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupted)

    def finish(self) -> None:
        """Put the complete file in its place."""
        try:
            self.part.replace(self._path)
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def abort(self) -> None:
        """Leave no trace."""
        self.part.unlink(missing_ok=True)

    def _interrupted(self, number: int, frame: object) -> None:
        self.abort()
        os._exit(INTERRUPTED)


def _remove_parts_of_the_dead(path: Path) -> None:
    """Remove what processes left behind that were killed while they wrote the file at `path`."""
    prefix, suffix = f".{path.name}.", ".part"
    with contextlib.suppress(OSError):
        for file in path.parent.iterdir():
            pid = file.name.removeprefix(prefix).removesuffix(suffix)
            if file.name == f"{prefix}{pid}{suffix}" and pid.isdecimal() and not is_running(int(pid)):
                file.unlink()


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror or error}; nothing was saved")


def _end_with_reader(fd: int) -> None:
    """End this process as soon as nobody reads `fd` any more: a closed viewer must not pay for a model."""
    if not hasattr(select, "poll"):
        return
    poll = select.poll()
    poll.register(fd, 0)  # no event asked for: only errors and hang-ups are told
    for _, event in poll.poll():
        if event & (select.POLLERR | select.POLLHUP):
            os._exit(BROKEN_PIPE)
