"""Every prompt answered and every mask decided on, without making those that end as duplicates.

Non-maximum suppression lets a mask go for a better one whose box is nearly the same, whatever else is true of it. So
of a mask that has such a better one already only its box is looked at, and only as closely as that takes: stability,
border and pixels are needed for one mask in ten. A better mask may turn out to be a duplicate itself: those that it
stood for are looked at again at the end, and made if no other stands for them. What comes out is what making all of
them would have given.
"""

from collections.abc import Iterator

import numpy as np

from rerun_loader_sam.engine.boxes import BoxBounds
from rerun_loader_sam.engine.geometry import Floats
from rerun_loader_sam.engine.parallel import Cores
from rerun_loader_sam.engine.prompting import EmbeddedCrop, Made, Needless
from rerun_loader_sam.engine.suppression import suppress_duplicates
from rerun_loader_sam.masks import Mask

# Suppression compares boxes in single precision.
_ROUNDING = 1e-4


def exhaustive_masks(
    embedded: EmbeddedCrop, points_xy: Floats, batch_size: int, cores: Cores, box_nms_thresh: float
) -> Iterator[tuple[int, list[Mask]]]:
    """How many prompts are answered and the masks that pass the filters, batch by batch.

    Masks are missing that the suppression of duplicates would remove.

    Args:
        embedded: The crop.
        points_xy: In pixels of the crop, (P, 2).
        batch_size: Prompts that are decoded at once.
        cores: Who works.
        box_nms_thresh: IoU of boxes above which the worse of two masks is a duplicate.
    """
    standing = _Standing(box_nms_thresh)
    is_needless = standing.suppresses if box_nms_thresh < 1 else None
    batches = [points_xy[start : start + batch_size] for start in range(0, len(points_xy), batch_size)]
    answers = cores.in_order(lambda points: embedded.answer(points, is_needless), batches)
    for batch, made in zip(batches, answers, strict=True):
        yield len(batch), standing.take(made)
    while orphans := standing.orphans():
        parts = [orphans[start : start + batch_size] for start in range(0, len(orphans), batch_size)]
        for made in cores.in_order(lambda part: embedded.realise(part, is_needless), parts):
            yield 0, standing.take(made)


class _Standing:
    """Masks that are no duplicates so far, and those that were not made because of them."""

    def __init__(self, box_nms_thresh: float) -> None:
        self._threshold = box_nms_thresh
        self._made: list[Mask] = []
        self._needless: list[Needless] = []
        self._kept: list[Mask] = []
        # Of those that are kept, boxes (n, 4) and scores (n,), in one name: other threads read it while it changes.
        self._compared = (np.zeros((0, 4)), np.zeros(0))

    def suppresses(self, box: BoxBounds, predicted_iou: float) -> bool:
        """Whether a mask would be removed as the duplicate of one that is kept."""
        boxes_xyxy, scores = self._compared
        better = boxes_xyxy[scores > predicted_iou]
        return bool((box.least_iou(better) > self._threshold + _ROUNDING).any())

    def take(self, made: list[Made]) -> list[Mask]:
        """Add what was made; returns the masks among it."""
        masks = [mask for mask in made if isinstance(mask, Mask)]
        self._needless += [needless for needless in made if isinstance(needless, Needless)]
        self._made += masks
        if masks:
            self._keep([*self._kept, *masks])
        return masks

    def orphans(self) -> list[Needless]:
        """Take out those that were not made and that none of the masks suppresses that stay in the end."""
        self._keep(self._made)
        orphans: list[Needless] = []
        others: list[Needless] = []
        for needless in self._needless:
            (others if self.suppresses(needless.box, needless.predicted_iou) else orphans).append(needless)
        self._needless = others
        return orphans

    def _keep(self, masks: list[Mask]) -> None:
        """Let the masks stand that are no duplicates of others among them."""
        kept = suppress_duplicates(masks, [mask.predicted_iou for mask in masks], self._threshold)
        self._kept = [masks[i] for i in kept]
        boxes = [BoxBounds.of_mask(mask).inner_xyxy for mask in self._kept]
        scores = [mask.predicted_iou for mask in self._kept]
        self._compared = (np.array(boxes).reshape(-1, 4), np.array(scores))
