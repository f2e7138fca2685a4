"""Non-maximum suppression of masks by their boxes."""

from collections.abc import Sequence

import numpy as np
import torch
from torchvision.ops import nms

from rerun_loader_sam.masks import Mask


def suppress_duplicates(masks: Sequence[Mask], scores: Sequence[float], iou_threshold: float) -> list[int]:
    """Indices of the masks that no better one overlaps, best first.

    Boxes are compared as upstream compares them: last pixel minus first pixel, so that lines have no area.

    Args:
        masks: Candidates.
        scores: The higher, the better; equal scores keep their order.
        iou_threshold: A mask goes if its box overlaps a better one's by more than this IoU.
    """
    if not masks:
        return []
    xywh = torch.tensor([mask.bbox_xywh for mask in masks], dtype=torch.float32)
    boxes_xyxy = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1)
    kept: list[int] = nms(boxes_xyxy, torch.from_numpy(np.asarray(scores, np.float32)), iou_threshold).tolist()
    return kept
