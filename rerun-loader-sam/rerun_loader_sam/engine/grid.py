"""Every prompt answered and every mask decided on, without making those that end as duplicates.

Non-maximum suppression lets a mask go for a better one whose box is nearly the same, whatever else is true of it. So
of a mask that has such a better one already only its box is looked at, and only as closely as that takes: stability,
border and pixels are needed for one mask in ten. A better mask may turn out to be a duplicate itself: those that it
stood for are looked at again later, and made if no other stands for them. What comes out is what making all of them
would have given.

With sketches (the adaptive strategy) all boxes, and masks that are not stable, are judged by one logit of sixteen
first, for a fraction of what it costs to make the others, and masks are made best first. That may err, rarely.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from rerun_loader_sam.engine.boxes import BoxBounds, least_iou
from rerun_loader_sam.engine.geometry import Floats
from rerun_loader_sam.engine.parallel import Cores
from rerun_loader_sam.engine.prompting import EmbeddedCrop, IsNeedless, Made, SketchedPrompt, Unmade
from rerun_loader_sam.engine.suppression import suppress_duplicates
from rerun_loader_sam.masks import Mask

# Suppression compares boxes in single precision.
_ROUNDING = 1e-4

# How many batches are sketched before the best of them are made: the decoder's answers are kept so long, 120 MB for
# nano and 240 MB for vit_b.
_BATCHES_A_ROUND = 16

Batch = TypeVar("Batch", Floats, list[Unmade], list[SketchedPrompt])
Answers = Iterator[tuple[int, list[Mask]]]


def grid_masks(
    embedded: EmbeddedCrop, points_xy: Floats, batch_size: int, cores: Cores, standing: "Standing"
) -> Answers:
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
    batches = batches_of(points_xy, batch_size)
    jobs = (partial(embedded.answer, batch, standing.as_it_is()) for batch in batches)
    for batch, made in zip(batches, cores.in_order(_call, jobs), strict=True):
        yield len(batch), standing.take(made)
    yield from _settle(embedded, batch_size, cores, standing)


def sketched_grid_masks(
    embedded: EmbeddedCrop, points_xy: Floats, batch_size: int, cores: Cores, standing: "Standing"
) -> Answers:
    """The same by sketches, for a crop that has them; see `grid_masks`."""
    for points in batches_of(interleaved(points_xy), _BATCHES_A_ROUND * batch_size):
        batches = batches_of(points, batch_size)
        for batch, sketched in zip(batches, cores.in_order(embedded.sketch, batches), strict=True):
            yield len(batch), standing.take(sketched)
        yield from _settle(embedded, batch_size, cores, standing)
        standing.forget_answers()


def _settle(embedded: EmbeddedCrop, batch_size: int, cores: Cores, standing: "Standing") -> Answers:
    """Make all that no mask stands for."""
    while due := standing.due():
        size = min(batch_size, -(-len(due) // cores.n_workers))
        jobs = (partial(embedded.realise, part, standing.as_it_is()) for part in batches_of(due, size))
        for made in cores.in_order(_call, jobs):
            yield 0, standing.take(made)


def _call(job: Callable[[], list[Made]]) -> list[Made]:
    return job()


def batches_of(items: Batch, size: int) -> list[Batch]:
    """`size` of them in each but the last."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def interleaved(points_xy: Floats) -> Floats:
    """The points of a grid as four grids of half the density, so that there are masks of the whole image early."""
    column, row = (np.unique(points_xy[:, axis], return_inverse=True)[1] % 2 for axis in (0, 1))
    return points_xy[np.argsort(2 * (column ^ row) + row, kind="stable")]


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
        self._unmade: list[Unmade] = []
        self.kept: list[Mask] = []
        self._suppressed = _Suppressed(np.zeros((0, 4)), np.zeros(0), box_nms_thresh + _ROUNDING)

    def as_it_is(self) -> IsNeedless | None:
        """Whether a mask would be removed as the duplicate of one that is kept now; None if none ever is."""
        return self._suppressed if self._threshold < 1 else None

    def take(self, made: Sequence[Made]) -> list[Mask]:
        """Add what was made, or was not; returns the masks among it that stand."""
        masks = [mask for mask in made if isinstance(mask, Mask)]
        self._unmade += [unmade for unmade in made if isinstance(unmade, Unmade)]
        self._made += masks
        if masks:
            self._keep([*self.kept, *masks])
        standing = {id(mask) for mask in self.kept}
        return [mask for mask in masks if id(mask) in standing]

    def due(self) -> list[Unmade]:
        """Take out masks that are to be made now: no mask that is kept suppresses them, nor a better one of them."""
        self._keep(self._made)
        self._unmade.sort(key=lambda unmade: -unmade.predicted_iou)
        inner = np.array([unmade.box.inner_xyxy for unmade in self._unmade]).reshape(-1, 4)
        outer = np.array([unmade.box.outer_xyxy for unmade in self._unmade]).reshape(-1, 4)
        scores = np.array([unmade.predicted_iou for unmade in self._unmade])
        left = np.flatnonzero(~self._suppressed.among(inner, outer, scores))
        due = np.zeros(len(self._unmade), bool)
        while len(left):
            best, left = left[0], left[1:]
            due[best] = True
            box = (inner[best] + outer[best]) / 2
            left = left[least_iou(inner[left], outer[left], box) <= self._threshold]
        taken = [unmade for unmade, now in zip(self._unmade, due, strict=True) if now]
        self._unmade = [unmade for unmade, now in zip(self._unmade, due, strict=True) if not now]
        return taken

    def forget_answers(self) -> None:
        """Let go what the decoder said of those that are not made."""
        for unmade in self._unmade:
            unmade.answer = None

    def _keep(self, masks: list[Mask]) -> None:
        """Let the masks stand that are no duplicates of others among them."""
        kept = suppress_duplicates(masks, [mask.predicted_iou for mask in masks], self._threshold)
        self.kept = [masks[i] for i in kept]
        boxes = np.array([BoxBounds.of_mask(mask).inner_xyxy for mask in self.kept]).reshape(-1, 4)
        scores = np.array([mask.predicted_iou for mask in self.kept])
        self._suppressed = _Suppressed(boxes, scores, self._threshold + _ROUNDING)


@dataclass(frozen=True, slots=True)
class _Suppressed:
    """Whether masks are removed for one of these: boxes XYXY (n, 4) and scores (n,)."""

    boxes_xyxy: Floats
    scores: Floats
    iou_threshold: float

    def __call__(self, box: BoxBounds, predicted_iou: float) -> bool:
        return bool(self.among(box.inner_xyxy[None], box.outer_xyxy[None], np.array([predicted_iou]))[0])

    def among(self, inner_xyxy: Floats, outer_xyxy: Floats, predicted_iou: Floats) -> npt.NDArray[np.bool_]:
        """Which of some masks: bounds of their boxes (m, 4) each and scores (m,); (m,)."""
        iou = least_iou(inner_xyxy[:, None], outer_xyxy[:, None], self.boxes_xyxy)
        better = self.scores > predicted_iou[:, None]
        found: npt.NDArray[np.bool_] = np.any(better & (iou > self.iou_threshold), axis=1)
        return found
