"""What a viewer asks of an external data loader: the command line of every viewer since 0.12.

https://rerun.io/docs/concepts/logging-and-ingestion/data-loaders/overview
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Literal

TimeKind = Literal["sequence", "duration", "timestamp"]


@dataclasses.dataclass(frozen=True)
class Time:
    """A time on one timeline. `value` is a number, or nanoseconds (since 1970 for a timestamp)."""

    timeline: str
    kind: TimeKind
    value: int


@dataclasses.dataclass(frozen=True)
class Request:
    """One file or folder to segment, and where its recording is to go."""

    path: Path
    application_id: str | None = None
    recording_id: str | None = None
    opened_application_id: str | None = None
    opened_recording_id: str | None = None
    entity_path_prefix: str = ""
    is_static: bool = False
    times: tuple[Time, ...] = ()
    cwd: Path = Path()
    """What `path` is relative to, if it is: the folder of the process that was asked."""

    viewer_url: str | None = None
    """The viewer to log into, `rerun+http://HOST:PORT/proxy`, instead of writing RRD bytes."""
    image_entity: str | None = None
    """Where that viewer's recording holds the image already, as an entity path in Rerun's syntax: the image is then
    not logged again, and masks and boxes go below that entity."""

    @property
    def location(self) -> Path:
        """Where the file lies for whichever process reads it; `path` is what it is called."""
        return self.cwd / self.path

    @property
    def is_into_opened(self) -> bool:
        """Whether the data goes into a recording that the person had open already."""
        return self.opened_recording_id is not None


def add_protocol_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the protocol, in the spelling of every version.

    `parser` must be made with `allow_abbrev=False`: `--time` abbreviates the `--time_*` flags otherwise.
    """
    group = parser.add_argument_group("flags that a viewer passes")
    for flag, text in (
        ("--application-id", "application id to log under"),
        ("--recording-id", "recording id to log under"),
        ("--opened-application-id", "application id of the recording that is open in the viewer"),
        (
            "--opened-recording-id",
            "id of the recording that is open in the viewer; used instead of the above",
        ),
        ("--entity-path-prefix", "entity path to log everything below"),
    ):
        group.add_argument(flag, metavar="ID" if flag.endswith("id") else "PATH", help=text)
    follow = parser.add_argument_group("flags that `rerun-sam view` and `rerun-sam watch` pass")
    follow.add_argument("--into-viewer", metavar="URL", help="log into this viewer instead of writing RRD")
    follow.add_argument("--over", metavar="PATH", help="entity path of the image, which the viewer has already")
    group.add_argument("--static", "--timeless", action="store_true", help="log everything as static")
    for flags, text in (
        (("--sequence",), "sequence time"),
        (("--time_sequence", "--time-sequence"), "sequence time"),
        (("--time",), "time in nanoseconds"),
        (("--time_duration_nanos", "--time-duration-nanos"), "duration"),
        (("--time_timestamp_nanos", "--time-timestamp-nanos"), "timestamp since 1970"),
    ):
        group.add_argument(*flags, action="append", default=[], metavar="TIMELINE=VALUE", help=text)


def request_from(arguments: argparse.Namespace) -> Request:
    """The request that parsed arguments make. Raises ValueError for a time that is not TIMELINE=INTEGER."""
    return Request(
        path=Path(arguments.path),
        application_id=arguments.application_id,
        recording_id=arguments.recording_id,
        opened_application_id=arguments.opened_application_id,
        opened_recording_id=arguments.opened_recording_id,
        entity_path_prefix=arguments.entity_path_prefix or "",
        is_static=arguments.static,
        times=_times(arguments),
        viewer_url=arguments.into_viewer,
        image_entity=arguments.over,
    )


def _times(arguments: argparse.Namespace) -> tuple[Time, ...]:
    """The times of all spellings, one a timeline.

    Viewers up to 0.22 pass `--time` and `--sequence` alone. Later ones pass each value in a new and an old
    spelling, and there a timestamp comes as `--time_duration_nanos` with `--sequence`: that pair, which no
    other kind of time makes, tells the two apart.
    """
    sequence, time = dict(map(_pair, arguments.sequence)), dict(map(_pair, arguments.time))
    new_sequence = dict(map(_pair, arguments.time_sequence))
    durations = dict(map(_pair, arguments.time_duration_nanos))
    timestamps = dict(map(_pair, arguments.time_timestamp_nanos))
    kinds: dict[str, TimeKind] = {}
    for timeline, value in time.items():
        kinds[timeline] = "timestamp" if _is_date(value) else "duration"
    for timeline in sequence:
        kinds[timeline] = "sequence"
    for timeline in durations:
        is_timestamp = timeline in sequence and timeline not in new_sequence and timeline not in time
        kinds[timeline] = "timestamp" if is_timestamp else "duration"
    kinds |= dict.fromkeys(timestamps, "timestamp")
    kinds |= dict.fromkeys(new_sequence, "sequence")
    values = time | sequence | durations | timestamps | new_sequence
    return tuple(Time(timeline, kind, values[timeline]) for timeline, kind in kinds.items())


def _pair(text: str) -> tuple[str, int]:
    timeline, equals, value = text.rpartition("=")
    try:
        if equals and timeline:
            return timeline, int(value)
    except ValueError:
        pass
    raise ValueError(f"{text!r} is not TIMELINE=INTEGER")


def _is_date(nanos: int) -> bool:
    """Whether an old viewer, which had one kind for both, would have shown this as a date: 1990 to 2120."""
    nanos_per_year = 365 * 24 * 3600 * 10**9
    return 20 * nanos_per_year <= nanos <= 150 * nanos_per_year
