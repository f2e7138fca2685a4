"""The worker's process: `python -m rerun_loader_sam.worker.server`. Started by loaders, see `start.py`."""

import contextlib
import logging
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import IO

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.folders import ensure_private, runtime_dir
from rerun_loader_sam.segmenter import Segmenter
from rerun_loader_sam.settings import Settings, load_settings
from rerun_loader_sam.turns import machine_turn
from rerun_loader_sam.worker.address import identity, socket_path
from rerun_loader_sam.worker.client import connect
from rerun_loader_sam.worker.connection import Connection, GoneError
from rerun_loader_sam.worker.engine_queue import EngineQueue
from rerun_loader_sam.worker.order import with_absolute_model
from rerun_loader_sam.worker.serving import Serving
from rerun_loader_sam.worker.start import lock_path
from rerun_loader_sam.worker.wire import WireError, is_of_this_user

_log = logging.getLogger(__name__)
_BACKLOG = 4096
_LOCK_TIMEOUT_S = 20.0
_TICK_S = 1.0
_FIRST_LOADER_S = 10.0  # the one that started this process is on its way
_MAX_LOG_BYTES = 1 << 20
_STOPPED = "the background worker was stopped (rerun-sam worker stop); open the file again"


class Server:
    """Accepts loaders and notices when they go, in a thread of its own."""

    def __init__(self, settings: Settings, lock: IO[bytes], listener: socket.socket) -> None:
        self._settings = settings
        self._lock_file = lock
        self._listener: socket.socket | None = listener
        self._engine = EngineQueue(Segmenter(settings, machine_turn))
        self._serving = Serving(settings, identity(), self._engine, self.leave)
        self._lock = threading.Lock()
        self._active_count = 0
        self._idle_since_s = time.monotonic() + _FIRST_LOADER_S
        self._watched: dict[int, Connection] = {}
        self._poll = select.poll()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)

    def run(self) -> None:
        """Serve until there is nothing to do any more; for the main thread."""
        threading.Thread(target=self._accept, name="accept", daemon=True).start()
        self._engine.run()

    def leave(self, reason: str) -> None:
        """Take no more work, finish what there is, then end. Another worker can start at once."""
        with self._lock:
            listener, self._listener = self._listener, None
            if listener is None:
                return
            _log.info("leaving: %s", reason)
            # In this order: whoever has the lock may remove the socket's file, and no other's.
            Path(socket_path()).unlink(missing_ok=True)
            # Loaders that were not accepted yet see the connection end, and ask the next worker.
            listener.close()
            self._lock_file.close()
        self._wake_sender.send(b"x")

    def _accept(self) -> None:
        try:
            self._accept_all()
        except BaseException:
            # Without this thread nobody is served, and nobody else could start a worker that does.
            _log.exception("while accepting")
            os._exit(1)

    def _accept_all(self) -> None:
        listener = self._listener
        if listener is None:
            return
        listener_fd = listener.fileno()
        self._poll.register(listener_fd, select.POLLIN)
        self._poll.register(self._wake_receiver, select.POLLIN)
        while True:
            for fd, _ in self._poll.poll(_TICK_S * 1000):
                if fd == self._wake_receiver.fileno():
                    with contextlib.suppress(BlockingIOError):
                        self._wake_receiver.recv(4096)
                elif fd == listener_fd:
                    self._accept_one(listener)
                else:
                    self._lost(fd)
            self._look_after(listener_fd)

    def _look_after(self, listener_fd: int) -> None:
        """What is to be done now and then: leave when idle, end when nothing is left, keep the log small."""
        if self._listener is None:
            with contextlib.suppress(KeyError):
                self._poll.unregister(listener_fd)
        with self._lock:
            is_idle = self._active_count == 0
            idle_s = time.monotonic() - self._idle_since_s
        if is_idle and self._listener is None:
            self._engine.stop()
        elif is_idle and idle_s >= self._settings.worker_idle_s:
            self.leave(f"idle for {idle_s:.0f} s")
        if os.fstat(2).st_size > _MAX_LOG_BYTES:
            os.ftruncate(2, 0)

    def _accept_one(self, listener: socket.socket) -> None:
        with self._lock:
            if self._listener is None:
                return
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # too many open files: those that wait are accepted later
                _log.warning("cannot accept: %s", error)
                time.sleep(0.1)
                return
            self._active_count += 1
        try:
            threading.Thread(target=self._serve, args=(Connection(sock),), name="request", daemon=True).start()
        except RuntimeError as error:  # too many threads, or no memory for one: who asked does without a worker
            _log.warning("cannot serve: %s", error)
            sock.close()
            with self._lock:
                self._active_count -= 1

    def _serve(self, connection: Connection) -> None:
        is_work = False
        try:
            if is_of_this_user(connection.sock):
                header = connection.receive_order()
                is_work = header.get("do") == "segment"
                self._answer(connection, header)
        except GoneError:
            connection.say_goodbye()
            _log.info("the work for a loader was cancelled")
        except WireError as error:
            _log.warning("a malformed message: %s", error)
        except Exception:
            _log.exception("while serving")
        finally:
            self._forget(connection)
            connection.sock.close()
            try:
                if "rerun" in sys.modules:
                    self._serving.finish()
            finally:
                with self._lock:
                    self._active_count -= 1
                    if is_work:
                        self._idle_since_s = time.monotonic()
                self._wake_sender.send(b"x")

    def _answer(self, connection: Connection, header: dict[str, object]) -> None:
        match header.get("do"):
            case "segment":
                self._watch(connection)
                self._serving.segment(connection, header)
            case "status":
                with self._lock:
                    idle_s = max(time.monotonic() - self._idle_since_s, 0.0) if self._active_count == 1 else 0.0
                connection.send(self._serving.status() | {"idle_s": idle_s})
            case "stop":
                self.leave("told to stop")
                self._serving.cancel_all(_STOPPED)
                connection.send({"is": "stopping"})
                self._end_soon()
            case other:
                raise WireError(f"nobody can do {other!r}")

    def _end_soon(self) -> None:
        """End when all loaders have been told, or after a moment: a model that is being loaded waits for nobody."""
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline and self._active_count > 1:
            time.sleep(0.01)
        os._exit(0)

    def _watch(self, connection: Connection) -> None:
        with self._lock:
            self._watched[connection.sock.fileno()] = connection
            # A loader sends nothing after its order: whatever comes is the end.
            self._poll.register(connection.sock, select.POLLIN)
        self._wake_sender.send(b"x")

    def _forget(self, connection: Connection) -> None:
        with self._lock:
            if self._watched.pop(connection.sock.fileno(), None):
                self._poll.unregister(connection.sock)

    def _lost(self, fd: int) -> None:
        with self._lock:
            connection = self._watched.pop(fd, None)
            if connection is None:
                return
            check = select.poll()
            check.register(fd, select.POLLIN)
            if not check.poll(0):
                self._watched[fd] = connection  # the news were of an earlier connection of the same number
                return
            self._poll.unregister(fd)
        connection.cancel()


