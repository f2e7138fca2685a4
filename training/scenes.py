"""Synthetic layered scenes: an image, and the exact regions that a person would call things and their parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from canvas import Canvas, shade
from copies import CopiedThing, copy_thing, standings, things_apart
from cutouts import place_cutout
from photographs import mosaic, square_view, turned
from reliefs import place_relief
from scene_files import Scene, parents_of_labelled, parents_table, read_scene
from shapes import Patch, half_plane, random_family, random_patch
from textures import FloatImage, fractal_noise, random_colour, similar_colour, texture

SCENE_SIZE = 512
MIN_REGION_PX = 40
PHOTOGRAPHED = 0.3
"""Share of scenes that are photographs, if there are any."""
MOSAICS = 0.25
"""Share of photographs that come four at a time."""
TURNED = 0.5
"""Share of photographs that are turned and magnified."""
PHOTOGRAPHED_COPIES = 0.5
"""Share of copied things that come from photographs, if there are any."""


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What scenes may hold beside drawn shapes.

    Files for `cutouts.place_cutout`, scenes of `rendered.py`, and those of `photographs.py`.
    """

    cutouts: Sequence[Path] = ()
    rendered: Sequence[Path] = ()
    photographs: Sequence[Path] = ()


def _surface(rng: np.random.Generator, patch: Patch, colour: FloatImage, strength: float) -> FloatImage:
    surface = texture(rng, patch.alpha.shape[0], patch.alpha.shape[1], colour, strength)
    shade(rng, patch, surface)
    return surface


def _clip(patch: Patch, within: Patch) -> Patch | None:
    """The part of `patch` inside `within`."""
    y0, x0 = max(patch.y, within.y), max(patch.x, within.x)
    y1 = min(patch.y + patch.alpha.shape[0], within.y + within.alpha.shape[0])
    x1 = min(patch.x + patch.alpha.shape[1], within.x + within.alpha.shape[1])
    if y1 - y0 < 3 or x1 - x0 < 3:
        return None
    own = patch.alpha[y0 - patch.y : y1 - patch.y, x0 - patch.x : x1 - patch.x]
    outer = within.alpha[y0 - within.y : y1 - within.y, x0 - within.x : x1 - within.x]
    alpha = own * outer
    return Patch(y0, x0, alpha) if (alpha > 0.5).sum() >= MIN_REGION_PX else None


@dataclass(frozen=True, slots=True)
class _Style:
    """What the things of one kind share, so that a cluster looks like a cluster."""

    family: str
    colour: FloatImage
    strength: float
    softness_px: float
    parts: int
    seed: int
    camouflaged: bool = False


def _random_style(rng: np.random.Generator) -> _Style:
    return _Style(
        family=random_family(rng),
        colour=random_colour(rng),
        strength=float(rng.choice([0.3, 0.7, 1.2])),
        softness_px=float(rng.choice([0.0, 0.5, 0.8, 1.5, 3.0], p=[0.3, 0.3, 0.2, 0.15, 0.05])),
        parts=int(rng.choice([0, 1, 2, 3, 5], p=[0.5, 0.2, 0.14, 0.1, 0.06])),
        seed=int(rng.integers(1 << 31)),
    )


def _add_parts(canvas: Canvas, style: _Style, body: Patch, whole: int, depth: int) -> None:
    rng = canvas.rng
    height, width = body.alpha.shape
    extent = 0.5 * math.sqrt(height * width)
    for _ in range(style.parts):
        centre = (body.x + width * rng.uniform(0.1, 0.9), body.y + height * rng.uniform(0.1, 0.9))
        part = random_patch(rng, canvas.size, centre, extent * rng.uniform(0.12, 0.7))
        part = part and _clip(part, body)
        if part is None:
            continue
        colour = random_colour(rng) if rng.random() < 0.7 else similar_colour(rng, style.colour, 40)
        region = canvas.new_region(whole)
        if region is None:
            return
        if rng.random() < 0.25:
            canvas.darken(part, (extent * 0.03, extent * 0.03), extent * 0.03 + 0.6, rng.uniform(0.2, 0.5))
        colour = canvas.visible(part, colour)
        canvas.paint(part, _surface(rng, part, colour, style.strength), region, style.softness_px)
        if depth == 0 and extent > 40 and rng.random() < 0.25:
            _add_parts(canvas, _random_style(rng), part, region, 1)


