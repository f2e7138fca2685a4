"""Masks that prompts agree on, without making the others.

Every point inside a thing asks for the same thing. So what most of them are answered with is one, and what a single
point is answered with is a fragment or an accident. A mask's agreement is the mean IoU, over the prompts that lie in
it, that the likest of each one's answers has with it. Where a model has seen little of a kind of thing, that tells
more of a mask than its predicted IoU, and it is measured, not learnt: consistency, as in Wang et al. 2023,
Self-Consistency Improves Chain of Thought Reasoning in Language Models, of masks instead of texts.

A quarter of the prompts each see the image as it is, mirrored, with its colours exchanged, and both: an accident of
one view is no other's answer (as in Krizhevsky et al. 2012, ImageNet Classification with Deep Convolutional Neural
Networks, but each prompt is asked only once).

Answers are compared as sketches, one logit of sixteen, and by their pixels: a thing and what is wrongly taken for it
often have the same box.
"""

from collections.abc import Callable, Generator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rerun_loader_sam.engine.geometry import Floats
from rerun_loader_sam.engine.grid import Answers, batches_of, interleaved
from rerun_loader_sam.engine.parallel import Cores, reporting
from rerun_loader_sam.engine.prompting import EmbeddedCrop, Made, SketchedPrompt, Unmade, prompt_of
from rerun_loader_sam.engine.views import AS_IT_IS, View
from rerun_loader_sam.masks import Mask

# Of sketches that have more IoU the one with more agreement stays.
LIKENESS_IOU = 0.7

# Each has a quarter of the prompts, from everywhere: after it there are masks of the whole image, and all answers so
# far are compared anew.
VIEWS = (
    AS_IT_IS,
    View(mirrored=True),
    View(channels=(2, 1, 0)),
    View(mirrored=True, channels=(1, 2, 0)),
)

Look = Callable[[View], Generator[None, None, EmbeddedCrop]]

# Masks and prompts that are compared at once: products of 10 MB with nano.
_MASKS_AT_ONCE = 1024
_PROMPTS_AT_ONCE = 512


