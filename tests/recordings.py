"""What an RRD file holds, read back with the newest SDK whichever wrote it."""

import dataclasses
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdks import Sdk

_STREAM_HEADER_BYTES = 12
_MESSAGE_HEAD = struct.Struct("<QQ")  # kind, length of what follows
_DTYPES = {6: np.uint8, 8: np.uint16, 34: np.float32}  # rerun's ChannelDatatype: U8, U16, F32
_CHANNELS = {None: 1, 1: 1, 2: 3, 3: 4}  # rerun's ColorModel: L, RGB, RGBA


@dataclasses.dataclass(frozen=True)
class Row:
    """What was logged at once to one entity."""

    entity_path: str
    times: dict[str, Any]
    data: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Recording:
    """One recording of a file; an empty time dict means static."""

    application_id: str
    recording_id: str
    rows: list[Row]

    def of(self, entity_path: str, component: str) -> list[Row]:
        """The rows that hold `component` of `entity_path`, in order."""
        return [row for row in self.rows if row.entity_path == entity_path and component in row.data]

    def one(self, entity_path: str, component: str, step: int = 0) -> Row:
        """The only row that holds `component` of `entity_path` at `step` of the timeline `image`."""
        (row,) = [row for row in self.of(entity_path, component) if row.times.get("image") == step]
        return row

    def pixels(self, entity_path: str, archetype: str = "Image", step: int = 0) -> NDArray[Any]:
        """The pixels of the only Image or SegmentationImage at `step`."""
        row = self.one(entity_path, f"{archetype}:buffer", step)
        form = row.data[f"{archetype}:format"][0]
        pixels: NDArray[Any] = row.data[f"{archetype}:buffer"].view(_DTYPES[form["channel_datatype"]])
        channels = _CHANNELS[form["color_model"]]
        shape = (form["height"], form["width"]) + ((channels,) if channels > 1 else ())
        return pixels.reshape(shape)

    def tensor(self, step: int = 0, entity_path: str = "/mask_tensor") -> NDArray[np.uint8]:
        """The only tensor at `step`; checks the names of its dimensions."""
        shape, names, numbers = self.one(entity_path, "Tensor:data", step).data["Tensor:data"]
        assert names == ["height", "width", "mask"]
        return np.asarray(numbers).reshape(shape)

    def texts(self, entity_path: str = "/logs") -> list[tuple[str, str]]:
        """Level and text of each line of the log."""
        rows = self.of(entity_path, "TextLog:text")
        return [(row.data["TextLog:level"][0], row.data["TextLog:text"][0]) for row in rows]


@dataclasses.dataclass(frozen=True)
class Contents:
    """All that is in a file."""

    recordings: list[Recording]
    blueprint_applications: list[str]


def is_whole(stream: bytes) -> bool:
    """Whether what a loader wrote to a pipe is a header and whole messages: nothing cut, nothing stray."""
    position = _STREAM_HEADER_BYTES
    while position + _MESSAGE_HEAD.size <= len(stream):
        _, length = _MESSAGE_HEAD.unpack_from(stream, position)
        position += _MESSAGE_HEAD.size + length
    return stream.startswith(b"RRF2") and position == len(stream)


def read(path: Path, newest: Sdk) -> Contents:
    """Read an RRD file; fails where it is not valid as a whole."""
    reader = Path(__file__).parent / "read_rrd.py"
    outcome = subprocess.run(
        [sys.executable, str(reader), str(path)], capture_output=True, env=newest.environment(), check=False
    )
    assert outcome.returncode == 0, outcome.stderr.decode()
    stores, blueprints = pickle.loads(outcome.stdout)  # noqa: S301  # our own program's
    return Contents(
        [Recording(app, recording, [Row(*row) for row in rows]) for app, recording, rows in stores], blueprints
    )
