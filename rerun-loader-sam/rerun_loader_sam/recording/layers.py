"""Masks as what is logged of them: a layered class image, a tensor, boxes, colours."""

import colorsys
import math

import numpy as np
from numpy.typing import NDArray

from rerun_loader_sam.masks import Mask, runs_of_rle

PLANE_VALUE = 128
"""What `mask_tensor` holds inside a mask, as in Rerun's own Segment Anything example."""


def class_image(masks: list[Mask], size_hw: tuple[int, int]) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Masks layered from largest to smallest.

    Returns (H, W): the number of the smallest mask at each pixel, counted from 1 in the order of `masks`; 0
    where there is none. uint8 up to 255 masks, else uint16, which is what a viewer's class ids hold.
    """
    height, width = size_hw
    by_column = np.zeros(height * width, np.uint8 if len(masks) <= np.iinfo(np.uint8).max else np.uint16)
    for index in sorted(range(len(masks)), key=lambda index: -masks[index].area):
        starts, ends = runs_of_rle(masks[index].rle_counts)
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            by_column[start:end] = index + 1
    return np.ascontiguousarray(by_column.reshape(width, height).T)


def tensor_step(size_hw: tuple[int, int], mask_count: int, limit_bytes: float) -> int:
    """The smallest whole number by which to reduce height and width so that the tensor fits `limit_bytes`."""
    height, width = size_hw
    step = max(1, math.floor(math.sqrt(height * width * (mask_count + 1) / limit_bytes)))
    while math.ceil(height / step) * math.ceil(width / step) * (mask_count + 1) > limit_bytes:
        if step >= max(height, width):
            break
        step += 1
    return step


def mask_tensor(masks: list[Mask], size_hw: tuple[int, int], step: int) -> NDArray[np.uint8]:
    """All masks as planes.

    Returns (ceil(H / step), ceil(W / step), N + 1) uint8: plane 0 is empty, plane i is PLANE_VALUE inside mask
    i and 0 outside. Every `step`-th row and column is kept.
    """
    height, width = size_hw
    planes = np.zeros((len(masks) + 1, math.ceil(height / step), math.ceil(width / step)), np.uint8)
    for number, mask in enumerate(masks, start=1):
        planes[number] = mask.decode()[::step, ::step]
    planes *= PLANE_VALUE
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


def class_color(number: int) -> tuple[int, int, int]:
    """The RGB colour of mask `number`, 0 to 255: neighbouring numbers differ in hue by the golden angle."""
    hue = number * 0.61803398875 % 1.0
    saturation = (0.65, 0.9, 0.5)[number // 8 % 3]
    value = (0.95, 0.75, 1.0)[number // 5 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)
