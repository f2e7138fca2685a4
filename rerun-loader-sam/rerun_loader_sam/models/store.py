"""Checkpoint files on this machine: where they lie, and whether each is what it should be. No network."""

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
import threading
import time
from pathlib import Path
from typing import Literal

from rerun_loader_sam.folders import cache_dir, ensure_private
from rerun_loader_sam.models.registry import SHIPPED_FOLDER, ModelEntry, RemoteEntry

_WRITING_AT_MOST_S = 3600.0


def checkpoints_dir() -> Path:
    """Where checkpoints of this user are kept; need not exist."""
    return cache_dir() / "checkpoints"


def make_checkpoints_dir() -> Path:
    """`checkpoints_dir`, made for this user alone. Raises UserError where that is impossible."""
    ensure_private(cache_dir())
    return ensure_private(checkpoints_dir())


def checkpoint_path(entry: ModelEntry) -> Path:
    """Where the checkpoint of `entry` belongs, whether or not it is there."""
    return (checkpoints_dir() if isinstance(entry, RemoteEntry) else SHIPPED_FOLDER) / entry.file


def partial_path(entry: RemoteEntry) -> Path:
    """Where the bytes of an unfinished download are collected."""
    return checkpoints_dir() / f"{entry.file}.partial"


def torch_hub_path(entry: RemoteEntry) -> Path:
    """Where `torch.hub`, and many a notebook, keeps the same file. Only read, never written or removed."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TORCH_HOME") or Path(cache) / "torch") / "hub" / "checkpoints" / entry.file


def file_size(path: Path) -> int:
    """Size of the regular file at `path` in bytes; 0 where there is none."""
    try:
        status = path.stat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def find_checkpoint(entry: ModelEntry) -> Path | None:
    """The checkpoint of `entry`, if it is on this machine and right; None otherwise.

    Size and SHA256 are checked. The SHA256 of a file is computed once (about a second a gigabyte)
    and remembered with its size and times: a file that was changed since is computed anew.
    """
    for path in present_files(entry):
        if not isinstance(entry, RemoteEntry):
            return path
        if file_size(path) == entry.size_bytes:
            with contextlib.suppress(OSError):  # one that cannot be read is no checkpoint
                if (_known_sha256(path) or compute_sha256(path)) == entry.sha256:
                    return path
    return None


def present_files(entry: ModelEntry) -> list[Path]:
    """The files on this machine that claim to be the checkpoint of `entry`, right or wrong; no partial."""
    places = [checkpoint_path(entry)]
    if isinstance(entry, RemoteEntry):
        places.append(torch_hub_path(entry))
    return [path for path in places if file_size(path)]


@dataclasses.dataclass(frozen=True)
class CheckpointState:
    """What is known about a checkpoint without reading it.

    `damaged`: a wrong size or SHA256.
    `unverified`: the right size, the SHA256 not computed since the file was changed.
    """

    kind: Literal["shipped", "verified", "unverified", "damaged", "partial", "missing"]
    path: Path
    bytes_done: int


def checkpoint_state(entry: ModelEntry) -> CheckpointState:
    """Looks at the disk, at most at a few hundred bytes of it."""
    path = checkpoint_path(entry)
    if not isinstance(entry, RemoteEntry):
        size = file_size(path)
        return CheckpointState("shipped" if size else "missing", path, size)
    states = [_file_state(entry, present) for present in present_files(entry)]
    for state in states:
        if state.kind != "damaged":
            return state
    if size := file_size(partial_path(entry)):
        return CheckpointState("partial", partial_path(entry), size)
    return states[0] if states else CheckpointState("missing", path, 0)


def _file_state(entry: RemoteEntry, path: Path) -> CheckpointState:
    size, known = file_size(path), _known_sha256(path)
    if size != entry.size_bytes or known not in (None, entry.sha256):
        return CheckpointState("damaged", path, size)
    return CheckpointState("verified" if known else "unverified", path, size)


def compute_sha256(path: Path) -> str:
    """Read the whole file at `path`, remember its SHA256 and return it. Raises OSError."""
    before = _fingerprint(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if _fingerprint(path) == before:
        _record(path, (*before, digest))
    return digest


def remember_sha256(path: Path, digest: str) -> None:
    """Remember `digest`, just computed, as that of the file at `path`."""
    with contextlib.suppress(OSError):
        _record(path, (*_fingerprint(path), digest))


def forget_sha256(path: Path) -> None:
    """Drop what is remembered of the file at `path`."""
    _record(path, None)


def write_atomically(path: Path, content: str) -> None:
    """Write `path` so that a reader sees the old content or the new one, nothing between. Raises OSError."""
    # a name of its own: several may write at once, and the last one to rename wins
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    for left in path.parent.glob(f"{path.name}.*.tmp"):  # by processes that were killed
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _WRITING_AT_MOST_S:
                left.unlink()


# size in bytes, modification and change time in ns, SHA256
_Record = tuple[int, int, int, str]


def _fingerprint(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    # The change time too: tools set the modification time of what they copy or restore.
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _records_path() -> Path:
    return checkpoints_dir() / "sha256.json"


def _records() -> dict[str, _Record]:
    try:
        content = json.loads(_records_path().read_text(encoding="utf-8"))
        return {str(path): (int(a), int(b), int(c), str(digest)) for path, (a, b, c, digest) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # unreadable or damaged: every file is computed anew


def _known_sha256(path: Path) -> str | None:
    record = _records().get(str(path))
    try:
        return record[3] if record and record[:3] == _fingerprint(path) else None
    except OSError:
        return None


def _record(path: Path, record: _Record | None) -> None:
    # Two processes may lose an entry of each other here. It costs a computation, so no lock is held.
    records = _records()
    if records.pop(str(path), None) is None and record is None:
        return
    if record is not None:
        records[str(path)] = record
    with contextlib.suppress(OSError):
        make_checkpoints_dir()
        write_atomically(_records_path(), json.dumps(records))