def main(arguments: list[str]) -> int:
    """Run the worker of this user, unless there is one; returns the exit code.

    The one argument is the file descriptor of the lock under which it is started.
    """
    start_lock_fd = int(arguments[0])
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format=f"%(asctime)s [{os.getpid()}] %(levelname)s %(message)s"
    )
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        settings = with_absolute_model(load_settings(), Path.cwd())
        ensure_private(runtime_dir())
        ensure_private(Path(socket_path()).parent)
    except UserError as error:
        _log.error("%s", error)
        return 1
    os.chdir(os.sep)  # the folder of whoever started this may be on a disk that is to be unmounted
    lock = _lock()
    if lock is None:
        return 0
    _raise_file_limit()
    Path(socket_path()).unlink(missing_ok=True)  # of a worker that was killed
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.umask(0o077)
    listener.bind(socket_path())
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    os.close(start_lock_fd)
    _log.info("started")
    Server(settings, lock, listener).run()
    _log.info("ended")
    logging.shutdown()
    os._exit(0)  # torch takes its time to tidy up what the system frees anyway


def _lock() -> IO[bytes] | None:
    """The lock of this user's worker; None where another worker has it and answers."""
    import fcntl

    file = lock_path().open("a+b")
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            other = connect()
            if other is not None or time.monotonic() > deadline:
                if other is not None:
                    other.close()
                file.close()
                return None
            time.sleep(0.01)  # it is about to leave
    file.truncate(0)
    file.write(str(os.getpid()).encode())
    file.flush()
    return file


def _raise_file_limit() -> None:
    """A viewer may open a thousand files at once, and each is a connection."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
