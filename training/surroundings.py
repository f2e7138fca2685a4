"""Light from all directions for the rendered scenes: painted skies and rooms, and photographed ones.

The photographed ones are the panoramas in @pmndrs/assets 1.7, made by Poly Haven and in the public domain (CC0):
`npm pack @pmndrs/assets@1.7.0`, unpacked; its folder `hdri`.
"""

from __future__ import annotations

import base64
import re
import tempfile
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import OpenEXR

from meshes import Floats, linear_light
from textures import fractal_noise, random_colour

PANORAMA_HW = (512, 1024)
"""Rows and columns of a photographed one; the files have half of it, and cells would be seen behind the things."""
BRIGHTEST = 8.0


@cache
def panorama_files(folder: Path) -> tuple[Path, ...]:
    """Panoramas in `folder`, in a fixed order; empty if there is no such folder."""
    return tuple(sorted(folder.glob("*.exr.js")))


@cache
def _read(path: Path) -> Floats:
    """A panorama (512, 1024, 3), linear, its mean 1 where it is not blinding."""
    encoded = re.search(r"base64,([A-Za-z0-9+/=]+)", path.read_text())
    if encoded is None:
        raise ValueError(f"{path}: no data URL of a picture in it")
    with tempfile.NamedTemporaryFile(suffix=".exr") as file:  # the library reads files only
        file.write(base64.b64decode(encoded[1]))
        file.flush()
        channels = OpenEXR.File(file.name, separate_channels=True).channels()
    light = np.stack([channels[name].pixels for name in "RGB"], 2).astype(np.float32)
    light = np.minimum(light, np.percentile(light, 99))
    smooth = cv2.resize(light / light.mean(), PANORAMA_HW[::-1], interpolation=cv2.INTER_CUBIC)
    return np.asarray(smooth.clip(0.002, None), np.float32)


def photographed(rng: np.random.Generator, files: tuple[Path, ...]) -> Floats:
    """One of the panoramas (512, 1024, 3), turned, and its light a little coloured."""
    light = _read(files[int(rng.integers(len(files)))])
    light = np.roll(light, int(rng.integers(light.shape[1])), 1)
    if rng.random() < 0.5:
        light = light[:, ::-1]
    tint = rng.uniform(0.85, 1.15, 3).astype(np.float32) * np.float32(rng.uniform(0.25, 0.8))
    return np.ascontiguousarray((light * tint).clip(0, BRIGHTEST))


def painted(rng: np.random.Generator) -> Floats:
    """Linear light from all directions (64, 128, 3): a sky or a room with some bright windows."""
    up = np.linspace(1, -1, 64, dtype=np.float32)[:, None, None]
    colours = [linear_light(random_colour(rng)) for _ in range(3)]
    sky, level, ground = (0.5 * colour + 0.5 * colour.mean() for colour in colours)
    if rng.random() < 0.4:
        sky = np.array([0.25, 0.45, 0.9]) * rng.uniform(0.4, 1.5)
    blend = np.clip(np.abs(up) * rng.uniform(0.8, 4), 0, 1)
    light = np.where(up > 0, level + (sky - level) * blend, level + (ground - level) * blend).astype(np.float32)
    light = np.broadcast_to(light, (64, 128, 3)).copy()
    light *= np.exp(rng.uniform(0, 0.4) * fractal_noise(rng, 64, 128, 2 ** rng.uniform(1, 4), 0.7))[:, :, None]
    for _ in range(int(rng.integers(0, 5))):
        y, x = int(rng.integers(0, 40)), int(rng.integers(0, 120))
        light[y : y + int(rng.integers(2, 16)), x : x + int(rng.integers(2, 20))] += rng.uniform(0.5, 3)
    return np.asarray(np.clip(light, 0.01, 5), np.float32)
