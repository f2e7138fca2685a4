"""Outlined photographs as scenes: `python training/photographs.py --out DIR [--root /]`.

What drawn and rendered scenes lack is what real things look like. `outlines/` has the outlines of the things in some
photographs (and a few paintings) of Debian packages: `apt install gcompris-qt-data plasma-workspace-data
palapeli-data lomiri-wallpapers-16.04`, as in Debian 12. Only such are used as are in the public domain or under CC0
or CC-BY by the packages' own lists; `outlines/index.json` names author, source and licence of each. Not everything in
them is outlined: other pixels are `UNLABELLED`. PySide6 reads GCompris's files (`pip install PySide6-Essentials`).
"""

from __future__ import annotations

import argparse
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from scene_files import UNLABELLED, Scene, parents_of_labelled, parents_table, write_scene

OUTLINES = Path(__file__).parent / "outlines"
GCOMPRIS = Path("usr/share/gcompris-qt/rcc")


@cache
def index() -> dict[str, dict[str, Any]]:
    """What is known of each outlined photograph, by its name, which is that of its file in `OUTLINES` too.

    `file`: its path, or one in GCompris's resources; `author`, `source`, `licence`, `held_out` from the training, and
    `things`: `name` and `parent` (the number of the thing that it is a part of, its own if of none) of each value in
    the outlines' file.
    """
    found: dict[str, dict[str, Any]] = json.loads((OUTLINES / "index.json").read_text())
    return found


def outlined(name: str, image: NDArray[np.uint8]) -> Scene:
    """The photograph `name`, whose RGB image (H, W, 3) is given, as a scene of the size of its outlines, (h, w)."""
    regions = cv2.imread(str(OUTLINES / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
    if regions is None:
        raise FileNotFoundError(OUTLINES / f"{name}.png")
    size_wh = (regions.shape[1], regions.shape[0])
    scaled = image if image.shape[:2] == regions.shape else cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA)
    parents = [thing["parent"] for thing in index()[name]["things"]]
    return Scene(np.asarray(scaled, np.uint8), np.asarray(regions, np.uint8), parents_table(parents))


def square_view(rng: np.random.Generator, photograph: Scene, size: int) -> Scene:
    """Most of a photograph as a square scene: what is too long of it is half cut off, half squeezed."""
    height, width = photograph.regions.shape
    kept_aspect = math.sqrt(width / height)
    crop_hw = (min(height, round(width / kept_aspect)), min(width, round(height * kept_aspect)))
    y, x = (int(rng.integers(whole - part + 1)) for whole, part in zip((height, width), crop_hw, strict=True))
    window = np.s_[y : y + crop_hw[0], x : x + crop_hw[1]]
    flags = cv2.INTER_AREA if min(crop_hw) > size else cv2.INTER_CUBIC
    return Scene(
        np.asarray(cv2.resize(photograph.image[window], (size, size), interpolation=flags), np.uint8),
        np.asarray(cv2.resize(photograph.regions[window], (size, size), interpolation=cv2.INTER_NEAREST), np.uint8),
        photograph.parents,
    )


def turned(rng: np.random.Generator, photograph: Scene) -> Scene:
    """A photograph turned a little and magnified around a point near its middle: there are few, and each comes often.

    Beyond its border it is mirrored, and nobody has outlined anything.
    """
    height, width = photograph.regions.shape
    centre_xy = (width * rng.uniform(0.3, 0.7), height * rng.uniform(0.3, 0.7))
    move = cv2.getRotationMatrix2D(centre_xy, rng.normal(0, 10), rng.uniform(1, 1.4))
    regions = cv2.warpAffine(
        photograph.regions, move, (width, height), flags=cv2.INTER_NEAREST, borderValue=(UNLABELLED,)
    )
    image = cv2.warpAffine(photograph.image, move, (width, height), borderMode=cv2.BORDER_REFLECT)
    return Scene(np.asarray(image, np.uint8), np.asarray(regions, np.uint8), photograph.parents)


def mosaic(rng: np.random.Generator, four: list[Scene], size: int) -> Scene:
    """Four photographs as the quarters of a square scene: their things are smaller and sharper.

    Bochkovskiy et al. 2020, YOLOv4: Optimal Speed and Accuracy of Object Detection.
    """
    image = np.empty((size, size, 3), np.uint8)
    regions = np.empty((size, size), np.uint8)
    parents: list[int] = []
    for number, photograph in enumerate(four):
        quarter = square_view(rng, photograph, size // 2)
        y, x = (size // 2 * part for part in divmod(number, 2))
        window = np.s_[y : y + size // 2, x : x + size // 2]
        labelled = quarter.regions != UNLABELLED
        image[window] = quarter.image
        regions[window] = np.where(labelled, quarter.regions + len(parents), UNLABELLED)
        parents += [parent + len(parents) for parent in parents_of_labelled(quarter)]
    return Scene(image, regions, parents_table(parents))


def read_packaged(root: Path, file: str) -> NDArray[np.uint8]:
    """RGB image (H, W, 3) of `file` of packages installed below `root`.

    It is a path such as `/usr/share/plasma/avatars/photos/Dog.png`, or one in GCompris's resources such as
    `erase/resource/tiger.webp`.
    """
    data = _installed_file(root, file) if file.startswith("/") else _gcompris_resource(root / GCOMPRIS, file)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{file} below {root}: not an image")
    return np.ascontiguousarray(image[:, :, ::-1], np.uint8)


def _installed_file(root: Path, file: str) -> bytes:
    path = root / file.lstrip("/")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; install the packages that photographs.py names, see --root")
    return path.read_bytes()


def _gcompris_resource(folder: Path, file: str) -> bytes:
    from PySide6.QtCore import QFile, QIODevice, QResource  # large, and nothing else needs it

    resource = folder / f"{file.split('/', maxsplit=1)[0]}.rcc"
    if not QResource.registerResource(str(resource)):
        raise FileNotFoundError(f"{resource}: no resource file of GCompris; see --root")
    opened = QFile(f":/gcompris/src/activities/{file}")
    if not opened.open(QIODevice.OpenModeFlag.ReadOnly):
        raise FileNotFoundError(f"{resource}: has no {file}; GCompris 3.1 has")
    return bytes(opened.readAll().data())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for one file for each photograph")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where the Debian packages are unpacked")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, known in index().items():
        if not known["held_out"]:
            image = read_packaged(arguments.root, known["file"])
            write_scene(arguments.out / f"{name}.npz", outlined(name, image))


if __name__ == "__main__":
    main()
