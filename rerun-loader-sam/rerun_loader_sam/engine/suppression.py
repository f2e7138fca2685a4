"""Masks against one another: duplicates by their boxes, and again after small regions are gone."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rerun_loader_sam.engine.regions import without_small_regions
from rerun_loader_sam.masks import Mask, box_xywh, box_xyxy_of_rle, shared_area


def suppress_duplicates(masks: Sequence[Mask], scores: Sequence[float], iou_threshold: float) -> list[int]:
    """Indices of the masks that no better one overlaps, best first.

    Boxes are compared as upstream compares them: last pixel minus first pixel, so that lines have no area.

    Args:
        masks: Candidates.
        scores: The higher, the better; equal scores keep their order.
        iou_threshold: A mask goes if its box overlaps a better one's by more than this IoU.
    """
    # As torchvision does it, in single precision too; importing that one takes longer than segmenting small images.
    order = np.argsort(-np.asarray(scores, np.float32), kind="stable")
    if iou_threshold >= 1:
        return [int(i) for i in order]
    xywh = np.array([mask.bbox_xywh for mask in masks], np.float32).reshape(-1, 4)[order]
    low, high = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
    areas = (high - low).prod(1)
    kept: list[int] = []
    left = np.arange(len(masks))
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(order[best]))
        sides = np.minimum(high[best], high[left]) - np.maximum(low[best], low[left])
        shared = sides.clip(min=0).prod(1)
        with np.errstate(invalid="ignore"):  # two boxes without an area
            left = left[~(shared / (areas[best] + areas[left] - shared) > iou_threshold)]
    return kept


def clean_masks(masks: Sequence[Mask], min_area: float, iou_threshold: float) -> list[Mask]:
    """Masks without holes and islands below `min_area` pixels, and without the duplicates that this makes.

    Masks that needed no cleaning come first and win over those that did.
    """
    cleaned = [without_specks(mask, min_area) for mask in masks]
    scores = [float(new is old) for new, old in zip(cleaned, masks, strict=True)]
    return [cleaned[i] for i in suppress_duplicates(cleaned, scores, iou_threshold)]


def without_specks(mask: Mask, min_area: float) -> Mask:
    """The mask without holes and islands below `min_area` pixels; itself if it has none."""
    counts, changed = without_small_regions(mask.rle_counts, mask.size_hw, min_area)
    if not changed:
        return mask
    bbox_xywh = box_xywh(box_xyxy_of_rle(counts, mask.size_hw))
    return replace(mask, rle_counts=counts, bbox_xywh=bbox_xywh, area=int(counts[1::2].sum()))


def without_twins(masks: Sequence[Mask], iou_threshold: float) -> list[Mask]:
    """Masks but for those whose pixels overlap an earlier one's by more than this IoU (more than 0)."""
    kept: list[Mask] = []
    for mask in masks:
        if not any(_overlap(mask, other, iou_threshold) for other in kept):
            kept.append(mask)
    return kept


def _overlap(one: Mask, other: Mask, iou_threshold: float) -> bool:
    def enough(shared: float) -> bool:
        return shared > iou_threshold * (one.area + other.area - shared)

    # Pixels are counted for those only that areas and boxes leave.
    if not enough(min(one.area, other.area, _shared_by_boxes(one, other))):
        return False
    return enough(shared_area(one.rle_counts, other.rle_counts))


def _shared_by_boxes(one: Mask, other: Mask) -> float:
    """Pixels in the boxes of both masks, which end with their last ones."""
    x, y, width, height = one.bbox_xywh
    other_x, other_y, other_width, other_height = other.bbox_xywh
    columns = min(x + width, other_x + other_width) - max(x, other_x) + 1
    rows = min(y + height, other_y + other_height) - max(y, other_y) + 1
    return max(columns, 0) * max(rows, 0)
