"""Outlines for the synthetic scenes: anti-aliased coverage of one shape inside its bounding box."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_SUBPIXEL_BITS = 4

FloatMap = NDArray[Any]
"""float32; OpenCV's type hints do not tell dtypes."""


@dataclass(frozen=True, slots=True)
class Patch:
    """Coverage of a shape: `alpha` (h, w) float32 in 0..1, its top left pixel at (`y`, `x`) of the canvas."""

    y: int
    x: int
    alpha: FloatMap

    @property
    def window(self) -> tuple[slice, slice]:
        """Index of its pixels in the canvas."""
        return (
            slice(self.y, self.y + self.alpha.shape[0]),
            slice(self.x, self.x + self.alpha.shape[1]),
        )


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a turned and scaled box lies on a canvas: its window there, and the (2, 3) matrix that warps into it."""

    y: int
    x: int
    window_wh: tuple[int, int]
    move: FloatMap


def place(
    size: int,
    box_xywh: tuple[int, int, int, int],
    centre: tuple[float, float],
    scale_xy: tuple[float, float],
    angle: float,
) -> Placement | None:
    """A box of a picture, scaled (negative: mirrored), turned by `angle` and around `centre` (x, y) of a canvas.

    None if hardly any of it lies on the canvas, a square of `size` pixels.
    """
    left, top, width, height = box_xywh
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear = turn @ np.diag(scale_xy)
    corners = np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]]) * (width / 2, height / 2)
    reach = np.abs(corners @ linear.T).max(0)
    x0, y0 = (max(0, math.floor(c - r) - 1) for c, r in zip(centre, reach, strict=True))
    x1, y1 = (min(size, math.ceil(c + r) + 2) for c, r in zip(centre, reach, strict=True))
    if x1 - x0 < 8 or y1 - y0 < 8:
        return None
    shift = np.array(centre) - (x0, y0) - linear @ (left + width / 2, top + height / 2)
    return Placement(y0, x0, (x1 - x0, y1 - y0), np.column_stack([linear, shift]).astype(np.float32))


def outline(
    rng: np.random.Generator, centre: tuple[float, float], radius: float, family: str, angle: float
) -> list[NDArray[np.float64]]:
    """Closed outlines (n, 2) of x, y; a second one inside the first is a hole."""
    aspect = math.exp(rng.uniform(-0.9, 0.9))
    rx, ry = radius * math.sqrt(aspect), radius / math.sqrt(aspect)
    turn = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    rings = []
    if family == "ellipse":
        rings.append(np.stack([rx * np.cos(turn), ry * np.sin(turn)], 1))
    elif family == "box":
        power = rng.choice([2.5, 4, 20.0])
        shape = (np.abs(np.cos(turn)) ** power + np.abs(np.sin(turn)) ** power) ** (-1 / power)
        rings.append(np.stack([rx * shape * np.cos(turn), ry * shape * np.sin(turn)], 1))
        if power == 20:
            rings[0] = np.array([[-rx, -ry], [rx, -ry], [rx, ry], [-rx, ry]])
            if rng.random() < 0.4:
                rings[0][:, 0] *= 1 + rng.uniform(-0.5, 0.5) * rings[0][:, 1] / ry
    elif family == "polygon":
        corners = int(rng.integers(3, 9))
        turn = np.sort(rng.uniform(0, 2 * math.pi, corners))
        size = rng.uniform(0.5, 1.3, corners)
        rings.append(np.stack([rx * size * np.cos(turn), ry * size * np.sin(turn)], 1))
    elif family == "star":
        points = int(rng.integers(4, 12))
        turn = np.linspace(0, 2 * math.pi, 2 * points, endpoint=False)
        size = np.where(np.arange(2 * points) % 2, rng.uniform(0.3, 0.8), 1.1)
        rings.append(np.stack([radius * size * np.cos(turn), radius * size * np.sin(turn)], 1))
    elif family == "strip":
        length, width = radius * rng.uniform(1.2, 2.2), max(1.2, radius * rng.uniform(0.03, 0.25))
        t = np.linspace(-1, 1, 40)
        bend = sum(rng.normal(0, 0.4 / k) * np.sin(t * k * 1.6 + rng.uniform(0, 6)) for k in range(1, 4))
        half = width * (1 - rng.uniform(0, 0.9) * (t + 1) / 2)
        spine = np.stack([t * length, bend * radius * rng.uniform(0.1, 0.8)], 1)
        normal = np.gradient(spine, axis=0)[:, ::-1] * [-1, 1]
        normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
        rings.append(np.concatenate([spine + normal * half[:, None], (spine - normal * half[:, None])[::-1]]))
    elif family == "ring":
        hole = rng.uniform(0.45, 0.85)
        ring = np.stack([rx * np.cos(turn), ry * np.sin(turn)], 1)
        rings += [ring, ring * hole]
    else:
        size = np.ones(64)
        for k in range(1, int(rng.integers(3, 9))):
            size += rng.normal(0, 0.35 / k) * np.cos(k * turn + rng.uniform(0, 6.3))
        size = np.clip(size, 0.15, 2)
        if rng.random() < 0.3:
            size = (size + size[(-np.arange(64)) % 64]) / 2
        rings.append(np.stack([rx * size * np.cos(turn), ry * size * np.sin(turn)], 1))
    rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return [ring @ rotation + centre for ring in rings]


FAMILIES = ("ellipse", "box", "polygon", "star", "strip", "ring", "blob")
_FREQUENCIES = (0.18, 0.2, 0.1, 0.04, 0.12, 0.04, 0.32)


def random_family(rng: np.random.Generator) -> str:
    """One of `FAMILIES`, as often as each is seen in pictures."""
    return str(rng.choice(FAMILIES, p=_FREQUENCIES))


def rasterise(rings: list[NDArray[np.float64]], size: int) -> Patch | None:
    """Coverage of outlines on a square canvas of `size` pixels; None if nothing of them lies on it."""
    points = np.concatenate(rings)
    x0, y0 = np.maximum(np.floor(points.min(0)).astype(int) - 2, 0)
    x1, y1 = np.minimum(np.ceil(points.max(0)).astype(int) + 3, size)
    if x1 - x0 < 3 or y1 - y0 < 3:
        return None
    canvas = np.zeros((y1 - y0, x1 - x0), np.uint8)
    scaled = [np.round((ring - (x0, y0)) * 2**_SUBPIXEL_BITS).astype(np.int32) for ring in rings]
    cv2.fillPoly(canvas, scaled, 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    if not canvas.any():
        return None
    return Patch(int(y0), int(x0), canvas.astype(np.float32) / 255)


def random_patch(
    rng: np.random.Generator,
    size: int,
    centre: tuple[float, float],
    radius: float,
    *,
    family: str | None = None,
    angle: float | None = None,
) -> Patch | None:
    """A random shape on a canvas of `size` pixels; None if it fell outside."""
    family = family or random_family(rng)
    angle = rng.uniform(0, 2 * math.pi) if angle is None else angle
    return rasterise(outline(rng, centre, radius, family, angle), size)


def half_plane(rng: np.random.Generator, size: int, level: float, *, tilt: float, roughness: float) -> Patch | None:
    """All below a line at height `level` (0..1 from the top), rough like hills or straight like a table's edge."""
    x = np.linspace(-2, size + 2, 48)
    steps = np.cumsum(rng.normal(0, 1, 48))
    steps -= np.linspace(0, steps[-1], 48)
    y = size * level + (x - size / 2) * tilt + steps * roughness * size
    ring = np.concatenate([np.stack([x, y], 1), [[size + 3, size + 3], [-3, size + 3]]])
    return rasterise([ring], size)