def _add_limbs(canvas: Canvas, style: _Style, body: Patch, centre: tuple[float, float], whole: int) -> None:
    """Thin and round things that stick out of a body: legs, handles, branches, heads."""
    rng = canvas.rng
    reach = 0.5 * math.sqrt(body.alpha.shape[0] * body.alpha.shape[1])
    same = rng.random() < 0.5
    for _ in range(int(rng.integers(1, 7))):
        angle = rng.uniform(0, 2 * math.pi)
        at = (centre[0] + reach * math.cos(angle), centre[1] + reach * math.sin(angle))
        family = str(rng.choice(["strip", "strip", "ellipse", "ring", "box"]))
        limb = random_patch(rng, canvas.size, at, reach * rng.uniform(0.25, 0.8), family=family, angle=-angle)
        if limb is None or (limb.alpha > 0.5).sum() < MIN_REGION_PX:
            continue
        region = whole if same else canvas.new_region(whole)
        if region is None:
            return
        colour = similar_colour(rng, style.colour, 4) if same else random_colour(rng)
        canvas.paint(limb, _surface(rng, limb, colour, style.strength), region, style.softness_px)


def _cast_shadow(canvas: Canvas, patch: Patch, radius: float) -> None:
    """Often enough, that of a thing of this radius on what lies under it."""
    rng = canvas.rng
    if rng.random() < 0.4:
        length, direction = radius * rng.uniform(0.03, 0.4), rng.uniform(0, 2 * math.pi)
        shift = (length * math.sin(direction), length * math.cos(direction))
        canvas.darken(patch, shift, max(0.6, radius * rng.uniform(0.01, 0.2)), rng.uniform(0.15, 0.65))


def _add_thing(canvas: Canvas, style: _Style, centre: tuple[float, float], radius: float, angle: float) -> None:
    rng = canvas.rng
    shape_rng = np.random.default_rng(style.seed)
    body = random_patch(shape_rng, canvas.size, centre, radius, family=style.family, angle=angle)
    if body is None or (body.alpha > 0.5).sum() < MIN_REGION_PX:
        return
    _cast_shadow(canvas, body, radius)
    whole = canvas.new_region(None)
    if whole is None:
        return
    limbs = rng.random() < 0.25 and radius > 25 and style.family in ("ellipse", "box", "blob")
    behind = rng.random() < 0.5
    if limbs and behind:
        _add_limbs(canvas, style, body, centre, whole)
    colour = similar_colour(rng, style.colour, 5)
    if not style.camouflaged:
        colour = canvas.visible(body, colour)
    canvas.paint(body, _surface(rng, body, colour, style.strength), whole, style.softness_px)
    if limbs and not behind:
        _add_limbs(canvas, style, body, centre, whole)
    if radius > 14:
        _add_parts(canvas, style, body, whole, 0)


def _add_backdrop(canvas: Canvas) -> None:
    """Wall and floor, sky and hills: one to four surfaces that fill the image."""
    rng = canvas.rng
    levels = np.sort(rng.uniform(0.15, 0.9, int(rng.choice([0, 1, 2, 3], p=[0.35, 0.4, 0.17, 0.08]))))
    for level in levels:
        roughness = float(rng.choice([0, 0.004, 0.015, 0.03]))
        patch = half_plane(rng, canvas.size, level, tilt=rng.normal(0, 0.12), roughness=roughness)
        if patch is None:
            continue
        region = canvas.new_region(None)
        strength = float(rng.choice([0.2, 0.6, 1.3]))
        softness = float(rng.choice([0, 0.8, 2.0]))
        canvas.paint(patch, _surface(rng, patch, random_colour(rng), strength), region, softness)


