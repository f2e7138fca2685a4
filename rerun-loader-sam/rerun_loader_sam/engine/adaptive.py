"""Fewer masks made for the same masks shown: candidates are judged by a rough look before they are made.

Of the masks that a grid of prompts gives, nearly all end as duplicates of a better one. Leaving out prompts saves
their cost but loses masks: the best view of an object comes from one prompt among dozens that hit it, and nothing
tells which before the model has answered. So every prompt is answered as far as its predicted IoU, which costs half,
and each candidate's box is estimated from one logit a token. Then candidates are made best first, and those whose
box is that of a better mask already made are not made at all: non-maximum suppression would drop them.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from rerun_loader_sam.engine.geometry import Floats
from rerun_loader_sam.engine.parallel import Cores
from rerun_loader_sam.engine.prompting import Candidate, EmbeddedCrop
from rerun_loader_sam.masks import Mask

# Candidates that are made in one round, and by one core at a time.
_ROUND = 64
_TOGETHER = 4

# A rough box is off by up to a token a side: only boxes of some tokens are compared, and only a clear overlap counts.
_LEAST_SIDE = 3
_SAFETY = 0.75


def adaptive_masks(
    embedded: EmbeddedCrop, batches: list[Floats], cores: Cores, box_nms_thresh: float
) -> Iterator[tuple[int, list[Mask]]]:
    """How many prompts are done with and the masks that pass the filters, step by step.

    Args:
        embedded: The crop.
        batches: All points, in pixels of the crop, (P, 2) each.
        cores: Who works.
        box_nms_thresh: IoU of boxes above which the worse of two masks is a duplicate.
    """
    candidates: list[Candidate] = []
    for batch, found in zip(batches, cores.in_order(embedded.estimate, batches), strict=True):
        candidates += found
        yield len(batch), []
    candidates.sort(key=lambda candidate: -candidate.predicted_iou)
    contest = _Contest(candidates, box_nms_thresh + (1 - box_nms_thresh) * _SAFETY)
    while len(chosen := contest.next_round()):
        parts = [chosen[start : start + _TOGETHER] for start in range(0, len(chosen), _TOGETHER)]
        work = ([candidates[i] for i in part] for part in parts)
        for part, masks in zip(parts, cores.in_order(embedded.realise, work), strict=True):
            for index, mask in zip(part, masks, strict=True):
                contest.decide(index, passed=mask is not None)
            yield 0, [mask for mask in masks if mask is not None]


class _Contest:
    """Which candidates are worth making, the best first.

    Args:
        candidates: Best first.
        overlap: IoU of rough boxes above which the worse candidate counts as a duplicate.
    """

    def __init__(self, candidates: list[Candidate], overlap: float) -> None:
        self._boxes = np.array([candidate.box_xyxy for candidate in candidates], np.float64).reshape(-1, 4)
        sides = self._boxes[:, 2:] - self._boxes[:, :2]
        self._areas = sides.prod(1)
        self._comparable = sides.min(1, initial=np.inf) >= _LEAST_SIDE
        self._open = np.ones(len(candidates), bool)
        self._overlap = overlap

    def next_round(self) -> list[int]:
        """Candidates to be made now: of those still open the best, no two of them alike."""
        chosen: list[int] = []
        waiting = np.zeros(len(self._open), bool)
        for index in np.flatnonzero(self._open).tolist():
            if waiting[index]:
                continue
            chosen.append(index)
            if len(chosen) == _ROUND:
                break
            waiting |= self._like(index)
        self._open[chosen] = False
        return chosen

    def decide(self, index: int, *, passed: bool) -> None:
        """A made candidate that passed the filters puts those out of the contest that are like it."""
        if passed:
            self._open &= ~self._like(index)

    def _like(self, index: int) -> npt.NDArray[np.bool_]:
        if not self._comparable[index]:
            return np.zeros(len(self._open), bool)
        box = self._boxes[index]
        low = np.maximum(self._boxes[:, :2], box[:2])
        high = np.minimum(self._boxes[:, 2:], box[2:])
        shared = (high - low).clip(min=0).prod(1)
        iou = shared / (self._areas + self._areas[index] - shared).clip(min=1)
        alike: npt.NDArray[np.bool_] = (iou > self._overlap) & self._comparable
        alike[: index + 1] = False
        return alike
