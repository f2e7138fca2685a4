"""Where scenes are painted: an image, and whose each pixel is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from scene_files import UNLABELLED
from shapes import Patch
from textures import FloatImage, random_colour

MAX_REGIONS = UNLABELLED


@dataclass(slots=True)
class Canvas:
    """A scene that is being painted.

    `image` (S, S, 3) float32 RGB, about 0..255; `regions` (S, S) uint8, the topmost region of each pixel; `parents`:
    for each region the one that it is a part of, itself for a whole.
    """

    rng: np.random.Generator
    size: int
    image: FloatImage
    regions: NDArray[np.uint8]
    parents: list[int] = field(default_factory=lambda: [0])

    def new_region(self, parent: int | None) -> int | None:
        """The number of a new part of `parent`, or of a new whole; None if there are too many."""
        if len(self.parents) >= MAX_REGIONS:
            return None
        self.parents.append(len(self.parents) if parent is None else parent)
        return len(self.parents) - 1

    def paint(self, patch: Patch, surface: FloatImage, region: int | None, softness_px: float) -> None:
        """Blend a surface (h, w, 3) over the image; pixels more than half covered become `region` if it is given."""
        alpha = patch.alpha
        if softness_px > 0.3:
            alpha = cv2.GaussianBlur(alpha, (0, 0), softness_px)
        view = self.image[patch.window]
        view += (surface - view) * alpha[:, :, None]
        if region is not None:
            self.regions[patch.window][patch.alpha > 0.5] = region

    def visible(self, patch: Patch, colour: FloatImage) -> FloatImage:
        """`colour`, or another one if it could hardly be told from what lies under the patch."""
        under = cv2.mean(self.image[patch.window], (patch.alpha > 0.5).astype(np.uint8))[:3]
        for _ in range(6):
            if np.abs(colour - under).max() > 22:
                break
            colour = random_colour(self.rng)
        return colour

    def darken(self, patch: Patch, shift: tuple[float, float], blur_px: float, strength: float) -> None:
        """A cast shadow: no region, but an edge to be ignored."""
        margin = int(2 * blur_px + max(abs(shift[0]), abs(shift[1]))) + 1
        y0, x0 = max(0, patch.y - margin), max(0, patch.x - margin)
        y1 = min(self.size, patch.y + patch.alpha.shape[0] + margin)
        x1 = min(self.size, patch.x + patch.alpha.shape[1] + margin)
        move = np.array([[1, 0, patch.x - x0 + shift[1]], [0, 1, patch.y - y0 + shift[0]]], np.float32)
        shadow: FloatImage = cv2.warpAffine(patch.alpha, move, (x1 - x0, y1 - y0))
        if blur_px > 0.5:
            shadow = cv2.GaussianBlur(shadow, (0, 0), blur_px)
        self.image[y0:y1, x0:x1] *= (1 - strength * shadow)[:, :, None]


def shade(rng: np.random.Generator, patch: Patch, surface: FloatImage) -> None:
    """Light on a body: a slope, a bulge towards the middle, a highlight, a dark rim; in place."""
    height, width = patch.alpha.shape
    light = np.ones((height, width), np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    if rng.random() < 0.6:
        y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        x = np.linspace(-1, 1, width, dtype=np.float32)[None]
        light += rng.uniform(0, 0.45) * (x * math.cos(angle) + y * math.sin(angle)).astype(np.float32)
    if rng.random() < 0.45:
        inside = (patch.alpha > 0.5).astype(np.uint8)
        depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)
        depth = np.minimum(depth / (depth.max() * rng.uniform(0.3, 1) + 1e-6), 1)
        light *= 1 - rng.uniform(0, 0.6) * (1 - depth) ** rng.uniform(1, 3)
    surface *= np.clip(light, 0.1, 2)[:, :, None]
    if rng.random() < 0.15:
        spot: FloatImage = np.zeros((height, width), np.float32)
        at = (int(width * rng.uniform(0.2, 0.8)), int(height * rng.uniform(0.2, 0.8)))
        spread = max(1, int(min(height, width) * rng.uniform(0.03, 0.15)))
        cv2.ellipse(spot, at, (spread, max(1, spread // 2)), math.degrees(angle), 0, 360, 1.0, -1, cv2.LINE_AA)
        spot = cv2.GaussianBlur(spot, (0, 0), max(0.5, spread * 0.4))
        surface += spot[:, :, None] * float(rng.uniform(40, 160))
