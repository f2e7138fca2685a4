"""Traced outlines against upstream's way: interpolate to the image, compare, encode."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as nn_functional
from segment_anything.utils.amg import batched_mask_to_box, calculate_stability_score, mask_to_rle_pytorch

from rerun_loader_sam.engine.geometry import Crop, is_cut_off, model_input_hw
from rerun_loader_sam.engine.tracing import Tracer

SIDE, LOGITS = 128, 32
MODEL = {"long_side": SIDE, "logits_per_side": LOGITS, "threshold": 0.0, "offset": 1.0}


def upstream_mask(logits: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    """Sam.postprocess_masks."""
    height, width = model_input_hw(size_hw, SIDE)
    large = nn_functional.interpolate(logits[None, None], (SIDE, SIDE), mode="bilinear", align_corners=False)
    return nn_functional.interpolate(large[..., :height, :width], size_hw, mode="bilinear", align_corners=False)[0, 0]


def blobs(seed: int, roughness: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return 4 * nn_functional.interpolate(torch.randn(1, 1, roughness, roughness), LOGITS, mode="bicubic")[0, 0]


def all_kinds_of_masks(test: Callable[..., None]) -> Callable[..., None]:
    """Of images of all sizes, smooth and rough, and from nearly empty to full."""
    for name, values in (
        ("shift", [-7.0, 0.0, 30.0]),
        ("roughness", [3, 8, 32]),
        ("size_hw", [(128, 128), (97, 60), (61, 128), (20, 33), (1, 50), (400, 300), (300, 1000), (1, 1)]),
    ):
        test = pytest.mark.parametrize(name, values)(test)
    return test


@all_kinds_of_masks
def test_pixels_and_stability(size_hw: tuple[int, int], roughness: int, shift: float) -> None:
    logits = blobs(roughness, roughness) + shift
    full = upstream_mask(logits, size_hw)
    expected = (full > 0).numpy()
    tracer = Tracer(Crop((0, 0, size_hw[1], size_hw[0]), 0), size_hw, **MODEL)
    stability, outline = tracer.trace(logits, 0.0)
    assert stability == pytest.approx(calculate_stability_score(full[None], 0.0, 1.0).item(), abs=1e-3, nan_ok=True)
    assert outline is not None
    (rle,) = mask_to_rle_pytorch(torch.from_numpy(expected)[None])
    difference = abs(outline.area - int(expected.sum()))
    assert difference <= 2
    if difference == 0:
        assert outline.rle_counts.tolist() == rle["counts"]
        assert list(outline.box_xyxy) == batched_mask_to_box(torch.from_numpy(expected)[None])[0].tolist()


@all_kinds_of_masks
def test_a_box_lies_between_its_bounds(size_hw: tuple[int, int], roughness: int, shift: float) -> None:
    logits = blobs(roughness, roughness) + shift
    tracer = Tracer(Crop((0, 0, size_hw[1], size_hw[0]), 0), size_hw, **MODEL)
    bounds = tracer.box_bounds(logits)
    _, outline = tracer.trace(logits, 0.0)
    assert outline is not None
    if bounds is None:  # too small to be seen
        assert outline.area < 0.05 * size_hw[0] * size_hw[1]
        return
    box = np.array(outline.box_xyxy)
    for larger, smaller in ((bounds.outer_xyxy, box), (box, bounds.inner_xyxy)):
        assert (larger[:2] <= smaller[:2]).all()
        assert (larger[2:] >= smaller[2:]).all()
    if roughness == 3 and shift == 0:  # they are of use
        assert (abs(bounds.outer_xyxy - bounds.inner_xyxy) <= 3 * max(size_hw) / LOGITS + 1).all()


def test_a_crop_lies_where_it_was_cut() -> None:
    image_hw, box = (220, 310), (40, 30, 200, 150)
    crop = Crop(box, 1)
    logits = blobs(1, 6)
    expected = np.zeros(image_hw, bool)
    expected[30:150, 40:200] = (upstream_mask(logits, crop.size_hw) > 0).numpy()
    _, outline = Tracer(crop, image_hw, **MODEL).trace(logits, 0.0)
    assert outline is not None
    (rle,) = mask_to_rle_pytorch(torch.from_numpy(expected)[None])
    assert outline.rle_counts.tolist() == rle["counts"]


def test_a_mask_whose_bounds_are_cut_off_is() -> None:
    image_hw, crop, found = (220, 310), Crop((0, 60, 200, 220), 1), []
    tracer = Tracer(crop, image_hw, **MODEL)
    for seed in range(60):
        logits = blobs(seed, 3) - 4
        _, outline = tracer.trace(logits, 0.0)
        bounds = tracer.box_bounds(logits)
        if outline is not None and bounds is not None:
            found.append((bounds.is_cut_off(crop, image_hw), is_cut_off(outline.box_xyxy, crop, image_hw)))
    assert found.count((True, False)) == 0
    assert found.count((False, False)) > 0
    assert found.count((True, True)) > 4 * found.count((False, True))


def test_a_mask_that_its_sketch_does_not_show_is_not_cut_off() -> None:
    image_hw, crop = (400, 400), Crop((100, 100, 300, 300), 1)
    bounds = Tracer(crop, image_hw, **MODEL).sketched_box(torch.full((8, 8), -1.0))
    assert bounds.outer_xyxy.tolist() == [100, 100, 300, 300]
    assert not bounds.is_cut_off(crop, image_hw)


def test_an_unstable_mask_is_not_traced() -> None:
    logits = blobs(2, 5)
    tracer = Tracer(Crop((0, 0, 90, 90), 0), (90, 90), **MODEL)
    stability, outline = tracer.trace(logits, 0.0)
    assert outline is not None
    assert tracer.trace(logits, stability + 0.01) == (stability, None)
    assert tracer.trace(torch.full((LOGITS, LOGITS), -9.0), 0.5)[1] is None
