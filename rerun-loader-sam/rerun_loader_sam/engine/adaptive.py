"""Fewer prompts answered and fewer masks made, for the same masks shown.

Of the masks that a grid of prompts gives, nearly all end as duplicates of a better one. Leaving out prompts by where
they lie loses masks: the best view of an object comes from one prompt among dozens that hit it, and nothing tells
which before the model has answered. So every prompt is answered roughly, with a quarter of the image's tokens: that
gives its predicted IoU to about 0.02 and a sketch of each mask. Then prompts are answered in full, the best first. A
mask is left out when a better one is there that looks the same and fills the same box, and a prompt of which no mask
is left is not answered. Non-maximum suppression has the last word, as ever.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from rerun_loader_sam.engine.boxes import BoxBounds
from rerun_loader_sam.engine.geometry import Floats
from rerun_loader_sam.engine.parallel import Cores
from rerun_loader_sam.engine.prompting import Candidate, EmbeddedCrop, Made, Needless
from rerun_loader_sam.masks import Mask

# Points that are answered roughly together for one that is answered in full, and prompts that a core answers at once.
_ROUGH_TOGETHER = 4
_TOGETHER = 8

# How far below the filter of predicted IoU a rough one may be.
_FILTER_MARGIN = 0.05

# A mask is left out for one that is better by this margin, if both sketches and the boxes of both sketches have such
# an IoU. The margin is one or two standard deviations of the rough predicted IoU.
_MARGIN = 0.03
_ALIKE = 0.7
_ALIKE_BOX = 0.9


def adaptive_masks(
    embedded: EmbeddedCrop, points_xy: Floats, batch_size: int, cores: Cores, box_nms_thresh: float
) -> Iterator[tuple[int, list[Mask]]]:
    """How many prompts are done with and the masks that pass the filters, step by step.

    Args:
        embedded: The crop; it has to be able to estimate.
        points_xy: In pixels of the crop, (P, 2).
        batch_size: Prompts that are decoded at once in full.
        cores: Who works.
        box_nms_thresh: IoU of boxes above which the worse of two masks is a duplicate.
    """
    candidates: list[Candidate] = []
    size = _ROUGH_TOGETHER * batch_size
    batches = [points_xy[start : start + size] for start in range(0, len(points_xy), size)]
    estimates = cores.in_order(lambda some: embedded.estimate(some, _FILTER_MARGIN), batches)
    for batch, found in zip(batches, estimates, strict=True):
        candidates += found
        yield len(batch) - len({tuple(candidate.point_xy) for candidate in found}), []
    contest = _Contest(candidates, box_nms_thresh)
    chosen: list[list[int]] = []
    n_done = 0

    def work() -> Iterator[Callable[[], list[Made]]]:
        while (batch := contest.next_batch(min(batch_size, _TOGETHER))) is not None:
            chosen.append(batch)
            # What is kept now decides, not what will be when a core is free: runs give the same masks every time.
            is_needless = partial(_suppresses, list(contest.kept), box_nms_thresh)
            yield partial(embedded.realise, [contest.candidates[i] for i in batch], is_needless)

    for masks in cores.in_order(lambda realise: realise(), work()):
        contest.decide(dict(zip(chosen.pop(0), masks, strict=True)))
        # Prompts come back when the mask that stood for theirs turns out to be a duplicate itself.
        newly_done = max(contest.n_prompts - contest.n_open_prompts - n_done, 0)
        n_done += newly_done
        yield newly_done, [mask for mask in masks if isinstance(mask, Mask)]


@dataclass(frozen=True, slots=True)
class _Kept:
    """A mask that is no duplicate so far, and the candidates that are left out because of it."""

    box: BoxBounds
    score: float
    left_out: list[int]


class _Contest:
    """Which candidates are worth making, the best first.

    Args:
        candidates: Of all prompts.
        box_nms_thresh: See `adaptive_masks`.
    """

    def __init__(self, candidates: list[Candidate], box_nms_thresh: float) -> None:
        self.candidates = sorted(candidates, key=lambda candidate: -candidate.predicted_iou)
        self._scores = np.array([candidate.predicted_iou for candidate in self.candidates])
        sketches = [candidate.sketch for candidate in self.candidates]
        self._sketches = np.stack(sketches) if sketches else np.zeros((0, 1, 1), bool)
        self._areas = self._sketches.sum((1, 2))
        self._boxes = _boxes_xyxy(self._sketches)
        self._of_prompt: dict[tuple[float, ...], list[int]] = {}
        for index, candidate in enumerate(self.candidates):
            self._of_prompt.setdefault(tuple(candidate.point_xy), []).append(index)
        # Candidates are made, or open, or left out because of a mask that is kept.
        self._made = np.zeros(len(self.candidates), bool)
        self._open = np.ones(len(self.candidates), bool)
        # Candidates in the making, and how many of them each candidate waits for because it is like them.
        self._like: dict[int, npt.NDArray[np.int64]] = {}
        self._waiting = np.zeros(len(self.candidates), int)
        self._box_nms_thresh = box_nms_thresh
        self.kept: list[_Kept] = []

    @property
    def n_prompts(self) -> int:
        """Prompts that have candidates."""
        return len(self._of_prompt)

    @property
    def n_open_prompts(self) -> int:
        """Prompts that may still be answered or are being answered."""
        pending = self._open.copy()
        pending[list(self._like)] = True
        return len({tuple(self.candidates[i].point_xy) for i in np.flatnonzero(pending)})

    def next_batch(self, n_prompts: int) -> list[int] | None:
        """All open candidates of the best prompts, none of which is led by a mask that is like one in the making.

        Empty if what is left hangs on answers that are to come, None if nothing is left.
        """
        if not self._open.any() and not self._like:
            return None
        chosen: list[int] = []
        for _ in range(n_prompts):
            free = np.flatnonzero(self._open & (self._waiting == 0))
            if not len(free):
                break
            together = [i for i in self._of_prompt[tuple(self.candidates[free[0]].point_xy)] if self._open[i]]
            self._open[together] = False
            self._made[together] = True
            for index in together:
                self._like[index] = self._alike(index)
                self._waiting[self._like[index]] += 1
            chosen += together
        return chosen

    def decide(self, made: dict[int, Made]) -> None:
        """Let the made masks of a batch stand for the worse ones that are like them.

        Those that did not pass the filters (None) or are themselves duplicates by their box do not.
        """
        for index, mask in made.items():
            like = self._like.pop(index)
            self._waiting[like] -= 1
            if isinstance(mask, Needless):
                self._made[index] = False
                by = _suppresses(self.kept, self._box_nms_thresh, mask.box, mask.predicted_iou)
                self._leave_out(by, np.array([index]))
            elif mask is not None:
                box = BoxBounds.of_mask(mask)
                if not _suppresses(self.kept, self._box_nms_thresh, box, mask.predicted_iou):
                    kept = _Kept(box, mask.predicted_iou, [])
                    self._keep(kept)
                    worse = like[self._scores[like] < mask.predicted_iou - _MARGIN]
                    self._leave_out(kept, worse[self._open[worse]])

    def _keep(self, mask: _Kept) -> None:
        """Take a mask among those that are kept; worse ones that it suppresses stand for nothing any more."""
        still_kept = [mask]
        for other in self.kept:
            if _suppresses([mask], self._box_nms_thresh, other.box, other.score):
                self._open[other.left_out] = True
            else:
                still_kept.append(other)
        self.kept = still_kept

    def _leave_out(self, by: _Kept | None, indices: npt.NDArray[np.int64]) -> None:
        """Candidates that `by` stands for are not open, those that nothing stands for are."""
        self._open[indices] = by is None
        if by is not None:
            by.left_out.extend(indices.tolist())

    def _alike(self, index: int) -> npt.NDArray[np.int64]:
        """Candidates whose sketch is nearly the same, without those that are made."""
        area = self._areas[index]
        # Two masks cannot overlap by more than the smaller one: most need not be compared.
        similar = ~self._made & (np.minimum(self._areas, area) > _ALIKE * np.maximum(self._areas, area))
        similar &= BoxBounds.exact(self._boxes[index]).least_iou(self._boxes) > max(_ALIKE_BOX, self._box_nms_thresh)
        others = np.flatnonzero(similar)
        shared = np.count_nonzero(self._sketches[others] & self._sketches[index], axis=(1, 2))
        found: npt.NDArray[np.int64] = others[shared > _ALIKE * (self._areas[others] + area - shared)]
        return found


def _suppresses(kept: list[_Kept], threshold: float, box: BoxBounds, score: float) -> _Kept | None:
    """Which of the better masks has a box that overlaps another's by more than the threshold; None of them?"""
    better = [mask for mask in kept if mask.score >= score]
    if not better:
        return None
    ious = box.least_iou(np.stack([mask.box.inner_xyxy for mask in better]))
    best = int(ious.argmax())
    return better[best] if ious[best] > threshold else None


def _boxes_xyxy(sketches: npt.NDArray[np.bool_]) -> Floats:
    """Boxes around bool (n, h, w) masks, (n, 4); the last row and column are not in them."""
    columns, rows = np.asarray(sketches.any(1)), np.asarray(sketches.any(2))
    (x0, x1), (y0, y1) = ((line.argmax(1), line.shape[1] - line[:, ::-1].argmax(1)) for line in (columns, rows))
    return np.stack([x0, y0, x1, y1], 1).astype(np.float64)
