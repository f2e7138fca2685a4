"""`rerun-loader-sam -`: an image from standard input, in a file as long as it takes. Standard library only."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rerun_loader_sam.loader import ERROR, INTERRUPTED, USAGE, say
from rerun_loader_sam.sniff import OTHER, kind_of

_CHUNK_BYTES = 1 << 20
_MAX_BYTES = 4 << 30


class _NoImageError(Exception):
    """What comes through standard input is none; the message says why."""


def run_piped(arguments: Sequence[str]) -> int:
    """Run the loader with a command line in which `-` stands for the image; returns its exit code."""
    if os.isatty(0):
        say("standard input is a terminal: pipe an image into it, or give the path of one")
        return USAGE
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        with tempfile.TemporaryDirectory(prefix="rerun-loader-sam-") as folder:
            path = Path(folder) / "stdin"
            _keep(path)
            return _load([str(path) if argument == "-" else argument for argument in arguments])
    except _NoImageError as error:
        say(f"standard input {error}; nothing was segmented")
    except OSError as error:
        say(f"standard input cannot be kept in {tempfile.gettempdir()}: {error.strerror or error}; set TMPDIR")
    except KeyboardInterrupt:
        return INTERRUPTED
    return ERROR


def _keep(path: Path) -> None:
    """Write what comes to a file. Raises _NoImageError as soon as it can be no image."""
    with os.fdopen(0, "rb", closefd=False) as source, path.open("xb") as file:
        size_bytes = file.write(source.read(_CHUNK_BYTES))
        file.flush()
        if kind_of(str(path)) == OTHER:
            raise _NoImageError("holds no image")
        while chunk := source.read(_CHUNK_BYTES):
            size_bytes += file.write(chunk)
            if size_bytes > _MAX_BYTES:
                raise _NoImageError(f"holds more than {_MAX_BYTES >> 30} GiB")


def _load(arguments: list[str]) -> int:
    process = subprocess.Popen([sys.executable, "-P", "-m", "rerun_loader_sam.loader", *arguments])
    # The terminal sends it to the loader too, and the file is to go when that one has ended.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = process.wait()
    except SystemExit:
        process.terminate()
        process.wait()
        raise
    return code if code >= 0 else 128 - code


def _end(number: int, frame: object) -> None:
    sys.exit(128 + number)
