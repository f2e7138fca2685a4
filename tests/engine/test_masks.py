"""Run lengths: pixels and back, boxes, and small regions, against upstream's functions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from segment_anything.utils.amg import batched_mask_to_box, mask_to_rle_pytorch, remove_small_regions

from rerun_loader_sam.engine.regions import without_small_regions
from rerun_loader_sam.engine.suppression import without_twins
from rerun_loader_sam.masks import Bools, Mask, box_xywh, box_xyxy_of_rle, decode_rle, encode_rle, shared_area

bitmaps = arrays(np.bool_, st.tuples(st.integers(1, 24), st.integers(1, 24)))


@settings(deadline=None)
@given(bitmaps)
def test_run_lengths_are_upstreams(pixels: np.ndarray) -> None:
    (expected,) = mask_to_rle_pytorch(torch.from_numpy(pixels)[None])
    counts = encode_rle(pixels)
    assert counts.tolist() == expected["counts"]
    np.testing.assert_array_equal(decode_rle(counts, pixels.shape), pixels)
    assert (
        list(box_xyxy_of_rle(counts, pixels.shape)) == batched_mask_to_box(torch.from_numpy(pixels)[None])[0].tolist()
    )


@settings(deadline=None)
@given(bitmaps, st.integers(1, 40))
def test_small_regions_go_as_upstream_has_them_go(pixels: np.ndarray, min_area: int) -> None:
    expected, holes = remove_small_regions(pixels, min_area, "holes")
    filled = expected
    expected, islands = remove_small_regions(expected, min_area, "islands")
    counts, changed = without_small_regions(encode_rle(pixels), pixels.shape, min_area)
    assert changed == (holes or islands)
    cleaned = decode_rle(counts, pixels.shape)
    assert encode_rle(cleaned).tolist() == counts.tolist()
    if (cleaned != expected).any():
        # Of several largest islands that are all too small, either may stay.
        assert cleaned.sum() == expected.sum() < min_area
        assert not (cleaned & ~filled).any()


def test_a_mask_decodes_to_its_pixels() -> None:
    pixels = np.random.default_rng(0).random((5, 7)) > 0.5
    mask = Mask((5, 7), encode_rle(pixels), (0, 0, 6, 4), int(pixels.sum()), 0.9, 0.9, (1, 1), (0, 0, 7, 5))
    decoded = mask.decode()
    assert decoded.dtype == np.bool_
    np.testing.assert_array_equal(decoded, pixels)
    with pytest.raises(AttributeError):
        mask.area = 3  # type: ignore[misc]


@settings(deadline=None)
@given(st.tuples(st.integers(1, 24), st.integers(1, 24)).flatmap(lambda hw: arrays(np.bool_, (2, *hw))))
def test_shared_area_is_that_of_the_pixels(pair: Bools) -> None:
    one, other = pair
    assert shared_area(encode_rle(one), encode_rle(other)) == (one & other).sum()


@settings(deadline=None)
@given(arrays(np.bool_, st.tuples(st.integers(0, 6), st.integers(1, 9), st.integers(1, 9))), st.floats(0.05, 0.95))
def test_of_masks_that_are_nearly_the_same_the_first_stays(bitmaps: Bools, iou_threshold: float) -> None:
    expected: list[Bools] = []
    for pixels in bitmaps:
        both_of = [(pixels & other).sum() for other in expected]
        either_of = [(pixels | other).sum() for other in expected]
        if not any(both > iou_threshold * either for both, either in zip(both_of, either_of, strict=True)):
            expected.append(pixels)
    found = without_twins([mask_of(pixels) for pixels in bitmaps], iou_threshold)
    assert [mask.decode().tolist() for mask in found] == [pixels.tolist() for pixels in expected]


def mask_of(pixels: Bools) -> Mask:
    """A mask of these pixels (H, W)."""
    counts, size_hw = encode_rle(pixels), (pixels.shape[0], pixels.shape[1])
    box = box_xywh(box_xyxy_of_rle(counts, size_hw))
    return Mask(size_hw, counts, box, int(pixels.sum()), 0.9, 0.9, (0, 0), (0, 0, size_hw[1], size_hw[0]))