def _add_things(canvas: Canvas) -> None:
    rng, size = canvas.rng, canvas.size
    for _ in range(int(rng.integers(1, 13))):
        radius = size * math.exp(rng.uniform(math.log(0.03), math.log(0.4)))
        near = canvas.image[int(rng.integers(size)), int(rng.integers(size))]
        style = _random_style(rng)
        if rng.random() < 0.1:
            style = replace(style, colour=similar_colour(rng, near, 18), camouflaged=True)
        centre = (float(rng.uniform(0, size)), float(rng.uniform(0, size)))
        _add_thing(canvas, style, centre, radius, rng.uniform(0, 2 * math.pi))


def _add_cluster(canvas: Canvas) -> None:
    """Many of a kind: fruit, coins, windows, books; scattered, heaped, or in rows."""
    rng, size = canvas.rng, canvas.size
    style = _random_style(rng)
    radius = size * math.exp(rng.uniform(math.log(0.015), math.log(0.1)))
    upright = rng.uniform(0, 2 * math.pi) if rng.random() < 0.5 else None
    if rng.random() < 0.4:
        pitch = radius * rng.uniform(2.0, 3.0)
        rows, columns = rng.integers(1, 6), rng.integers(2, 8)
        left, top = rng.uniform(0, size * 0.7), rng.uniform(0, size * 0.7)
        places = [(left + c * pitch, top + r * pitch) for r in range(rows) for c in range(columns)]
        upright = upright or 0.0
    else:
        middle, spread = rng.uniform(0.2, 0.8, 2) * size, radius * rng.uniform(1.5, 8)
        places = [tuple(middle + rng.normal(0, spread, 2)) for _ in range(int(rng.integers(4, 30)))]
    for place in places:
        angle = rng.uniform(0, 2 * math.pi) if upright is None else upright
        colour = similar_colour(rng, style.colour, 10) if rng.random() < 0.7 else random_colour(rng)
        seed = style.seed if rng.random() < 0.7 else int(rng.integers(1 << 31))
        member = _Style(style.family, colour, style.strength, style.softness_px, min(style.parts, 2), seed)
        _add_thing(canvas, member, place, radius * rng.uniform(0.75, 1.3), angle)


def _stand(canvas: Canvas, patch: Patch, radius: float) -> int | None:
    """The number of a new whole whose shadow lies there now; None if it is too small or there are too many."""
    whole = canvas.new_region(None) if np.count_nonzero(patch.alpha > 0.5) >= MIN_REGION_PX else None
    if whole is not None:
        _cast_shadow(canvas, patch, radius)
    return whole


def _add_cutout(
    canvas: Canvas, path: Path, centre: tuple[float, float], radius: float, *, is_struck: bool = False
) -> None:
    rng = canvas.rng
    placed = (place_relief if is_struck else place_cutout)(rng, path, canvas.size, centre, radius)
    if placed is None:
        return
    whole = _stand(canvas, placed.patch, radius)
    if whole is None:
        return
    surface = placed.colours
    shade(rng, placed.patch, surface)
    canvas.paint(placed.patch, surface, whole, float(rng.choice([0.0, 0.6, 1.2], p=[0.4, 0.4, 0.2])))
    inside = placed.patch.alpha > 0.5
    for number in range(1, int(placed.parts.max(initial=0)) + 1):
        part = inside & (placed.parts == number)
        if np.count_nonzero(part) >= MIN_REGION_PX:
            region = canvas.new_region(whole)
            if region is None:
                return
            canvas.regions[placed.patch.window][part] = region


