"""Masks turned back to the pixels of the file, against Pillow, which turned the image upright."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from rerun_loader_sam.images import load_image
from rerun_loader_sam.masks import Mask, encode_rle
from rerun_loader_sam.orientation import as_stored, stored_size

ORIENTATIONS = range(1, 9)


def mask_of(upright: "np.ndarray[tuple[int, int], np.dtype[np.bool_]]") -> Mask:
    rows, columns = np.nonzero(upright)
    left, top = int(columns.min()), int(rows.min())
    return Mask(
        size_hw=upright.shape,
        rle_counts=encode_rle(upright),
        bbox_xywh=(left, top, int(columns.max()) - left, int(rows.max()) - top),
        area=int(upright.sum()),
        predicted_iou=0.9,
        stability_score=0.9,
        point_xy=(float(columns[0]), float(rows[0])),
        crop_box_xywh=(0, 0, upright.shape[1], upright.shape[0]),
    )


@given(st.integers(1, 8), st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False), st.integers(1, 6))
def test_a_mask_lies_where_the_pixels_are(orientation: int, height: int, width: int, random, count: int) -> None:  # type: ignore[no-untyped-def]
    stored = np.zeros((height, width), bool)
    for _ in range(count):
        stored[random.randrange(height), random.randrange(width)] = True
    image = Image.fromarray(stored.astype(np.uint8))
    image.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(image)).astype(bool)
    mask = as_stored(mask_of(upright), orientation)
    assert stored_size(upright.shape, orientation) == stored.shape
    assert mask.size_hw == stored.shape
    assert np.array_equal(mask.decode(), stored)
    assert mask.bbox_xywh == mask_of(stored).bbox_xywh
    assert mask.crop_box_xywh == (0, 0, width, height)
    x, y = mask.point_xy
    assert stored[int(y), int(x)]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_loaded_image_knows_its_orientation(orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    image = Image.new("RGB", (30, 20), "teal")
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    loaded = load_image(path, 100)
    assert loaded.orientation == orientation
    assert stored_size(loaded.size_hw, orientation) == (20, 30)
