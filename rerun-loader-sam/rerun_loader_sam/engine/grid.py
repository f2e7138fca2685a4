"""Every prompt answered and every mask decided on, without making those that end as duplicates.

Non-maximum suppression lets a mask go for a better one whose box is nearly the same, whatever else is true of it. So
of a mask that has such a better one already only its box is looked at, and only as closely as that takes: stability,
border and pixels are needed for one mask in ten. A better mask may turn out to be a duplicate itself: those that it
stood for are looked at again at the end, and made if no other stands for them. What comes out is what making all of
them would have given.

With sketches (the adaptive strategy) most boxes, and masks that are not stable by far, are judged by one logit of
sixteen, for a fraction of what it costs to make the others. That may err, rarely.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from rerun_loader_sam.engine.boxes import BoxBounds
from rerun_loader_sam.engine.geometry import Floats
from rerun_loader_sam.engine.parallel import Cores
from rerun_loader_sam.engine.prompting import EmbeddedCrop, IsNeedless, Made, Needless
from rerun_loader_sam.engine.suppression import suppress_duplicates
from rerun_loader_sam.masks import Mask

# Suppression compares boxes in single precision.
_ROUNDING = 1e-4


def grid_masks(
    embedded: EmbeddedCrop, points_xy: Floats, batch_size: int, cores: Cores, standing: "Standing"
) -> Iterator[tuple[int, list[Mask]]]:
    """How many prompts are answered and the masks that stand since then, batch by batch.

    A better mask may still replace them: what stays is in `standing` at the end.

    Args:
        embedded: The crop.
        points_xy: In pixels of the crop, (P, 2).
        batch_size: Prompts that are decoded at once.
        cores: Who works.
        standing: Where the masks go.
    """
    # What stands when a batch is begun decides, not what will when a core is free: runs look at the same every time.
    batches = [points_xy[start : start + batch_size] for start in range(0, len(points_xy), batch_size)]
    jobs = (partial(embedded.answer, batch, standing.as_it_is()) for batch in batches)
    for batch, made in zip(batches, cores.in_order(_call, jobs), strict=True):
        yield len(batch), standing.take(made)
    while orphans := standing.orphans():
        parts = [orphans[start : start + batch_size] for start in range(0, len(orphans), batch_size)]
        jobs = (partial(embedded.realise, part, standing.as_it_is()) for part in parts)
        for made in cores.in_order(_call, jobs):
            yield 0, standing.take(made)


def _call(job: Callable[[], list[Made]]) -> list[Made]:
    return job()


class Standing:
    """Masks that are no duplicates so far, and those that were not made because of them.

    Args:
        box_nms_thresh: IoU of boxes above which the worse of two masks is a duplicate.

    Attributes:
        kept: Masks that are no duplicates of others, best first.
    """

    def __init__(self, box_nms_thresh: float) -> None:
        self._threshold = box_nms_thresh
        self._made: list[Mask] = []
        self._needless: list[Needless] = []
        self.kept: list[Mask] = []
        self._is_needless: IsNeedless = _Suppressed(np.zeros((0, 4)), np.zeros(0), box_nms_thresh)

    def as_it_is(self) -> IsNeedless | None:
        """Whether a mask would be removed as the duplicate of one that is kept now; None if none ever is."""
        return self._is_needless if self._threshold < 1 else None

    def take(self, made: list[Made]) -> list[Mask]:
        """Add what was made; returns the masks among it that stand."""
        masks = [mask for mask in made if isinstance(mask, Mask)]
        self._needless += [needless for needless in made if isinstance(needless, Needless)]
        self._made += masks
        if masks:
            self._keep([*self.kept, *masks])
        standing = {id(mask) for mask in self.kept}
        return [mask for mask in masks if id(mask) in standing]

    def orphans(self) -> list[Needless]:
        """Take out those that were not made and that none of the masks suppresses that stay in the end."""
        self._keep(self._made)
        orphans: list[Needless] = []
        others: list[Needless] = []
        for needless in self._needless:
            (others if self._is_needless(needless.box, needless.predicted_iou) else orphans).append(needless)
        self._needless = others
        return orphans

    def _keep(self, masks: list[Mask]) -> None:
        """Let the masks stand that are no duplicates of others among them."""
        kept = suppress_duplicates(masks, [mask.predicted_iou for mask in masks], self._threshold)
        self.kept = [masks[i] for i in kept]
        boxes = np.array([BoxBounds.of_mask(mask).inner_xyxy for mask in self.kept]).reshape(-1, 4)
        scores = np.array([mask.predicted_iou for mask in self.kept])
        self._is_needless = _Suppressed(boxes, scores, self._threshold)


@dataclass(frozen=True, slots=True)
class _Suppressed:
    """Whether a mask is removed for one of these: boxes XYXY (n, 4) and scores (n,)."""

    boxes_xyxy: Floats
    scores: Floats
    iou_threshold: float

    def __call__(self, box: BoxBounds, predicted_iou: float) -> bool:
        better = self.boxes_xyxy[self.scores > predicted_iou]
        return bool((box.least_iou(better) > self.iou_threshold + _ROUNDING).any())
