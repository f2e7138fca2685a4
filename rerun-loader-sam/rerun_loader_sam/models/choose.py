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
    GeneratorParameters,
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
_CHECKPOINT_SUFFIXES = (".pth", ".pt", ".safetensors")


@dataclasses.dataclass(frozen=True)
class ChosenModel:
    """The model to load, and why it is this one."""

    name: str
    """The entry's name, or the file name of a checkpoint given by its path."""
    path: Path
    generator: GeneratorParameters
    """Those of the person's settings, over those that suit the checkpoint."""
    reason: str
    """For a person: why this model. No full stop at the end."""
    is_fallback: bool = False
    """Whether it stands in for one that is not on this machine."""
    hint: str = ""
    """For a person, with a fallback: how to get the other one by hand. No full stop at the end."""
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
        return _auto(settings, device) or _fallback(settings, device, OFFICIAL[_FETCHED_BY_DEFAULT])
    entry = ENTRIES.get(settings.model)
    if entry is None:
        path = _checkpoint_of_person(settings.model)
        return ChosenModel(path.name, path, _parameters(path, settings), "the checkpoint that was set")
    if isinstance(entry, RemoteEntry):
        if path_found := find_checkpoint(entry):
            return _chosen(entry, path_found, settings, "the model that was set")
        return _fallback(settings, device, entry)
    return _chosen(entry, _shipped(), settings, "the model that was set")


def _auto(settings: Settings, device: str) -> ChosenModel | None:
    for name in _BEST_FIRST_CUDA if device.startswith("cuda") else _BEST_FIRST:
        if path := find_checkpoint(OFFICIAL[name]):
            return _chosen(OFFICIAL[name], path, settings, f"the best on this machine for {device}")
    return None


def _fallback(settings: Settings, device: str, wanted: RemoteEntry) -> ChosenModel:
    chosen = _auto(settings, device) or _chosen(NANO, _shipped(), settings, "")
    return dataclasses.replace(
        chosen,
        reason=f"{chosen.name} stands in for {wanted.name}, which is not on this machine yet",
        is_fallback=True,
        hint=f"`rerun-sam models fetch {wanted.name}` fetches {wanted.name} ({wanted.size_bytes / 1e6:.0f} MB)",
        to_fetch=None if settings.download == "never" else from_mirror(wanted, settings.checkpoint_url),
    )


def _chosen(entry: ModelEntry, path: Path, settings: Settings, reason: str) -> ChosenModel:
    return ChosenModel(entry.name, path, _parameters(path, settings), reason)


def _parameters(path: Path, settings: Settings) -> GeneratorParameters:
    return checkpoint_generator_parameters(path).replaced_by(settings.generator_overrides())


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
    except (RuntimeError, ValueError) as error:  # no such user's home; a null byte
        raise UserError(f"model: {value!r} is no path ({error})") from error
    if is_there:
        raise UserError(f"the checkpoint {path} is not a file; set `model` to a name or to a checkpoint's file")
    if "/" in value or os.sep in value or path.suffix in _CHECKPOINT_SUFFIXES:
        raise UserError(f"there is no checkpoint {path}; correct `model` or RERUN_SAM_MODEL")
    close = difflib.get_close_matches(value, ENTRIES, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "a checkpoint's path would do too"
    raise UserError(f"there is no model {value!r}; known are auto, {', '.join(ENTRIES)}; {hint}")
