"""What a loader asks of the worker, checked. Keys that are not known are passed over."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from rerun_loader_sam.claims import Process
from rerun_loader_sam.models.registry import ENTRIES
from rerun_loader_sam.settings import Settings, load_settings
from rerun_loader_sam.worker.wire import WireError


@dataclasses.dataclass(frozen=True)
class SegmentOrder:
    """See `client.segment_order`."""

    identity: dict[str, str]
    arguments: list[str]
    program: str
    cwd: Path
    environ: dict[str, str]
    process: Process
    is_watched: bool
    part: Path | None

    def settings(self) -> Settings:
        """The settings of who asks. Raises UserError."""
        return with_absolute_model(load_settings(self.environ), self.cwd)


def parse_segment_order(header: Mapping[str, object]) -> SegmentOrder:
    """The order that a frame holds. Raises WireError where something is missing or of another type."""
    part = header.get("part")
    return SegmentOrder(
        identity=_texts(header, "identity"),
        arguments=_arguments(header),
        program=_text(header, "program"),
        cwd=Path(_text(header, "cwd")),
        environ=_texts(header, "environ"),
        process=Process(_number(header, "pid"), _number(header, "parent_pid")),
        is_watched=header.get("is_watched") is True,
        part=None if part is None else Path(_text(header, "part")),
    )


def with_absolute_model(settings: Settings, cwd: Path) -> Settings:
    """`settings` with a checkpoint's path that is meant relative to `cwd` in full."""
    if settings.model == "auto" or settings.model in ENTRIES:
        return settings
    path = cwd / Path(settings.model).expanduser()
    return dataclasses.replace(settings, model=str(path)) if path.exists() else settings


def _text(header: Mapping[str, object], key: str) -> str:
    value = header.get(key)
    if not isinstance(value, str):
        raise WireError(f"{key} is no text")
    return value


def _number(header: Mapping[str, object], key: str) -> int:
    value = header.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise WireError(f"{key} is no whole number")
    return value


def _arguments(header: Mapping[str, object]) -> list[str]:
    value = header.get("arguments")
    if not isinstance(value, list) or not all(isinstance(argument, str) for argument in value):
        raise WireError("arguments are no texts")
    return value


def _texts(header: Mapping[str, object], key: str) -> dict[str, str]:
    value = header.get(key)
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise WireError(f"{key} holds other than texts")
    return value
