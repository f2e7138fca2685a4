"""One at a time: segmenting, on this machine and for this user, takes all cores and a model's memory."""

import contextlib
from collections.abc import Iterator

from rerun_loader_sam.folders import ensure_private, runtime_dir

_POLL_S = 0.05


@contextlib.contextmanager
def machine_turn() -> Iterator[None]:
    """Hold this user's turn to segment; waits for it, however long the processes before this one take.

    Who gives the turn back and wants it again lets those that wait go first: they hold `next` until they have
    the turn. The system gives back what a process held that died. Raises UserError where there is no folder.
    """
    import filelock  # 70 ms, and only who segments needs it

    folder = ensure_private(runtime_dir())
    turn = filelock.FileLock(folder / "turn.lock")
    with filelock.FileLock(folder / "turn.next.lock").acquire(poll_interval=_POLL_S):
        turn.acquire(poll_interval=_POLL_S)
    try:
        yield
    finally:
        turn.release()
