"""Make rendered scenes for the training: `python training/rendered.py --out DIR --count 2000`.

Things of `meshes` stand on a table or a floor, in a room or under a sky, lit by lamps and seen by a camera. What
the drawn scenes lack is here: shading of real bodies, shadows at their feet, reflections, perspective. A file a
scene, `NUMBER.npz` with the fields of `scenes.Scene`; the same seed and number give the same scene.
"""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import replace
from multiprocessing import Pool
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from canvas import MAX_REGIONS
from grown import grown_body
from interiors import furnished_room, look_around
from meshes import (
    FURNITURE,
    Floats,
    Material,
    Mesh,
    furniture_files,
    join,
    linear_light,
    load_mesh,
    turned_body,
)
from rendering import Camera, Ints, Light, World
from scene_files import Scene, parents_table, write_scene
from scenes import MIN_REGION_PX, SCENE_SIZE
from staging import direction, five_looks, lamp, paint, plane, rest, surface, tinted, turn
from surroundings import painted, panorama_files, photographed

SUPERSAMPLING = 1.5
MAX_PARTS = 5
SMALLEST_SHARE = 0.04
"""Of the picture that things take; with less, it is taken again from elsewhere."""
FEWEST_IN_ROOM = 4
"""Things in a room, and things seen in its picture; with fewer, it is furnished or taken again."""
ROOM_RAYS_AROUND = 9
"""Corners that little light reaches are noisy with fewer."""
ROOM_SUPERSAMPLING = 1.25
ROOM_TRIED_PX = 64
LARGEST_IN_ROOM = 0.6
"""Of the picture that one thing may take in a room."""
_PART_SHARES = (0.03, 0.85)
"""Smallest and largest part, as a share of what is seen of its whole."""


def _recoloured(rng: np.random.Generator, mesh: Mesh) -> Mesh:
    """Another look for the same shape: its materials tinted, or one of them painted anew."""
    tint = rng.uniform(0.3, 1.3, 3).astype(np.float32)
    materials = tinted(mesh, tint)
    if rng.random() < 0.5:
        number = int(rng.integers(len(materials)))
        materials[number] = replace(paint(rng), image=None)
    return replace(mesh, materials=tuple(materials))


def _thing(rng: np.random.Generator, files: tuple[tuple[Path, str], ...]) -> Mesh:
    """A standing mesh with its largest extent 1."""
    if rng.random() < 0.3:
        return grown_body(rng, five_looks(rng))
    if files and rng.random() < 0.75:
        for _ in range(4):
            mesh = load_mesh(*files[int(rng.integers(len(files)))])
            if mesh is not None:
                return _recoloured(rng, mesh) if rng.random() < 0.5 else mesh
    material = paint(rng)
    if rng.random() < 0.2:
        return _filled_bowl(rng, material)
    body = turned_body(rng, material, paint(rng))
    return _on_a_saucer(rng, body, material) if rng.random() < 0.2 else body


def _filled_bowl(rng: np.random.Generator, material: Material) -> Mesh:
    """A bowl or a plate with one to six fruits or balls in it: one whole and its parts."""
    deep = rng.random() < 0.7
    vessel = turned_body(rng, material, material, kind="bowl" if deep else "plate")
    count = int(rng.integers(1, 7))
    size = rng.uniform(0.3, 0.5) if count == 1 else rng.uniform(0.2, 0.33)
    held = [vessel]
    looks = five_looks(rng)
    for number in range(count):
        looks = looks if rng.random() < 0.5 else five_looks(rng)
        grows = rng.random() < 0.7
        fruit = grown_body(rng, looks, kind="fruit") if grows else turned_body(rng, *looks[:2], kind="ball")
        angle = 2 * math.pi * number / count + rng.normal(0, 0.15)
        reach = 0.0 if count == 1 else 0.22
        place = (reach * math.cos(angle), rng.uniform(0.04, 0.15 if deep else 0.05), reach * math.sin(angle))
        linear = (turn(rng.uniform(0, 6.3), rng.normal(0, 0.5)) * size * rng.uniform(0.8, 1.2)).astype(np.float32)
        held.append(rest(fruit, linear, place))
    return join(held)


def _on_a_saucer(rng: np.random.Generator, body: Mesh, material: Material) -> Mesh:
    """A thing and the plate it stands on, often of one set: one whole and its parts."""
    of_a_set = material if rng.random() < 0.6 else paint(rng)
    plate = turned_body(rng, of_a_set, of_a_set, kind="plate")
    size = np.float32(rng.uniform(0.4, 0.75))
    lifted = np.array([0, 0.03, 0], np.float32)
    return join([plate, body.moved(np.eye(3, dtype=np.float32) * size, lifted)])


