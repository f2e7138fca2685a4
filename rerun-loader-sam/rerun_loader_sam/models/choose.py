"""Which model segments: what the person set, what is on this machine, what suits the device."""

import dataclasses
import difflib
import os
from pathlib import Path

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.models.registry import (
    ENTRIES,
    NANO,
    OFFICIAL,
    ModelEntry,
    RemoteEntry,
    checkpoint_generator_parameters,
    from_mirror,
)
from rerun_loader_sam.models.store import checkpoint_path, find_checkpoint
from rerun_loader_sam.settings import Settings

# On a CPU, and on MPS, the larger encoders take minutes an image for masks that are little better.
_BEST_FIRST_CUDA = ("vit_h", "vit_l", "vit_b")
_BEST_FIRST = ("vit_b", "vit_l", "vit_h")
_FETCHED_BY_DEFAULT = "vit_b"
# Smaller checkpoints are no slower than it takes to look at their preview.
_LARGE_CHECKPOINT_BYTES = 100_000_000
_CHECKPOINT_SUFFIXES = (".pth", ".pt", ".safetensors")


@dataclasses.dataclass(frozen=True)
class ChosenModel:
    """The model to load, and why it is this one."""

    name: str
    """The entry's name, or the file name of a checkpoint given by its path."""
    path: Path
    description: str
    """For a person: what it is. No full stop at the end."""
    generator_parameters: dict[str, int | float]
    """Every parameter of the mask generator, as it suits the checkpoint; the person's settings go over them."""
    reason: str
    """For a person: why this one. No full stop at the end."""
    is_fallback: bool = False
    """Whether it stands in for one that is not on this machine."""
    hint: str = ""
    """For a person, with a fallback: what it stands in for, and how to get that by hand. One line."""
    to_fetch: RemoteEntry | None = None
    """What to fetch in the background, if anything: see `background.start_fetch`."""


def choose_model(settings: Settings, device: str) -> ChosenModel:
    """Choose the model for `device` ("cpu", "cuda", "cuda:N", "mps"). Looks at the disk only.

    A path is taken as it is. `auto` is the best official checkpoint on this machine: on CUDA vit_h, then
    vit_l, then vit_b; elsewhere vit_b first, since the others take minutes there. Without any it is the
    shipped nano, as a fallback, with vit_b to fetch. A name that is not on this machine is the same with
    that name to fetch: what `auto` would take serves meanwhile. `download = "never"` leaves `to_fetch`
    None, and the hint says how to fetch by hand.

    Raises UserError for an unknown name, a path without a readable file, a package without its nano.
    """
    if settings.model == "auto":
        return _auto(device) or _fallback(settings, device, OFFICIAL[_FETCHED_BY_DEFAULT])
    entry = ENTRIES.get(settings.model)
    if entry is None:
        path = _checkpoint_of_person(settings.model)
        return ChosenModel(path.name, path, f"the checkpoint {path}", _parameters(path), "the one that was set")
    if isinstance(entry, RemoteEntry):
        if path_found := find_checkpoint(entry):
            return _chosen(entry, path_found, "the one that was set")
        return _fallback(settings, device, entry)
    return _chosen(entry, _shipped(), "the one that was set")


def choose_preview_model(device: str, checkpoint_bytes: int) -> ChosenModel | None:
    """The model for a first look while a checkpoint of this size works: nano, where that takes long, else None."""
    if device.startswith("cuda") or checkpoint_bytes < _LARGE_CHECKPOINT_BYTES:
        return None
    path = find_checkpoint(NANO)
    return None if path is None else _chosen(NANO, path, "for a first look while a large model works")


def _auto(device: str) -> ChosenModel | None:
    for name in _BEST_FIRST_CUDA if device.startswith("cuda") else _BEST_FIRST:
        if path := find_checkpoint(OFFICIAL[name]):
            return _chosen(OFFICIAL[name], path, f"the best on this machine for {device}")
    return None


def _fallback(settings: Settings, device: str, wanted: RemoteEntry) -> ChosenModel:
    chosen = _auto(device) or _chosen(NANO, _shipped(), "")
    reason = f"{chosen.name} stands in for {wanted.name}, which is not on this machine"
    return dataclasses.replace(
        chosen,
        reason=reason,
        is_fallback=True,
        hint=f"{reason}; `rerun-sam models fetch {wanted.name}` fetches it ({wanted.size_bytes / 1e6:.0f} MB)",
        to_fetch=None if settings.download == "never" else from_mirror(wanted, settings.checkpoint_url),
    )


def _chosen(entry: ModelEntry, path: Path, reason: str) -> ChosenModel:
    return ChosenModel(entry.name, path, f"{entry.name}, {entry.description}", _parameters(path), reason)


def _parameters(path: Path) -> dict[str, int | float]:
    return dataclasses.asdict(checkpoint_generator_parameters(path))


def _shipped() -> Path:
    if path := find_checkpoint(NANO):
        return path
    raise UserError(f"{checkpoint_path(NANO)} is missing, though it belongs to this package; install it again")


def _checkpoint_of_person(value: str) -> Path:
    """The checkpoint file that `value` names; raises UserError where it is no readable file."""
    try:
        path = Path(value).expanduser().absolute()
        if path.is_file():
            if not os.access(path, os.R_OK):
                raise UserError(f"the checkpoint {path} cannot be read: permission denied")
            return path
        is_there = path.exists()
    except RuntimeError as error:  # there is no such user's home
        raise UserError(f"model: {value!r} is no path ({error})") from error
    if is_there:
        raise UserError(f"the checkpoint {path} is not a file; set `model` to a name or to a checkpoint's file")
    if "/" in value or os.sep in value or path.suffix in _CHECKPOINT_SUFFIXES:
        raise UserError(f"there is no checkpoint {path}; correct `model` or RERUN_SAM_MODEL")
    close = difflib.get_close_matches(value, ENTRIES, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "a checkpoint's path would do too"
    raise UserError(f"there is no model {value!r}; known are auto, {', '.join(ENTRIES)}; {hint}")
