"""Asking the worker how it is, and ending it."""

import contextlib
import os
import signal
import socket
import time

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.folders import runtime_dir
from rerun_loader_sam.processes import is_running
from rerun_loader_sam.worker.client import connect, is_supported
from rerun_loader_sam.worker.start import lock_path, start_lock
from rerun_loader_sam.worker.wire import PREFIX_BYTES, WireError, encode_header, parse_header, parse_prefix

_TIMEOUT_S = 5.0


def worker_status() -> dict[str, object] | None:
    """What the worker of this user does (see `Serving.status`); None where there is none.

    Raises UserError where there is one that does not answer.
    """
    return _ask("status")


def stop_worker() -> int | None:
    """End the worker of this user, at once; returns its process id, or None where there was none.

    Work that it has in hand is lost: the loaders say so. One that does not answer is killed.
    """
    if not is_supported() or not runtime_dir().exists():
        return None
    with start_lock():  # one that is being started is there in a moment
        pid = _holder_of_lock()
    try:
        _ask("stop")
    except UserError:
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _TIMEOUT_S
    while pid is not None and is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return pid


def _ask(what: str) -> dict[str, object] | None:
    sock = connect() if is_supported() else None
    if sock is None:
        return None
    with sock:
        try:
            sock.settimeout(_TIMEOUT_S)
            sock.sendall(encode_header({"do": what}))
            header_bytes, _ = parse_prefix(_receive(sock, PREFIX_BYTES))
            return parse_header(_receive(sock, header_bytes))
        except (EOFError, ConnectionError):  # it ended in this very moment
            return None
        except (OSError, WireError) as error:
            raise UserError(
                f"the background worker does not answer ({error}); `rerun-sam worker stop` ends it"
            ) from error


def _receive(sock: socket.socket, count: int) -> bytes:
    content = b""
    while len(content) < count:
        received = sock.recv(count - len(content))
        if not received:
            raise EOFError
        content += received
    return content


def _holder_of_lock() -> int | None:
    """The process id of the worker that takes work at present, as the lock file tells."""
    import fcntl

    try:
        with lock_path().open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or b"0") or None
    except (FileNotFoundError, ValueError):
        pass
    return None
