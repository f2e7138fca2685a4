"""Boxes that are known to lie between two others, and how much they overlap those of masks that are there.

Boxes end at their last pixel, as upstream compares them: lines have no area.
"""

from dataclasses import dataclass

import numpy as np

from rerun_loader_sam.engine.geometry import Crop, Floats, cut_off_sides
from rerun_loader_sam.masks import Mask


@dataclass(frozen=True, slots=True)
class BoxBounds:
    """What is known of a box: it holds `inner` and lies in `outer`; each XYXY in pixels of the image, (4,).

    Each of its sides lies between theirs; an inner box that ends before it begins is held by any.
    """

    inner_xyxy: Floats
    outer_xyxy: Floats

    @classmethod
    def of_mask(cls, mask: Mask) -> "BoxBounds":
        """Of a mask that is known."""
        x, y, width, height = mask.bbox_xywh
        box_xyxy = np.array([x, y, x + width, y + height])
        return cls(box_xyxy, box_xyxy)

    def is_cut_off(self, crop: Crop, image_hw: tuple[int, int]) -> bool:
        """Whether every box with these bounds ends at an edge of the crop; see `geometry.is_cut_off`."""
        inner, outer = (cut_off_sides(box, crop, image_hw) for box in (self.inner_xyxy, self.outer_xyxy))
        return any(cut and cut_too for cut, cut_too in zip(inner, outer, strict=True))


def least_iou(inner_xyxy: Floats, outer_xyxy: Floats, boxes_xyxy: Floats) -> Floats:
    """The least IoU that boxes with these bounds can have with others; all (..., 4), broadcast; (...)."""
    low = np.maximum(boxes_xyxy[..., :2], inner_xyxy[..., :2])
    high = np.minimum(boxes_xyxy[..., 2:], inner_xyxy[..., 2:])
    shared = (high - low).clip(min=0).prod(-1)
    area = (outer_xyxy[..., 2:] - outer_xyxy[..., :2]).prod(-1)
    areas = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).prod(-1)
    iou: Floats = shared / (areas + area - shared).clip(min=1e-9)
    return iou
