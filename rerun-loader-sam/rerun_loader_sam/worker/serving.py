"""What the worker does for one loader: from its order to the last frame."""

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping

from rerun_loader_sam.claims import claim
from rerun_loader_sam.command import parse
from rerun_loader_sam.errors import UserError, describe
from rerun_loader_sam.loader import ERROR, NOT_MINE
from rerun_loader_sam.protocol import Request
from rerun_loader_sam.settings import Settings
from rerun_loader_sam.worker.connection import Connection, GoneError
from rerun_loader_sam.worker.drawing import DrawingPlace
from rerun_loader_sam.worker.engine_queue import EngineQueue, QueuedSegmenter
from rerun_loader_sam.worker.order import SegmentOrder, parse_segment_order

_log = logging.getLogger(__name__)

# What an SDK that frees nothing keeps of each recording is the size of its images.
_MAX_KEPT_RECORDINGS = 20


class Serving:
    """Serves loaders, each in a thread of its own.

    leave: called with the reason why this worker should make room for another.
    """

    def __init__(
        self, settings: Settings, identity: dict[str, str], engine: EngineQueue, leave: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._engine = engine
        self._leave = leave
        self._drawing = DrawingPlace()
        self._running: dict[Connection, str] = {}
        self._lock = threading.Lock()
        self._served_count = 0
        self._kept_count = 0
        self._started_s = time.monotonic()

    def segment(self, connection: Connection, header: Mapping[str, object]) -> None:
        """Do what the order asks for. Raises WireError where it is none, GoneError where nobody waits any more."""
        order = parse_segment_order(header)
        if order.identity != self._identity:
            self._make_room(connection, "a loader of another installation came")
            return
        try:
            settings = order.settings()
        except UserError as error:
            _end(connection, ERROR, str(error))
            return
        if settings != self._settings:
            self._make_room(connection, "a loader with other settings came")
            return
        try:
            command = parse(order.arguments)
        except SystemExit:  # wrong usage, or --help: what argparse prints must come from the loader
            connection.send({"is": "yours"})
            return
        if (command.save is None) != (order.part is None):
            connection.send({"is": "yours"})
            return
        connection.send({"is": "taken"})
        request = dataclasses.replace(command.request, cwd=order.cwd)
        if command.ignored:
            connection.send({"is": "log", "text": command.ignored, "level": "INFO"})
        with self._lock:
            self._running[connection] = str(request.location)
        self._engine.begin_showing(connection)
        try:
            exit_code, message = self._run(connection, order, request)
        except (GoneError, Exception) as error:
            if order.part is not None:
                order.part.unlink(missing_ok=True)
            if isinstance(error, GoneError):
                raise
            if not isinstance(error, UserError):
                _log.exception("%s", request.location)
            exit_code, message = ERROR, describe(error)
        finally:
            self._engine.end_showing(connection)
            with self._lock:
                del self._running[connection]
                self._served_count += 1
        # Last, so that nothing is said to be in hand whose loader has ended.
        _end(connection, exit_code, message)

    def finish(self) -> None:
        """Free what was needed for a request; called when nothing of it is referred to any more."""
        from rerun_loader_sam.recording.stream import release_finished

        if not release_finished():
            self._kept_count += 1
            if self._kept_count == _MAX_KEPT_RECORDINGS:
                self._leave(f"{_MAX_KEPT_RECORDINGS} recordings are kept in memory by this version of the Rerun SDK")

    def cancel_all(self, message: str) -> None:
        """End all work; the loaders say `message`."""
        with self._lock:
            running = list(self._running)
        for connection in running:
            connection.cancel(message)

    def status(self) -> dict[str, object]:
        """What `rerun-sam worker status` shows."""
        loaded = self._engine.loaded
        with self._lock:
            running = list(self._running.values())
        return {
            "is": "status",
            "pid": os.getpid(),
            "version": self._identity["version"],
            "model": loaded.chosen.name if loaded else None,
            "device": loaded.device if loaded else None,
            "running": running,
            "waiting_count": self._engine.waiting_count,
            "served_count": self._served_count,
            "uptime_s": time.monotonic() - self._started_s,
        }

    def _make_room(self, connection: Connection, reason: str) -> None:
        self._leave(reason)
        connection.send({"is": "leaving"})

    def _run(self, connection: Connection, order: SegmentOrder, request: Request) -> tuple[int, str]:
        """Returns the exit code of the loader, and what it says."""
        left_out: frozenset[str] = frozenset()
        if request.recording_id is not None:
            claimed = claim(order.program, request.location, request.recording_id, order.process)
            if claimed is None:
                return NOT_MINE, ""
            left_out = claimed
        # Rerun takes a good part of a second to import: the loader knows by now that its order is in good hands.
        from rerun_loader_sam.job import Job
        from rerun_loader_sam.results import ResultCache

        drawing = self._drawing.for_request()

        def send(content: bytes) -> None:
            connection.send({"is": "rrd"}, content, drawing.give_up)

        def look_up() -> None:
            if connection.is_cancelled:
                raise GoneError

        def report(text: str, level: str) -> None:
            look_up()
            if order.is_watched:
                connection.send({"is": "log", "text": text, "level": level})

        segmenter = QueuedSegmenter(self._engine, connection)
        results = ResultCache(self._settings) if self._settings.cache_mib else None
        target = order.part or send
        job = Job(
            request,
            self._settings,
            segmenter,
            target,
            report,
            drawing=drawing.take,
            results=results,
            environ=order.environ,
            look_up=look_up,
        )
        job.run(left_out)
        return 0, ""


def _end(connection: Connection, exit_code: int, message: str) -> None:
    connection.send({"is": "end", "exit_code": exit_code, "message": message})
