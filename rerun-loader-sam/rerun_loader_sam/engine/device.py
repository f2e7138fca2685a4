"""Which device the model runs on."""

import torch

from rerun_loader_sam.errors import UserError, first_line


def choose_device(setting: str) -> str:
    """The torch device that `setting` means: `auto` is CUDA, then MPS, then CPU.

    Raises UserError where a device is named that this machine, or this build of torch, does not have.
    """
    if setting != "auto":
        return str(usable_device(setting))
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def usable_device(device: str | torch.device) -> torch.device:
    """`device`, tried. Raises UserError where it is none that works here."""
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"the device {str(device)!r} cannot be used ({first_line(error)}); nothing was loaded; "
            "set RERUN_SAM_DEVICE to cpu or auto"
        ) from error
    return target
