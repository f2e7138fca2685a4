"""Settings: RERUN_SAM_* variables over config.toml over defaults. Standard library only.

A viewer passes a loader no settings, so they come from where every process of the user finds them.
"""

import dataclasses
import difflib
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.folders import config_dir

PREFIX = "RERUN_SAM_"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that a person can set. A generator parameter that is None takes the model's own default."""

    model: str = "auto"
    """`auto`, a model's name (`vit_b`, `vit_l`, `vit_h`, `nano`) or a path to a checkpoint."""
    device: str = "auto"
    """`auto` (CUDA, then MPS, then CPU), `cpu`, `cuda`, `cuda:N` or `mps`."""
    download: str = "auto"
    """`auto` fetches a missing checkpoint in the background, `never` leaves the network alone."""
    checkpoint_url: str = ""
    """Where checkpoints are fetched from instead of Meta's server (https; their SHA256 still decides)."""
    strategy: str = "auto"
    """`exhaustive` gives upstream's masks, `adaptive` tells duplicates by sketches, `auto` is ours to choose."""

    points_per_side: int | None = None
    points_per_batch: int | None = None
    pred_iou_thresh: float | None = None
    stability_score_thresh: float | None = None
    stability_score_offset: float | None = None
    box_nms_thresh: float | None = None
    crop_n_layers: int | None = None
    crop_nms_thresh: float | None = None
    crop_overlap_ratio: float | None = None
    crop_n_points_downscale_factor: int | None = None
    min_mask_region_area: int | None = None
    agreement_thresh: float | None = None
    edge_radius_px: int | None = None

    tensor_mib: float = 64.0
    """Size of `mask_tensor` in MiB; a larger one is reduced by a whole number."""
    max_megapixels: float = 200.0
    """Images with more pixels than this are refused."""
    worker: bool = True
    """Whether a background process of this user keeps the model in memory for the next image."""
    worker_idle_s: float = 600.0
    """After so many seconds without work that process ends."""
    cache_mib: float = 256.0
    """How much disk the masks of images that were segmented before may take, in MiB; 0 keeps none."""
    program_images: bool = False
    """Whether `rerun-sam view` and `watch` also take the image files that programs log."""

    def generator_overrides(self) -> dict[str, int | float]:
        """The generator parameters that a person has set."""
        return {name: value for name in GENERATOR_PARAMETERS if (value := getattr(self, name)) is not None}


GENERATOR_PARAMETERS = (
    "points_per_side",
    "points_per_batch",
    "pred_iou_thresh",
    "stability_score_thresh",
    "stability_score_offset",
    "box_nms_thresh",
    "crop_n_layers",
    "crop_nms_thresh",
    "crop_overlap_ratio",
    "crop_n_points_downscale_factor",
    "min_mask_region_area",
    "agreement_thresh",
    "edge_radius_px",
)

_CHOICES = {"download": ("auto", "never"), "strategy": ("auto", "exhaustive", "adaptive")}

_RANGES: dict[str, tuple[float, float]] = {
    "points_per_side": (1, 256),
    "points_per_batch": (1, 4096),
    "pred_iou_thresh": (0, 1),
    "stability_score_thresh": (0, 1),
    "stability_score_offset": (0, 100),
    "box_nms_thresh": (0, 1),
    "crop_n_layers": (0, 4),
    "crop_nms_thresh": (0, 1),
    "crop_overlap_ratio": (0, 0.99),
    "crop_n_points_downscale_factor": (1, 16),
    "min_mask_region_area": (0, 1e9),
    "agreement_thresh": (0, 1),
    "edge_radius_px": (0, 100),
    "tensor_mib": (0.001, 4096),
    "max_megapixels": (0.001, 2000),
    "worker_idle_s": (0, 1e7),
    "cache_mib": (0, 1e6),
}


def _kind(field: "dataclasses.Field[object]") -> type:
    """str, int, float or bool: the field's type without `| None`."""
    annotation = field.type
    if isinstance(annotation, types.UnionType):
        annotation = next(part for part in typing.get_args(annotation) if part is not type(None))
    if not isinstance(annotation, type):
        raise TypeError(f"{field.name}: {annotation!r} is no plain type")
    return annotation


_KINDS = {field.name: _kind(field) for field in dataclasses.fields(Settings)}
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def _convert(name: str, value: object, source: str) -> object:
    """`value` as the type of the setting `name`; raises UserError that names both and where it was set."""
    kind = _KINDS[name]
    wrong = UserError(f"{source}: {value!r} is not {_WORDS[kind]}; nothing was segmented, correct the value")
    if isinstance(value, str) and kind is not str:
        text = value.strip().lower()
        if kind is bool:
            if text not in _TRUE + _FALSE:
                raise wrong
            return text in _TRUE
        try:
            value = kind(text)
        except ValueError:
            raise wrong from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise wrong
    _check(name, value, source)
    return value


def _check(name: str, value: object, source: str) -> None:
    choices = _CHOICES.get(name)
    if choices and value not in choices:
        raise UserError(f"{source}: {value!r} is none of {', '.join(choices)}; correct the value")
    if name in _RANGES and isinstance(value, int | float):
        low, high = _RANGES[name]
        if not low <= value <= high:  # also refuses NaN
            raise UserError(f"{source}: {value} is outside {low:g} to {high:g}; correct the value")
    if name == "device" and value not in ("auto", "cpu", "cuda", "mps"):
        family, _, number = str(value).partition(":")
        if family != "cuda" or not number.isdecimal():
            raise UserError(f"{source}: {value!r} is none of auto, cpu, cuda, cuda:N, mps; correct the value")
    if name == "model" and not value:
        raise UserError(f"{source} is empty: give a model's name or the path of a checkpoint")
    if name == "checkpoint_url" and value and not str(value).startswith("https://"):
        raise UserError(f"{source}: {value!r} does not start with https://; checkpoints are fetched by HTTPS only")


def _unknown(name: str, source: str) -> UserError:
    close = difflib.get_close_matches(name, _KINDS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(_KINDS)}"
    return UserError(f"{source}: there is no setting {name!r}; {hint}")


def config_file() -> Path:
    """Where a person's settings lie; the file need not exist."""
    return config_dir() / "config.toml"


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings of this user.

    `environ` is os.environ unless given. An empty variable counts as not set.
    Raises UserError that names the variable, or the file and key, of the first wrong value.
    """
    values: dict[str, object] = {}
    path = config_file()
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        content = {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} cannot be read as TOML: {error}; correct or remove it") from error
    for name, value in content.items():
        if name not in _KINDS:
            raise _unknown(name, str(path))
        values[name] = _convert(name, value, f"{path}, {name}")
    for variable, value in (os.environ if environ is None else environ).items():
        if not variable.startswith(PREFIX) or not value:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in _KINDS:
            raise _unknown(name, variable)
        values[name] = _convert(name, value, variable)
    return Settings(**values)  # type: ignore[arg-type]  # each was converted to its field's type above
