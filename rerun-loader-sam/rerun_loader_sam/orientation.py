"""Masks of an upright image, turned the way its file has the pixels: where a viewer shows those as they are."""

import dataclasses
from collections.abc import Callable

import numpy as np

from rerun_loader_sam.masks import Bools, Mask, encode_rle

UPRIGHT = 1

# By value of the EXIF tag 0x0112. Pixels, (H, W); then a point, given the last column and row of the upright image.
_PIXELS: dict[int, Callable[[Bools], Bools]] = {
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: np.transpose,
    6: np.rot90,
    7: lambda upright: np.rot90(upright, 2).T,
    8: lambda upright: np.rot90(upright, -1),
}
_POINTS: dict[int, Callable[[float, float, float, float], tuple[float, float]]] = {
    2: lambda x, y, right, bottom: (right - x, y),
    3: lambda x, y, right, bottom: (right - x, bottom - y),
    4: lambda x, y, right, bottom: (x, bottom - y),
    5: lambda x, y, right, bottom: (y, x),
    6: lambda x, y, right, bottom: (y, right - x),
    7: lambda x, y, right, bottom: (bottom - y, right - x),
    8: lambda x, y, right, bottom: (bottom - y, x),
}


def is_turned(orientation: int) -> bool:
    """Whether the file of an image with this EXIF orientation has its pixels otherwise than upright."""
    return orientation in _PIXELS


def stored_size(size_hw: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Height and width, in the file, of an image that is `size_hw` when upright."""
    return (size_hw[1], size_hw[0]) if orientation in (5, 6, 7, 8) else size_hw


def as_stored(mask: Mask, orientation: int) -> Mask:
    """`mask` of the upright image as it lies over the pixels of the file with this EXIF orientation, 1 to 8."""
    if not is_turned(orientation):
        return mask
    height, width = mask.size_hw
    return dataclasses.replace(
        mask,
        size_hw=stored_size(mask.size_hw, orientation),
        rle_counts=encode_rle(_PIXELS[orientation](mask.decode())),
        # A box's width is the last column minus the first, a crop's is the number of its columns.
        bbox_xywh=_box(mask.bbox_xywh, orientation, width - 1, height - 1),
        point_xy=_POINTS[orientation](*mask.point_xy, width - 1, height - 1),
        crop_box_xywh=_box(mask.crop_box_xywh, orientation, width, height),
    )


def _box(
    box_xywh: tuple[float, float, float, float], orientation: int, right: float, bottom: float
) -> tuple[float, float, float, float]:
    x, y, width, height = box_xywh
    ax, ay = _POINTS[orientation](x, y, right, bottom)
    bx, by = _POINTS[orientation](x + width, y + height, right, bottom)
    return min(ax, bx), min(ay, by), abs(bx - ax), abs(by - ay)