def _camouflaged(rng: np.random.Generator, mesh: Mesh, ground: Material) -> Mesh:
    """The mesh in about the colour of what it stands on."""
    colour = ground.colour if ground.image is None else linear_light(ground.image.mean((0, 1)))
    tint = rng.uniform(0.8, 1.25) * rng.uniform(0.92, 1.08, (len(mesh.materials), 3))
    similar = [np.clip(colour * t, 0.01, 0.95).astype(np.float32) for t in tint]
    looks = zip(mesh.materials, similar, strict=True)
    return replace(mesh, materials=tuple(replace(m, colour=c, image=None) for m, c in looks))


def _place_things(rng: np.random.Generator, files: tuple[tuple[Path, str], ...]) -> tuple[list[Mesh], float]:
    """Things on the plane y = 0 around the origin, and the radius of the circle that holds them."""
    count = int(rng.choice([1, 2, 3, 4, 6, 9, 14, 24], p=[0.12, 0.13, 0.15, 0.15, 0.17, 0.14, 0.1, 0.04]))
    kinds = [_thing(rng, files) for _ in range(int(rng.integers(1, 3)) if rng.random() < 0.25 else count)]
    sizes = np.exp(rng.normal(0, 0.45, count))
    radius = 0.62 * math.sqrt(float((sizes**2).sum())) * rng.uniform(0.6, 1.3)
    placed: list[Mesh] = []
    circles: list[tuple[float, float, float]] = []
    lying = rng.random() < 0.2
    for number in range(count):
        mesh = kinds[number % len(kinds)]
        pitch = math.pi / 2 * float(rng.choice([1, -1])) if lying and rng.random() < 0.5 else 0.0
        linear = (turn(rng.uniform(0, 2 * math.pi), pitch) * sizes[number]).astype(np.float32)
        reach = 0.84 * float(np.linalg.norm((mesh.corners @ linear.T)[:, :, [0, 2]], axis=2).max())
        for _ in range(25):
            r, angle = radius * math.sqrt(rng.random()), rng.uniform(0, 2 * math.pi)
            x, z = (r * math.cos(angle), r * math.sin(angle)) if count > 1 else (0.0, 0.0)
            if all(math.hypot(x - a, z - b) > reach + c for a, b, c in circles):
                circles.append((x, z, reach))
                placed.append(rest(mesh, linear, (x, 0.0, z)))
                break
    if rng.random() < 0.3:
        # small things on top of others
        for mesh in [m for m in placed if rng.random() < 0.4][:2]:
            top = float(mesh.corners[:, :, 1].max())
            middle = mesh.corners.mean((0, 1))
            small = float(np.ptp(mesh.corners[:, :, 0])) * rng.uniform(0.3, 0.7)
            linear = (turn(rng.uniform(0, 6.3)) * small).astype(np.float32)
            placed.append(rest(_thing(rng, files), linear, (float(middle[0]), top, float(middle[2]))))
    return placed, max(radius, 0.5 * float(sizes.max()))


def _lights(rng: np.random.Generator) -> list[Light]:
    lights = []
    for _ in range(1 if rng.random() < 0.65 else 2):
        towards = direction(rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(15, 85)))
        lights.append(lamp(rng, towards, (0.5, 1.1), (0.01, 0.08, 0.3, 0.7), 2.5))
    return lights


def _backdrop(rng: np.random.Generator, radius: float, *, outside: bool) -> list[Mesh]:
    """Floor or table, and walls; first what the things stand on. `outside` there are fewer of them."""
    wide = radius * rng.uniform(8, 20)
    strength = float(rng.choice([0.2, 0.7, 1.3]))
    planes = []
    floor_y = 0.0
    if rng.random() < 0.35:
        x, z, thick = (*(radius * rng.uniform(1.0, 2.2, 2)), radius * rng.uniform(0.03, 0.25))
        top = surface(rng, strength)
        planes.append(plane((-x, 0, -z), (2 * x, 0, 0), (0, 0, 2 * z), rng.uniform(0.5, 3), top))
        planes.append(plane((-x, -thick, z), (2 * x, 0, 0), (0, thick, 0), 1.0, top))
        floor_y = -radius * rng.uniform(0.5, 2)
        if outside:
            return planes
    floor = surface(rng, strength)
    planes.append(
        plane((-wide, floor_y, -wide), (2 * wide, 0, 0), (0, 0, 2 * wide), wide / radius * rng.uniform(0.3, 2), floor)
    )
    if rng.random() < (0.2 if outside else 0.55):
        back = -radius * rng.uniform(1.1, 4)
        height = radius * rng.uniform(1.5, 12)
        wall = surface(rng, float(rng.choice([0.2, 0.7, 1.3])))
        planes.append(plane((-wide, floor_y, back), (2 * wide, 0, 0), (0, height, 0), rng.uniform(1, 6), wall))
        if rng.random() < 0.4:
            side = radius * rng.uniform(1.1, 3) * rng.choice([-1, 1])
            other = wall if rng.random() < 0.5 else surface(rng, 0.7)
            planes.append(plane((side, floor_y, back), (0, 0, 2 * wide), (0, height, 0), rng.uniform(1, 6), other))
        for _ in range(int(rng.integers(0, 4))):
            w, h = radius * rng.uniform(0.2, 1.2, 2)
            x, y = rng.uniform(-2, 2) * radius, floor_y + radius * rng.uniform(0.5, 2.5)
            look = surface(rng, 1.3)
            planes.append(plane((x, y, back + 0.01 * radius), (w, 0, 0), (0, h, 0), 1.0, look))
    return planes


