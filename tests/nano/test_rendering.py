"""The rendered scenes of the training: exact labels, light from where it comes, models from a library."""

import base64
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import OpenEXR
import pytest
import trimesh

from grown import grown_body
from meshes import Material, Mesh, furniture_files, grid_mesh, load_mesh, turned_body
from rendered import render_scene
from rendering import Camera, Light, World
from scene_files import read_scene
from scenes import Ingredients, make_scene
from surroundings import BRIGHTEST, panorama_files, photographed

ROOT = Path(__file__).resolve().parents[2]
WHITE = Material(np.ones(3, np.float32), None, 0.0)
DARK = np.full((8, 16, 3), 1e-4, np.float32)

CUBE = """mtllib cube.mtl
v 0 0 0
v 20 0 0
v 20 10 0
v 0 10 0
v 0 0 20
v 20 0 20
v 20 10 20
v 0 10 20
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl front
f 5/1 6/2 7/3 8/4
f 1/1 4/2 3/3 2/4
usemtl side
f 1/1 5/2 8/3 4/4
f 2/1 3/2 7/3 6/4
f 4/1 8/2 7/3 3/4
usemtl glass
f 1/1 2/2 6/3 5/4
"""
LOOKS = """newmtl front
Kd 1 0 0
newmtl side
Kd 1 1 1
map_Kd stripes.png
newmtl glass
Kd 1 1 1
d 0.1
"""


@pytest.fixture
def furniture(tmp_path: Path) -> Path:
    """A folder with a library of one box, red in front, with striped sides and a bottom of glass."""
    stripes = np.zeros((8, 8, 3), np.uint8)
    stripes[:, ::2] = 255
    folder = tmp_path / "furniture"
    folder.mkdir()
    with zipfile.ZipFile(folder / "own.sh3f", "w") as library:
        library.writestr("box/cube.obj", CUBE)
        library.writestr("box/cube.mtl", LOOKS)
        library.writestr("box/stripes.png", cv2.imencode(".png", stripes)[1].tobytes())
    return folder


@pytest.fixture
def panoramas(tmp_path: Path) -> Path:
    """A folder with one panorama as in @pmndrs/assets: bright blue above the horizon, dark red below, and a sun."""
    light = np.zeros((64, 128, 3), np.float32)
    light[:32], light[32:] = (0.2, 0.4, 2.0), (0.2, 0.0, 0.0)
    light[4, 50] = 20_000
    exr = tmp_path / "sky.exr"
    OpenEXR.File({"type": OpenEXR.scanlineimage}, {"RGB": OpenEXR.Channel(light)}).write(str(exr))
    folder = tmp_path / "panoramas"
    folder.mkdir()
    encoded = base64.b64encode(exr.read_bytes()).decode()
    (folder / "sky.exr.js").write_text(f'export default "data:application/octet-stream;base64,{encoded}"')
    return folder


def ball(radius: float) -> Mesh:
    down, around = np.meshgrid(np.linspace(0, np.pi, 65), np.linspace(0, 2 * np.pi, 129), indexing="ij")
    points = np.stack([np.sin(down) * np.cos(around), np.cos(down), np.sin(down) * np.sin(around)], 2) * radius
    return grid_mesh(points.astype(np.float32), np.zeros((65, 129, 2), np.float32), WHITE)


def floor(y: float) -> Mesh:
    x, z = np.meshgrid(np.linspace(-9, 9, 3), np.linspace(-9, 9, 3), indexing="ij")
    points = np.stack([x, np.full_like(x, y), z], 2).astype(np.float32)
    return grid_mesh(points, np.zeros((3, 3, 2), np.float32), WHITE)


def test_labels_are_exact_and_light_comes_from_the_lamp() -> None:
    lamp = Light(np.array([-1, 0, 0], np.float32), 0.01, np.ones(3, np.float32))
    camera = Camera(np.array([0, 0, 4.0]), np.zeros(3), view=1.0)
    light, thing, material = World([ball(1.0)], [lamp], DARK).render(np.random.default_rng(0), camera, 200)
    # a ball of radius 1 at distance 4 has an outline of radius 1 / sqrt(15) in a picture of width 1
    assert (thing == 0).sum() == pytest.approx(np.pi * 200**2 / 15, rel=0.01)
    np.testing.assert_array_equal(material, thing)
    ys, xs = np.nonzero(thing == 0)
    assert (xs.mean(), ys.mean()) == pytest.approx((99.5, 99.5), abs=0.5)
    left, right = light[95:105, 60:90].mean(), light[95:105, 110:140].mean()
    assert left > 0.2
    assert right < 0.01


