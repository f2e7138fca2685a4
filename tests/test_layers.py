"""Masks as class image and tensor, from none to more than a byte counts."""

import itertools

import numpy as np
import pytest

from rerun_loader_sam.masks import Mask, encode_rle
from rerun_loader_sam.recording.layers import class_color, class_image, mask_tensor, tensor_step


def mask(pixels: np.ndarray) -> Mask:
    height, width = pixels.shape
    area, box = int(pixels.sum()), (0.0, 0.0, 1.0, 1.0)
    return Mask((height, width), encode_rle(pixels), box, area, 0.9, 0.95, (0.5, 0.5), (0, 0, width, height))


def block(left: int, top: int, right: int, bottom: int, size_hw: tuple[int, int] = (20, 30)) -> Mask:
    pixels = np.zeros(size_hw, bool)
    pixels[top:bottom, left:right] = True
    return mask(pixels)


def test_smaller_masks_lie_on_larger_ones_and_keep_their_numbers() -> None:
    masks = [block(5, 5, 10, 10), block(0, 0, 30, 20), block(6, 6, 8, 8)]
    layered = class_image(masks, (20, 30))
    assert layered.dtype == np.uint8
    assert (layered[0, 0], layered[5, 5], layered[6, 6]) == (2, 1, 3)


def test_no_masks_give_an_empty_image_and_plane() -> None:
    assert not class_image([], (20, 30)).any()
    assert mask_tensor([], (20, 30), 1).shape == (20, 30, 1)


def test_numbers_above_255_do_not_wrap() -> None:
    masks = [block(i % 30, i // 30, i % 30 + 1, i // 30 + 1) for i in range(600)]
    layered = class_image(masks, (20, 30))
    assert layered.dtype == np.uint16
    assert np.array_equal(layered.ravel(), np.arange(1, 601))


def test_plane_i_of_the_tensor_is_mask_i() -> None:
    masks = [block(5, 5, 10, 10), block(0, 0, 30, 20)]
    tensor = mask_tensor(masks, (20, 30), 1)
    assert not tensor[:, :, 0].any()
    for number, one in enumerate(masks, start=1):
        assert np.array_equal(tensor[:, :, number] > 0, one.decode())


def test_a_reduced_tensor_keeps_every_nth_row_and_column() -> None:
    one = block(3, 4, 17, 15, (19, 29))
    assert np.array_equal(mask_tensor([one], (19, 29), 3)[:, :, 1] > 0, one.decode()[::3, ::3])


@pytest.mark.parametrize("size_hw", [(3000, 4000), (1, 20000), (20000, 1), (5, 5)])
@pytest.mark.parametrize("mask_count", [0, 1, 100, 2000])
def test_the_tensor_fits_its_limit_by_the_smallest_whole_number(size_hw: tuple[int, int], mask_count: int) -> None:
    limit = 64 * 2**20
    step = tensor_step(size_hw, mask_count, limit)

    def size(step: int) -> int:
        return -(-size_hw[0] // step) * -(-size_hw[1] // step) * (mask_count + 1)

    assert size(step) <= limit
    assert step == 1 or size(step - 1) > limit


def test_neighbouring_numbers_have_distinct_colors() -> None:
    colors = [class_color(number) for number in range(1, 61)]
    assert len(set(colors)) == 60
    for one, other in itertools.pairwise(colors):
        assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) > 60
