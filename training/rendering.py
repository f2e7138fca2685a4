"""Ray casting of meshes: textures, soft shadows, light from all around, reflections, and exact labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from numpy.typing import NDArray

from meshes import Floats, Mesh, join, linear_light

Ints = NDArray[Any]
"""int32."""
_AROUND = 5
_SHADOW = 4
_OFFSET = 2e-3


@dataclass(frozen=True, slots=True)
class Light:
    """`direction` (3,) towards it, of length 1; `spread`: radius of its disc at distance 1; `colour` (3,) linear."""

    direction: Floats
    spread: float
    colour: Floats


@dataclass(frozen=True, slots=True)
class Camera:
    """`eye` and `target` (3,); `view` is the width of the picture at distance 1; `roll` in radians."""

    eye: Floats
    target: Floats
    view: float
    roll: float = 0.0

    def rays(self, rng: np.random.Generator, side_px: int) -> Floats:
        """Directions (side * side, 3), one in each pixel, somewhere in it."""
        forward = self.target - self.eye
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, np.array([math.sin(self.roll), math.cos(self.roll), 0]))
        right /= np.linalg.norm(right) + 1e-9
        up = np.cross(right, forward)
        place = np.mgrid[:side_px, :side_px].reshape(2, -1) + rng.random((2, side_px * side_px))
        y, x = (0.5 - place / side_px) * self.view
        return _unit(forward[None] - x[:, None] * right + y[:, None] * up)


def _unit(vectors: NDArray[Any]) -> Floats:
    length = np.sqrt(np.einsum("nc,nc->n", vectors, vectors)) + 1e-12
    return np.asarray(vectors / length[:, None], np.float32)


def _facing(normals: Floats, directions: Floats) -> Floats:
    """Normals, of length 1, on the side that rays with these directions come from."""
    unit = _unit(normals)
    unit *= -np.sign((unit * directions).sum(1, keepdims=True))
    return unit


def _at(corner_values: Floats, u: Floats, v: Floats) -> Floats:
    """Values at the corners of triangles (N, 3, C), interpolated: (N, C)."""
    return np.asarray(np.einsum("nk,nkc->nc", np.stack([1 - u - v, u, v], 1), corner_values))


def _disturbed(rng: np.random.Generator, directions: Floats, amount: float) -> Floats:
    """Directions within a ball around each: a cosine-weighted half sphere for `amount` 1."""
    ball = _unit(rng.standard_normal(directions.shape, dtype=np.float32))
    return _unit(directions + ball * (amount * 0.999))


class World:
    """Meshes with a number each, light, and surroundings; `render` looks at them.

    `surroundings` (h, w, 3) linear light from all directions: rows from straight up to straight down. `rays_around`:
    from each point, to see how much of them lights it.
    """

    def __init__(
        self, meshes: list[Mesh], lights: list[Light], surroundings: Floats, *, rays_around: int = _AROUND
    ) -> None:
        self.rays_around = rays_around
        self.lights, self.surroundings = lights, surroundings
        self.ambient = cv2.blur(surroundings, (surroundings.shape[1] // 3, surroundings.shape[0] // 3))
        self.mesh = join(meshes)
        self.thing = np.concatenate([np.full(len(m.corners), i, np.int32) for i, m in enumerate(meshes)])
        self.gloss = np.array([material.gloss for material in self.mesh.materials], np.float32)
        self.scene = EmbreeScene()
        TriangleMesh(self.scene, self.mesh.corners)

    def _from_around(self, light: Floats, directions: Floats) -> Floats:
        rows, columns = light.shape[:2]
        row = (np.arccos(np.clip(directions[:, 1], -1, 1)) / math.pi * (rows - 1)).astype(int)
        angle = np.arctan2(directions[:, 2], directions[:, 0]) / (2 * math.pi) + 0.5
        return np.asarray(light[row, np.minimum((angle * columns).astype(int), columns - 1)])

    def _colour(self, faces: Ints, u: Floats, v: Floats) -> Floats:
        uv = _at(self.mesh.uv[faces], u, v)
        material = self.mesh.material[faces]
        colour = np.stack([m.colour for m in self.mesh.materials])[material]
        for number in np.unique(material):
            image = self.mesh.materials[number].image
            if image is None:
                continue
            here = np.nonzero(material == number)[0]
            place = uv[here] % 1.0
            x = np.minimum((place[:, 0] * image.shape[1]).astype(int), image.shape[1] - 1)
            y = np.minimum(((1 - place[:, 1]) * image.shape[0]).astype(int), image.shape[0] - 1)
            tint = self.mesh.materials[number].colour
            colour[here] = linear_light(image[y, x]) * (0.3 + 0.7 * tint)
        return np.asarray(colour, np.float32)

    def _smooth_normals(self, faces: Ints, u: Floats, v: Floats, flat: Floats, directions: Floats) -> Floats:
        smooth = _unit(_at(self.mesh.normals[faces], u, v))
        flat = _facing(flat, directions)
        smooth *= np.sign((smooth * flat).sum(1, keepdims=True))
        odd = (smooth * directions).sum(1) > -0.02  # turned away from who looks at it
        smooth[odd] = flat[odd]
        return smooth

    def _lit(self, rng: np.random.Generator, points: Floats, normals: Floats) -> Floats:
        """Light that arrives at points (N, 3), from the lamps and from around."""
        direct = np.zeros_like(points)
        start = points + normals * _OFFSET
        for light in self.lights:
            slope = np.maximum(normals @ light.direction, 0)
            facing = np.nonzero(slope > 0)[0]
            seen = np.zeros(len(facing), np.float32)
            towards = np.broadcast_to(light.direction, (len(facing), 3))
            for _ in range(_SHADOW):
                seen += self.scene.run(start[facing], _disturbed(rng, towards, light.spread), query="OCCLUDED") < 0
            direct[facing] += (slope[facing] * seen / _SHADOW)[:, None] * light.colour
        around = np.zeros_like(points)
        for _ in range(self.rays_around):
            ray = _disturbed(rng, normals, 1.0)
            free = (self.scene.run(start, ray, query="OCCLUDED") < 0)[:, None]
            from_here = self._from_around(self.ambient, ray)
            around += np.where(free, from_here, from_here * 0.12)
        return direct + around / self.rays_around

    def _reflected(self, points: Floats, normals: Floats, directions: Floats) -> Floats:
        mirrored = directions - 2 * (directions * normals).sum(1, keepdims=True) * normals
        mirrored = np.ascontiguousarray(mirrored, np.float32)
        light = self._from_around(self.surroundings, mirrored)
        for lamp in self.lights:
            near = np.maximum(mirrored @ lamp.direction, 0) ** (2 / (lamp.spread**2 + 1e-3))
            light = light + near[:, None] * lamp.colour * 2
        hits = self.scene.run(points + normals * _OFFSET, mirrored, output=True)
        met = np.nonzero(hits["primID"] >= 0)[0]
        if len(met):
            faces = hits["primID"][met]
            colour = self._colour(faces, hits["u"][met], hits["v"][met])
            flat = _facing(hits["Ng"][met], mirrored[met])
            arriving = self._from_around(self.ambient, flat) * 0.7
            for lamp in self.lights:
                arriving = arriving + np.maximum(flat @ lamp.direction, 0)[:, None] * lamp.colour * 0.7
            light[met] = colour * arriving
        return light

    def render(self, rng: np.random.Generator, camera: Camera, side_px: int) -> tuple[Floats, Ints, Ints]:
        """Linear light (S, S, 3), the number of the mesh and of the material (of all meshes) at each pixel, or -1."""
        directions = camera.rays(rng, side_px)
        eyes = np.broadcast_to(camera.eye.astype(np.float32), directions.shape)
        hits = self.scene.run(np.ascontiguousarray(eyes), directions, output=True)
        light = self._from_around(self.surroundings, directions)
        face: Ints = hits["primID"]
        met = np.nonzero(face >= 0)[0]
        faces, u, v = face[met], hits["u"][met], hits["v"][met]
        points = camera.eye.astype(np.float32) + directions[met] * hits["tfar"][met, None]
        normals = self._smooth_normals(faces, u, v, hits["Ng"][met], directions[met])
        arriving = np.zeros_like(light)
        arriving[met] = self._lit(rng, points, normals)
        # few rays are noisy; a median keeps the edges of shadows
        arriving = cv2.medianBlur(arriving.reshape(side_px, side_px, 3), 5).reshape(-1, 3)
        light[met] = self._colour(faces, u, v) * arriving[met]
        slope = np.clip(-(normals * directions[met]).sum(1), 0, 1)
        gloss = self.gloss[self.mesh.material[faces]]
        mirror = gloss * (0.04 + 0.96 * (1 - slope) ** 5) + 0.1 * gloss**2
        shiny = np.nonzero(mirror > 0.015)[0]  # less is not seen
        if len(shiny):
            extra = self._reflected(points[shiny], normals[shiny], directions[met][shiny])
            light[met[shiny]] += mirror[shiny, None] * extra
        thing = np.where(face >= 0, self.thing[face], -1).reshape(side_px, side_px)
        material = np.where(face >= 0, self.mesh.material[face], -1).reshape(side_px, side_px)
        return light.reshape(side_px, side_px, 3), thing, material
