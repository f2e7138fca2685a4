"""Ways to look at an image: as it is, mirrored, with its colours exchanged.

What a model should answer is the same, so answers to several of them are more independent than answers to one.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from rerun_loader_sam.engine.geometry import Floats


@dataclass(frozen=True, slots=True)
class View:
    """A way to look at an image.

    Attributes:
        mirrored: Left and right are exchanged. The image's width is filled up to whole tokens of the model first,
            so that there are tokens of the same pixels.
        channels: Which of red, green and blue are seen as these.
    """

    mirrored: bool = False
    channels: tuple[int, int, int] = (0, 1, 2)

    def of(self, pixels: Tensor, token_px: int) -> Tensor:
        """The image seen so: (1, 3, H, W) to (1, 3, H, W or somewhat more)."""
        seen = pixels[:, list(self.channels)]
        if not self.mirrored:
            return seen
        missing = -seen.shape[-1] % token_px
        return functional.pad(seen.float(), (0, missing, 0, 0), mode="replicate").flip(-1)

    def points(self, points_xy: Floats, width: int, token_px: int) -> Floats:
        """Where points (P, 2) are seen in an image that is `width` pixels wide."""
        if not self.mirrored:
            return points_xy
        last = width + -width % token_px - 1
        return points_xy * (-1, 1) + (last, 0)


AS_IT_IS = View()
