"""Training batches: crops of the synthetic scenes, prompts on them, and every mask that would be a right answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scene_files import UNLABELLED, Scene, whole_of_each
from scenes import SCENE_SIZE, Ingredients, make_scene

Bytes = NDArray[Any]
"""uint8; OpenCV's type hints do not tell dtypes."""

LEVELS = 3
SMALLEST_VIEW = 0.7
"""Pixels of a scene for each of the image: with less than 1 things are larger and softer, as in many photographs."""
LARGEST_JITTER, CUT_BOXES, LARGEST_CUT = 0.12, 0.2, 0.5
"""Boxes are like those of a model's masks: standard deviation of their sides as a share of their length, how many of
them have a side much too far inside, as those of fragments, and by how much of their length.
"""
PAD_COLOUR = (124, 116, 104)
"""Mean colour, so that padding is zero after normalisation, as in `Sam.preprocess`."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the training: `steps` batches of `batch` square images of `size` pixels, `prompts` on each."""

    size: int
    batch: int
    prompts: int
    steps: int
    new_scenes: float
    """Scenes made for each step; the other images are new crops of recent ones."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One training step's data, S the image size.

    `images` (B, 3, S, S) uint8; `points` (B, P, 2) and `boxes` (B, P, 4) in pixels; `boxed` (B, P) which target a box
    is that of; `targets` (B, P, 3, S/2, S/2) uint8 coverage in 0..4 of the nested right answers, small to large, the
    last repeated; `valid` (B, P, 3) which of them are no repetition; `regions` (B, S/2, S/2) and `wholes`
    (B, S/2, S/2) uint8 labels.
    """

    images: Tensor
    points: Tensor
    boxes: Tensor
    boxed: Tensor
    targets: Tensor
    valid: Tensor
    regions: Tensor
    wholes: Tensor


class Sample(NamedTuple):
    """One image of a batch: the fields of `Batch` without the first axis."""

    image: Bytes
    points: NDArray[np.float32]
    boxes: NDArray[np.float32]
    boxed: NDArray[np.int64]
    targets: Bytes
    valid: NDArray[np.bool_]
    regions: Bytes
    wholes: Bytes


def random_view(rng: np.random.Generator, scene: Scene, size: int) -> tuple[Bytes, Bytes, tuple[int, int]]:
    """A random crop of a scene, turned, recoloured, and padded like SAM's input: image, regions, (height, width)."""
    longest = int(rng.integers(min(SCENE_SIZE, max(int(SMALLEST_VIEW * size), 224)), SCENE_SIZE + 1))
    shortest = longest if rng.random() < 0.5 else int(longest * rng.uniform(0.55, 1))
    height, width = (longest, shortest) if rng.random() < 0.4 else (shortest, longest)
    y, x = rng.integers(SCENE_SIZE - height + 1), rng.integers(SCENE_SIZE - width + 1)
    image: Bytes = scene.image[y : y + height, x : x + width]
    regions: Bytes = scene.regions[y : y + height, x : x + width]
    valid_hw = (round(height * size / longest), round(width * size / longest))
    image = cv2.resize(image, valid_hw[::-1], interpolation=cv2.INTER_AREA)
    regions = cv2.resize(regions, valid_hw[::-1], interpolation=cv2.INTER_NEAREST)
    if rng.random() < 0.5:
        image, regions = image[:, ::-1], regions[:, ::-1]
    if rng.random() < 0.15:
        image, regions = image[::-1], regions[::-1]
    image = np.ascontiguousarray(image[:, :, rng.permutation(3)] if rng.random() < 0.3 else image)
    if rng.random() < 0.08:
        image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None], 3, 2)
    if rng.random() < 0.3:
        gamma = rng.uniform(0.6, 1.6)
        image = cv2.LUT(image, (255 * (np.arange(256) / 255) ** gamma).astype(np.uint8))
    padded = np.empty((size, size, 3), np.uint8)
    padded[:] = PAD_COLOUR
    padded[: valid_hw[0], : valid_hw[1]] = image
    padded_regions = np.full((size, size), 255, np.uint8)
    padded_regions[: valid_hw[0], : valid_hw[1]] = regions
    return padded, padded_regions, valid_hw


def ancestry(parents: Bytes) -> Bytes:
    """(256, 256) uint8: 1 where the row's region is the column's region or a part of it. 255 is padding, nobody's."""
    table = np.zeros((256, 256), np.uint8)
    rows = np.arange(255)
    nodes: NDArray[Any] = rows
    while True:
        table[rows, nodes] = 1
        above = parents[nodes]
        if np.array_equal(above, nodes):
            return table
        nodes = above


def right_answers(regions: Bytes, parents: Bytes, table: Bytes, y: int, x: int) -> list[Bytes]:
    """Nested masks (S, S) of 0 and 1 that a point may mean, small to large, at least a tenth apart in area."""
    region = int(regions[y, x])
    own = (regions == region).astype(np.uint8)
    _, labels = cv2.connectedComponents(own, connectivity=4, ltype=cv2.CV_16U)
    candidates = [(labels == labels[y, x]).astype(np.uint8), own]
    while True:
        candidates.append(table[:, region][regions])
        if parents[region] == region:
            break
        region = int(parents[region])
    kept: list[Bytes] = []
    area = 0.0
    for mask in candidates:
        pixels = float(np.count_nonzero(mask))
        if pixels * 0.9 > area:
            kept.append(mask)
            area = pixels
        elif kept:
            kept[-1], area = mask, pixels
    return kept


