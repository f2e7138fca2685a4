"""A scene, and how it is kept in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

UNLABELLED = 254
"""The region of pixels of which nobody said what they are; it is in outlined photographs only."""


@dataclass(frozen=True, slots=True)
class Scene:
    """`image` (S, S, 3) uint8 RGB; `regions` (S, S) uint8, the topmost region of each
    pixel, or `UNLABELLED`; H, W instead of S, S for a whole photograph.

    `parents` (255,) uint8: the region that a region is a part of, itself for a whole. A region's whole extent is
    itself and all regions below it in that tree.
    """

    image: NDArray[np.uint8]
    regions: NDArray[np.uint8]
    parents: NDArray[np.uint8]


def write_scene(path: Path, scene: Scene) -> None:
    """A scene as a file, there only when it is whole."""
    unfinished = path.with_suffix(".part")
    with unfinished.open("wb") as file:
        np.savez(file, image=scene.image, regions=scene.regions, parents=scene.parents)
    unfinished.replace(path)


def read_scene(path: Path) -> Scene:
    """A scene that `write_scene` wrote."""
    with np.load(path) as fields:
        return Scene(fields["image"], fields["regions"], fields["parents"])


def parents_table(parents: Sequence[int]) -> NDArray[np.uint8]:
    """`Scene.parents` of the regions 0, 1, ... with these parents."""
    table = np.arange(255, dtype=np.uint8)
    table[: len(parents)] = parents
    return table


def parents_of_labelled(scene: Scene) -> list[int]:
    """The parents of the regions 0, 1, ... up to the last one that is in the scene."""
    labels = scene.regions[scene.regions != UNLABELLED]
    return [int(parent) for parent in scene.parents[: int(labels.max(initial=0)) + 1]]


def whole_of_each(parents: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """For each region the whole that it belongs to: itself, or what it is a part of a part of."""
    wholes = parents
    while not np.array_equal(wholes, wholes[wholes]):
        wholes = wholes[wholes]
    return wholes
