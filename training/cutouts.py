"""Drawn things with exact outlines for the synthetic scenes: pictures with an alpha channel from a folder.

Meant for Open Clip Art Library 0.18, which is in the public domain (Debian: `apt install openclipart-png`), and for
Microsoft's Fluent Emoji, under the MIT licence (`npm pack @lobehub/fluent-emoji-3d@1.1.0`, unpacked; its folder
`assets`). They have what drawn shapes lack: outlines of real things, and things of many colours that are one whole
all the same; the emoji are shaded like bodies, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shapes import FloatMap, Patch, place
from textures import FloatImage, fractal_noise

Bytes = NDArray[Any]
"""uint8; OpenCV's type hints do not tell dtypes."""

OPEN_CLIP_ART = Path("/usr/share/openclipart/png")
LEFT_OUT = ("shapes", "icons", "flags", "special", "signs_and_symbols", "aiga-symbols", "roadsigns", "cards", "logos")
"""Folders of Open Clip Art Library with signs rather than things, and with what people hold rights in."""
EMOJI_OF_THINGS = ((0x1F300, 0x1F4FF), (0x1F573, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F900, 0x1FAFF))
"""First and last code points of emoji that are not mostly signs, letters and clocks; flags are not among them."""
SKIN_TONES = (0x1F3FB, 0x1F3FF)
"""Emoji with these code points repeat others in another colour."""

MAX_SIDE = 256
MAX_PARTS = 5
_PART_SHARES = (0.03, 0.8)
"""Smallest and largest part, as a share of its whole."""
_EDGE = 18
"""Change of a colour from one pixel to the next that is an edge of a shaded picture."""


@dataclass(frozen=True, slots=True)
class PlacedCutout:
    """A thing turned and scaled: coverage on the canvas, RGB (h, w, 3) float32 in 0..255, parts (h, w) uint8.

    `parts`: number of the part of each pixel, from 1; 0 belongs to the whole alone.
    """

    patch: Patch
    colours: FloatImage
    parts: Bytes


@cache
def cutout_files(folder: Path) -> tuple[Path, ...]:
    """Pictures below `folder`, in a fixed order; empty if there is no such folder. PNG is clip art, WebP is emoji."""
    clip_art = [path for path in sorted(folder.rglob("*.png")) if not set(path.parts) & set(LEFT_OUT)]
    return (*clip_art, *(path for path in sorted(folder.rglob("*.webp")) if _is_emoji_of_a_thing(path)))


def _is_emoji_of_a_thing(path: Path) -> bool:
    """Whether a file, named by its code points (`1f469-200d-1f680.webp`), shows a thing that no other file shows."""
    points = [int(point, 16) for point in path.stem.split("-")]
    again = any(SKIN_TONES[0] <= point <= SKIN_TONES[1] for point in points)
    return not again and any(first <= points[0] <= last for first, last in EMOJI_OF_THINGS)