def rough_box(rng: np.random.Generator, mask: Bytes) -> NDArray[np.float64]:
    """About the box of a mask (S, S) of 0 and 1: XYXY, (4,), in pixels."""
    left, top, width, height = cv2.boundingRect(mask)
    lengths = np.array([width, height, width, height])
    shares = rng.normal(0, rng.uniform(0, LARGEST_JITTER), 4)
    if rng.random() < CUT_BOXES:
        side = int(rng.integers(4))
        shares[side] = rng.uniform(0, LARGEST_CUT) * (1 if side < 2 else -1)
    box: NDArray[np.float64] = np.array([left, top, left + width, top + height]) + shares * lengths
    return box


def make_sample(rng: np.random.Generator, scene: Scene, size: int, prompts: int) -> Sample:
    """A view of a scene. Prompts are where something is labelled."""
    smallest_px = max(12.0, 5e-4 * size * size)
    while True:
        image, regions, valid_hw = random_view(rng, scene, size)
        areas = np.bincount(regions.ravel(), minlength=256)[:UNLABELLED]
        present = np.nonzero(areas >= smallest_px)[0]
        if len(present):
            break
    table = ancestry(scene.parents)
    half = size // 2
    points = np.empty((prompts, 2), np.float32)
    boxes = np.empty((prompts, 4), np.float32)
    boxed = np.empty(prompts, np.int64)
    targets = np.empty((prompts, LEVELS, half, half), np.uint8)
    valid = np.zeros((prompts, LEVELS), bool)
    frequency = np.sqrt(areas[present])
    done = attempts = 0
    while done < prompts:
        attempts += 1
        if rng.random() < 0.5:
            y, x = int(rng.integers(valid_hw[0])), int(rng.integers(valid_hw[1]))
        else:
            ys, xs = np.nonzero(regions == rng.choice(present, p=frequency / frequency.sum()))
            pick = int(rng.integers(len(ys)))
            y, x = int(ys[pick]), int(xs[pick])
        if regions[y, x] == UNLABELLED:
            continue
        answers = right_answers(regions, scene.parents, table, y, x)
        large = [mask for mask in answers if np.count_nonzero(mask) >= smallest_px]
        if not large and attempts < 50 * prompts:
            continue
        answers = large or answers[-1:]
        if len(answers) > LEVELS:
            answers = [answers[0], answers[int(rng.integers(1, len(answers) - 1))], answers[-1]]
        covered = [m[::2, ::2] + m[1::2, ::2] + m[::2, 1::2] + m[1::2, 1::2] for m in answers]
        for level in range(LEVELS):
            targets[done, level] = covered[min(level, len(answers) - 1)]
        valid[done, : len(answers)] = True
        boxed[done] = len(answers) - 1 if rng.random() < 0.5 else rng.integers(len(answers))
        boxes[done] = rough_box(rng, answers[boxed[done]])
        points[done] = (x, y)
        done += 1
    wholes = whole_of_each(np.append(scene.parents, np.uint8(255)))
    coarse = np.ascontiguousarray(regions[1::2, 1::2])
    return Sample(image.transpose(2, 0, 1).copy(), points, boxes, boxed, targets, valid, coarse, wholes[coarse])


def stack(samples: list[Sample]) -> Batch:
    """Samples as a batch."""
    return Batch(*(torch.from_numpy(np.stack(parts)) for parts in zip(*samples, strict=True)))


class SceneWindow:
    """The most recent scenes of a series, kept in a file so that a resumed training need not make them again."""

    def __init__(self, folder: Path, seed: int, capacity: int, ingredients: Ingredients) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.seed, self.capacity, self.ingredients = seed, capacity, ingredients
        record = np.dtype(
            [
                ("number", np.int64),
                ("image", np.uint8, (SCENE_SIZE, SCENE_SIZE, 3)),
                ("regions", np.uint8, (SCENE_SIZE, SCENE_SIZE)),
                ("parents", np.uint8, (255,)),
            ]
        )
        path = folder / f"scenes_{seed}.bin"
        if not path.exists() or path.stat().st_size != record.itemsize * capacity:
            path.unlink(missing_ok=True)
            np.memmap(path, record, "w+", shape=(capacity,)).flush()
        self.slots = np.memmap(path, record, "r+", shape=(capacity,))

    def scene(self, index: int) -> Scene:
        """Scene number `index`, made now if it is not in the window."""
        slot = self.slots[index % self.capacity]
        if slot["number"] != index + 1:
            scene = make_scene(self.seed, index, self.ingredients)
            slot["image"], slot["regions"], slot["parents"] = scene.image, scene.regions, scene.parents
            slot["number"] = index + 1
        return Scene(slot["image"], slot["regions"], slot["parents"])


class BatchStream(torch.utils.data.IterableDataset[Batch]):
    """Endless batches from step `first_step` on; step k of a seed always has the same data."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        stages: list[Stage],
        first_step: int,
        *,
        capacity: int = 900,
        ingredients: Ingredients | None = None,
    ) -> None:
        self.folder, self.seed, self.stages = folder, seed, stages
        self.first_step, self.capacity, self.ingredients = first_step, capacity, ingredients or Ingredients()

    def __iter__(self) -> Iterator[Batch]:  # noqa: D105
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        window = SceneWindow(self.folder, self.seed, self.capacity, self.ingredients)
        step, available = 0, 24.0
        for stage in self.stages:
            for _ in range(stage.steps):
                available += stage.new_scenes
                if step >= self.first_step:
                    rng = np.random.default_rng((self.seed, 1 << 40, step))
                    newest = int(available)
                    fresh = range(int(available - stage.new_scenes), newest)
                    older = rng.integers(max(0, newest - self.capacity), newest, stage.batch)
                    indices = [*fresh, *older][: stage.batch]
                    yield stack([make_sample(rng, window.scene(int(i)), stage.size, stage.prompts) for i in indices])
                step += 1
