"""Furnished rooms and yards of the rendered scenes: true sizes, nothing inside of something else, exact labels."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import interiors
from interiors import Room, furnished_room, look_around
from meshes import furniture_pieces, load_mesh
from rendered import FEWEST_IN_ROOM, render_room
from scene_files import read_scene

ROOT = Path(__file__).resolve().parents[2]

MODEL = """v 0 0 0
v 4 0 0
v 4 0 2
v 0 0 2
v 0 1 0
v 4 1 0
v 4 1 2
v 0 1 2
usemtl paint
f 1 2 3 4
f 5 6 7 8
f 1 2 6 5
f 3 4 8 7
usemtl side
f 2 3 7 6
f 4 1 5 8
mtllib it.mtl
"""
LOOKS = """newmtl paint
Kd 0.6 0.3 0.2
newmtl side
Kd 0.2 0.4 0.6
"""
CATALOGUE = (
    # name, category, width, depth, height in centimetres
    ("Table", "Living room", 120, 70, 75),
    ("Coffee table", "Living room", 90, 60, 45),
    ("Chair", "Living room", 45, 45, 90),
    ("Cupboard", "Kitchen", 80, 50, 120),
    ("Wardrobe", "Bedroom", 100, 60, 200),
    ("Cup", "Kitchen", 10, 8, 9),
    ("Book", "Miscellaneous", 20, 15, 5),
    ("Wall clock", "Miscellaneous", 30, 5, 30),
    ("Female", "Characters", 50, 30, 170),
    ("Bush", "Exterior", 100, 100, 80),
    ("Car", "Vehicles", 180, 400, 140),
)


@pytest.fixture(scope="module")
def furniture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a library of boxes that its catalogue calls by the names above; the table's model lies."""
    folder = tmp_path_factory.mktemp("furniture")
    lines = []
    with zipfile.ZipFile(folder / "own.sh3f", "w") as library:
        for number, (name, category, width, depth, height) in enumerate(CATALOGUE, 1):
            library.writestr(f"box{number}/it.obj", MODEL)
            library.writestr(f"box{number}/it.mtl", LOOKS)
            lines += [f"name#{number}={name}", f"category#{number}={category}", f"model#{number}=/box{number}/it.obj"]
            lines += [f"width#{number}={width}", f"depth#{number}={depth}", f"height#{number}={height}"]
        lines.append("modelRotation#1=1 0 0 0 0 -1 0 1 0")
        library.writestr("PluginFurnitureCatalog.properties", "\n".join(lines).encode("latin-1"))
    return folder


def test_pieces_have_the_size_and_the_attitude_that_the_catalogue_says(furniture: Path) -> None:
    pieces = furniture_pieces(furniture)
    assert [piece.name for piece in pieces] == [row[0] for row in CATALOGUE]
    assert pieces[0].size_m == (1.2, 0.75, 0.7)
    assert pieces[8].category == "Characters"
    for piece in pieces:
        mesh = piece.mesh()
        assert mesh is not None
        np.testing.assert_allclose(np.ptp(mesh.corners, axis=(0, 1)), piece.size_m, rtol=1e-5)
        assert abs(float(mesh.corners[:, :, 1].min())) < 1e-6
    lying = load_mesh(pieces[0].library, pieces[0].model)
    standing = pieces[0].mesh()
    assert lying is not None
    assert standing is not None
    # What the model has at its back is on top, as its rotation says.
    assert ((standing.normals[:, :, 1] > 0) == (lying.normals[:, :, 2] < 0)).all()


@pytest.mark.parametrize("seed", range(12))
def test_furniture_stands_apart_within_its_walls_and_things_lie_on_it(
    furniture: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interiors, "YARDS", float(seed % 2))
    room, shell, lights = furnished_room(np.random.default_rng(seed), furniture)
    assert lights
    assert abs(float(np.ptp(shell[0].corners[:, :, 1]))) < 1e-6, "the floor comes first"
    assert len(room.things) >= 2
    boxes = [(mesh.corners.min((0, 1)), mesh.corners.max((0, 1))) for mesh in room.things]
    on_floor = [box for box in boxes if abs(box[0][1]) < 1e-4]
    for number, (low, high) in enumerate(on_floor):
        assert low[0] > -room.width / 2 - 0.1
        assert high[0] < room.width / 2 + 0.1
        for other_low, other_high in on_floor[:number]:
            apart = (low >= other_high - 1e-4) | (other_low >= high - 1e-4)
            assert apart[0] or apart[2], "one stands in the other"
    tops = [float(high[1]) for _, high in on_floor]
    for low, high in boxes:
        hangs = abs(low[2]) < 0.05 and high[2] < 0.05
        assert hangs or abs(low[1]) < 1e-4 or min(abs(float(low[1]) - top) for top in tops) < 1e-4, "it floats"


def test_some_things_lie_on_tables(furniture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interiors, "YARDS", 0.0)
    lying = 0
    for seed in range(10):
        room, _, _ = furnished_room(np.random.default_rng(seed), furniture)
        lying += sum(
            0.4 < float(m.corners[:, :, 1].min()) < 1.25 and m.corners[:, :, 2].min() > 0.1 for m in room.things
        )
    assert lying >= 10


def test_a_place_is_taken_once_and_walls_are_not_walked_through(furniture: Path) -> None:
    room = Room(3.0, 3.0, 2.5)
    chair = furniture_pieces(furniture)[2].mesh()
    assert chair is not None
    assert room.place(chair, 0.0, 0.0, 1.0)
    assert not room.place(chair, 0.0, 0.3, 1.0)
    assert not room.place(chair, 0.0, 1.4, 1.0)
    assert not room.place(chair, 0.0, -1.0, 0.1)
    assert room.place(chair, 0.0, 0.3, 1.0, 0.9), "what lies on it is in its way only above"
    assert len(room.things) == 2


@pytest.mark.parametrize("seed", range(20))
def test_the_camera_is_inside_and_above_the_floor(furniture: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    room, _, _ = furnished_room(rng, furniture)
    camera = look_around(rng, room.things, room.width)
    assert abs(camera.eye[0]) < room.width / 2
    assert camera.eye[1] >= 0.25
    assert camera.eye[2] > camera.target[2]


def test_a_room_is_the_same_again_and_shows_several_things(furniture: Path, tmp_path: Path) -> None:
    command = [sys.executable, "training/rendered.py", "--rooms", "--out", str(tmp_path / "out"), "--count", "2"]
    command += ["--furniture", str(furniture), "--seed", "7"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=200)
    for index, path in enumerate(sorted((tmp_path / "out").iterdir())):
        written, made = read_scene(path), render_room(7, index, furniture)
        np.testing.assert_array_equal(written.image, made.image)
        np.testing.assert_array_equal(written.regions, made.regions)
        np.testing.assert_array_equal(written.parents, made.parents)
        assert made.regions.min() >= 1, "every pixel belongs to something"
        assert len(np.unique(made.parents[made.regions])) >= FEWEST_IN_ROOM
    assert index == 1
