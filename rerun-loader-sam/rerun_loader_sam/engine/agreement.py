"""Masks that prompts agree on, without making the others.

Every point inside a thing asks for the same thing. So what most of them are answered with is one, and what a single
point is answered with is a fragment or an accident. A mask's agreement is the mean IoU, over the prompts that lie in
it, that the likest of each one's answers has with it. Where a model has seen little of a kind of thing, that tells
more of a mask than its predicted IoU, and it is measured, not learnt: consistency, as in Wang et al. 2023,
Self-Consistency Improves Chain of Thought Reasoning in Language Models, of masks instead of texts.

Answers are compared as sketches, one logit of sixteen, and by their pixels: a thing and what is wrongly taken for it
often have the same box.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from rerun_loader_sam.engine.geometry import Floats
from rerun_loader_sam.engine.grid import BATCHES_A_ROUND, Answers, batches_of, interleaved
from rerun_loader_sam.engine.parallel import Cores
from rerun_loader_sam.engine.prompting import EmbeddedCrop, Made, SketchedPrompt, Unmade, prompt_of
from rerun_loader_sam.masks import Mask

# Of sketches that have more IoU the one with more agreement stays.
LIKENESS_IOU = 0.7


def agreed_masks(
    embedded: EmbeddedCrop, points_xy: Floats, batch_size: int, cores: Cores, agreed: "Agreed"
) -> Answers:
    """How many prompts are answered and the masks that those so far agree on, batch by batch.

    More prompts may agree on others: what stays is in `agreed` at the end.

    Args:
        embedded: The crop; it must have sketches.
        points_xy: In pixels of the crop, (P, 2).
        batch_size: Prompts that are decoded at once.
        cores: Who works.
        agreed: Where the masks go.
    """
    for points in batches_of(interleaved(points_xy), BATCHES_A_ROUND * batch_size):
        batches = batches_of(points, batch_size)
        answered: list[SketchedPrompt] = []
        for batch, prompts in zip(batches, cores.in_order(embedded.sketch_all, batches), strict=True):
            answered += prompts
            yield len(batch), []
        agreed.compare(answered)
        while due := agreed.due():
            parts = batches_of(due, batch_size)
            made = cores.in_order(partial(embedded.realise, is_needless=None), parts)
            for part, masks in zip(parts, made, strict=True):
                yield 0, agreed.take(part, masks)


class Agreed:
    """Masks that prompts agree on, of which the likenesses of better ones are not made.

    Args:
        agreement_thresh: Their agreement is above this, 0 to 1.
    """

    def __init__(self, agreement_thresh: float) -> None:
        self._threshold = agreement_thresh
        self._prompts: list[SketchedPrompt] = []
        self._candidates: list[Unmade] = []
        self._best_first = np.zeros(0, int)
        self._among = np.zeros((0, 0), np.float32)
        self._made: dict[tuple[tuple[float, float], int], Mask | None] = {}

    @property
    def kept(self) -> list[Mask]:
        """Those that are made, the one with the most agreement first."""
        return [mask for one in self._agreed() if (mask := self._made.get(_key(one)))]

    def compare(self, prompts: list[SketchedPrompt]) -> None:
        """Add prompts, and look at what all of them agree on now."""
        self._prompts += prompts
        unmade = [one for prompt in self._prompts for one in prompt.unmade]
        numbers = [number for number, one in enumerate(unmade) if one]
        self._candidates = [one for one in unmade if one]
        iou, agreement = agreement_of(numbers, self._prompts)
        self._among = iou[:, numbers].numpy()
        best_first = np.argsort(-agreement.numpy(), kind="stable")
        self._best_first = best_first[agreement.numpy()[best_first] > self._threshold]

    def due(self) -> list[Unmade]:
        """What is agreed on and neither made nor tried, sorted by its prompts."""
        return sorted((one for one in self._agreed() if _key(one) not in self._made), key=prompt_of)

    def take(self, due: list[Unmade], made: list[Made]) -> list[Mask]:
        """Add what came of some that were due; returns the masks among it."""
        masks = [one if isinstance(one, Mask) else None for one in made]
        self._made.update(zip(map(_key, due), masks, strict=True))
        return [mask for mask in masks if mask]

    def _agreed(self) -> list[Unmade]:
        """Best first, without likenesses of better ones; those that did not pass the filters stand for nothing."""
        failed = {key for key, mask in self._made.items() if mask is None}
        left = np.array([i for i in self._best_first if _key(self._candidates[i]) not in failed], int)
        found: list[Unmade] = []
        while len(left):
            best, left = left[0], left[1:]
            found.append(self._candidates[best])
            left = left[self._among[best, left] <= LIKENESS_IOU]
        return found


def agreement_of(masks: list[int], prompts: list[SketchedPrompt]) -> tuple[Tensor, Tensor]:
    """How far prompts agree on masks.

    Args:
        masks: Numbers of M masks among all that the prompts are answered with, prompt by prompt.
        prompts: P of them, with K answers each.

    Returns:
        IoU of each of these masks with all, (M, P * K), and their agreement, (M,), from 0 to 1, both float32.
    """
    sketches = torch.stack([prompt.sketches for prompt in prompts])
    columns = sketches.shape[-1]
    cells = [y * columns + x for x, y in (prompt.cell_xy for prompt in prompts)]
    pixels = sketches.flatten(2).flatten(0, 1).float()
    iou = _iou(pixels[masks], pixels)
    inside = pixels[masks][:, cells]
    likest = torch.unflatten(iou, 1, sketches.shape[:2]).amax(2)
    return iou, (likest * inside).sum(1) / inside.sum(1).clamp(min=1)


def _iou(some: Tensor, others: Tensor) -> Tensor:
    """Of masks (n, pixels) and (m, pixels), float32 of 0 and 1: (n, m)."""
    shared = some @ others.t()
    either = some.sum(1)[:, None] + others.sum(1)[None] - shared
    return shared / either.clamp(min=1)


def _key(unmade: Unmade) -> tuple[tuple[float, float], int]:
    return prompt_of(unmade), unmade.mask
