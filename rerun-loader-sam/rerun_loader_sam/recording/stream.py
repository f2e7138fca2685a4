"""One recording as a stream of RRD bytes, as a file, or in a viewer that is open."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rerun as rr
import rerun_bindings

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.protocol import Request, Time
from rerun_loader_sam.recording.rrd import RrdJoiner
from rerun_loader_sam.recording.saved import SavedFile

SDK_VERSION = tuple(int(part) for part in re.findall(r"\d+", rr.__version__)[:3])
_MAX_APPLICATION_ID = 180
_IMAGE = "image"  # everything that lies over the image is logged below it
# Pictures and texts elsewhere would each open a view in the person's layout; recording properties do not.
BESIDE = "__properties/segment_anything"


class Recording:
    """Logs to the recording that a request names.

    target: called with RRD bytes, which joined make one stream; or a file to write. Not used where the request
        names a viewer.
    lines: the log so far, where the recording cannot take a text log.
    progress_xy: where over the image the last of them lies, in pixels.
    """

    def __init__(self, request: Request, target: Callable[[bytes], None] | Path) -> None:
        self._is_static = request.is_static
        self._prefix = entity_path_prefix(request)
        self._image_entity = request.image_entity
        self._viewer_url = request.viewer_url
        self.lines: list[str] = []
        self.progress_xy = (0.0, 0.0)
        self._stream = rr.RecordingStream(
            application_id(request),
            recording_id=request.opened_recording_id or request.recording_id,
            default_enabled=True,
            # The properties of a recording that is open already are not ours to set.
            send_properties=not request.is_into_opened,
        )
        self._joiner = RrdJoiner()
        self._file: SavedFile | None = None
        if request.viewer_url is not None:
            rr.connect_grpc(request.viewer_url, recording=self._stream)
            self._bytes = None
        elif isinstance(target, Path):
            # The SDK's own file has a footer, which bytes on their way through a pipe cannot have.
            self._file = SavedFile(target)
            rr.save(self._file.pipe, recording=self._stream)
            self._file.hand_over()
            self._bytes = None
        else:
            self._send = target
            self._bytes = rr.binary_stream(recording=self._stream)
        for time in request.times:
            self._set_time(time)

    @property
    def is_over_image(self) -> bool:
        """Whether the recording holds the image already, and only what belongs over it is to be logged."""
        return self._image_entity is not None

    def path(self, entity_path: str) -> str:
        """Where this recording has `entity_path`: below its prefix, or around the image that is there already."""
        if self._image_entity is not None:
            if entity_path == _IMAGE or entity_path.startswith(f"{_IMAGE}/"):
                return self._image_entity + entity_path.removeprefix(_IMAGE)
            return f"{BESIDE}/{self._image_entity.strip('/')}/{entity_path}"
        return f"{self._prefix}/{entity_path}" if self._prefix else entity_path

    def set_sequence(self, timeline: str, value: int) -> None:
        """Set the time of what is logged from here on."""
        self._stream.set_time(timeline, sequence=value)

    def log(self, entity_path: str, *archetypes: rr.AsComponents, static: bool = False) -> None:
        """Log to `entity_path` below the prefix."""
        self._stream.log(self.path(entity_path), *archetypes, static=static or self._is_static)

    def send_blueprint(self, *parts: rr.blueprint.Container | rr.blueprint.View) -> None:
        """Make these the default layout of this application; one that the person made stays."""
        blueprint = _FreedBlueprint(*parts, auto_views=False)
        rr.send_blueprint(blueprint, make_active=False, make_default=True, recording=self._stream)
        blueprint.free()

    def flush(self) -> None:
        """Send what was logged so far, before what is logged later: the SDK orders only what it sends at once.

        Raises UserError where a viewer has gone, or the file cannot be written.
        """
        if self._bytes is None:
            try:
                self._stream.flush()
            except RuntimeError as error:
                if self._viewer_url is None:
                    raise
                raise UserError(f"the viewer at {self._viewer_url} takes no data any more ({error})") from error
            if self._file is not None:
                self._file.check()
            return
        content = self._bytes.read()
        if content:
            self._send(self._joiner.add(content))

    def finish(self) -> None:
        """Everything is logged: complete the stream or the file. Raises UserError as `flush` does."""
        try:
            self.flush()
        finally:
            if self._bytes is None:
                rr.disconnect(recording=self._stream)
            if self._file is not None:
                self._file.finish()

    def _set_time(self, time: Time) -> None:
        match time.kind:
            case "sequence":
                self._stream.set_time(time.timeline, sequence=time.value)
            case "duration":
                self._stream.set_time(time.timeline, duration=np.timedelta64(time.value, "ns"))
            case "timestamp":
                self._stream.set_time(time.timeline, timestamp=np.datetime64(time.value, "ns"))


class _FreedBlueprint(rr.blueprint.Blueprint):
    """A layout that costs nothing once it is sent.

    The SDK (at least 0.23 to 0.41) writes a layout to a stream of its own in memory, and that stream and its memory
    refer to each other for good: two threads and about a MiB. Taking the memory from the stream ends that.
    """

    _written_to: rr.RecordingStream | None = None

    def _log_to_stream(self, stream: rr.RecordingStream) -> None:
        self._written_to = stream
        super()._log_to_stream(stream)

    def free(self) -> None:
        """It has been sent."""
        if self._written_to is not None:
            rr.disconnect(recording=self._written_to)


def release_finished() -> bool:
    """Free the threads and the memory that the SDK keeps of recordings to which nobody refers any more.

    Returns False where the SDK (before 0.24) cannot: a process that goes on recording then grows.
    """
    clean_up = getattr(rerun_bindings, "flush_and_cleanup_orphaned_recordings", None)
    if clean_up is None:
        return False
    clean_up()
    return True


def application_id(request: Request) -> str:
    """The application to log under: the opened one, else the viewer's word, else what the viewer would choose.

    Viewers that pass no application id (up to 0.24) name the recording after the path as it was given. An SDK
    from 0.36 on accepts some characters only, as do the viewers of that time.
    """
    chosen = request.opened_application_id if request.is_into_opened else request.application_id
    if SDK_VERSION >= (0, 36):
        text = chosen or request.path.stem or request.location.resolve().name
        return re.sub(r"[^A-Za-z0-9_\- \[\]:]", "_", text)[:_MAX_APPLICATION_ID] or "image"
    return printable(chosen or str(request.path))


def entity_path_prefix(request: Request) -> str:
    """What to log everything below.

    In a recording that is open already everything goes below the path of the file, as Rerun's own image loader
    does it, so that several images, and what the recording held before, stay apart.
    """
    parts = [request.entity_path_prefix.strip("/")]
    if request.is_into_opened:
        parts += [
            rr.escape_entity_path_part(printable(part)) for part in request.path.parts if part != request.path.anchor
        ]
    return "/".join(part for part in parts if part)


def printable(text: str) -> str:
    """`text` without the lone surrogates that stand for bytes of a file name that are no UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