def _camera(rng: np.random.Generator, radius: float, things: list[Mesh]) -> Camera:
    height = math.radians(float(rng.choice([rng.uniform(2, 20), rng.uniform(15, 50), rng.uniform(45, 88)])))
    # with walls behind and beside, the picture is taken from the front
    angle = math.pi / 2 + rng.normal(0, 0.5)
    view = 2 * math.tan(math.radians(rng.uniform(20, 65)) / 2)
    top = max(float(mesh.corners[:, :, 1].max()) for mesh in things)
    if rng.random() < 0.5:
        # one of them fills the picture
        near = things[int(rng.integers(len(things)))].corners
        low, high = near.min((0, 1)), near.max((0, 1))
        extent = 0.5 * float((high - low).max()) * rng.uniform(0.8, 1.6)
        target = (low + high) / 2 + rng.normal(0, 0.25, 3) * extent
        distance = 2 * extent / view + extent * 0.5
    else:
        extent = max(radius, 0.6 * top) * rng.uniform(0.5, 1.4)
        distance = 2 * extent / view + radius * 0.3
        target = np.array([*rng.normal(0, 0.2, 3)]) * radius + (0, top * rng.uniform(0.1, 0.5), 0)
    roll = rng.normal(0, 0.05) if rng.random() < 0.7 else rng.normal(0, 0.3)
    return Camera(target + direction(angle, height) * distance, target, view, roll)


def _developed(rng: np.random.Generator, light: Floats) -> NDArray[np.uint8]:
    """Exposure, white balance, a lens's shortcomings and a film's curve: linear light to sRGB uint8."""
    exposure = rng.uniform(0.25, 0.65) / max(float(np.percentile(light.mean(2), rng.uniform(55, 90))), 1e-3)
    image = light * (exposure * rng.uniform(0.88, 1.12, 3).astype(np.float32))
    if rng.random() < 0.3:
        bright = np.maximum(image - 0.9, 0)
        image = image + cv2.GaussianBlur(bright, (0, 0), image.shape[0] * 0.015) * 0.5
    image = image / (1 + rng.uniform(0, 0.5) * image)
    developed: NDArray[np.uint8] = (255 * np.clip(image, 0, 1) ** (1 / 2.2)).astype(np.uint8)
    return developed


