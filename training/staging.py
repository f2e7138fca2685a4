"""What the rendered scenes are put together from: materials, planes, turns, and things that stand somewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from meshes import Floats, Material, Mesh, grid_mesh, linear_light
from rendering import Light
from textures import FloatImage, random_colour, texture


def textured(image: FloatImage, gloss: float = 0.0) -> Material:
    """A material that looks like an image (h, w, 3) of about 0..255, not clipped."""
    return Material(np.ones(3, np.float32), image.clip(0, 255).astype(np.uint8), gloss)


def surface(rng: np.random.Generator, strength: float) -> Material:
    """A material with a texture of its own."""
    colour = random_colour(rng)
    colour = colour.mean() + (colour - colour.mean()) * rng.uniform(0, 0.8)
    image = texture(rng, 384, 384, colour, strength)
    grey = image.mean(2, keepdims=True)
    image = grey + (image - grey) * rng.uniform(0.2, 1)
    gloss = float(rng.choice([0.0, 0.3, 0.8], p=[0.6, 0.25, 0.15]))
    return textured(image, gloss)


def paint(rng: np.random.Generator) -> Material:
    """A material of one colour, or with a faint texture."""
    if rng.random() < 0.35:
        return surface(rng, float(rng.choice([0.2, 0.7, 1.3])))
    return Material(linear_light(random_colour(rng)), None, float(rng.choice([0.0, 0.3, 0.7, 1.0])))


def tinted(mesh: Mesh, tint: Floats) -> list[Material]:
    """The materials of a mesh with their colours times `tint` (3,)."""
    return [replace(m, colour=np.clip(m.colour * tint, 0.01, 0.95)) for m in mesh.materials]


def lamp(
    rng: np.random.Generator,
    towards: NDArray[np.float64],
    blue: tuple[float, float],
    spreads: tuple[float, ...],
    brightest: float,
) -> Light:
    """Light from that direction: yellowish to white or, with `blue` above 1, bluish; one of the spreads."""
    warmth = np.array([1.0, rng.uniform(0.75, 1), rng.uniform(*blue)], np.float32)
    spread = float(rng.choice(spreads))
    return Light(towards.astype(np.float32), spread, warmth * np.float32(rng.uniform(0.2, brightest)))


def plane(
    corner: Iterable[float], along: Iterable[float], up: Iterable[float], repeat: float, look: Material
) -> Mesh:
    """A rectangle from `corner` along two edges (x, y, z each); its texture `repeat` times along each."""
    a, b = np.meshgrid(np.linspace(0, 1, 3), np.linspace(0, 1, 3), indexing="ij")
    points = np.array([*corner]) + a[:, :, None] * np.array([*along]) + b[:, :, None] * np.array([*up])
    return grid_mesh(points.astype(np.float32), (np.stack([a, b], 2) * repeat).astype(np.float32), look)


def turn(yaw: float, pitch: float = 0.0) -> Floats:
    """Rotation (3, 3): `pitch` about x, then `yaw` about y, in radians."""
    c, s, d, t = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    about_y = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return np.asarray(about_y @ np.array([[1, 0, 0], [0, d, -t], [0, t, d]]), np.float32)


def rest(mesh: Mesh, linear: Floats, place: tuple[float, float, float]) -> Mesh:
    """The mesh turned and scaled, its lowest point at the height of `place` (x, y, z)."""
    lowest = float((mesh.corners @ linear.T)[:, :, 1].min())
    return mesh.moved(linear, np.array([place[0], place[1] - lowest, place[2]], np.float32))


def direction(angle: float, height: float) -> NDArray[np.float64]:
    """Of length 1: `angle` around the y axis, `height` above the horizon, in radians."""
    return np.array([math.cos(angle) * math.cos(height), math.sin(height), math.sin(angle) * math.cos(height)])


def five_looks(rng: np.random.Generator) -> list[Material]:
    """Five for a grown body, some of them alike."""
    looks = [surface(rng, float(rng.choice([0.3, 0.8, 1.5]))) for _ in range(2)]
    looks += [paint(rng) for _ in range(3)]
    return [looks[0] if number and rng.random() < 0.35 else look for number, look in enumerate(looks)]