def agreed_masks(
    embedded: EmbeddedCrop, points_xy: Floats, batch_size: int, cores: Cores, agreed: "Agreed", *, look: Look
) -> Answers:
    """How many prompts are answered and the masks that those so far agree on, batch by batch.

    More prompts may agree on others: what stays is in `agreed` at the end.

    Args:
        embedded: The crop as it is; it must have sketches.
        points_xy: In pixels of the crop, (P, 2).
        batch_size: Prompts that are decoded at once.
        cores: Who works.
        agreed: Where the masks go.
        look: Embeds the crop seen in another way; yields after each piece of work.
    """
    asked: dict[tuple[float, float], EmbeddedCrop] = {}
    rounds = batches_of(interleaved(points_xy), max(-(-len(points_xy) // len(VIEWS)), 1))
    for view, points in zip(VIEWS, rounds, strict=False):
        if view != AS_IT_IS:
            embedded = yield from reporting(look(view), (0, []))
        asked |= dict.fromkeys(map(tuple, points.tolist()), embedded)
        batches = batches_of(points, batch_size)
        answered: list[SketchedPrompt] = []
        for batch, prompts in zip(batches, cores.in_order(embedded.sketch_all, batches), strict=True):
            answered += prompts
            yield len(batch), []
        agreed.compare(answered)
        while due := agreed.due():
            parts = [
                (seen, part)
                for seen in dict.fromkeys(asked.values())
                for part in batches_of([one for one in due if asked[prompt_of(one)] is seen], batch_size)
            ]
            for (_, part), masks in zip(parts, cores.in_order(_realise, parts), strict=True):
                yield 0, agreed.take(part, masks)


def _realise(part: tuple[EmbeddedCrop, list[Unmade]]) -> list[Made]:
    embedded, due = part
    return embedded.realise(due, None)


class Agreed:
    """Masks that prompts agree on, of which the likenesses of better ones are not made.

    Args:
        agreement_thresh: Their agreement is above this, 0 to 1.
    """

    def __init__(self, agreement_thresh: float) -> None:
        self._threshold = agreement_thresh
        self._prompts: list[SketchedPrompt] = []
        self._candidates: list[Unmade] = []
        self._sketches = torch.zeros(0)
        self._likeness: dict[int, npt.NDArray[np.float32]] = {}
        self._made: dict[tuple[tuple[float, float], int], Mask | None] = {}

    @property
    def kept(self) -> list[Mask]:
        """Those that are made, the one with the most agreement first."""
        return [mask for one in self._agreed() if (mask := self._made.get(_key(one)))]

    def compare(self, prompts: list[SketchedPrompt]) -> None:
        """Add prompts, and look at what all of them agree on now."""
        self._prompts += prompts
        sketches = torch.cat([prompt.sketches for prompt in self._prompts])
        unmade = [one for prompt in self._prompts for one in prompt.unmade]
        candidates = [number for number, one in enumerate(unmade) if one]
        agreement = agreement_of(sketches[candidates], self._prompts).numpy()
        best_first = np.argsort(-agreement, kind="stable")
        chosen = [candidates[i] for i in best_first if agreement[i] > self._threshold]
        self._candidates = [one for number in chosen if (one := unmade[number])]
        self._sketches = sketches[chosen].flatten(1).float()
        self._likeness.clear()

    def due(self) -> list[Unmade]:
        """What is agreed on and neither made nor tried, sorted by its prompts."""
        return sorted((one for one in self._agreed() if _key(one) not in self._made), key=prompt_of)

    def take(self, due: list[Unmade], made: list[Made]) -> list[Mask]:
        """Add what came of some that were due; returns the masks among it."""
        masks = [one if isinstance(one, Mask) else None for one in made]
        self._made.update(zip(map(_key, due), masks, strict=True))
        for one in due:
            one.answer = None  # what the decoder said of a batch is large
        return [mask for mask in masks if mask]

    def _agreed(self) -> list[Unmade]:
        """Best first, without likenesses of better ones; those that did not pass the filters stand for nothing."""
        left = np.array([i for i, one in enumerate(self._candidates) if self._made.get(_key(one), one)], int)
        found: list[Unmade] = []
        while len(left):
            best = int(left[0])
            found.append(self._candidates[best])
            if best not in self._likeness:
                self._likeness[best] = _iou(self._sketches[best][None], self._sketches)[0].numpy()
            left = left[1:][self._likeness[best][left[1:]] <= LIKENESS_IOU]
        return found


def agreement_of(masks: Tensor, prompts: list[SketchedPrompt]) -> Tensor:
    """How far prompts agree on masks.

    Args:
        masks: Sketches, bool, (M, rows, columns).
        prompts: All that are answered.

    Returns:
        float32, (M,), from 0 to 1; 0 where no prompt lies in a mask.
    """
    likeness, count = torch.zeros(len(masks)), torch.zeros(len(masks))
    columns = masks.shape[2]
    for some in batches_of(prompts, _PROMPTS_AT_ONCE):
        cells = [y * columns + x for x, y in (prompt.cell_xy for prompt in some)]
        answers = torch.stack([prompt.sketches for prompt in some]).flatten(2).float()
        for start in range(0, len(masks), _MASKS_AT_ONCE):
            part = slice(start, start + _MASKS_AT_ONCE)
            pixels = masks[part].flatten(1).float()
            inside = pixels[:, cells]
            likest = torch.unflatten(_iou(pixels, answers.flatten(0, 1)), 1, answers.shape[:2]).amax(2)
            likeness[part] += (likest * inside).sum(1)
            count[part] += inside.sum(1)
    return likeness / count.clamp(min=1)


def _iou(some: Tensor, others: Tensor) -> Tensor:
    """Of masks (n, pixels) and (m, pixels), float32 of 0 and 1: (n, m)."""
    shared = some @ others.t()
    either = some.sum(1)[:, None] + others.sum(1)[None] - shared
    return shared / either.clamp(min=1)


def _key(unmade: Unmade) -> tuple[tuple[float, float], int]:
    return prompt_of(unmade), unmade.mask
