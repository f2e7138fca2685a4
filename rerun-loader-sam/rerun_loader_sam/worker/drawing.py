"""One image at a time becomes bytes, so that any number of requests takes the memory of one."""

import contextlib
import threading
from collections.abc import Iterator


class DrawingPlace:
    """A place that one request at a time has."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def for_request(self) -> "RequestDrawing":
        """The place from the view of one request, which has a thread of its own."""
        return RequestDrawing(self._lock)


class RequestDrawing:
    """Takes the place, and gives it up early where the viewer does not take the bytes: others need not wait."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._has_place = False

    @contextlib.contextmanager
    def take(self) -> Iterator[None]:
        """Hold the place; waits for it."""
        self._lock.acquire()
        self._has_place = True
        try:
            yield
        finally:
            self.give_up()

    def give_up(self) -> None:
        """Let the next one go first, if this one is still at its place."""
        if self._has_place:
            self._has_place = False
            self._lock.release()
