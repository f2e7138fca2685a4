"""Rooms and yards for the rendered scenes: furniture of true size, and things on it.

What single things on a bare floor lack is here: clutter, things that hide each other, tables with something on them,
pictures and windows on walls, a camera at the height of an eye. Lengths are in metres; the back wall is at z = 0, the
room opens towards +z, where the camera is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from grown import grown_body
from meshes import Floats, Material, Mesh, Piece, furniture_pieces, join, turned_body
from rendering import Camera, Light
from staging import direction, five_looks, lamp, paint, plane, rest, surface, textured, tinted, turn
from textures import fractal_noise, texture

_TABLES = ("table", "desk", "bench")
_MAKESHIFT_TABLES = ("pallet", "crate", "wood bank", "barrel", "rattan table")
_SEATS = ("chair", "sofa", "stool", "puff", "couch", "seat")
_NOT_ON_FLOORS = ("upper", "wall", "plug", "socket", "switch", "hanging", "ceiling", "chandelier", "hood", "window")
YARDS = 0.3
"""Share of yards among the rooms."""
_SMALL_KINDS = ("cup", "cup", "bottle", "bottle", "vase", "bowl", "plate", "ball", "tin", "box")
_MOST_THINGS = 34


@dataclass(slots=True)
class Room:
    """A room while it is furnished: its size, what stands in it, and the boxes (x0, z0, x1, z1) that are taken."""

    width: float
    depth: float
    height: float
    things: list[Mesh] = field(default_factory=list)
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def place(self, mesh: Mesh, yaw: float, x: float, z: float, y: float = 0.0) -> bool:
        """Put a thing of true size there if nothing else is; says whether it was put."""
        if len(self.things) >= _MOST_THINGS:
            return False
        there = rest(mesh, turn(yaw), (x, y, z))
        low, high = there.corners.min((0, 1)), there.corners.max((0, 1))
        box = (float(low[0]), float(low[2]), float(high[0]), float(high[2]))
        if box[0] < -self.width / 2 - 0.02 or box[2] > self.width / 2 + 0.02 or box[1] < -0.02:
            return False
        if y == 0 and any(_overlap(box, other) for other in self.taken):
            return False
        if y == 0:
            self.taken.append(box)
        self.things.append(there)
        return True


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _quiet_colour(rng: np.random.Generator, lightness: float) -> Floats:
    """A colour of walls and floors, RGB in 0..255: little of a warm or any hue."""
    hue = rng.normal(35, 15) % 360 if rng.random() < 0.7 else rng.uniform(0, 360)
    hsv = np.array([[[hue, rng.beta(1.2, 8), lightness]]], np.float32)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255, np.float32)


def _wall_look(rng: np.random.Generator) -> Material:
    """Plaster, paper, panels or bricks."""
    colour = _quiet_colour(rng, float(np.clip(rng.normal(0.75, 0.2), 0.15, 0.98)))
    image = texture(rng, 384, 384, colour, float(rng.choice([0.05, 0.2, 0.6])))
    if rng.random() < 0.2:
        image *= _joints(rng, int(rng.integers(4, 14)), int(rng.integers(2, 8)), 0.5)[:, :, None]
    return textured(image)


def _joints(rng: np.random.Generator, rows: int, columns: int, shift: float) -> Floats:
    """Boards, tiles or bricks (384, 384): a factor for each, and dark lines between them."""
    y, x = np.mgrid[:384, :384].astype(np.float32) / 384
    row = np.floor(y * rows)
    place = x * columns + row * shift
    tone = np.exp(rng.normal(0, rng.uniform(0, 0.2), (rows + 1, 97))).astype(np.float32)
    factor = tone[row.astype(int), np.floor(place).astype(int) % 97]
    line = rng.uniform(0.01, 0.06)
    near = (np.abs(y * rows - row - 0.5) > 0.5 - line) | (np.abs(place % 1 - 0.5) > 0.5 - line * columns / rows)
    return np.asarray(np.where(near, factor * rng.uniform(0.4, 1.05), factor), np.float32)


def _floor_look(rng: np.random.Generator) -> Material:
    """Boards, tiles, carpet or concrete."""
    colour = _quiet_colour(rng, float(np.clip(rng.normal(0.5, 0.2), 0.1, 0.95)))
    kind = rng.random()
    if kind < 0.45:
        rows, columns = int(rng.integers(4, 12)), int(rng.integers(1, 4))
        grain = fractal_noise(rng, 384, 24, 24, 0.8)
        image = cv2.resize(grain, (384, 384))[:, :, None] * rng.uniform(1, 9) + colour
        image = image * _joints(rng, rows, columns, 0.37)[:, :, None]
    elif kind < 0.65:
        count = int(rng.integers(2, 8))
        image = texture(rng, 384, 384, colour, 0.3) * _joints(rng, count, count, 0.0)[:, :, None]
    else:
        image = texture(rng, 384, 384, colour, float(rng.choice([0.3, 0.7, 1.3])))
    gloss = float(rng.choice([0.0, 0.2, 0.5, 0.9], p=[0.4, 0.3, 0.2, 0.1]))
    return textured(image, gloss)


def _recoloured(rng: np.random.Generator, mesh: Mesh) -> Mesh:
    """Often the same shape in other colours."""
    if rng.random() < 0.55:
        return mesh
    tint = rng.uniform(0.35, 1.25) * rng.uniform(0.8, 1.15, 3).astype(np.float32)
    materials = tinted(mesh, tint)
    if rng.random() < 0.4:
        number = int(rng.integers(len(materials)))
        materials[number] = surface(rng, 0.5) if rng.random() < 0.3 else replace(paint(rng), image=None)
    return replace(mesh, materials=tuple(materials))


def _any_piece(rng: np.random.Generator, pieces: list[Piece]) -> Mesh | None:
    for _ in range(4):
        mesh = pieces[int(rng.integers(len(pieces)))].mesh() if pieces else None
        if mesh is not None:
            return _recoloured(rng, mesh)
    return None


def _small_thing(rng: np.random.Generator, small: list[Piece]) -> Mesh:
    """Something for a table: a model, or a body of our own of a likely size."""
    mesh = _any_piece(rng, small) if rng.random() < 0.6 else None
    if mesh is not None:
        return mesh
    if rng.random() < 0.12:
        return _grown(rng, ("fruit",), 0.06, 0.14)
    kind = str(rng.choice(_SMALL_KINDS))
    body = turned_body(rng, paint(rng), paint(rng), kind=kind)
    large = kind in {"bottle", "vase", "plate", "bowl"}
    return _scaled(body, rng.uniform(0.2, 0.36) if large else rng.uniform(0.06, 0.24))


def _lay(rng: np.random.Generator, room: Room, under: Mesh, small: list[Piece], most: int) -> None:
    """Small things on top of a thing that stands in the room."""
    low, high = under.corners.min((0, 1)), under.corners.max((0, 1))
    circles: list[tuple[float, float, float]] = []
    for _ in range(int(rng.integers(1, most + 1))):
        thing = _small_thing(rng, small)
        reach = 0.5 * float(np.ptp(thing.corners[:, :, [0, 2]], axis=(0, 1)).max())
        for _ in range(8):
            x, z = (float(rng.uniform(low[i] + reach, max(high[i] - reach, low[i] + reach + 1e-3))) for i in (0, 2))
            inside = x + reach <= high[0] + 0.03 and z + reach <= high[2] + 0.03
            if inside and all(math.hypot(x - a, z - b) > 0.9 * (reach + c) for a, b, c in circles):
                if room.place(thing, rng.uniform(0, 6.3), x, z, float(high[1])):
                    circles.append((x, z, reach))
                break


def _has_word(piece: Piece, words: tuple[str, ...]) -> bool:
    return any(word in piece.name.lower() for word in words)


def _furnish(rng: np.random.Generator, room: Room, pieces: tuple[Piece, ...]) -> None:
    """Furniture along the walls, tables and seats before it, things on them and beside them."""
    inside = [p for p in pieces if p.category not in {"Exterior", "Vehicles", "Staircases", "Doors and windows"}]
    ground = [p for p in inside if not _has_word(p, _NOT_ON_FLOORS) and p.category != "Characters"]
    style = str(rng.choice(["Living room", "Kitchen", "Bedroom", "Office", "any"]))
    fitting = [p for p in ground if style == "any" or p.category in {style, "Miscellaneous", "Lights"}]
    tall = [p for p in fitting if p.size_m[1] > 0.45 and max(p.size_m) < 3]
    small = [p for p in ground if 0.04 < max(p.size_m) < 0.5]
    seats = [p for p in ground if _has_word(p, _SEATS)]
    for side in (0, -1, 1):
        _fill_wall(rng, room, side, tall, small)
    tables = [p for p in ground if _has_word(p, _TABLES) and 0.3 < p.size_m[1] < 1.1]
    makeshift = [p for p in pieces if _has_word(p, _MAKESHIFT_TABLES)]
    for _ in range(int(rng.integers(1, 5))):
        _set_table(rng, room, makeshift if rng.random() < 0.15 else tables, seats, small)
    people = [p for p in pieces if p.category == "Characters"]
    for _ in range(int(rng.choice([1, 3, 6, 10], p=[0.2, 0.3, 0.3, 0.2]))):
        kind = rng.random()
        if kind < 0.25:
            mesh: Mesh | None = _grown(rng, ("cushion", "animal"), 0.35, 1.0)
        elif kind < 0.6:
            mesh = _small_thing(rng, small)
        else:
            mesh = _any_piece(rng, people if kind < 0.68 else [*seats, *ground])
        turned, x, z = rng.uniform(0, 6.3), rng.uniform(-0.45, 0.45) * room.width, rng.uniform(0.6, room.depth)
        if mesh is not None:
            room.place(mesh, turned, x, z)


def _fill_wall(rng: np.random.Generator, room: Room, side: int, tall: list[Piece], small: list[Piece]) -> None:
    """Furniture along the wall at the back (`side` 0), on the left (-1) or the right (1), things on what is low."""
    at = -room.width / 2 + rng.uniform(0, 0.6) if side == 0 else rng.uniform(0.2, 0.9)
    end = room.width / 2 if side == 0 else room.depth * 0.6
    while at < end and rng.random() < 0.97:
        mesh = _any_piece(rng, tall)
        if mesh is None:
            break
        width, height, depth = (float(extent) for extent in np.ptp(mesh.corners, axis=(0, 1)))
        laid = height < 1.3 and width > 0.5 and rng.random() < (0.7 if side == 0 else 0.5)
        x, z = at + width / 2, depth / 2 + 0.02
        if side != 0:
            x, z = side * (room.width / 2 - z), x
        if room.place(mesh, -side * math.pi / 2, x, z) and laid:
            _lay(rng, room, room.things[-1], small, 4)
        at += width + float(rng.choice([0.02, rng.uniform(0, 0.25), rng.uniform(0.1, 0.8)]))


def _set_table(
    rng: np.random.Generator, room: Room, tables: list[Piece], seats: list[Piece], small: list[Piece]
) -> None:
    """A table, or what serves as one, with things on it and seats around it."""
    table = _any_piece(rng, tables)
    x, z = rng.uniform(-0.4, 0.4) * room.width, rng.uniform(0.7, 0.7 * room.depth)
    turned = float(rng.choice([0, math.pi / 2, rng.uniform(0, 6.3)]))
    if table is None or not room.place(table, turned, x, z):
        return
    _lay(rng, room, room.things[-1], small, 9)
    for _ in range(int(rng.integers(0, 4))):
        angle, reach = rng.uniform(0, 6.3), rng.uniform(0.6, 1.3)
        seat = _any_piece(rng, seats)
        if seat is not None:
            room.place(seat, 1.5 * math.pi - angle, x + reach * math.cos(angle), z + reach * math.sin(angle))


def _grown(rng: np.random.Generator, kinds: tuple[str, ...], smallest_m: float, largest_m: float) -> Mesh:
    """A grown body of one of the kinds and of some size."""
    body = grown_body(rng, five_looks(rng), kind=kinds[int(rng.random() * len(kinds))])
    return _scaled(body, rng.uniform(smallest_m, largest_m))


def _scaled(mesh: Mesh, factor: float) -> Mesh:
    return mesh.moved(np.eye(3, dtype=np.float32) * np.float32(factor), np.zeros(3, np.float32))


def _furnish_yard(rng: np.random.Generator, room: Room, pieces: tuple[Piece, ...]) -> None:
    """Plants, vehicles, garden furniture, people and animals, some of them along the house."""
    outside = [p for p in pieces if p.category in {"Exterior", "Vehicles"} and max(p.size_m) < 0.7 * room.width]
    people = [p for p in pieces if p.category == "Characters"]
    for number in range(int(rng.integers(4, 16))):
        kind = rng.random()
        if kind < 0.25:
            mesh: Mesh | None = _grown(rng, ("animal",), 0.4, 1.4)
        else:
            mesh = _any_piece(rng, people if kind < 0.4 else outside)
        if mesh is None:
            continue
        near_house = number % 2 == 0
        z = float(np.ptp(mesh.corners[:, :, 2])) / 2 + 0.05 if near_house else rng.uniform(0.5, room.depth)
        room.place(mesh, 0.0 if near_house else rng.uniform(0, 6.3), rng.uniform(-0.45, 0.45) * room.width, z)


def _framed(rng: np.random.Generator, width: float, height: float) -> Mesh:
    """A picture, a window or a board with a frame, flat, its middle in the origin, looking to +z."""
    inner = textured(texture(rng, 256, 256, _quiet_colour(rng, rng.random()), 2.0), 0.3)
    if rng.random() < 0.35:
        inner = Material(np.full(3, rng.uniform(0.7, 2.5), np.float32), None, 0.0)  # a window by day
    parts = [plane((-width / 2, -height / 2, 0.02), (width, 0, 0), (0, height, 0), 1.0, inner)]
    rim = rng.uniform(0.02, 0.08)
    frame = paint(rng)
    for x, y, w, h in (
        (-width / 2 - rim, -height / 2 - rim, width + 2 * rim, rim),
        (-width / 2 - rim, height / 2, width + 2 * rim, rim),
        (-width / 2 - rim, -height / 2, rim, height),
        (width / 2, -height / 2, rim, height),
    ):
        parts.append(plane((x, y, 0.03), (w, 0, 0), (0, h, 0), 1.0, frame))
    return join(parts)


def _house(rng: np.random.Generator, room: Room) -> list[Mesh]:
    """The ground of a yard and often the front of a house; windows and doors are things."""
    w, h = room.width, room.height
    image = texture(rng, 384, 384, _quiet_colour(rng, rng.uniform(0.25, 0.7)), float(rng.choice([0.5, 1.0, 1.6])))
    if rng.random() < 0.4:
        image *= _joints(rng, int(rng.integers(4, 16)), int(rng.integers(2, 12)), 0.5)[:, :, None]
    shell = [plane((-w * 2, 0, -w), (w * 4, 0, 0), (0, 0, w * 3 + room.depth), rng.uniform(2, 6), textured(image))]
    if rng.random() < 0.7:
        shell.append(plane((-w, 0, 0), (2 * w, 0, 0), (0, h, 0), rng.uniform(1.5, 4), _front_look(rng)))
        _hang(rng, room, int(rng.integers(1, 7)), 2.2)
    return shell


def _front_look(rng: np.random.Generator) -> Material:
    """Boards, bricks or plaster of a house."""
    image = texture(rng, 384, 384, _quiet_colour(rng, rng.uniform(0.2, 0.95)), float(rng.choice([0.2, 0.6, 1.0])))
    if rng.random() < 0.7:
        boards = _joints(rng, int(rng.integers(5, 24)), int(rng.integers(1, 6)), 0.5)
        image *= (boards if rng.random() < 0.7 else np.ascontiguousarray(boards.T))[:, :, None]
    return textured(image)


def _hang(rng: np.random.Generator, room: Room, count: int, largest_m: float) -> None:
    """Pictures, windows or boards on the wall at the back."""
    taken: list[tuple[float, float, float, float]] = []
    for _ in range(count):
        a, b = rng.uniform(0.25, 0.6 * largest_m), rng.uniform(0.25, largest_m * 0.6)
        x, y = rng.uniform(-0.45, 0.45) * room.width, rng.uniform(1.2, max(room.height - 0.4, 1.3))
        box = (x - a / 2 - 0.1, y - b / 2 - 0.1, x + a / 2 + 0.1, y + b / 2 + 0.1)
        if not any(_overlap(box, other) for other in taken):
            taken.append(box)
            picture = _framed(rng, a, b)
            room.things.append(picture.moved(np.eye(3, dtype=np.float32), np.array([x, y, 0.0], np.float32)))


def _shell(rng: np.random.Generator, room: Room) -> list[Mesh]:
    """Floor, walls, sometimes a rug, panels, a skirting board, pictures and windows; the floor first."""
    w, d, h = room.width, room.depth, room.height
    wall = _wall_look(rng)
    far = d + 6.0
    shell = [plane((-w / 2 - 4, 0, 0), (w + 8, 0, 0), (0, 0, far), rng.uniform(2, 6), _floor_look(rng))]
    shell.append(plane((-w / 2 - 4, 0, 0), (w + 8, 0, 0), (0, h, 0), rng.uniform(1, 4), wall))
    for side in (-1, 1):
        if rng.random() < 0.7:
            look = wall if rng.random() < 0.7 else _wall_look(rng)
            shell.append(
                plane((side * w / 2, 0, 0), (0, 0, d * rng.uniform(0.5, 1)), (0, h, 0), rng.uniform(1, 4), look)
            )
    if rng.random() < 0.3:
        look = _floor_look(rng) if rng.random() < 0.5 else _wall_look(rng)
        shell.append(plane((-w / 2, 0, 0.015), (w, 0, 0), (0, rng.uniform(0.5, 1.4), 0), rng.uniform(1, 3), look))
    elif rng.random() < 0.6:
        shell.append(plane((-w / 2, 0, 0.015), (w, 0, 0), (0, rng.uniform(0.06, 0.15), 0), 1.0, paint(rng)))
    if rng.random() < 0.4:
        x, z, a, b = rng.uniform(-0.4, 0) * w, rng.uniform(0.5, 0.5 * d), *rng.uniform(1, 2.2, 2)
        shell.append(plane((x, 0.006, z), (a, 0, 0), (0, 0, b), 1.0, surface(rng, 1.3)))
    _hang(rng, room, int(rng.integers(0, 7)), 2.0)
    return shell


def _light(rng: np.random.Generator) -> list[Light]:
    """Lamps and windows, on the side that the room is open to."""
    lights = []
    for _ in range(1 if rng.random() < 0.5 else 2):
        towards = direction(math.radians(rng.uniform(20, 160)), math.radians(rng.uniform(20, 80)))
        lights.append(lamp(rng, towards, (0.4, 1.05), (0.03, 0.15, 0.4, 0.8), 2.0))
    return lights


def furnished_room(rng: np.random.Generator, furniture: Path) -> tuple[Room, list[Mesh], list[Light]]:
    """A room or a yard with models of the libraries in `furniture`, its floor and walls, and its lamps or the sun."""
    pieces = furniture_pieces(furniture)
    if rng.random() < YARDS:
        room = Room(rng.uniform(4, 12), rng.uniform(3, 8), rng.uniform(2.5, 7))
        shell = _house(rng, room)
        _furnish_yard(rng, room, pieces)
    else:
        room = Room(rng.uniform(2.4, 6), rng.uniform(2.2, 5), rng.uniform(2.3, 3.2))
        shell = _shell(rng, room)
        _furnish(rng, room, pieces)
    return room, shell, _light(rng)


def look_around(rng: np.random.Generator, things: list[Mesh], width: float) -> Camera:
    """From the open side of a room of that width: at much of it, or at one thing."""
    boxes = [(m.corners.min((0, 1)), m.corners.max((0, 1))) for m in things]
    low, high = boxes[int(rng.integers(len(boxes)))]
    size = float((high - low).max())
    target = (low + high) / 2 + rng.normal(0, 0.15, 3) * max(size, 0.3)
    kind = rng.random()
    seen = rng.uniform(2.2, 4.5) if kind < 0.4 else max(size * rng.uniform(1.1, 2.5), 0.45)
    view = 2 * math.tan(math.radians(rng.uniform(28, 70)) / 2)
    distance = seen / view
    height = math.radians(rng.uniform(2, 25) if rng.random() < 0.7 else rng.uniform(20, 60))
    eye = target + direction(math.pi / 2 + rng.normal(0, 0.35), height) * distance
    eye[0] = np.clip(eye[0], -width / 2 + 0.15, width / 2 - 0.15)
    eye[1] = max(eye[1], 0.25)
    return Camera(eye, target, view, rng.normal(0, 0.03))
