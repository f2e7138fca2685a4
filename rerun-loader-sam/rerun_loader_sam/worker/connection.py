"""One loader as the worker sees it: frames to it, and the news that it is gone."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

from rerun_loader_sam.worker.wire import PREFIX_BYTES, WireError, encode_header, parse_header, parse_prefix

_ORDER_TIMEOUT_S = 10.0
_STALL_S = 1.0
_CHUNK_BYTES = 1 << 20


class GoneError(BaseException):
    """The loader is gone, or its work was cancelled. No Exception: whoever goes on after an error must not here."""


class Connection:
    """Sends frames, each as a whole, from one thread at a time; `cancel` may be called from any."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.is_cancelled = False
        self._message = ""
        self._is_within_frame = False
        self._lock = threading.Lock()
        self._on_cancel: Callable[[], None] | None = None

    def receive_order(self) -> dict[str, object]:
        """The first frame. Raises WireError where what comes is none, or comes too slowly."""
        self.sock.settimeout(_ORDER_TIMEOUT_S)
        try:
            header_bytes, payload_bytes = parse_prefix(self._receive(PREFIX_BYTES))
            if payload_bytes:
                raise WireError("an order has no payload")
            return parse_header(self._receive(header_bytes))
        except OSError as error:
            raise WireError(str(error)) from error

    def send(
        self, header: dict[str, object], payload: bytes = b"", while_stalled: Callable[[], None] | None = None
    ) -> None:
        """Send a frame.

        while_stalled: called each second in which the other end takes nothing.
        Raises GoneError where there is no other end any more.
        """
        if self.is_cancelled:
            raise GoneError
        try:
            self._is_within_frame = True
            for part in (encode_header(header, len(payload)), payload):
                self._send(memoryview(part), while_stalled)
            self._is_within_frame = False
        except OSError as error:
            raise GoneError from error

    def say_goodbye(self) -> None:
        """After GoneError: tell a loader that is still there why its work was cancelled."""
        if self._message and not self._is_within_frame:
            self.is_cancelled = False
            with contextlib.suppress(GoneError):
                self.send({"is": "end", "exit_code": 1, "message": self._message})

    def cancel(self, message: str = "") -> None:
        """Whatever is done for this loader ends with GoneError; it says `message`, if it is still there."""
        with self._lock:
            self.is_cancelled = True
            self._message = message
            if self._on_cancel:
                self._on_cancel()

    @contextlib.contextmanager
    def on_cancel(self, action: Callable[[], None]) -> Iterator[None]:
        """Within, `action` is called, in another thread, as soon as the work is cancelled."""
        with self._lock:
            if self.is_cancelled:
                raise GoneError
            self._on_cancel = action
        try:
            yield
        finally:
            with self._lock:
                self._on_cancel = None

    def _send(self, remaining: memoryview, while_stalled: Callable[[], None] | None) -> None:
        self.sock.settimeout(_STALL_S)
        while remaining:
            if self.is_cancelled:
                raise GoneError
            try:
                remaining = remaining[self.sock.send(remaining[:_CHUNK_BYTES]) :]
            except TimeoutError:
                if while_stalled:
                    while_stalled()

    def _receive(self, count: int) -> bytes:
        content = bytearray()
        while len(content) < count:
            received = self.sock.recv(count - len(content))
            if not received:
                raise WireError("the other end closed the connection")
            content += received
        return bytes(content)
