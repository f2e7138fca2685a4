"""Masks drawn over their image, for where there is no viewer."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rerun_loader_sam.masks import Mask
from rerun_loader_sam.recording.layers import class_color, class_image

OPACITY = 0.5


def draw_masks(rgb: NDArray[np.uint8], masks: list[Mask]) -> Image.Image:
    """The image (H, W, 3), uint8, with its masks half-transparent over it and their borders solid."""
    height, width = rgb.shape[:2]
    numbers = class_image(masks, (height, width))
    colors = np.array([(0, 0, 0)] + [class_color(number) for number in range(1, len(masks) + 1)], np.float32)
    opacity = np.where(numbers > 0, OPACITY, 0.0).astype(np.float32)
    opacity[:, 1:][numbers[:, 1:] != numbers[:, :-1]] = 1.0
    opacity[1:][numbers[1:] != numbers[:-1]] = 1.0
    blended = rgb + (colors[numbers] - rgb) * opacity[:, :, None]
    return Image.fromarray(blended.round().astype(np.uint8))
