"""Fetching a checkpoint into the user's cache: over HTTPS, resumable, checked, one process at a time.

The bytes are collected in a file of its own. Only one with the right size and SHA256 is renamed to the
checkpoint: whatever goes wrong, there is never a broken checkpoint in place and never a lost good one.
"""

import dataclasses
import errno
import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.models import store
from rerun_loader_sam.models.lock import fetch_lock
from rerun_loader_sam.models.registry import RemoteEntry
from rerun_loader_sam.models.transfer import (
    Partial,
    TransferInterruptedError,
    TransferRefusedError,
    https_session,
    transfer,
)

if TYPE_CHECKING:
    import requests

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes that there will be."""
Say = Callable[[str], None]
"""Called with a line for a person: a wait, a retry."""

RETRY_DELAYS_S = (1.0, 2.0, 4.0, 8.0)
"""Waits after failures in a row, in seconds; one failure more and the download has failed."""

_SPARE_BYTES = 64 << 20  # a download must not fill the disk to the last byte
_REAL_PROGRESS_BYTES = 1 << 20
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def fetch(
    entry: RemoteEntry,
    progress: Progress = lambda done_bytes, total_bytes: None,
    say: Say = lambda line: None,
    retry_delays_s: Sequence[float] = RETRY_DELAYS_S,
) -> Path:
    """Return the checkpoint of `entry`, downloaded unless a right one is on this machine.

    Waits for another process that is fetching the same, and reports that one's progress meanwhile.
    An interrupted download goes on where it stopped, at the next call or in another process.
    Proxies and certificates are those of the environment (HTTPS_PROXY, NO_PROXY, REQUESTS_CA_BUNDLE,
    SSL_CERT_FILE). Raises UserError: no HTTPS, no room, no network, another size or SHA256.
    """
    if not entry.url.lower().startswith("https://"):
        raise UserError(f"{entry.url} is not HTTPS; checkpoints are fetched by HTTPS only")
    if found := store.find_checkpoint(entry):
        return found
    store.make_checkpoints_dir()
    say_once = [f"{entry.name} is being fetched by another process; waiting for it"]

    def while_waiting() -> None:
        if say_once:
            say(say_once.pop())
        progress(store.file_size(store.partial_path(entry)), entry.size_bytes)

    with fetch_lock(entry, while_waiting):
        # whoever held the lock before may have brought it
        if found := store.find_checkpoint(entry):
            return found
        _Download(entry, Partial(store.partial_path(entry)), progress, say).run(retry_delays_s)
    return store.checkpoint_path(entry)


def said_by_tenths(entry: RemoteEntry, say: Say) -> Progress:
    """Progress as lines, one for each tenth of the file: for a log."""
    next_percent = 0

    def progress(done_bytes: int, total_bytes: int) -> None:
        nonlocal next_percent
        percent = 100 * done_bytes // total_bytes
        if percent >= next_percent:
            next_percent = percent - percent % 10 + 10
            say(f"{entry.name}: {percent} % of {_mb(total_bytes)}")

    return progress


def remove(entry: RemoteEntry) -> int:
    """Remove the checkpoint of `entry` and its unfinished download; returns the bytes that this freed.

    Raises UserError while a process is fetching it.
    """

    def refuse() -> None:
        raise UserError(f"{entry.name} is being fetched by another process; nothing was removed, end that first")

    if not store.checkpoints_dir().is_dir():
        return 0
    path, partial = store.checkpoint_path(entry), Partial(store.partial_path(entry))
    with fetch_lock(entry, refuse):
        freed = store.file_size(path) + partial.size()
        try:
            path.unlink(missing_ok=True)
            partial.drop()
        except OSError as error:
            raise UserError(f"{path} cannot be removed: {error.strerror or error}") from error
        store.forget_sha256(path)
    return freed


@dataclasses.dataclass(frozen=True)
class _Download:
    """One download. The lock is held as long as it lives."""

    entry: RemoteEntry
    partial: Partial
    progress: Progress
    say: Say

    def run(self, retry_delays_s: Sequence[float]) -> None:
        """Collect the whole file, check it, put it in its place."""
        try:
            digest = self._collect_and_digest(retry_delays_s)
            if digest != self.entry.sha256:
                self.partial.drop()
                raise UserError(
                    f"{self.entry.url} is not the checkpoint {self.entry.name}: its SHA256 is {digest}, "
                    f"expected {self.entry.sha256}; the download was removed, check the server or the proxy "
                    "and try again"
                )
            self.partial.renamed(store.checkpoint_path(self.entry))
        except TransferRefusedError as error:
            raise self._error(str(error)) from error
        except OSError as error:
            raise self._disk_error(error) from error
        store.remember_sha256(store.checkpoint_path(self.entry), digest)

    def _collect_and_digest(self, retry_delays_s: Sequence[float]) -> str:
        with https_session() as session:
            is_one_piece = self._collect(session, retry_delays_s)
            digest = self._sha256()
            if digest != self.entry.sha256 and not is_one_piece:
                # the pieces may be of two versions of the file, or of two mirrors
                self.say(f"{self.entry.name}: the resumed file has a wrong SHA256; starting from the beginning")
                self.partial.drop()
                self._collect(session, retry_delays_s)
                digest = self._sha256()
        return digest

    def _collect(self, session: "requests.Session", retry_delays_s: Sequence[float]) -> bool:
        """Complete the partial over as many connections as it takes; whether one brought the whole."""
        failures = 0
        while True:
            before = self.partial.size()
            self._require_space(self.entry.size_bytes - before)
            try:
                return transfer(session, self.entry.url, self.entry.size_bytes, self.partial, self.progress)
            except TransferInterruptedError as stop:
                has_moved = self.partial.size() - before >= _REAL_PROGRESS_BYTES
                failures = 1 if has_moved else failures + 1
                if failures > len(retry_delays_s):
                    raise TransferRefusedError(f"{stop} ({failures} attempts)") from stop
                delay_s = retry_delays_s[failures - 1]
                self.say(f"{self.entry.name}: {stop}; trying again in {delay_s:g} s")
                time.sleep(delay_s)

    def _sha256(self) -> str:
        with self.partial.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _require_space(self, missing_bytes: int) -> None:
        folder = self.partial.path.parent
        usage = shutil.disk_usage(folder)
        needed = missing_bytes + _SPARE_BYTES
        if usage.total and usage.free < needed:  # some network file systems report 0 of 0
            raise UserError(
                f"{self.entry.name} needs {_mb(needed)} more in {folder}, {_mb(usage.free)} are free; "
                "it was not fetched, make room or set XDG_CACHE_HOME to a folder on a larger disk"
            )

    def _disk_error(self, error: OSError) -> UserError:
        if error.errno not in _DISK_FULL:
            return self._error(f"{error.filename or self.partial.path}: {error.strerror or error}")
        # Keeping it would leave a full disk, for the sake of a file that nobody may have asked for.
        taken = self.partial.size()
        self.partial.drop()
        return UserError(
            f"{self.entry.name} was not fetched: no room for {self.partial.path} after {_mb(taken)} of "
            f"{_mb(self.entry.size_bytes)} ({error.strerror}); the unfinished file was removed, "
            "make room or set XDG_CACHE_HOME to a folder on a larger disk"
        )

    def _error(self, reason: str) -> UserError:
        """`reason` with what became of the download."""
        kept = self.partial.size()
        then = f"{_mb(kept)} of {_mb(self.entry.size_bytes)} are kept, " if kept else ""
        return UserError(
            f"{self.entry.name} was not fetched from {self.entry.url}: {reason}; "
            f"{then}`rerun-sam models fetch {self.entry.name}` {'goes on there' if kept else 'tries again'}"
        )


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
