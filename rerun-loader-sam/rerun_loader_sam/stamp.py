"""Telling whether a file has changed. Standard library only."""

from pathlib import Path
from typing import NamedTuple


class FileStamp(NamedTuple):
    """What changes when a file does: by its content, or by another file in its place."""

    size_bytes: int
    modified_ns: int
    inode: int


def file_stamp(path: Path) -> FileStamp:
    """The stamp of the file as it is now. Raises OSError."""
    status = path.stat()
    return FileStamp(status.st_size, status.st_mtime_ns, status.st_ino)
