"""Coins, medals, tiles: one surface all the same, however strong the edges of what stands out of it."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np

from cutouts import PlacedCutout, read_cutout
from shapes import FloatMap, Patch
from textures import FloatImage, fractal_noise, random_colour


def _heights(rng: np.random.Generator, path: Path, side: int) -> FloatMap | None:
    """The picture in `path` as heights of about 0 to 1, in the middle of a square; None if it cannot be used."""
    read = read_cutout(path)
    if read is None:
        return None
    colours, alpha = read
    grey = cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    standing = alpha * (0.4 + 0.6 * (grey if rng.random() < 0.5 else 1 - grey))
    extent = side * rng.uniform(0.5, 0.75)
    scale = extent / max(standing.shape)
    small = cv2.resize(standing, (0, 0), fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    heights = np.zeros((side, side), np.float32)
    top, left = (side - small.shape[0]) // 2, (side - small.shape[1]) // 2
    heights[top : top + small.shape[0], left : left + small.shape[1]] = small
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), rng.normal(0, 25), 1.0)
    return cv2.warpAffine(heights, turn, (side, side))


def place_relief(
    rng: np.random.Generator, path: Path, size: int, centre: tuple[float, float], radius: float
) -> PlacedCutout | None:
    """A coin, or the like, around `centre` (x, y) of a canvas of `size` pixels, with the picture in `path` on it.

    None if that cannot be used, or hardly anything of it lies on the canvas.
    """
    side = 2 * math.ceil(radius * 1.15) + 3
    heights = _heights(rng, path, side)
    if heights is None or side < 12:
        return None
    y, x = (np.mgrid[:side, :side].astype(np.float32) - (side - 1) / 2) / radius
    angle = np.arctan2(y, x)
    wobble = sum(rng.normal(0, 0.012) * np.cos(n * angle + rng.uniform(0, 6)) for n in range(2, 6))
    power = float(rng.choice([2.0, 2.0, 2.0, 4.0, 12.0]))
    distance = (np.abs(x) ** power + np.abs(y) ** power) ** (1 / power) * (1 + wobble)
    if rng.random() < 0.7:
        heights = heights + rng.uniform(0.2, 0.8) * np.exp(-(((distance - rng.uniform(0.82, 0.93)) / 0.05) ** 2))
    wear = fractal_noise(rng, side, side, 2 ** rng.uniform(1, 4), 0.7) * rng.uniform(0, 0.25)
    softness_px = max(0.5, radius * rng.uniform(0.01, 0.04))
    heights = cv2.GaussianBlur((heights + wear).astype(np.float32), (0, 0), softness_px)
    light = rng.uniform(0, 2 * math.pi)
    along_x, along_y = cv2.Sobel(heights, cv2.CV_32F, 1, 0), cv2.Sobel(heights, cv2.CV_32F, 0, 1)
    slope = math.cos(light) * along_x + math.sin(light) * along_y
    shine = 1 + np.clip(slope / (slope.std() + 1e-6), -3, 3) * rng.uniform(0.05, 0.25)
    shine *= 1 + rng.uniform(0, 0.25) * (x * math.cos(light) + y * math.sin(light))
    colour = random_colour(rng)
    colour = colour.mean() + (colour - colour.mean()) * float(rng.choice([0.0, 0.3, 1.0]))
    surface: FloatImage = (np.clip(shine, 0.1, 2.5)[:, :, None] * colour).astype(np.float32)
    alpha: FloatMap = np.clip((1 - distance) * radius + 0.5, 0, 1).astype(np.float32)
    left, top = round(centre[0] - side / 2), round(centre[1] - side / 2)
    rows, columns = (slice(max(0, -start), min(side, size - start)) for start in (top, left))
    if rows.stop - rows.start < 8 or columns.stop - columns.start < 8:
        return None
    patch = Patch(top + rows.start, left + columns.start, alpha[rows, columns])
    return PlacedCutout(patch, surface[rows, columns], np.zeros(patch.alpha.shape, np.uint8))
