"""Smooth bodies for the rendered scenes: animals, people, busts, fruit and cushions, grown around random skeletons.

A skeleton is a list of bones, round cones each; the body is the surface where their smooth union ends (smooth minimum
of distances: Quilez, "Smooth minimum", 2013), with bumps, meshed by marching cubes. Bones of one `look` are one part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from skimage.measure import marching_cubes

from meshes import Floats, Material, Mesh, standing

CELLS = 52
"""Of the grid along the longest side of a body."""


@dataclass(frozen=True, slots=True)
class Bone:
    """From `start` to `end`, (3,) each, as thick as `radii` at both; `look` is the index of its material."""

    start: Floats
    end: Floats
    radii: tuple[float, float]
    look: int

    def distance(self, points: Floats) -> Floats:
        """To points (..., 3), negative inside."""
        along = self.end - self.start
        share = np.clip((points - self.start) @ along / max(float(along @ along), 1e-9), 0, 1)
        nearest = self.start + share[..., None] * along
        thickness = self.radii[0] + share * (self.radii[1] - self.radii[0])
        return np.asarray(np.linalg.norm(points - nearest, axis=-1) - thickness, np.float32)


def _vector(*values: float) -> Floats:
    return np.array(values, np.float32)


def _chain(points: list[Floats], radii: list[float], look: int) -> list[Bone]:
    return [Bone(a, b, (r, s), look) for (a, r), (b, s) in pairwise(zip(points, radii, strict=True))]


def _head(rng: np.random.Generator, middle: Floats, size: float, ahead: Floats) -> list[Bone]:
    """A head with hair, looking along `ahead` (of length 1)."""
    up = _vector(0, 1, 0)
    face = Bone(middle - up * size * 0.3, middle + up * size * 0.3, (size * 0.75, size * 0.9), 1)
    hair = middle + up * size * 0.5 - ahead * size * 0.35
    strands = [Bone(hair, hair - up * size * rng.uniform(0, 2.2) - ahead * size * 0.3, (size * 0.85, size * 0.6), 2)]
    return [face, *(strands if rng.random() < 0.85 else [])]


def _bust(rng: np.random.Generator) -> list[Bone]:
    lean = _vector(*rng.normal(0, 0.08, 3))
    wide = rng.uniform(0.45, 0.75)
    ahead = _vector(math.cos(turn := rng.uniform(0, 2 * math.pi)), 0, math.sin(turn))
    left = _vector(-ahead[2], 0, ahead[0])
    shoulders = [Bone(left * wide, -left * wide, (0.28, 0.28), 0), Bone(_vector(0, -0.9, 0), lean, (0.55, 0.4), 0)]
    arms = [Bone(side * wide, side * (wide + 0.15) + _vector(0, -0.9, 0), (0.27, 0.2), 0) for side in (left, -left)]
    neck = Bone(lean, lean * 2 + _vector(0, 0.55, 0), (0.19, 0.17), 1)
    return [*shoulders, *arms, neck, *_head(rng, lean * 2 + _vector(0, 0.85, 0), rng.uniform(0.32, 0.42), ahead)]


def _person(rng: np.random.Generator) -> list[Bone]:
    bones: list[Bone] = []
    sits = rng.random() < 0.35
    for side in (-1, 1):
        hip = _vector(0, 0, side * 0.16)
        knee = hip + _vector(*((0.75, 0.1, side * 0.1) if sits else (rng.normal(0, 0.2), -0.75, side * 0.06)))
        foot = knee + _vector(rng.normal(0, 0.15), -0.75, 0)
        bones += _chain([hip, knee, foot], [0.2, 0.14, 0.1], 3)
        bones.append(Bone(foot, foot + _vector(0.22, -0.03, 0), (0.1, 0.08), 4))
        shoulder = _vector(0, 0.95, side * 0.34)
        elbow = shoulder + _vector(rng.normal(0.1, 0.25), -0.5, side * abs(rng.normal(0.1, 0.2)))
        hand = elbow + _vector(rng.uniform(0, 0.5), rng.uniform(-0.5, 0.4), rng.normal(0, 0.15))
        sleeve = 0 if rng.random() < 0.5 else 1
        bones += [Bone(shoulder, elbow, (0.13, 0.1), 0), Bone(elbow, hand, (0.1, 0.07), sleeve)]
    bones.append(Bone(_vector(0, 0, 0), _vector(0, 0.9, 0), (0.25, 0.3), 0))
    bones.append(Bone(_vector(0, 1, 0), _vector(0.03, 1.25, 0), (0.1, 0.1), 1))
    return [*bones, *_head(rng, _vector(0.05, 1.45, 0), 0.2, _vector(1, 0, 0))]


def _animal(rng: np.random.Generator) -> list[Bone]:
    length, stout, leg = rng.uniform(0.8, 1.6), rng.uniform(0.22, 0.42), rng.uniform(0.15, 0.9)
    rise = rng.uniform(0, 0.9) if rng.random() < 0.4 else 0.0  # sits
    chest, rump = _vector(length / 2, leg + rise * length * 0.5, 0), _vector(-length / 2, leg, 0)
    bones = [Bone(rump, chest, (stout * rng.uniform(0.8, 1.1), stout), 0)]
    for side in (-1, 1):
        for start, thick in ((chest, 0.5), (rump, 0.6)):
            hip = start + _vector(0, -0.1, side * stout * 0.6)
            foot = _vector(hip[0] + rng.normal(0.05, 0.15), 0, hip[2])
            bones += _chain([hip, (hip + foot) / 2 - _vector(0.06, 0, 0), foot], [stout * thick, 0.12, 0.09], 0)
            bones.append(Bone(foot, foot + _vector(0.1, 0, 0), (0.1, 0.08), 3 if rng.random() < 0.5 else 0))
    side_look = float(rng.normal(0, 0.25))
    neck = chest + _vector(rng.uniform(0.1, 0.4), rng.uniform(0.1, 0.7), side_look * 0.5)
    size = stout * rng.uniform(0.5, 0.85)
    nose = neck + _vector(size * rng.uniform(0.8, 1.9), -size * rng.uniform(0, 0.8), side_look)
    bones += [Bone(chest, neck, (stout * 0.75, size * 0.8), 0), Bone(neck, nose, (size, size * 0.45), 1)]
    bones.append(Bone(nose, nose + _vector(size * 0.2, 0, 0), (size * 0.3, size * 0.2), 4))
    for side in (-1, 1):
        ear = neck + _vector(-size * 0.2, size * 0.7, side * size * 0.6)
        tip = ear + _vector(0, size * rng.uniform(-1.2, 1), side * size * 0.3)
        bones.append(Bone(ear, tip, (size * 0.35, size * 0.15), 2))
    tail = rump + _vector(-stout, rng.uniform(-0.2, 0.4), 0)
    bones += _chain(
        [rump, tail, tail + _vector(*rng.normal(0, 0.3, 3))], [stout * 0.5, 0.1, rng.uniform(0.05, 0.2)], 2
    )
    if rng.random() < 0.5:  # a spot, as large as a blanket or as a patch
        spot = rump + (chest - rump) * rng.uniform(0.1, 0.9)
        bones.append(Bone(spot, spot + _vector(0.15, stout * 0.3, 0), (stout * 0.95, stout * 0.85), 3))
    return bones


def _fruit(rng: np.random.Generator) -> list[Bone]:
    top = _vector(rng.normal(0, 0.15), rng.uniform(0, 0.9), rng.normal(0, 0.15))
    stem = top + _vector(0, 0.3, 0)
    body = Bone(_vector(0, 0, 0), top, (0.5, rng.uniform(0.2, 0.5)), 0)
    return [body, Bone(stem, stem + _vector(*rng.normal(0, 0.12, 2), 0.1), (0.05, 0.04), 2)]


def _cushion(rng: np.random.Generator) -> list[Bone]:
    count = int(rng.integers(2, 6))
    places = rng.normal(0, 0.45, (count, 2, 3)) * [1, 0.35, 1]
    sizes = rng.uniform(0.25, 0.6, (count, 2))
    other = 1 if rng.random() < 0.3 else 0
    return [
        Bone(_vector(*a), _vector(*b), (float(s[0]), float(s[1])), other if k == 0 else 0)
        for k, ((a, b), s) in enumerate(zip(places, sizes, strict=True))
    ]


_KINDS = {
    "animal": (_animal, 0.4),
    "person": (_person, 0.15),
    "bust": (_bust, 0.2),
    "cushion": (_cushion, 0.25),
    "fruit": (_fruit, 0.0),
}
"""Who makes the bones, and how often, where nobody asks for a kind."""


def grown_body(rng: np.random.Generator, looks: list[Material], *, kind: str | None = None) -> Mesh:
    """An animal, a person, a bust, a cushion or (only if `kind` asks for it) a fruit, in five `looks`."""
    kind = kind or str(rng.choice(list(_KINDS), p=[share for _, share in _KINDS.values()]))
    bones = _KINDS[kind][0](rng)
    ends = np.array([[b.start, b.end] for b in bones])
    thickest = max(max(b.radii) for b in bones)
    low, high = ends.min((0, 1)) - thickest * 1.3, ends.max((0, 1)) + thickest * 1.3
    spacing = float((high - low).max()) / CELLS
    counts = np.ceil((high - low) / spacing).astype(int) + 1
    grid = (np.stack(np.meshgrid(*map(np.arange, counts), indexing="ij"), -1) * spacing + low).astype(np.float32)
    sharpness = np.float32(rng.uniform(12, 40))
    union = np.zeros(grid.shape[:3], np.float32)
    for bone in bones:
        union += np.exp(-sharpness * np.maximum(bone.distance(grid), -1))
    distance = -np.log(union + 1e-30) / sharpness
    for _ in range(3):
        waves = rng.normal(0, rng.uniform(3, 12), 3)
        distance += np.sin(grid @ waves.astype(np.float32) + rng.uniform(0, 6)) * np.float32(rng.uniform(0, 0.012))
    points, faces, normals, _ = marching_cubes(distance, 0.0, spacing=(spacing,) * 3)  # type: ignore[no-untyped-call]
    corners = (points[faces] + low).astype(np.float32)
    middles = corners.mean(1)
    nearest = np.argmin(np.stack([bone.distance(middles) for bone in bones]), 0)
    look = np.array([bone.look for bone in bones], np.int32)[nearest]
    uv = np.stack([corners[:, :, 0] + corners[:, :, 2], corners[:, :, 1]], 2) * np.float32(rng.uniform(0.5, 1.5))
    return standing(Mesh(corners, normals[faces].astype(np.float32), uv, look, tuple(looks)))
