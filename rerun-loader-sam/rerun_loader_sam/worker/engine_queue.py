"""The worker's one place where images are segmented: a queue, and the main thread that works it off."""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Generator
from typing import TYPE_CHECKING

from rerun_loader_sam.segmenter import LoadedModel, Preview, ReadImage, Segmenter
from rerun_loader_sam.worker.connection import Connection, GoneError

if TYPE_CHECKING:
    from rerun_loader_sam.engine.generator import Progress

_INTERRUPT = signal.SIGUSR1
_NICENESS = 5
_KEEP_MEMORY_S = 5.0
_QUIET_S = 0.2
_QUIET_AT_MOST_S = 5.0


class _Task:
    """One image. `events` holds what the segmenter yields, then None or what it raised."""

    def __init__(self, read_rgb: ReadImage, *, with_preview: bool) -> None:
        self.read_rgb = read_rgb
        self.with_preview = with_preview
        self.events: queue.SimpleQueue[LoadedModel | Preview | Progress | BaseException | None] = queue.SimpleQueue()
        self.is_cancelled = False


class EngineQueue:
    """Segments images in the order in which they were put in, one at a time.

    The images of a folder come one after the other, each when the one before is done: a single image that
    comes meanwhile waits for one of them, not for the folder.

    It runs in the main thread: only there a signal interrupts what takes long, and only there, with glibc,
    large blocks of memory come from a heap that is kept.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter
        self._waiting: deque[_Task] = deque()
        self._changed = threading.Condition()
        self._current: _Task | None = None
        self._is_interruptible = False
        self._is_stopped = False
        self._shown_s = 0.0
        self._showing: set[Connection] = set()
        self._next: Connection | None = None

    def is_free_for(self, connection: Connection) -> bool:
        """Whether an image of this loader that is put in now is segmented at once; only one loader is told so."""
        with self._changed:
            is_free = self._current is None and not self._waiting and self._next in (None, connection)
            if is_free:
                self._next = connection
            return is_free

    @property
    def waiting_count(self) -> int:
        """How many images wait behind the one that is being segmented."""
        return len(self._waiting)

    @property
    def loaded(self) -> LoadedModel | None:
        """The model in memory."""
        return self._segmenter.loaded

    def run(self) -> None:
        """Work until `stop`; for the main thread."""
        signal.signal(_INTERRUPT, self._interrupted)
        signal.siginterrupt(_INTERRUPT, False)  # libraries need not know of it
        while True:
            with contextlib.suppress(GoneError):  # the signal came as its task was done
                with self._changed:
                    self._current, self._is_interruptible = None, False
                    if not self._changed.wait_for(lambda: self._waiting or self._is_stopped, _KEEP_MEMORY_S):
                        give_back_memory()
                        self._changed.wait_for(lambda: self._waiting or self._is_stopped)
                    if self._is_stopped:
                        return
                if self._segmenter.loaded is None:
                    self._let_images_pass()
                with self._changed:
                    if not self._waiting:
                        continue
                    self._current = self._waiting.popleft()
                self._work(self._current)

    def stop(self) -> None:
        """Let `run` return when the image it is at is done."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def begin_showing(self, connection: Connection) -> None:
        """An image of this loader is on its way to the viewer."""
        with self._changed:
            self._showing.add(connection)

    def end_showing(self, connection: Connection) -> None:
        """It has arrived, or never will."""
        with self._changed:
            self._showing.discard(connection)
            if self._next is connection:
                self._next = None
            self._shown_s = time.monotonic()
            self._changed.notify_all()

    def put(self, task: _Task) -> None:
        """Append to the queue."""
        with self._changed:
            self._waiting.append(task)
            self._changed.notify_all()

    def cancel(self, task: _Task) -> None:
        """Take the task out of the queue, or interrupt it; who waits for its events gets GoneError."""
        with self._changed:
            if task.is_cancelled:
                return
            task.is_cancelled = True
            if task in self._waiting:
                self._waiting.remove(task)
        task.events.put(GoneError())
        if task is self._current:
            signal.pthread_kill(threading.main_thread().ident or 0, _INTERRUPT)

    def _let_images_pass(self) -> None:
        """Before the first model is loaded, wait until files that were opened together are all shown.

        The import of torch keeps the interpreter busy for seconds, and a viewer opens them one after the other.
        """
        deadline = time.monotonic() + _QUIET_AT_MOST_S
        with self._changed:
            while (now := time.monotonic()) < deadline:
                quiet_s = now - self._shown_s
                if not self._showing and quiet_s >= _QUIET_S:
                    return
                self._changed.wait(min(deadline - now, _QUIET_S))

    def _work(self, task: _Task) -> None:
        outcome: BaseException | None = None
        is_first = self._segmenter.loaded is None
        events = self._segmenter.stream(task.read_rgb, with_preview=task.with_preview)
        try:
            for event in events:
                # The first event is the loaded model. What happens before, the import of torch for one, must
                # not be interrupted in the middle, and serves the next image too.
                if is_first and sys.platform == "linux":
                    # There it is a thread's own, and is inherited by those that it starts from here on. Not
                    # earlier: whoever shows an image would wait for a slow import's turn at the interpreter.
                    os.nice(_NICENESS)
                    is_first = False
                self._is_interruptible = True
                if task.is_cancelled:
                    break
                task.events.put(event)
        except BaseException as error:  # whatever it is, it belongs to who asked
            outcome = error
        finally:
            self._is_interruptible = False
            events.close()
            task.events.put(outcome)

    def _interrupted(self, number: int, frame: object) -> None:
        task = self._current
        if task is not None and task.is_cancelled and self._is_interruptible:
            raise GoneError


def give_back_memory() -> None:
    """Return to the system what is free; see `allocator` for why the C library does not do so by itself."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
        if trim is not None:
            trim(0)


class QueuedSegmenter:
    """What a job of the worker has for a `Segmenter`: the queue, on behalf of one loader."""

    def __init__(self, engine: EngineQueue, connection: Connection) -> None:
        self._engine = engine
        self._connection = connection

    @property
    def is_free(self) -> bool:
        """See `EngineQueue.is_free_for`."""
        return self._engine.is_free_for(self._connection)

    def stream(self, read_rgb: ReadImage, *, with_preview: bool) -> Generator[LoadedModel | Preview | Progress]:
        """See `Segmenter.stream`. Raises GoneError as soon as the loader is gone."""
        task = _Task(read_rgb, with_preview=with_preview)
        with self._connection.on_cancel(lambda: self._engine.cancel(task)):
            self._engine.put(task)
            self._engine.end_showing(self._connection)
            try:
                while (event := task.events.get()) is not None:
                    if isinstance(event, BaseException):
                        raise event
                    yield event
            finally:
                self._engine.cancel(task)  # one that is done does not notice
