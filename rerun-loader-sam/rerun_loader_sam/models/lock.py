"""One process at a time fetches a checkpoint. The kernel frees the lock of a process that dies."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.models import store
from rerun_loader_sam.models.registry import RemoteEntry


def _lock_path(entry: RemoteEntry) -> Path:
    return store.checkpoints_dir() / f"{entry.file}.lock"


@contextlib.contextmanager
def fetch_lock(entry: RemoteEntry, while_waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the right to fetch `entry`, however long it takes to get it.

    `while_waiting` is called each second until then; what it raises ends the wait. Raises UserError where the folder allows no lock.
    """
    import filelock  # 70 ms, and only a download needs it

    lock = filelock.FileLock(_lock_path(entry))
    while True:
        try:
            lock.acquire(timeout=1)
            break
        except filelock.Timeout:
            while_waiting()
        except OSError as error:
            raise UserError(f"cannot lock {_lock_path(entry)}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def is_being_fetched(entry: RemoteEntry) -> bool:
    """Whether a process is fetching `entry` right now."""
    import filelock

    path = _lock_path(entry)
    if not path.exists():
        return False
    try:
        with filelock.FileLock(path, timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:
        return False