def test_a_ball_throws_a_shadow_on_the_floor() -> None:
    lamp = Light(np.array([0, 1, 0], np.float32), 0.01, np.ones(3, np.float32))
    camera = Camera(np.array([0, 6, 6.0]), np.array([0, -1.0, 0]), view=1.2)
    light, thing, _ = World([ball(1.0), floor(-1.0)], [lamp], DARK).render(np.random.default_rng(0), camera, 200)
    # just before the ball's foot it is dark, far from it light
    foot = np.nonzero(thing[:, 100] == 0)[0].max()
    assert thing[foot + 2, 100] == 1
    assert light[foot + 2, 100].mean() < 0.1
    assert light[-5, 100].mean() > 0.9


def test_models_are_read_from_a_library(furniture: Path) -> None:
    files = furniture_files(furniture)
    assert [name for _, name in files] == ["box/cube.obj"]
    mesh = load_mesh(*files[0])
    assert mesh is not None
    assert len(mesh.corners) == 10, "12 triangles less the two of glass"
    low, high = mesh.corners.min((0, 1)), mesh.corners.max((0, 1))
    np.testing.assert_allclose((low, high), [(-0.5, 0, -0.5), (0.5, 0.5, 0.5)], atol=1e-6)
    red, striped = sorted(mesh.materials, key=lambda material: material.image is not None)
    np.testing.assert_allclose(red.colour, (1, 0, 0), atol=1e-6)
    assert striped.image is not None


@pytest.mark.parametrize("seed", range(30))
def test_turned_bodies_stand_and_are_finite(seed: int) -> None:
    mesh = turned_body(np.random.default_rng(seed), WHITE, WHITE)
    assert np.isfinite(mesh.corners).all()
    assert np.isfinite(mesh.normals).all()
    assert mesh.corners[:, :, 1].min() == pytest.approx(0, abs=1e-6)
    assert np.ptp(mesh.corners, axis=(0, 1)).max() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", ["animal", "person", "bust", "cushion", "fruit"])
@pytest.mark.parametrize("seed", range(4))
def test_grown_bodies_stand_and_are_closed(kind: str, seed: int) -> None:
    mesh = grown_body(np.random.default_rng(seed), [WHITE] * 5, kind=kind)
    assert np.isfinite(mesh.normals).all()
    assert mesh.corners[:, :, 1].min() == pytest.approx(0, abs=1e-6)
    assert np.ptp(mesh.corners, axis=(0, 1)).max() == pytest.approx(1, abs=1e-5)
    surface = trimesh.Trimesh(mesh.corners.reshape(-1, 3), np.arange(mesh.corners.size // 3).reshape(-1, 3))
    surface.merge_vertices(digits_vertex=6)
    _, triangles = np.unique(np.sort(surface.edges, axis=1), axis=0, return_counts=True)
    assert (triangles % 2 == 0).all(), "no edge of only one: the grid cuts nothing off"
    assert {0, 1} <= set(mesh.material) or kind in {"cushion", "fruit"}


def test_a_panorama_is_seen_behind_the_things_and_lights_them(panoramas: Path) -> None:
    light = photographed(np.random.default_rng(3), panorama_files(panoramas))
    assert light.max() <= BRIGHTEST
    camera = Camera(np.array([0, 0, 4.0]), np.zeros(3), view=2.0)
    seen, thing, _ = World([ball(1.0)], [], light).render(np.random.default_rng(0), camera, 100)
    assert thing[5, 50] == thing[95, 50] == -1
    above, below = seen[5, 50], seen[95, 50]
    assert above[2] > 3 * above[0]
    assert below[0] > 10 * below[2]
    top, bottom = (seen[thing == 0].reshape(-1, 3)[part] for part in (slice(0, 50), slice(-50, None)))
    assert top.mean() > 2 * bottom.mean()


def test_a_scene_is_the_same_again_and_its_parts_belong_to_it(
    furniture: Path, panoramas: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "training/rendered.py", "--out", str(tmp_path / "out"), "--count", "2"]
    command += ["--furniture", str(furniture), "--panoramas", str(panoramas), "--seed", "4"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    paths = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in paths] == ["000000.npz", "000001.npz"]
    for index, path in enumerate(paths):
        written, made = read_scene(path), render_scene(4, index, furniture, panoramas)
        np.testing.assert_array_equal(written.image, made.image)
        np.testing.assert_array_equal(written.regions, made.regions)
        np.testing.assert_array_equal(written.parents, made.parents)
        present = np.unique(made.regions)
        assert present.min() >= 1, "every pixel belongs to something"
        assert len(present) >= 2
        wholes = made.parents[present]
        np.testing.assert_array_equal(made.parents[wholes], wholes)
    mixed = [make_scene(1, index, Ingredients(rendered=paths)) for index in range(6)]
    plain = [make_scene(1, index) for index in range(6)]
    same = [np.array_equal(a.regions, b.regions) for a, b in zip(mixed, plain, strict=True)]
    assert not all(same)
    again = make_scene(1, same.index(False), Ingredients(rendered=paths))
    np.testing.assert_array_equal(again.image, mixed[same.index(False)].image)
