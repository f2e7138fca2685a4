"""One at a time: segmenting, on this machine and for this user, takes all cores and a model's memory."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.folders import ensure_private, runtime_dir

if TYPE_CHECKING:
    import filelock

_POLL_S = 0.05


@contextlib.contextmanager
def machine_turn() -> Iterator[None]:
    """Hold this user's turn to segment; waits for it, however long the processes before this one take.

    Who gives the turn back and wants it again lets those that wait go first: they hold `next` until they have
    the turn. The system gives back what a process held that died. Where nothing can be written nobody waits.
    """
    turn = _turn()
    try:
        yield
    finally:
        if turn is not None:
            turn.release()


def _turn() -> "filelock.BaseFileLock | None":
    import filelock  # 70 ms, and only who segments needs it

    try:
        folder = ensure_private(runtime_dir())
        turn = filelock.FileLock(folder / "turn.lock")
        with filelock.FileLock(folder / "turn.next.lock").acquire(poll_interval=_POLL_S):
            turn.acquire(poll_interval=_POLL_S)
    except (UserError, OSError):  # a full disk, a home of somebody else: better crowded than not at all
        return None
    return turn
