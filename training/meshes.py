"""Solid things for the rendered scenes: meshes of Sweet Home 3D's furniture libraries, and turned bodies of our own.

The libraries (Debian: `apt install sweethome3d-furniture`) hold some 800 models of things, people, animals and
vehicles; those used here are under CC0 or CC-BY 3.0, and MODEL_CARD.md names their authors.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import trimesh
from numpy.typing import NDArray

Floats = NDArray[Any]
"""float32; OpenCV's type hints do not tell dtypes."""

FURNITURE = Path("/usr/share/sweethome3d/furniture")
LARGEST_FACES = 60_000
LARGEST_TEXTURE = 512
_SEE_THROUGH = 0.35
"""Opacity below which a surface is left out: glass shows what is behind it."""


@dataclass(frozen=True, slots=True)
class Material:
    """`colour` (3,) linear RGB in 0..1; `image` (h, w, 3) uint8 sRGB or None; `gloss` in 0..1."""

    colour: Floats
    image: NDArray[Any] | None
    gloss: float


@dataclass(frozen=True, slots=True)
class Mesh:
    """Triangles: `corners` and `normals` (F, 3, 3), `uv` (F, 3, 2), `material` (F,) index into `materials`.

    y is up. A thing that was not moved yet stands on y = 0 around x = z = 0, and its largest extent is 1.
    """

    corners: Floats
    normals: Floats
    uv: Floats
    material: NDArray[np.int32]
    materials: tuple[Material, ...]

    def moved(self, linear: Floats, shift: Floats) -> Mesh:
        """The mesh under a rotation times a scale, (3, 3), and a shift (3,)."""
        normals = self.normals @ linear.T
        normals /= np.linalg.norm(normals, axis=2, keepdims=True) + 1e-12
        return replace(self, corners=self.corners @ linear.T + shift, normals=normals)


def standing(mesh: Mesh) -> Mesh:
    """The mesh as a thing that was not moved yet, see `Mesh`."""
    low, high = mesh.corners.min((0, 1)), mesh.corners.max((0, 1))
    middle = (low + high) / 2
    base = np.array([middle[0], low[1], middle[2]], np.float32)
    return replace(mesh, corners=((mesh.corners - base) / float((high - low).max())).astype(np.float32))


@cache
def furniture_files(folder: Path) -> tuple[tuple[Path, str], ...]:
    """(library, name in it) of all models below `folder`, in a fixed order; empty if there is no such folder."""
    found = []
    for library in sorted(folder.glob("*.sh3f")):
        with zipfile.ZipFile(library) as archive:
            found += [(library, name) for name in sorted(archive.namelist()) if name.endswith(".obj")]
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Piece:
    """A model as its library's catalogue describes it.

    `category` and `name` in English; `size_m` (width, height, depth) in metres; `rotation` (3, 3) of the model that
    makes it stand and look ahead.
    """

    library: Path
    model: str
    category: str
    name: str
    size_m: tuple[float, float, float]
    rotation: Floats

    def mesh(self) -> Mesh | None:
        """The model in metres, standing, its front towards +z; None as for `load_mesh`."""
        mesh = load_mesh(self.library, self.model)
        if mesh is None:
            return None
        upright = standing(mesh.moved(self.rotation, np.zeros(3, np.float32)))
        scale = (self.size_m / np.maximum(np.ptp(upright.corners, axis=(0, 1)), 1e-3)).astype(np.float32)
        normals = upright.normals / scale
        normals /= np.linalg.norm(normals, axis=2, keepdims=True) + 1e-12
        return replace(upright, corners=upright.corners * scale, normals=normals)


@cache
def furniture_pieces(folder: Path) -> tuple[Piece, ...]:
    """What the libraries below `folder` hold, in a fixed order."""
    pieces = []
    for library in sorted(folder.glob("*.sh3f")):
        with zipfile.ZipFile(library) as archive:
            text = archive.read("PluginFurnitureCatalog.properties").decode("latin-1")
        known = dict(re.findall(r"(?m)^(\w+#\d+)\s*[=:]\s*(.*?)\s*$", text))
        for number in sorted(int(key[6:]) for key in known if key.startswith("model#")):
            sizes_cm = (known.get(f"{side}#{number}") for side in ("width", "height", "depth"))
            rotation = known.get(f"modelRotation#{number}", "1 0 0 0 1 0 0 0 1")
            width_m, height_m, depth_m = (float(size_cm or 0) / 100 for size_cm in sizes_cm)
            pieces.append(
                Piece(
                    library,
                    known[f"model#{number}"].lstrip("/"),
                    known[f"category#{number}"],
                    known[f"name#{number}"],
                    (width_m, height_m, depth_m),
                    np.array(rotation.split(), np.float32).reshape(3, 3),
                )
            )
    return tuple(pieces)


