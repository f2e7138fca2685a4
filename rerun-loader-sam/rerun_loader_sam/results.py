"""The masks of images that were segmented before: a bounded SQLite file. Knows numpy, neither torch nor Rerun."""

import contextlib
import dataclasses
import hashlib
import json
import sqlite3
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rerun_loader_sam import __version__
from rerun_loader_sam.errors import UserError
from rerun_loader_sam.folders import cache_dir, ensure_private
from rerun_loader_sam.masks import Mask
from rerun_loader_sam.models.choose import choose_model
from rerun_loader_sam.segmenter import LoadedModel
from rerun_loader_sam.settings import Settings
from rerun_loader_sam.sniff import open_regular
from rerun_loader_sam.stamp import FileStamp, file_stamp

_FORMAT = 1
_BUSY_TIMEOUT_S = 2.0
_HEADER_LENGTH_BYTES = 4
_SCHEMA = "CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, used_s REAL, value BLOB) WITHOUT ROWID"


@dataclasses.dataclass(frozen=True)
class Result:
    """The masks of an image, best first, and what made them."""

    masks: list[Mask]
    model: LoadedModel
    made_at_s: float
    """Seconds since the epoch."""


def results_path() -> Path:
    """The file of this user's cache."""
    return cache_dir() / "results.sqlite3"


class ResultCache:
    """Finds the masks of an image by the content of its file and the settings.

    Whatever is wrong with the cache, images are segmented without it: nothing here raises. Least recently used
    results make room for new ones. SQLite keeps each whole, or not at all, whichever process dies when.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = results_path()
        self._limit_bytes = int(settings.cache_mib * 2**20)

    def key(self, path: Path, stamp: FileStamp) -> str | None:
        """What the result of the file at `path` is found by; None where it is not the file of `stamp` any more."""
        settings = self._settings
        try:
            with open_regular(path) as file:
                content = hashlib.file_digest(file, "blake2b").hexdigest()
            if file_stamp(path) != stamp:
                return None
        except OSError:
            return None
        parts = [_FORMAT, __version__, content, settings.model, settings.device, settings.strategy]
        parts.append(sorted(settings.generator_overrides().items()))
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def find(self, key: str) -> Result | None:
        """The result of `key`, if the model that made it is the one that would be chosen now."""
        with contextlib.suppress(sqlite3.Error, OSError, UserError):
            if not self._path.exists():
                return None
            with self._connection() as connection:
                row = connection.execute("SELECT value FROM results WHERE key = ?", (key,)).fetchone()
                if row is None:
                    return None
                connection.execute("UPDATE results SET used_s = ? WHERE key = ?", (time.time(), key))
            return _decode(row[0], self._settings)
        return None

    def keep(self, key: str, result: Result) -> None:
        """Remember the result; the oldest make room for it."""
        value = _encode(result)
        if len(value) > self._limit_bytes:
            return
        with contextlib.suppress(sqlite3.Error, OSError, UserError), self._connection() as connection:
            connection.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", (key, time.time(), value))
            (total_bytes,) = connection.execute("SELECT sum(length(value)) FROM results").fetchone()
            rows = connection.execute("SELECT key, length(value) FROM results ORDER BY used_s").fetchall()
            for oldest, length in rows:
                if total_bytes <= self._limit_bytes:
                    break
                connection.execute("DELETE FROM results WHERE key = ?", (oldest,))
                total_bytes -= length

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection in a transaction, which is undone where something raises."""
        ensure_private(self._path.parent)
        try:
            connection = self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # busy, no space, …: no reason to throw it away
                raise
            for suffix in ("", "-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            connection = self._open()
        try:
            with connection:
                yield connection
        finally:
            connection.close()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S)
        try:
            connection.execute("PRAGMA auto_vacuum = FULL")  # of a new file: what is deleted leaves the disk
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(_SCHEMA)
        except BaseException:
            connection.close()
            raise
        return connection


def _encode(result: Result) -> bytes:
    """A JSON header, its length before it, then the run lengths of all masks (uint32, little-endian), deflated."""
    model = result.model
    header = {
        "device": model.device,
        "checkpoint": str(model.chosen.path),
        "stamp": model.stamp,
        "parameters": model.parameters,
        "made_at_s": result.made_at_s,
        "masks": [
            [
                mask.size_hw,
                len(mask.rle_counts),
                mask.bbox_xywh,
                mask.predicted_iou,
                mask.stability_score,
                mask.point_xy,
                mask.crop_box_xywh,
            ]
            for mask in result.masks
        ],
    }
    text = json.dumps(header).encode()
    counts = b"".join(np.asarray(mask.rle_counts, "<u4").tobytes() for mask in result.masks)
    return zlib.compress(len(text).to_bytes(_HEADER_LENGTH_BYTES, "little") + text + counts, level=3)


def _decode(value: bytes, settings: Settings) -> Result | None:
    """The result that `_encode` made bytes of; None where another model would be chosen now."""
    try:
        content = zlib.decompress(value)
        end = _HEADER_LENGTH_BYTES + int.from_bytes(content[:_HEADER_LENGTH_BYTES], "little")
        header = json.loads(content[_HEADER_LENGTH_BYTES:end])
        chosen = choose_model(settings, header["device"])
        stamp = FileStamp(*header["stamp"])
        if str(chosen.path) != header["checkpoint"] or file_stamp(chosen.path) != stamp:
            return None
        counts = np.frombuffer(content, "<u4", offset=end).astype(np.int32)
        masks = []
        start = 0
        for size_hw, n_counts, bbox_xywh, predicted_iou, stability_score, point_xy, crop_box_xywh in header["masks"]:
            rle_counts = counts[start : start + n_counts]
            start += n_counts
            if rle_counts.sum() != size_hw[0] * size_hw[1]:
                return None
            masks.append(
                Mask(
                    tuple(size_hw),
                    rle_counts,
                    tuple(bbox_xywh),
                    int(rle_counts[1::2].sum()),
                    predicted_iou,
                    stability_score,
                    tuple(point_xy),
                    tuple(crop_box_xywh),
                )
            )
        model = LoadedModel(chosen, header["device"], header["parameters"], stamp)
        return Result(masks, model, header["made_at_s"])
    except (ValueError, KeyError, TypeError, zlib.error):  # of another version, or damaged
        return None
