"""Masks that prompts agree on, without making the others.

Every point inside a thing asks for the same thing. So what most of them are answered with is one, and what a single
point is answered with is a fragment or an accident. A mask's agreement is the mean IoU, over the prompts that lie in
it, that the likest of each one's answers has with it. Where a model has seen little of a kind of thing, that tells
more of a mask than its predicted IoU, and it is measured, not learnt: consistency, as in Wang et al. 2023,
Self-Consistency Improves Chain of Thought Reasoning in Language Models, of masks instead of texts.

Some of the prompts each see the image as it is, mirrored, with its colours exchanged, and both: an accident of
one view is no other's answer (as in Krizhevsky et al. 2012, ImageNet Classification with Deep Convolutional Neural
Networks, but each prompt is asked only once). Crops of the image, where things are larger, are further ones: all
prompts that see a mask whole have a say in it, by the detail that they see.

Answers are compared as sketches, one logit of sixteen, and by their pixels: a thing and what is wrongly taken for it
often have the same box.
"""

import itertools
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rerun_loader_sam.engine.geometry import Crop, Floats
from rerun_loader_sam.engine.grid import Answers, batches_of, interleaved
from rerun_loader_sam.engine.parallel import Cores, reporting
from rerun_loader_sam.engine.prompting import EmbeddedCrop, Made, SketchedPrompt, Unmade, prompt_of
from rerun_loader_sam.engine.sketches import SketchGrid
from rerun_loader_sam.engine.views import AS_IT_IS, View
from rerun_loader_sam.masks import Mask

# Of sketches that have more IoU the one with more agreement stays.
LIKENESS_IOU = 0.7

# A crop in which less of a mask lies says nothing of it: its prompts cannot answer with it.
LEAST_SHARE_INSIDE = 0.9

# Nearer at an edge of its crop a mask is cut off by it. Upstream's 20 pixels of the image are more than two tokens of
# a small photograph: things that lie there whole would be lost.
CUT_OFF_TOKENS = 0.5

# Each has an equal part of the prompts, from everywhere. An image goes through the encoder four times, a crop twice:
# there are more of them.
VIEWS = (
    AS_IT_IS,
    View(mirrored=True),
    View(channels=(2, 1, 0)),
    View(mirrored=True, channels=(1, 2, 0)),
)
VIEWS_OF_CROPS = (VIEWS[0], VIEWS[3]), (VIEWS[1], VIEWS[2])

# Masks and prompts that are compared at once: products of 10 MB with nano.
_MASKS_AT_ONCE = 1024
_PROMPTS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Look:
    """Prompts that see the same.

    Attributes:
        crop: What they see of the image.
        view: How.
        points_xy: In pixels of the crop, (P, 2).
    """

    crop: Crop
    view: View
    points_xy: Floats


Embed = Callable[[Look], Generator[None, None, EmbeddedCrop]]