def read_cutout(path: Path) -> tuple[Bytes, FloatMap] | None:
    """RGB and coverage, cropped to what is there and at most `MAX_SIDE`; None if it has no clear outline."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim != 3 or image.shape[2] != 4 or image.dtype != np.uint8:
        return None
    x, y, width, height = cv2.boundingRect((image[:, :, 3] > 127).astype(np.uint8))
    if min(width, height) < 40:
        return None
    image = image[y : y + height, x : x + width]
    covered = np.count_nonzero(image[:, :, 3] > 127) / (width * height)
    vague = np.count_nonzero((image[:, :, 3] > 40) & (image[:, :, 3] < 215)) / (width * height)
    if not 0.2 < covered < 0.98 or vague > 0.2:
        return None
    scale = min(1.0, MAX_SIDE / max(width, height))
    alpha: Bytes = image[:, :, 3:].astype(np.float32) / 255
    flat = cv2.resize(image[:, :, 2::-1] * alpha, (0, 0), fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    alpha = cv2.resize(alpha, (0, 0), fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return (flat / np.maximum(alpha, 1e-3)[:, :, None]).clip(0, 255).astype(np.uint8), alpha


def _colour_codes(colours: Bytes, inside: NDArray[np.bool_]) -> Bytes:
    """(h, w) uint8: 0 outside, elsewhere equal for about equal colours."""
    coarse: Bytes = np.right_shift(cv2.medianBlur(colours, 5), 6)
    return np.where(inside, 1 + coarse[:, :, 0] * 16 + coarse[:, :, 1] * 4 + coarse[:, :, 2], 0).astype(np.uint8)


def _smooth_codes(colours: Bytes, inside: NDArray[np.bool_]) -> Bytes:
    """(h, w) uint8: 1 where a shaded picture has no edge, 0 elsewhere and outside."""
    even = cv2.medianBlur(colours, 5)
    change: Bytes = cv2.morphologyEx(even, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)).max(2)
    return (inside & (change < _EDGE)).astype(np.uint8)


def _parts(codes: Bytes, inside: NDArray[np.bool_]) -> Bytes:
    """Connected areas of one code over 0, the largest ones, numbered from 1; (h, w) uint8."""
    total = np.count_nonzero(inside)
    found: list[tuple[int, NDArray[np.bool_]]] = []
    for code in np.unique(codes[codes > 0]):
        _, labels, stats, _ = cv2.connectedComponentsWithStats((codes == code).astype(np.uint8), connectivity=4)
        for label in range(1, len(stats)):
            area = int(stats[label, cv2.CC_STAT_AREA])
            if _PART_SHARES[0] * total < area < _PART_SHARES[1] * total:
                found.append((area, labels == label))
    found.sort(key=lambda pair: -pair[0])
    parts: Bytes = np.zeros(codes.shape, np.uint8)
    for number, (_, mask) in enumerate(found[:MAX_PARTS], start=1):
        parts[mask] = number
    rest = inside & (parts == 0)
    if parts.any() and np.count_nonzero(rest) < 0.3 * total:
        # What is left are lines and specks, which nobody would call a part: the nearest part takes them.
        _, nearest = cv2.distanceTransformWithLabels(
            (parts == 0).astype(np.uint8), cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
        )
        number_of = np.zeros(int(nearest.max()) + 1, np.uint8)
        number_of[nearest[parts > 0]] = parts[parts > 0]
        parts = np.where(inside, number_of[nearest], parts)
    return parts


def _recolour(rng: np.random.Generator, colours: FloatImage) -> FloatImage:
    """Less like a drawing: no ink lines, duller, other colours, uneven."""
    if rng.random() < 0.6:
        colours = cv2.medianBlur(colours.clip(0, 255).astype(np.uint8), int(rng.choice([3, 5, 7]))).astype(np.float32)
    if rng.random() < 0.4:
        colours = colours[:, :, rng.permutation(3)]
    if rng.random() < 0.1:
        colours = 255 - colours
    grey = colours.mean(2, keepdims=True)
    colours = grey + (colours - grey) * rng.uniform(0.1, 1.0)
    if rng.random() < 0.4:
        tint = rng.uniform(0.5, 1.15, 3).astype(np.float32)
        colours = colours * tint
    middle = float(rng.uniform(60, 190))
    colours = middle + (colours - middle) * rng.uniform(0.4, 1.0)
    if rng.random() < 0.6:
        height, width = colours.shape[:2]
        rough = fractal_noise(rng, height, width, 2 ** rng.uniform(1, 6), rng.uniform(0.4, 0.95))
        colours = colours + rough[:, :, None] * rng.exponential(9) * rng.uniform(0.6, 1.2, 3)
    return np.asarray(colours, np.float32)


def place_cutout(
    rng: np.random.Generator, path: Path, size: int, centre: tuple[float, float], radius: float
) -> PlacedCutout | None:
    """The thing in `path` around `centre` (x, y) of a canvas of `size` pixels; None if it cannot be used.

    `radius`: half the side of a square of its bounding box's area, in pixels.
    """
    read = read_cutout(path)
    if read is None:
        return None
    colours, alpha = read
    parts = np.zeros(alpha.shape, np.uint8)
    if rng.random() < 0.6:
        inside = alpha > 0.5
        codes = _smooth_codes(colours, inside) if path.suffix == ".webp" else _colour_codes(colours, inside)
        parts = _parts(codes, inside)
    height, width = alpha.shape
    stretch = math.exp(rng.normal(0, 0.12))
    scale = 2 * radius / math.sqrt(height * width)
    angle = math.radians(rng.normal(0, 12)) if rng.random() < 0.8 else rng.uniform(0, 2 * math.pi)
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    scale_xy = (mirror * scale * stretch, scale / stretch)
    at = place(size, (0, 0, width, height), centre, scale_xy, angle)
    if at is None:
        return None
    flags = cv2.INTER_LINEAR if scale > 0.6 else cv2.INTER_AREA
    placed: FloatMap = cv2.warpAffine(alpha, at.move, at.window_wh, flags=flags)
    surface = cv2.warpAffine(colours, at.move, at.window_wh, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    moved_parts: Bytes = cv2.warpAffine(parts, at.move, at.window_wh, flags=cv2.INTER_NEAREST)
    return PlacedCutout(Patch(at.y, at.x, placed), _recolour(rng, surface.astype(np.float32)), moved_parts)
