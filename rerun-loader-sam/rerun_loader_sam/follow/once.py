"""Which of several followers has an opened image segmented. Standard library only.

`rerun-sam view` and `rerun-sam watch` may follow the same viewer, and either may start anew.
"""

import contextlib
import fcntl
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rerun_loader_sam.folders import cache_dir, ensure_private

_DONE = "done"
_KEPT_S = 7 * 24 * 3600.0  # recording ids are random: what is older than this belongs to a viewer long gone


class Claim:
    """The sole right to have one image segmented, until `release` or the end of this process.

    file: where others look; None where there is no such place, and nobody else is told.
    """

    def __init__(self, file: IO[str] | None) -> None:
        self._file = file

    def release(self, *, is_done: bool) -> None:
        """Let go; nobody takes the image again if it `is_done`."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):  # a full disk: better twice than never
            if is_done:
                self._file.write(_DONE)
            self._file.close()


def claim_image(store_id: str, entity_path: str) -> Claim | None:
    """Claim an image that is in a viewer; None where it is, or was, another's.

    Raises UserError or OSError where that cannot be told.
    """
    # Not the runtime folder: a service and a shell of the same user may disagree about that.
    folder = ensure_private(cache_dir() / "followed")
    name = hashlib.sha256(f"{store_id}\n{entity_path}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
    for old in _stale(folder):
        with contextlib.suppress(OSError):
            old.unlink()
    file = (folder / name).open("a+", encoding="utf-8")
    if _is_free(file):
        return Claim(file)
    file.close()
    return None


def _is_free(file: IO[str]) -> bool:
    """Lock `file`; whether nobody else works on its image, and nobody is done with it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: better twice than never
        pass
    file.seek(0)
    return file.read() != _DONE


def _stale(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _KEPT_S:
                yield path