def looks_of(crops: Iterable[Crop], grids: list[Floats], tokens_per_side: int) -> list[Look]:
    """Who sees what, the image itself first.

    Args:
        crops: The image and crops of it.
        grids: Points of each layer of crops, (P, 2), from 0 to 1.
        tokens_per_side: Of a crop, along its longer side.
    """
    looks: list[Look] = []
    for number, whole in enumerate(crops):
        crop = replace(whole, edge_margin_px=CUT_OFF_TOKENS * max(whole.size_hw) / tokens_per_side)
        points_xy = interleaved(crop.points_xy(grids[crop.layer]))
        views = VIEWS_OF_CROPS[number % len(VIEWS_OF_CROPS)] if crop.layer else VIEWS
        parts = batches_of(points_xy, max(-(-len(points_xy) // len(views)), 1))
        looks += [Look(crop, view, part) for view, part in zip(views, parts, strict=False)]
    return looks


def agreed_masks(looks: list[Look], embed: Embed, batch_size: int, cores: Cores, agreed: "Agreed") -> Answers:
    """How many prompts are answered and the masks that those so far agree on, batch by batch.

    More prompts may agree on others: what stays is in `agreed` at the end. Masks come when the number of looks has
    doubled, for each time takes some that do not stay.

    Args:
        looks: All prompts.
        embed: Embeds what a look sees; yields after each piece of work. It must have sketches.
        batch_size: Prompts that are decoded at once.
        cores: Who works.
        agreed: Where the masks go.
    """
    asked: dict[Unmade, EmbeddedCrop] = {}
    for number, look in enumerate(looks, start=1):
        embedded = yield from reporting(embed(look), (0, []))
        batches = batches_of(look.points_xy, batch_size)
        answered: list[SketchedPrompt] = []
        for batch, prompts in zip(batches, cores.in_order(embedded.sketch_all, batches), strict=True):
            answered += prompts
            yield len(batch), []
        asked |= {one: embedded for prompt in answered for one in prompt.unmade if one}
        agreed.compare(answered, embedded.sketch_grid)
        if number.bit_count() > 1 and number < len(looks):
            continue
        while due := agreed.due():
            parts = [
                (seen, part)
                for seen in dict.fromkeys(map(asked.__getitem__, due))
                for part in batches_of([one for one in due if asked[one] is seen], batch_size)
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
        self._asked: list[AnsweredPrompts] = []
        self._candidates: list[Candidates] = []
        self._chosen: list[Unmade] = []
        self._sketches = torch.zeros(0)
        self._likeness: dict[int, npt.NDArray[np.float32]] = {}
        self._made: dict[Unmade, Mask | None] = {}
        self._has_news = False

    @property
    def kept(self) -> list[Mask]:
        """Those that are made, the one with the most agreement first."""
        return [mask for one in self._agreed() if (mask := self._made.get(one))]

    def compare(self, prompts: list[SketchedPrompt], grid: SketchGrid) -> None:
        """Add prompts that see the same.

        Args:
            prompts: What they are answered with, one or more.
            grid: Where the logits of their sketches lie.
        """
        answers, candidates = AnsweredPrompts.of(prompts, grid), Candidates(prompts, grid)
        for earlier in self._candidates:
            earlier.hear(answers)
        self._asked.append(answers)
        for heard in self._asked:
            candidates.hear(heard)
        self._candidates.append(candidates)
        self._has_news = True

    def due(self) -> list[Unmade]:
        """What is agreed on and neither made nor tried, sorted by its prompts."""
        return sorted((one for one in self._agreed() if one not in self._made), key=prompt_of)

    def take(self, due: list[Unmade], made: list[Made]) -> list[Mask]:
        """Add what came of some that were due; returns the masks among it."""
        masks = [one if isinstance(one, Mask) else None for one in made]
        self._made.update(zip(due, masks, strict=True))
        for one in due:
            one.answer = None  # what the decoder said of a batch is large
        return [mask for mask in masks if mask]

    def _choose(self) -> None:
        """Sort by agreement what is agreed on, and sketch it on one grid, the finest that there is."""
        whole = self._candidates[0].grid
        grid = whole.of_cells(min((some.grid for some in self._candidates), key=lambda some: some.cell_area).cell_wh)
        agreements: list[Tensor] = []
        sketches: list[Tensor] = []
        unmade: list[Unmade] = []
        for some in self._candidates:
            agreement = some.agreement
            stays = agreement > self._threshold
            agreements.append(agreement[stays])
            sketches.append(some.grid.resampled(some.sketches[stays], grid))
            unmade += itertools.compress(some.unmade, stays.tolist())
        best_first = torch.cat(agreements).argsort(descending=True, stable=True)
        self._chosen = [unmade[number] for number in best_first.tolist()]
        self._sketches = torch.cat(sketches)[best_first].flatten(1).float()
        self._likeness.clear()
        self._has_news = False

    def _agreed(self) -> list[Unmade]:
        """Best first, without likenesses of better ones; those that did not pass the filters stand for nothing."""
        if self._has_news:
            self._choose()
        left = np.array([i for i, one in enumerate(self._chosen) if self._made.get(one, one)], int)
        found: list[Unmade] = []
        while len(left):
            best = int(left[0])
            found.append(self._chosen[best])
            if best not in self._likeness:
                self._likeness[best] = _iou(self._sketches[best][None], self._sketches)[0].numpy()
            left = left[1:][self._likeness[best][left[1:]] <= LIKENESS_IOU]
        return found


@dataclass(frozen=True, slots=True)
class AnsweredPrompts:
    """What prompts that see the same are answered with.

    Attributes:
        grid: Where the logits of sketches lie.
        cells: Number of the cell in which each prompt lies.
        sketches: bool, (P, masks, rows, columns).
    """

    grid: SketchGrid
    cells: list[int]
    sketches: Tensor

    @classmethod
    def of(cls, prompts: list[SketchedPrompt], grid: SketchGrid) -> "AnsweredPrompts":
        """Of one prompt or more."""
        cells = [y * grid.size_hw[1] + x for x, y in (prompt.cell_xy for prompt in prompts)]
        return cls(grid, cells, torch.stack([prompt.sketches for prompt in prompts]))


class Candidates:
    """What may become masks of what prompts that see the same are answered with, and how far all others agree on it.

    Args:
        prompts: One or more.
        grid: Where the logits of their sketches lie.

    Attributes:
        grid: Where the logits of sketches lie.
        unmade: They, M of them.
        sketches: bool, (M, rows, columns).
    """

    def __init__(self, prompts: list[SketchedPrompt], grid: SketchGrid) -> None:
        every = [one for prompt in prompts for one in prompt.unmade]
        self.grid = grid
        self.unmade = [one for one in every if one]
        self.sketches = torch.cat([prompt.sketches for prompt in prompts])[[one is not None for one in every]]
        self._likeness, self._weight = torch.zeros(len(self.unmade)), torch.zeros(len(self.unmade))

    @property
    def agreement(self) -> Tensor:
        """float32, (M,), from 0 to 1; 0 where no prompt lies in one."""
        return self._likeness / self._weight.clamp(min=torch.finfo().tiny)

    def hear(self, answers: AnsweredPrompts) -> None:
        """Let further prompts have a say: one that sees twice the detail has twice as much."""
        weight = 1 / answers.grid.cell_area
        for start in range(0, len(self.unmade), _MASKS_AT_ONCE):
            part = torch.arange(start, min(start + _MASKS_AT_ONCE, len(self.unmade)))
            if answers.grid != self.grid:
                share_inside = self.grid.share_inside(self.sketches[part], answers.grid.box_xyxy)
                part = part[share_inside >= LEAST_SHARE_INSIDE]
            pixels = self.grid.resampled(self.sketches[part], answers.grid).flatten(1).float()
            for first in range(0, len(answers.cells), _PROMPTS_AT_ONCE):
                some = slice(first, first + _PROMPTS_AT_ONCE)
                sketches = answers.sketches[some].flatten(2).float()
                inside = pixels[:, answers.cells[some]]
                likest = torch.unflatten(_iou(pixels, sketches.flatten(0, 1)), 1, sketches.shape[:2]).amax(2)
                self._likeness[part] += weight * (likest * inside).sum(1)
                self._weight[part] += weight * inside.sum(1)


def _iou(some: Tensor, others: Tensor) -> Tensor:
    """Of masks (n, pixels) and (m, pixels), float32 of 0 and 1: (n, m)."""
    shared = some @ others.t()
    either = some.sum(1)[:, None] + others.sum(1)[None] - shared
    return shared / either.clamp(min=1)
