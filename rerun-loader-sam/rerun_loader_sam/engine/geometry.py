"""Where prompts and crops lie, and what a crop shows.

Sizes are (H, W), points (x, y), boxes (x0, y0, x1, y1), all in pixels.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from rerun_loader_sam.masks import box_xywh

Floats = npt.NDArray[np.float64]
Box = tuple[int, int, int, int]

# As upstream has it.
CROP_EDGE_MARGIN = 20.0


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of the image that goes through the encoder by itself.

    Attributes:
        box_xyxy: Where it lies.
        layer: 0 is the whole image, the others are crops.
        edge_margin_px: Boxes within so many pixels of an edge of it are taken to be cut off by it.
    """

    box_xyxy: Box
    layer: int
    edge_margin_px: float = CROP_EDGE_MARGIN

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels of the image."""
        x0, y0, x1, y1 = self.box_xyxy
        return y1 - y0, x1 - x0

    @property
    def box_xywh(self) -> tuple[float, float, float, float]:
        """The box in upstream's output convention."""
        return box_xywh(self.box_xyxy)

    def points_xy(self, grid: Floats) -> Floats:
        """Points of a grid over the unit square, (P, 2), in pixels of the crop."""
        placed: Floats = grid * np.array(self.size_hw[::-1])
        return placed


def point_grid(points_per_side: int) -> Floats:
    """The centres of a square grid over the unit square, row by row: float64, (points_per_side ** 2, 2)."""
    offset = 1 / (2 * points_per_side)
    side = np.linspace(offset, 1 - offset, points_per_side)
    x, y = np.meshgrid(side, side)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def layer_point_grids(points_per_side: int, n_layers: int, downscale_factor: int) -> list[Floats]:
    """A grid for the image and one for each layer of crops, thinner by `downscale_factor` from layer to layer.

    The thinnest has one point: a crop without any, which upstream fails at, would be encoded for nothing.
    """
    return [point_grid(max(int(points_per_side / downscale_factor**layer), 1)) for layer in range(n_layers + 1)]


def crops(image_hw: tuple[int, int], n_layers: int, overlap_ratio: float) -> list[Crop]:
    """The image, then for each layer its 2**layer x 2**layer overlapping crops, as upstream cuts them.

    Of an image of a few pixels there are fewer: a crop beyond its edge, at which upstream fails, shows nothing.
    """
    height, width = image_hw
    found = [Crop((0, 0, width, height), 0)]
    for layer in range(1, n_layers + 1):
        per_side = 2**layer
        overlap = int(overlap_ratio * min(image_hw) * (2 / per_side))
        crop_w = math.ceil((overlap * (per_side - 1) + width) / per_side)
        crop_h = math.ceil((overlap * (per_side - 1) + height) / per_side)
        for column in range(per_side):
            for row in range(per_side):
                x0, y0 = (crop_w - overlap) * column, (crop_h - overlap) * row
                if x0 < width and y0 < height:
                    found.append(Crop((x0, y0, min(x0 + crop_w, width), min(y0 + crop_h, height)), layer))
    return found


def model_input_hw(size_hw: tuple[int, int], long_side: int) -> tuple[int, int]:
    """The size of an image once its longer side has the model's `long_side`; the other is one pixel at least."""
    scale = long_side / max(size_hw)
    return max(int(size_hw[0] * scale + 0.5), 1), max(int(size_hw[1] * scale + 0.5), 1)


def resized_crop(image: npt.NDArray[np.uint8], crop: Crop, long_side: int) -> npt.NDArray[np.uint8]:
    """What a crop of an image (H, W, 3) shows, at the size that `model_input_hw` says: uint8, (h, w, 3)."""
    x0, y0, x1, y1 = crop.box_xyxy
    height, width = model_input_hw(crop.size_hw, long_side)
    return np.array(Image.fromarray(image[y0:y1, x0:x1]).resize((width, height), Image.Resampling.BILINEAR))


def is_cut_off(box_xyxy: Box, crop: Crop, image_hw: tuple[int, int]) -> bool:
    """Whether a box in the image's frame ends at an edge of its crop that is no edge of the image."""
    return any(cut_off_sides(box_xyxy, crop, image_hw))


def cut_off_sides(box_xyxy: Iterable[float], crop: Crop, image_hw: tuple[int, int]) -> list[bool]:
    """Which of the four sides of a box make it end so; see `is_cut_off`."""
    image_edges = (0, 0, image_hw[1], image_hw[0])
    return [
        abs(side - edge) <= crop.edge_margin_px < abs(side - image_edge)
        for side, edge, image_edge in zip(box_xyxy, crop.box_xyxy, image_edges, strict=True)
    ]