def linear_light(srgb: NDArray[Any]) -> Floats:
    """sRGB in 0..255, about, as amounts of light in 0..1, float32."""
    return ((srgb.astype(np.float32) / 255) ** 2.2).astype(np.float32)


@cache
def load_mesh(library: Path, name: str) -> Mesh | None:
    """A model of a library; None if it is too large, or has nothing opaque."""
    with zipfile.ZipFile(library) as archive:
        folder = f"{PurePosixPath(name).parent}/"
        beside = {
            n.removeprefix(folder): io.BytesIO(archive.read(n)) for n in archive.namelist() if n.startswith(folder)
        }
        scene = trimesh.load(
            beside[name.removeprefix(folder)],
            file_type="obj",
            resolver=trimesh.resolvers.ZipResolver(beside),
            force="scene",
            process=False,
        )
    assert isinstance(scene, trimesh.Scene)
    corners, normals, uv, index = [], [], [], []
    materials: list[Material] = []
    for part in scene.geometry.values():
        look = getattr(part.visual, "material", None)
        if look is None or not hasattr(part, "faces") or len(part.faces) == 0:
            continue
        if float(np.ravel(look.kwargs.get("d", [1.0]))[0]) < _SEE_THROUGH:
            continue
        image = None
        if look.image is not None and part.visual.uv is not None:
            image = np.asarray(look.image.convert("RGB"))
            scale = min(1.0, LARGEST_TEXTURE / max(image.shape))
            image = cv2.resize(image, (0, 0), fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        shine = float(np.mean(look.specular[:3])) / 255
        corners.append(part.vertices[part.faces])
        normals.append(part.vertex_normals[part.faces])
        flat = np.zeros((len(part.vertices), 2)) if image is None else part.visual.uv
        uv.append(flat[part.faces])
        index.append(np.full(len(part.faces), len(materials), np.int32))
        materials.append(Material(linear_light(look.diffuse[:3]), image, shine))
    if not corners or sum(map(len, corners)) > LARGEST_FACES:
        return None
    mesh = Mesh(
        np.concatenate(corners).astype(np.float32),
        np.concatenate(normals).astype(np.float32),
        np.concatenate(uv).astype(np.float32),
        np.concatenate(index),
        tuple(materials),
    )
    if not all(np.isfinite(a).all() for a in (mesh.corners, mesh.normals, mesh.uv)) or np.ptp(mesh.corners) == 0:
        return None
    return standing(mesh)


def grid_mesh(points: Floats, uv: Floats, material: Material) -> Mesh:
    """A surface through a grid of points (R, C, 3) with texture coordinates (R, C, 2)."""

    def quads(values: Floats) -> Floats:
        a, b, c, d = values[:-1, :-1], values[:-1, 1:], values[1:, :-1], values[1:, 1:]
        upper, lower = np.stack([a, b, c], 2), np.stack([b, d, c], 2)
        return np.concatenate([upper, lower]).reshape(-1, 3, values.shape[2]).astype(np.float32)

    normals = np.cross(np.gradient(points, axis=0), np.gradient(points, axis=1))
    normals /= np.linalg.norm(normals, axis=2, keepdims=True) + 1e-9
    corners = quads(points)
    return Mesh(corners, quads(normals.astype(np.float32)), quads(uv), np.zeros(len(corners), np.int32), (material,))


def _turned(radii: list[float], heights: list[float], material: Material, power: float) -> Mesh:
    """A profile turned around the y axis; `power` 2 for round things, more for squarish ones."""
    turn = np.linspace(0, 2 * math.pi, 49)
    squash = (np.abs(np.cos(turn)) ** power + np.abs(np.sin(turn)) ** power) ** (-1 / power)
    radius, height = np.array(radii)[:, None], np.array(heights)[:, None]
    points = np.stack(
        [radius * squash * np.cos(turn), np.broadcast_to(height, (len(radii), 49)), radius * squash * np.sin(turn)], 2
    )
    v, u = np.meshgrid(np.linspace(0, 1, len(radii)), np.linspace(0, 3, 49), indexing="ij")
    return grid_mesh(points.astype(np.float32), np.stack([u, v], 2).astype(np.float32), material)


def _handle(material: Material, radius: float, middle: float, height: float, thickness: float) -> Mesh:
    around, across = np.meshgrid(np.linspace(-1.6, 1.6, 17), np.linspace(0, 2 * math.pi, 11), indexing="ij")
    ring = height + thickness * np.cos(across)
    points = np.stack([radius + ring * np.cos(around), middle + ring * np.sin(around), thickness * np.sin(across)], 2)
    return grid_mesh(points.astype(np.float32), np.zeros((17, 11, 2), np.float32), material)


def join(meshes: list[Mesh]) -> Mesh:
    """Several meshes as one; their materials stay apart."""
    offsets = np.cumsum([0, *(len(mesh.materials) for mesh in meshes)])
    return Mesh(
        np.concatenate([mesh.corners for mesh in meshes]),
        np.concatenate([mesh.normals for mesh in meshes]),
        np.concatenate([mesh.uv for mesh in meshes]),
        np.concatenate([mesh.material + np.int32(o) for mesh, o in zip(meshes, offsets[:-1], strict=True)]),
        tuple(material for mesh in meshes for material in mesh.materials),
    )


def turned_body(rng: np.random.Generator, material: Material, other: Material, *, kind: str | None = None) -> Mesh:
    """A plate, bowl, cup (often with handle or drink), bottle, vase, ball, tin, coin or box; `kind`: which one."""
    kind = kind or str(rng.choice(["plate", "bowl", "cup", "cup", "bottle", "vase", "ball", "tin", "coin", "box"]))
    power = 2.0 if rng.random() < 0.8 else float(rng.choice([3.0, 8.0]))
    t = np.linspace(0, 1, 14)
    if kind == "ball":
        angle = np.linspace(-math.pi / 2, math.pi / 2, 24)
        squash = rng.uniform(0.7, 1.1)
        dent = 1 + rng.uniform(0, 0.12) * np.cos(angle * 3)
        return standing(_turned(list(np.cos(angle) * dent), list(np.sin(angle) * squash), material, 2))
    if kind in {"tin", "coin", "box"}:
        height = rng.uniform(0.02, 0.15) if kind == "coin" else rng.uniform(0.2, 4)
        power = 20.0 if kind == "box" else power
        edge = 0.02
        side = _turned([1 - edge, 1, 1, 1 - edge], [0, edge, height - edge, height], material, power)
        lid = other if rng.random() < 0.5 and kind != "coin" else material
        top = _turned([1 - edge, 0.9, 0.5, 0], [height, height - 0.003, height - 0.003, height], lid, power)
        return standing(join([side, top]))
    if kind in {"bottle", "vase"}:
        bumps = sum(rng.normal(0, 0.5 / k) * np.sin(t * k * 3 + rng.uniform(0, 6)) for k in range(1, 4))
        radii = np.clip(0.6 + 0.45 * np.asarray(bumps), 0.12, 1.5)
        if kind == "bottle":
            radii = np.where(t < rng.uniform(0.4, 0.75), 1.0, np.clip(radii * 0.4, 0.15, 0.4))
            radii = np.convolve(np.pad(radii, 1, mode="edge"), [0.25, 0.5, 0.25], "valid")
        height = float(rng.uniform(1.5, 4))
        body = _turned([0.0, *radii, radii[-1] * 0.8], [0, *(t * height), height * 0.9], material, power)
        if rng.random() < 0.5:
            return standing(body)
        low, high = sorted(rng.uniform(0.1, 0.9, 2))
        label = (t >= low) & (t <= high)
        if kind == "vase" or label.sum() < 2:
            return standing(body)
        return standing(join([body, _turned(list(radii[label] * 1.01), list(t[label] * height), other, power)]))
    # open vessels: up outside, over the rim, down inside
    height = {"plate": rng.uniform(0.08, 0.25), "bowl": rng.uniform(0.4, 0.9), "cup": rng.uniform(0.8, 2)}[kind]
    base = rng.uniform(0.4, 0.95) if kind == "cup" else rng.uniform(0.3, 0.6)
    outside = base + (1 - base) * t ** rng.uniform(0.4, 2.0)
    wall = rng.uniform(0.03, 0.1)
    inside = np.maximum(outside[::-1] - wall, 0)
    radii = np.concatenate([[0, base], outside, inside, [0]])
    heights = np.concatenate([[0, 0], t * height, t[::-1] * height * 0.98 + 0.02 + wall * 0.4, [wall * 0.4 + 0.02]])
    parts = [_turned(list(radii), list(heights), material, power)]
    if kind != "plate" and rng.random() < 0.6:
        level = rng.uniform(0.4, 0.95)
        reach = float(np.interp(level, t, outside)) - wall * 0.6
        surface = height * level + 0.02
        parts.append(_turned([reach, reach * 0.6, 0], [surface, surface, surface], other, power))
    if kind == "cup" and rng.random() < 0.7:
        size = height * rng.uniform(0.22, 0.35)
        parts.append(_handle(material, float(outside[7]) - 0.05, height * 0.5, size, rng.uniform(0.05, 0.12)))
    return standing(join(parts))
