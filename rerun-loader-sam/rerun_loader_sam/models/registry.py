"""The models that are known by name. Knows neither the disk's state nor the network."""

import dataclasses
import json
import struct
from collections.abc import Mapping
from pathlib import Path

from rerun_loader_sam.errors import UserError

META_URL = "https://dl.fbaipublicfiles.com/segment_anything"
SHIPPED_FOLDER = Path(__file__).parents[1] / "weights"

# The safetensors format limits its own header to this; a larger length means that it is no such file.
_MAX_HEADER_BYTES = 100_000_000


@dataclasses.dataclass(frozen=True)
class GeneratorParameters:
    """Parameters of the automatic mask generator, named as in segment-anything, with its defaults.

    `agreement_thresh` and `edge_radius_px` are our own; with 0 there are segment-anything's masks.
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    min_mask_region_area: int = 0
    agreement_thresh: float = 0.0
    edge_radius_px: int = 0

    def replaced_by(self, values: Mapping[str, object]) -> "GeneratorParameters":
        """These with `values` (field name to number) instead; whole numbers serve as float too.

        Raises ValueError, which names the parameter, for an unknown name or a value of another type.
        """
        kinds = {field.name: field.type for field in dataclasses.fields(self)}
        converted: dict[str, int | float] = {}
        for name, value in values.items():
            if name not in kinds:
                raise ValueError(f"there is no generator parameter {name!r}")
            if isinstance(value, int) and not isinstance(value, bool):
                converted[name] = float(value) if kinds[name] is float else value
            elif isinstance(value, float) and kinds[name] is float:
                converted[name] = value
            else:
                wanted = "a number" if kinds[name] is float else "a whole number"
                raise ValueError(f"generator parameter {name} is {value!r}, not {wanted}")
        return dataclasses.replace(self, **converted)  # type: ignore[arg-type]  # each has its field's type


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """A model known by name. One that is no `RemoteEntry` is shipped inside the package."""

    name: str
    file: str
    """Name of the checkpoint file, without folder."""
    licence: str
    """SPDX identifier."""
    description: str


@dataclasses.dataclass(frozen=True)
class RemoteEntry(ModelEntry):
    """A model whose checkpoint is fetched from a server. Size and SHA256 decide whether a file is the one."""

    url: str
    size_bytes: int
    sha256: str
    """64 lower-case hexadecimal digits."""


def _official(name: str, file: str, size_bytes: int, sha256: str, description: str) -> RemoteEntry:
    return RemoteEntry(name, file, "Apache-2.0", description, f"{META_URL}/{file}", size_bytes, sha256)


# Meta publishes no SHA256 (the file names end in the first six digits of the MD5):
# these are the ones that several independent model registries pin.
OFFICIAL: dict[str, RemoteEntry] = {
    entry.name: entry
    for entry in (
        _official(
            "vit_b",
            "sam_vit_b_01ec64.pth",
            375_042_383,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            "Meta's Segment Anything, base: the one for a CPU",
        ),
        _official(
            "vit_l",
            "sam_vit_l_0b3195.pth",
            1_249_524_607,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            "Meta's Segment Anything, large: for a GPU",
        ),
        _official(
            "vit_h",
            "sam_vit_h_4b8939.pth",
            2_564_550_879,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            "Meta's Segment Anything, huge: the best masks, for a GPU",
        ),
    )
}

NANO = ModelEntry(
    "nano",
    "nano.safetensors",
    "Apache-2.0",
    "shipped with this package: small, rough masks, needs no network",
)

ENTRIES: dict[str, ModelEntry] = {**OFFICIAL, NANO.name: NANO}


def known_entry(name: str) -> ModelEntry:
    """The entry called `name`; raises UserError that lists the names there are."""
    if name not in ENTRIES:
        raise UserError(f"there is no model {name!r}; known are {', '.join(ENTRIES)}")
    return ENTRIES[name]


def from_mirror(entry: RemoteEntry, base_url: str) -> RemoteEntry:
    """`entry` as a file of the same name under `base_url` (https); an empty one leaves it as it is."""
    if not base_url:
        return entry
    return dataclasses.replace(entry, url=f"{base_url.rstrip('/')}/{entry.file}")


def checkpoint_generator_parameters(path: Path) -> GeneratorParameters:
    """The generator parameters that suit the checkpoint at `path`.

    A `.safetensors` file may name them in its metadata, as a JSON object under the key `generator`;
    every parameter that it leaves out, and every other file, has segment-anything's default.
    Reads the header only. Raises UserError where the file cannot be read or a parameter is wrong.
    """
    if path.suffix != ".safetensors":
        return GeneratorParameters()
    values = _safetensors_metadata(path).get("generator")
    if not isinstance(values, str):
        return GeneratorParameters()
    try:
        parsed = json.loads(values)
    except ValueError:
        return GeneratorParameters()  # a text of another program, such as the name of the one that wrote the file
    if not isinstance(parsed, dict):
        return GeneratorParameters()
    try:
        return GeneratorParameters().replaced_by(parsed)
    except ValueError as error:
        raise UserError(f"{path}: {error} (its metadata 'generator'); use another checkpoint") from error


def _safetensors_metadata(path: Path) -> Mapping[str, object]:
    """`__metadata__` of a safetensors file: 8 bytes length (little endian), then a header in JSON."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"its header would have {length} bytes")
            content = file.read(length)
            if len(content) != length:
                raise ValueError("its header is cut off")
            header = json.loads(content)
            metadata = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    except OSError as error:
        raise UserError(f"the checkpoint {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError, struct.error) as error:
        raise UserError(f"the checkpoint {path} is no safetensors file: {error}; replace it") from error
    return metadata if isinstance(metadata, dict) else {}
