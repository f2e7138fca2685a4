"""Fewer masks made for the same masks shown: candidates are judged by a rough look before they are made.

Of the masks that a grid of prompts gives, nearly all end as duplicates of a better one. Leaving out prompts saves
their cost but loses masks: the best view of an object comes from one prompt among dozens that hit it, and nothing
tells which before the model has answered. So every prompt is answered as far as its predicted IoU, which costs half,
and each candidate is sketched by one logit a token. Then candidates are made best first, and those whose sketch is
that of a better mask already made are not made at all: it stands for them. What non-maximum suppression does by the
boxes is left to it, at the end: a ragged mask's box cannot be told from a sketch.
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

# IoU of two sketches above which the worse mask is the better one again; sketches of fewer tokens say too little.
_ALIKE = 0.88
_ALIKE_TO_DUPLICATE = 0.98
_LEAST_AREA = 16


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
    contest = _Contest(candidates, box_nms_thresh)
    while len(chosen := contest.next_round()):
        parts = [chosen[start : start + _TOGETHER] for start in range(0, len(chosen), _TOGETHER)]
        work = ([candidates[i] for i in part] for part in parts)
        for part, masks in zip(parts, cores.in_order(embedded.realise, work), strict=True):
            for index, mask in zip(part, masks, strict=True):
                contest.decide(index, mask)
            yield 0, [mask for mask in masks if mask is not None]


class _Contest:
    """Which candidates are worth making, the best first.

    Args:
        candidates: Best first.
        box_nms_thresh: See `adaptive_masks`.
    """

    def __init__(self, candidates: list[Candidate], box_nms_thresh: float) -> None:
        sketches = [candidate.sketch for candidate in candidates]
        self._sketches = np.stack(sketches) if sketches else np.zeros((0, 0), bool)
        self._areas = self._sketches.sum(1)
        self._open = np.ones(len(candidates), bool)
        self._box_nms_thresh = box_nms_thresh
        self._kept = np.zeros((0, 4))

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
            waiting[self._like(index, self._open & ~waiting, _ALIKE)] = True
        self._open[chosen] = False
        return chosen

    def decide(self, index: int, mask: Mask | None) -> None:
        """A made candidate puts those out of the contest that are like it, if it is there to stand for them.

        One that did not pass the filters (None) is not. One that is itself a duplicate by its box tells as much of
        those that are hardly different from it.
        """
        if mask is None:
            return
        x, y, width, height = mask.bbox_xywh
        box = np.array([[x, y, x + width, y + height]])
        alike = _ALIKE_TO_DUPLICATE
        if not np.any(_box_iou(self._kept, box) > self._box_nms_thresh):
            self._kept = np.concatenate((self._kept, box))
            alike = _ALIKE
        self._open[self._like(index, self._open, alike)] = False

    def _like(self, index: int, among: npt.NDArray[np.bool_], alike: float) -> npt.NDArray[np.int64]:
        """Worse candidates whose sketch is nearly the same."""
        area = self._areas[index]
        if area < _LEAST_AREA:
            return np.zeros(0, np.int64)
        # Two masks cannot overlap by more than the smaller one: most need not be compared.
        similar = among & (np.minimum(self._areas, area) >= alike * np.maximum(self._areas, area))
        similar[: index + 1] = False
        others = np.flatnonzero(similar)
        shared = np.count_nonzero(self._sketches[others] & self._sketches[index], axis=1)
        found: npt.NDArray[np.int64] = others[shared >= alike * (self._areas[others] + area - shared)]
        return found


def _box_iou(boxes_xyxy: Floats, box_xyxy: Floats) -> Floats:
    """IoU of each box, (n, 4), with one, (1, 4)."""
    low, high = np.maximum(boxes_xyxy[:, :2], box_xyxy[:, :2]), np.minimum(boxes_xyxy[:, 2:], box_xyxy[:, 2:])
    shared = (high - low).clip(min=0).prod(1)
    areas, area = ((sides[:, 2:] - sides[:, :2]).prod(1) for sides in (boxes_xyxy, box_xyxy))
    iou: Floats = shared / (areas + area - shared).clip(min=1e-9)
    return iou
