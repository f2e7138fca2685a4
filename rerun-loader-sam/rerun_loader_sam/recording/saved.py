"""A file that the SDK writes through a pipe, so that a full disk is an error.

Where the SDK (0.41 for one) writes a file itself and cannot, it says so on standard error, and whoever then waits for
what was logged waits for ever.
"""

import os
import threading
from pathlib import Path

from rerun_loader_sam.errors import UserError

_CHUNK_BYTES = 1 << 18


class SavedFile:
    """Writes to the file at `path` what comes through a pipe. Raises OSError where it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb", buffering=0)
        self._reader, self._writer = os.pipe()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._pump, name="save", daemon=True)
        self._thread.start()

    @property
    def pipe(self) -> str:
        """The path by which the SDK opens the pipe."""
        return f"/dev/fd/{self._writer}"

    def hand_over(self) -> None:
        """The SDK has opened the pipe: from here on its closing ends the file."""
        os.close(self._writer)

    def check(self) -> None:
        """Raise UserError where something could not be written."""
        if self._error is not None:
            reason = self._error.strerror or self._error
            raise UserError(f"cannot write into {self._path.parent}: {reason}; nothing was saved") from self._error

    def finish(self) -> None:
        """Wait until the SDK has closed the pipe and all is written. Raises UserError."""
        self._thread.join()
        self.check()

    def _pump(self) -> None:
        with self._file, os.fdopen(self._reader, "rb", buffering=0) as reader:
            while content := reader.read(_CHUNK_BYTES):
                # After an error too: the SDK must not wait for a reader.
                if self._error is None:
                    self._write(content)

    def _write(self, content: bytes) -> None:
        try:
            while content:
                content = content[self._file.write(content) or 0 :]
        except OSError as error:
            self._error = error
