"""Surfaces for the synthetic scenes: procedural textures, and crops of freely licensed photographs of materials."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

FloatImage = NDArray[Any]
"""float32; OpenCV's type hints do not tell dtypes."""

PHOTO_TEXTURES = {
    "brick.png": "CC0, CC0Textures Bricks25",
    "grass.png": "CC0, DeviantArt 'Grass 01' by linolafett",
    "gravel.png": "CC0, CC0Textures Gravel04",
    "hubble_deep_field.jpg": "public domain, NASA",
    "retina.jpg": "CC0, Wikimedia Commons 'Fundus photograph of normal left eye', Mikael Haggstrom",
    "cell.png": "CC0, Paul Mueller et al.",
    "text.png": "public domain, Wikipedia 'Corner.png'",
    "clock_motion.png": "public domain, Stefan van der Walt",
}
"""Images of scikit-image used for textures, with licence and source as scikit-image documents them.

Every other image there is held out: the photographs for looking at results, and those with unclear licences.
"""


@cache
def photo_textures() -> tuple[FloatImage, ...]:
    """The images of `PHOTO_TEXTURES` as float32 RGB (H, W, 3) in 0..255."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    images = []
    for name in PHOTO_TEXTURES:
        image = cv2.imread(str(folder / name), cv2.IMREAD_COLOR)
        if image is None:
            raise FileNotFoundError(f"{folder / name}: install scikit-image with its data files")
        images.append(image[:, :, ::-1].astype(np.float32))
    return tuple(images)


def random_colour(rng: np.random.Generator) -> FloatImage:
    """An RGB colour, more often dull than garish: (3,) float32 in 0..255."""
    hue, saturation, value = rng.random(), rng.beta(1.2, 2.2), 0.12 + 0.88 * rng.beta(1.5, 1.3)
    hsv = np.array([[[hue * 360, saturation, value]]], np.float32)
    colour: FloatImage = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255
    return colour


def similar_colour(rng: np.random.Generator, colour: FloatImage, spread: float) -> FloatImage:
    """A colour near another one; `spread` in grey levels."""
    shift = rng.normal(0, spread) + rng.normal(0, spread * 0.5, 3)
    return np.clip(colour + shift, 0, 255).astype(np.float32)


def fractal_noise(rng: np.random.Generator, height: int, width: int, cells: float, roughness: float) -> FloatImage:
    """Value noise summed over octaves, (height, width) with mean about 0 and standard deviation 1.

    `cells`: cells of the coarsest octave across the longer side; `roughness`: amplitude of an octave to the next
    coarser one (.5 looks like clouds, .9 like plaster).
    """
    total = np.zeros((height, width), np.float32)
    longest, amplitude = max(height, width), 1.0
    for _ in range(6):
        rows, columns = max(2, round(cells * height / longest)), max(2, round(cells * width / longest))
        grid = rng.standard_normal((rows + 2, columns + 2)).astype(np.float32)
        total += amplitude * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        cells *= 2
        amplitude *= roughness
        if cells > longest / 2:
            break
    deviation = float(total.std())
    noise: FloatImage = (total - total.mean()) / (deviation + 1e-6)
    return noise


def _coordinates(rng: np.random.Generator, height: int, width: int, angle: float) -> tuple[FloatImage, FloatImage]:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)


def _noise(rng: np.random.Generator, height: int, width: int) -> FloatImage:
    return fractal_noise(rng, height, width, 2 ** rng.uniform(1, 6), rng.uniform(0.35, 0.95))


def _stripes(rng: np.random.Generator, height: int, width: int) -> FloatImage:
    along, across = _coordinates(rng, height, width, rng.choice([0, math.pi / 2, rng.uniform(0, math.pi)]))
    period = 2 ** rng.uniform(2.2, 6)
    wave = np.sin(along * (2 * math.pi / period) + rng.uniform(0, 6))
    kind = rng.random()
    if kind < 0.35:
        wave = wave * np.sin(across * (2 * math.pi / period))
    elif kind < 0.5:
        wave = np.maximum(wave, np.sin(across * (2 * math.pi / (period * rng.uniform(0.5, 2)))))
    if rng.random() < 0.5:
        wave = np.tanh(wave * rng.uniform(2, 8))
    return np.asarray(wave, np.float32)


def _wood(rng: np.random.Generator, height: int, width: int) -> FloatImage:
    along, across = _coordinates(rng, height, width, rng.choice([0, math.pi / 2, rng.uniform(0, math.pi)]))
    warp = fractal_noise(rng, height, width, rng.uniform(1, 4), 0.5)
    rings = np.sin((across + along * 0.04 + warp * rng.uniform(4, 20)) * (2 * math.pi / rng.uniform(6, 30)))
    grain = rng.standard_normal((height, 1)).astype(np.float32)
    return np.asarray(rings + 0.4 * grain, np.float32)


def _cells(rng: np.random.Generator, height: int, width: int) -> FloatImage:
    """Stones, leaves, scales: every pixel takes the tone of the nearest of many seeds, with dark joints."""
    small_h, small_w = max(8, height // 2), max(8, width // 2)
    spacing = 2 ** rng.uniform(2, 5)
    count = int(np.clip(small_h * small_w / spacing**2, 3, 3000))
    seeds = np.full((small_h, small_w), 255, np.uint8)
    seeds[rng.integers(0, small_h, count), rng.integers(0, small_w, count)] = 0
    distance, label = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    tone = rng.standard_normal(int(label.max()) + 1).astype(np.float32)[label]
    tone -= rng.uniform(0, 1.5) * distance / (distance.max() + 1e-6)
    resized: FloatImage = cv2.resize(tone, (width, height), interpolation=cv2.INTER_LINEAR)
    return resized


def _strokes(rng: np.random.Generator, height: int, width: int) -> FloatImage:
    """Hair, grass, scratches, print: many short lines of one or many directions."""
    canvas = np.zeros((height, width), np.float32)
    length, angle = 2 ** rng.uniform(2, 5.5), rng.uniform(0, math.pi)
    spread = rng.choice([0.1, 0.4, 3.0])
    for _ in range(int(np.clip(height * width / (length * rng.uniform(6, 40)), 4, 500))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        theta = angle + rng.normal(0, spread)
        end = (int(x + length * math.cos(theta)), int(y + length * math.sin(theta)))
        cv2.line(canvas, (int(x), int(y)), end, float(rng.normal()), int(rng.integers(1, 4)), cv2.LINE_AA)
    return canvas


def _dots(rng: np.random.Generator, height: int, width: int) -> FloatImage:
    along, across = _coordinates(rng, height, width, rng.uniform(0, math.pi))
    period = 2 ** rng.uniform(2.5, 5.5)
    wave = np.cos(along * (2 * math.pi / period)) + np.cos(across * (2 * math.pi / period))
    return np.tanh((wave - rng.uniform(0, 1.5)) * 4).astype(np.float32)


def _plain(rng: np.random.Generator, height: int, width: int) -> FloatImage:
    return np.zeros((height, width), np.float32)


_PATTERNS = (_noise, _noise, _noise, _stripes, _wood, _cells, _strokes, _dots, _plain, _plain)


def _photo(rng: np.random.Generator, height: int, width: int) -> FloatImage:
    images = photo_textures()
    image = images[int(rng.integers(len(images)))]
    side = int(min(image.shape[:2]) * rng.uniform(0.15, 0.95))
    y, x = rng.integers(image.shape[0] - side + 1), rng.integers(image.shape[1] - side + 1)
    scale = max(height, width)
    crop = cv2.resize(image[y : y + side, x : x + side], (scale, scale), interpolation=cv2.INTER_AREA)
    crop = np.rot90(crop, int(rng.integers(4)))
    return np.asarray(crop[:height, :width] - crop.mean((0, 1)), np.float32)


def texture(
    rng: np.random.Generator, height: int, width: int, colour: FloatImage, strength: float = 1.0
) -> FloatImage:
    """A surface around a base colour: (height, width, 3) float32, about 0..255, not clipped.

    `strength` scales the contrast of the pattern; large values draw edges inside a region that are no borders.
    """
    surface = np.empty((height, width, 3), np.float32)
    surface[:] = colour
    if rng.random() < 0.25:
        detail = _photo(rng, height, width) * float(strength * rng.uniform(0.1, 0.6))
        if rng.random() < 0.6:
            detail = detail.mean(2, keepdims=True) * rng.uniform(0.6, 1.2, 3).astype(np.float32)
        return surface + detail
    for _ in range(1 if rng.random() < 0.7 else 2):
        pattern = _PATTERNS[int(rng.integers(len(_PATTERNS)))](rng, height, width)
        contrast = strength * 35 * rng.beta(1, 2)
        tint = rng.uniform(0.5, 1.2, 3) if rng.random() < 0.7 else rng.normal(0, 1, 3)
        surface += pattern[:, :, None] * (contrast * tint).astype(np.float32)
    if rng.random() < 0.5:
        speckle = rng.standard_normal((height, width, 1)).astype(np.float32)
        surface += speckle * float(rng.exponential(5))
    return surface