def _add_coins(canvas: Canvas, files: Sequence[Path]) -> None:
    """Some in rows or scattered, each with another picture on it."""
    rng, size = canvas.rng, canvas.size
    radius = size * math.exp(rng.uniform(math.log(0.03), math.log(0.2)))
    pitch, in_rows = radius * rng.uniform(2.1, 3.5), rng.random() < 0.5
    left, top = rng.uniform(0, size * 0.4, 2)
    for number in range(int(rng.integers(1, 16))):
        x, y = (left + number % 4 * pitch, top + number // 4 * pitch) if in_rows else rng.uniform(0, size, 2)
        path = files[int(rng.integers(len(files)))]
        _add_cutout(canvas, path, (float(x), float(y)), radius * rng.uniform(0.8, 1.2), is_struck=True)


def _add_cutouts(canvas: Canvas, files: Sequence[Path]) -> None:
    """Things that stand alone, in front of a blurred backdrop, or many of a kind."""
    rng, size = canvas.rng, canvas.size
    if rng.random() < 0.35:
        canvas.image = cv2.GaussianBlur(canvas.image, (0, 0), rng.uniform(1.0, 5.0))
        for _ in range(int(rng.integers(1, 3))):
            centre = (size * rng.uniform(0.25, 0.75), size * rng.uniform(0.3, 0.8))
            _add_cutout(canvas, files[int(rng.integers(len(files)))], centre, size * rng.uniform(0.15, 0.42))
        return
    if rng.random() < 0.15:
        _add_coins(canvas, files)
    if rng.random() < 0.25:
        path, radius = (
            files[int(rng.integers(len(files)))],
            size * math.exp(rng.uniform(math.log(0.03), math.log(0.12))),
        )
        middle, spread = rng.uniform(0.2, 0.8, 2) * size, radius * rng.uniform(1.5, 6)
        for _ in range(int(rng.integers(3, 12))):
            x, y = middle + rng.normal(0, spread, 2)
            _add_cutout(canvas, path, (float(x), float(y)), radius * rng.uniform(0.75, 1.3))
    for _ in range(int(rng.integers(1, 8))):
        centre = (float(rng.uniform(0, size)), float(rng.uniform(0, size)))
        radius = size * math.exp(rng.uniform(math.log(0.04), math.log(0.35)))
        _add_cutout(canvas, files[int(rng.integers(len(files)))], centre, radius)


def _add_copies(canvas: Canvas, scene: Scene) -> None:
    """A few things of another scene, parts and all."""
    rng = canvas.rng
    for whole in rng.permutation(things_apart(scene))[: int(rng.integers(1, 5))]:
        for centre, extent_px in standings(rng, canvas.size):
            copied = copy_thing(rng, scene, int(whole), centre, extent_px)
            if copied is not None:
                _paint_copy(canvas, scene, copied, int(whole))


def _paint_copy(canvas: Canvas, scene: Scene, copied: CopiedThing, whole: int) -> None:
    number = _stand(canvas, copied.patch, math.sqrt(copied.patch.alpha.size) / 2)
    if number is None:
        return
    canvas.paint(copied.patch, copied.colours, number, float(canvas.rng.choice([0.0, 0.6, 1.2])))
    numbers, inside = {whole: number}, copied.patch.alpha > 0.5
    for region in copied.regions:
        numbers[region] = canvas.new_region(numbers[int(scene.parents[region])]) or number
        canvas.regions[copied.patch.window][inside & (copied.labels == region)] = numbers[region]


def _finish(canvas: Canvas) -> NDArray[np.uint8]:
    """What light and a camera do to the whole image."""
    rng, size, image = canvas.rng, canvas.size, canvas.image
    if rng.random() < 0.4:
        field_of_light = fractal_noise(rng, 64, 64, 2, 0.4)
        field_of_light = cv2.resize(field_of_light, (size, size), interpolation=cv2.INTER_CUBIC)
        if rng.random() < 0.4:
            field_of_light = np.tanh(field_of_light * rng.uniform(1, 10))
        image = image * (1 + rng.uniform(0, 0.22) * field_of_light)[:, :, None]
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.6))
    if rng.random() < 0.5:
        grain = rng.standard_normal((size, size, 3), dtype=np.float32)
        image = image + grain * float(rng.exponential(5))
    contrast, brightness = rng.uniform(0.65, 1.25), rng.uniform(-25, 25)
    finished = np.clip((image - 127) * contrast + 127 + brightness, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 95))]
        compressed = cv2.imencode(".jpg", finished, quality)[1]
        finished = np.asarray(cv2.imdecode(compressed, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(finished)


def _any_of(rng: np.random.Generator, files: Sequence[Path]) -> Scene:
    return read_scene(files[int(rng.integers(len(files)))])


def _photographed(rng: np.random.Generator, files: Sequence[Path]) -> Scene:
    if rng.random() < MOSAICS:
        return mosaic(rng, [_photograph(rng, files) for _ in range(4)], SCENE_SIZE)
    return square_view(rng, _photograph(rng, files), SCENE_SIZE)


def _photograph(rng: np.random.Generator, files: Sequence[Path]) -> Scene:
    photograph = _any_of(rng, files)
    return turned(rng, photograph) if rng.random() < TURNED else photograph


def _with_others(rng: np.random.Generator, scene: Scene, ingredients: Ingredients) -> Scene:
    """A scene, often with flat things or another one's before it, through another camera."""
    canvas = Canvas(rng, SCENE_SIZE, scene.image.astype(np.float32), scene.regions, parents_of_labelled(scene))
    if rng.random() < 0.12:
        _add_things(canvas)
    elif ingredients.cutouts and rng.random() < 0.2:
        _add_cutouts(canvas, ingredients.cutouts)
    elif rng.random() < 0.4:
        if ingredients.photographs and (not ingredients.rendered or rng.random() < PHOTOGRAPHED_COPIES):
            _add_copies(canvas, _photographed(rng, ingredients.photographs))
        else:
            _add_copies(canvas, _any_of(rng, ingredients.rendered))
    return _as_scene(canvas)


def _as_scene(canvas: Canvas) -> Scene:
    return Scene(_finish(canvas), canvas.regions, parents_table(canvas.parents))


def make_scene(seed: int, index: int, ingredients: Ingredients | None = None) -> Scene:
    """Scene number `index` of the endless series that `seed` names; always the same one.

    With `ingredients` some scenes are photographs, more than half of the others are rendered, and most of the rest
    hold cutouts, if there are any.
    """
    rng = np.random.default_rng((seed, index))
    size = SCENE_SIZE
    ingredients = ingredients or Ingredients()
    if ingredients.photographs and rng.random() < PHOTOGRAPHED:
        return _with_others(rng, _photographed(rng, ingredients.photographs), ingredients)
    if ingredients.rendered and rng.random() < 0.6:
        return _with_others(rng, _any_of(rng, ingredients.rendered), ingredients)
    cutouts = ingredients.cutouts
    base = texture(rng, size, size, random_colour(rng), float(rng.choice([0.2, 0.6, 1.3])))
    canvas = Canvas(rng, size, base, np.zeros((size, size), np.uint8))
    _add_backdrop(canvas)
    if rng.random() < 0.35:
        _add_cluster(canvas)
    crowded = not cutouts or rng.random() < 0.6
    if crowded:
        _add_things(canvas)
    if cutouts and (not crowded or rng.random() < 0.5):
        _add_cutouts(canvas, cutouts)
    if rng.random() < 0.3:
        _add_cluster(canvas)
    if rng.random() < 0.2:
        canvas.image = cv2.GaussianBlur(canvas.image, (0, 0), rng.uniform(1.0, 3.5))
        _add_things(canvas)
    return _as_scene(canvas)