def _number_regions(thing: Ints, material: Ints, things: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Regions and their parents: everything a whole, its materials its parts; -1 is the sky, one whole as well."""
    regions = np.zeros(thing.shape, np.uint8)
    parents = [0]
    for number in np.unique(thing):
        here = thing == number
        if len(parents) >= MAX_REGIONS - MAX_PARTS:
            break
        whole = len(parents)
        parents.append(whole)
        regions[here] = whole
        if not 0 <= number < things:
            continue
        total = np.count_nonzero(here)
        found = sorted((np.count_nonzero(here & (material == m)), int(m)) for m in np.unique(material[here]))[::-1]
        parts = [m for area, m in found if _PART_SHARES[0] * total < area < _PART_SHARES[1] * total]
        for part in parts[:MAX_PARTS]:
            inside = here & (material == part)
            if np.count_nonzero(inside) >= MIN_REGION_PX:
                regions[inside] = len(parents)
                parents.append(whole)
    return regions, parents_table(parents)


def _sometimes(rng: np.random.Generator, panoramas: Path | None) -> Path | None:
    """The folder of panoramas for two in five scenes."""
    return panoramas if panoramas is not None and rng.random() < 0.4 else None


def _around(rng: np.random.Generator, panoramas: Path | None) -> Floats:
    """Light from all directions: a panorama of the folder, or painted if there is none."""
    return painted(rng) if panoramas is None else photographed(rng, panorama_files(panoramas))


def render_scene(seed: int, index: int, furniture: Path, panoramas: Path | None = None) -> Scene:
    """Scene number `index` of `seed`, with models of the libraries in `furniture` if there are any.

    With a folder of `panoramas` (see `surroundings`) two in five scenes stand before one, in its light.
    """
    rng = np.random.default_rng((seed, index, 3))
    things, radius = _place_things(rng, furniture_files(furniture))
    behind = _sometimes(rng, panoramas)
    planes = _backdrop(rng, radius, outside=behind is not None)
    if rng.random() < 0.3:
        things = [_camouflaged(rng, m, planes[0].materials[0]) if rng.random() < 0.4 else m for m in things]
    around = _around(rng, behind)
    world = World([*things, *planes], _lights(rng), around)
    side = round(SCENE_SIZE * SUPERSAMPLING)
    for _ in range(4):
        light, thing, material = world.render(rng, _camera(rng, radius, things), side)
        if ((thing >= 0) & (thing < len(things))).mean() > SMALLEST_SHARE:
            break
    return _photograph(rng, light, thing, material, len(things))


def render_room(seed: int, index: int, furniture: Path, panoramas: Path | None = None) -> Scene:
    """Scene number `index` of `seed` in a furnished room or a yard, see `interiors`; `furniture` must be there."""
    rng = np.random.default_rng((seed, index, 4))
    room, shell, lights = furnished_room(rng, furniture)
    while len(room.things) < FEWEST_IN_ROOM:
        room, shell, lights = furnished_room(rng, furniture)
    things = room.things
    around = _around(rng, _sometimes(rng, panoramas))
    world = World([*things, *shell], lights, around, rays_around=ROOM_RAYS_AROUND)
    for _ in range(12):
        camera = look_around(rng, things, room.width)
        _, thing, _ = world.render(rng, camera, ROOM_TRIED_PX)
        shares = np.bincount(np.where(thing < 0, len(things), thing).ravel(), minlength=len(things))[: len(things)]
        if (
            shares.max() < LARGEST_IN_ROOM * thing.size
            and np.count_nonzero(shares > 0.004 * thing.size) >= FEWEST_IN_ROOM
        ):
            break
    light, thing, material = world.render(rng, camera, round(SCENE_SIZE * ROOM_SUPERSAMPLING))
    return _photograph(rng, light, thing, material, len(things))


def _photograph(rng: np.random.Generator, light: Floats, thing: Ints, material: Ints, things: int) -> Scene:
    """A scene of what `World.render` saw, the first `things` of its meshes being no floor or wall."""
    size = (SCENE_SIZE, SCENE_SIZE)
    image = _developed(rng, cv2.resize(light, size, interpolation=cv2.INTER_AREA))
    if rng.random() < 0.2:
        # a lens that is sharp for the things only
        behind = (thing >= things) | (thing < 0)
        away = cv2.GaussianBlur(cv2.resize(behind.astype(np.float32), size), (0, 0), 1.0)[:, :, None]
        blurred = cv2.GaussianBlur(image, (0, 0), rng.uniform(1.5, 6))
        image = (image * (1 - away) + blurred * away).astype(np.uint8)
    nearest = [cv2.resize(a, size, interpolation=cv2.INTER_NEAREST) for a in (thing, material)]
    return Scene(image, *_number_regions(nearest[0], nearest[1], things))


def _write(task: tuple[int, int, Path, Path | None, Path, bool]) -> None:
    seed, index, furniture, panoramas, out, rooms = task
    cv2.setNumThreads(1)
    scene = (
        render_room(seed, index, furniture, panoramas) if rooms else render_scene(seed, index, furniture, panoramas)
    )
    write_scene(out / f"{index:06d}.npz", scene)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--furniture", type=Path, default=FURNITURE, help="folder of .sh3f libraries")
    parser.add_argument("--panoramas", type=Path, help="folder of .exr.js panoramas, see surroundings.py")
    parser.add_argument("--rooms", action="store_true", help="furnished rooms, see interiors.py")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    tasks = [
        (arguments.seed, number, arguments.furniture, arguments.panoramas, arguments.out, arguments.rooms)
        for number in range(arguments.count)
        if not (arguments.out / f"{number:06d}.npz").exists()
    ]
    with Pool(min(2, os.cpu_count() or 1)) as pool:
        for _ in pool.imap_unordered(_write, tasks, chunksize=4):
            pass


if __name__ == "__main__":
    main()
