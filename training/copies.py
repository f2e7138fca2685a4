"""Things cut out of one scene to be put into another one.

Ghiasi et al. 2021, Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation: no care for what
would stand where is needed for it to help.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from scene_files import UNLABELLED, Scene, whole_of_each
from shapes import FloatMap, Patch, place
from textures import FloatImage

_SHARES = (0.004, 0.35)
"""Smallest and largest thing, as a share of its scene."""
_EXTENTS = (0.1, 0.7)
"""Smallest and largest copy: the root of its box's area, as a share of the canvas's side."""
_MAX_SCALE = 2.0
"""Beyond it a thing would be too blurred to be in the picture's foreground."""
TWINS = 0.3
"""Share of things that come more than once, one before the other: what tells such apart is their borders alone."""
_MOST_TWINS = 4


@dataclass(frozen=True, slots=True)
class CopiedThing:
    """A thing turned and scaled: coverage on the canvas, RGB (h, w, 3) float32 in 0..255, parts.

    `regions`: numbers of its parts in the scene that it comes from, each after the one that it is a part of.
    `labels` (h, w) uint8: which of them a pixel is.
    """

    patch: Patch
    colours: FloatImage
    regions: list[int]
    labels: NDArray[Any]


def things_apart(scene: Scene) -> list[int]:
    """Wholes of a scene that its border does not cut, neither specks nor what fills it."""
    wholes = whole_of_each(scene.parents)[scene.regions]
    shares = np.bincount(wholes.ravel(), minlength=256) / wholes.size
    shares[UNLABELLED] = 0
    for side in (wholes[0], wholes[-1], wholes[:, 0], wholes[:, -1]):
        shares[side] = 0
    return [int(whole) for whole in np.nonzero((shares > _SHARES[0]) & (shares < _SHARES[1]))[0]]


def standings(rng: np.random.Generator, size: int) -> Iterator[tuple[tuple[float, float], float]]:
    """Where a thing shall be copied to: centre (x, y) and extent in pixels, of one copy or of a few that overlap."""
    x, y = rng.uniform(0, size, 2)
    extent_px = size * math.exp(rng.uniform(*np.log(_EXTENTS)))
    for _ in range(int(rng.integers(2, _MOST_TWINS + 1)) if rng.random() < TWINS else 1):
        yield (float(x), float(y)), float(extent_px * rng.uniform(0.85, 1.15))
        x, y = np.array([x, y]) + rng.normal(0, 0.6, 2) * extent_px


def copy_thing(
    rng: np.random.Generator, scene: Scene, whole: int, centre: tuple[float, float], extent_px: float
) -> CopiedThing | None:
    """A whole of a scene, around `centre` (x, y) of a canvas of the scene's size; None if hardly any lies on it.

    `extent_px` is the root of its box's area, if that does not take more than twice its size.
    """
    size = len(scene.regions)
    mask = (whole_of_each(scene.parents)[scene.regions] == whole).astype(np.uint8)
    left, top, width, height = cv2.boundingRect(mask)
    scale, angle = min(extent_px / math.sqrt(width * height), _MAX_SCALE), math.radians(rng.normal(0, 15))
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    at = place(size, (left, top, width, height), centre, (mirror * scale, scale), angle)
    if at is None:
        return None
    # The outermost pixels have the colours of what the thing stood before.
    inner = cv2.erode(mask, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    alpha: FloatMap = cv2.warpAffine(inner.astype(np.float32), at.move, at.window_wh)
    colours = cv2.warpAffine(scene.image, at.move, at.window_wh).astype(np.float32) * rng.uniform(0.75, 1.2)
    labels: NDArray[Any] = cv2.warpAffine(scene.regions, at.move, at.window_wh, flags=cv2.INTER_NEAREST)
    return CopiedThing(Patch(at.y, at.x, alpha), colours, _parts(scene, whole, labels[alpha > 0.5]), labels)


def _parts(scene: Scene, whole: int, present: NDArray[Any]) -> list[int]:
    """Numbers of the parts of `whole` that are `present`, or are what such a one is a part of, parents first."""
    chains = set()
    for region in np.unique(present):
        chain = [int(region)]
        while scene.parents[chain[0]] != chain[0]:
            chain.insert(0, int(scene.parents[chain[0]]))
        if chain[0] == whole:
            chains.add(tuple(chain))
    found: dict[int, None] = {}
    for chain_of in sorted(chains):
        found.update(dict.fromkeys(chain_of[1:]))
    return list(found)
