"""Which device the model runs on."""

import torch

from rerun_loader_sam.errors import UserError


def choose_device(setting: str) -> str:
    """The torch device that `setting` means: `auto` is CUDA, then MPS, then CPU.

    Raises UserError where a device is named that this machine, or this build of torch, does not have.
    """
    has_mps = torch.backends.mps.is_available()
    if setting == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if has_mps else "cpu"
    family, _, number = setting.partition(":")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(has_mps)}[family]
    if int(number or 0) >= count:
        raise UserError(
            f"RERUN_SAM_DEVICE: there is no {setting!r} here (torch {torch.__version__} sees {count} of {family}); "
            "nothing was segmented, unset it or set it to auto"
        )
    return setting
