"""One process at a time fetches a checkpoint. The kernel frees the lock of a process that dies."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.models import store
from rerun_loader_sam.models.registry import RemoteEntry

if TYPE_CHECKING:
    import filelock


@contextlib.contextmanager
def fetch_lock(entry: RemoteEntry, while_waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the right to fetch `entry`, however long it takes to get it.

    `while_waiting` is called each second until then; what it raises ends the wait.
    Raises UserError where the folder allows no lock.
    """
    lock = _lock(_lock_path(entry, "fetch"))
    while not _acquire(lock, timeout_s=1):
        while_waiting()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def try_lock(entry: RemoteEntry, purpose: str) -> Iterator[bool]:
    """Hold the lock of `entry` for `purpose` if nobody has it; whether that worked. Never waits.

    Raises UserError where the folder allows no lock.
    """
    lock = _lock(_lock_path(entry, purpose))
    is_ours = _acquire(lock, timeout_s=0)
    try:
        yield is_ours
    finally:
        if is_ours:
            lock.release()


def is_being_fetched(entry: RemoteEntry) -> bool:
    """Whether a process is fetching `entry` right now. Raises UserError where the folder allows no lock."""
    if not _lock_path(entry, "fetch").exists():
        return False
    with try_lock(entry, "fetch") as is_free:
        return not is_free


def _lock_path(entry: RemoteEntry, purpose: str) -> Path:
    return store.checkpoints_dir() / f"{entry.file}.{purpose}.lock"


def _lock(path: Path) -> "filelock.BaseFileLock":
    import filelock  # 70 ms, and only a download needs it

    return filelock.FileLock(path)


def _acquire(lock: "filelock.BaseFileLock", timeout_s: float) -> bool:
    import filelock

    try:
        lock.acquire(timeout=timeout_s)
    except filelock.Timeout:
        return False
    except OSError as error:
        raise UserError(f"cannot lock {lock.lock_file}: {error.strerror or error}") from error
    return True
