"""Segment Anything in the Rerun viewer.

For Python: `AutomaticMaskGenerator` is a faster drop-in for `segment_anything.SamAutomaticMaskGenerator`,
`load_model` loads a checkpoint for it. They are imported on first use: the loader's start must not pay for torch.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # what type checkers take for true; importing typing would cost a third of what declining costs
if TYPE_CHECKING:
    from rerun_loader_sam.engine.checkpoint import load_model as load_model
    from rerun_loader_sam.engine.generator import AutomaticMaskGenerator as AutomaticMaskGenerator

__all__ = ["AutomaticMaskGenerator", "__version__", "load_model"]


def __getattr__(name: str) -> object:
    if name == "load_model":
        from rerun_loader_sam.engine.checkpoint import load_model

        return load_model
    if name == "AutomaticMaskGenerator":
        from rerun_loader_sam.engine.generator import AutomaticMaskGenerator

        return AutomaticMaskGenerator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
