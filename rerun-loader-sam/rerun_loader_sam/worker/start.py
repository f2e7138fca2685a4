"""Starting the worker: once, however many loaders want it at the same instant."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rerun_loader_sam.allocator import engine_env
from rerun_loader_sam.errors import UserError
from rerun_loader_sam.folders import cache_dir, ensure_private, runtime_dir
from rerun_loader_sam.worker.address import socket_path
from rerun_loader_sam.worker.client import WorkerError, connect

_START_TIMEOUT_S = 60.0
_MAX_LOG_BYTES = 1 << 20


def log_path() -> Path:
    """What the worker, and the libraries in it, print."""
    return cache_dir() / "worker.log"


def lock_path() -> Path:
    """Locked by the worker as long as it takes work; holds its process id."""
    return runtime_dir() / "worker.lock"


def start_worker() -> socket.socket:
    """A connection to the worker, which is started unless another process was faster.

    Raises WorkerError where it does not start.
    """
    try:
        ensure_private(runtime_dir())
        ensure_private(Path(socket_path()).parent)
        ensure_private(cache_dir())
        with start_lock() as lock:
            return connect() or _spawn(lock)
    except (UserError, OSError) as error:
        raise WorkerError(str(error)) from error


def _spawn(lock: IO[bytes]) -> socket.socket:
    environ = {
        # One heap for all threads: what one has freed serves the others, so that it need not grow.
        "MALLOC_ARENA_MAX": "1",
        # Torch's threads wait for one another asleep: on a core that another program uses too, one that waits awake
        # takes its time from the one that it waits for, and an image takes ten times as long.
        "OMP_WAIT_POLICY": "PASSIVE",
        **engine_env(os.environ),
    }
    environ.pop("RERUN", None)  # it would switch logging off
    with _open_log() as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rerun_loader_sam.worker.server", str(lock.fileno())],
            # It holds the lock too until it can be reached, should this process be killed before.
            pass_fds=[lock.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environ,
            start_new_session=True,  # neither a signal for the viewer's process group nor its terminal reaches it
        )
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        code = process.poll()  # before the attempt: one that ends because another runs leaves that one to connect to
        if sock := connect():
            # It outlives this process, and is no child to wait for.
            process.returncode = 0
            return sock
        if code is not None:
            raise WorkerError(f"the background worker ended at once with {code}, see {log_path()}")
        time.sleep(0.005)
    raise WorkerError(f"the background worker did not answer within {_START_TIMEOUT_S:.0f} s, see {log_path()}")


def _open_log() -> IO[bytes]:
    path = log_path()
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > _MAX_LOG_BYTES:
            path.unlink()
    return path.open("ab")


@contextlib.contextmanager
def start_lock() -> Iterator[IO[bytes]]:
    """Hold the right to start a worker; the kernel gives back the lock of a process that dies."""
    import fcntl

    with (runtime_dir() / "worker.start").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
