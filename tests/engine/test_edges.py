"""Borders that move to the edges of the image."""

import numpy as np
import numpy.typing as npt
import pytest
from small_sams import small_sam, smooth_image

from rerun_loader_sam import AutomaticMaskGenerator
from rerun_loader_sam.engine.edges import EdgeFinder
from rerun_loader_sam.engine.generator import TWIN_IOU
from rerun_loader_sam.engine.geometry import Crop
from rerun_loader_sam.masks import Mask, box_xyxy_of_rle, encode_rle

SIDE, RADIUS_PX = 384, 12
Bools = npt.NDArray[np.bool_]


def mask_of(inside: Bools, crop: Crop) -> Mask:
    height, width = inside.shape
    return Mask((height, width), encode_rle(inside), (0, 0, 0, 0), int(inside.sum()), 0.5, 0.6, (1, 2), crop.box_xywh)


def whole(size_hw: tuple[int, int]) -> Crop:
    return Crop((0, 0, size_hw[1], size_hw[0]), 0)


def iou(a: Bools, b: Bools) -> float:
    return float((a & b).sum() / (a | b).sum())


def disc(size_hw: tuple[int, int], centre_xy: tuple[float, float], radius: float) -> Bools:
    y, x = np.mgrid[: size_hw[0], : size_hw[1]]
    return np.asarray((x - centre_xy[0]) ** 2 + (y - centre_xy[1]) ** 2 < radius**2)


def red_on_blue(thing: Bools) -> npt.NDArray[np.uint8]:
    noise = np.random.default_rng(3).integers(0, 20, (*thing.shape, 3))
    return (np.where(thing[..., None], [180, 60, 40], [40, 60, 180]) + noise).astype(np.uint8)


@pytest.mark.parametrize("size_hw", [(128, 128), (270, 384), (700, 500), (1200, 1600)])
def test_a_border_beside_an_edge_moves_onto_it(size_hw: tuple[int, int]) -> None:
    unit = max(size_hw) / SIDE
    thing = disc(size_hw, (160 * unit, 120 * unit), 60 * unit)
    # blocks of eight pixels of the model's input, as a small model's masks have them
    y, x = (axis // (8 * unit) * 8 * unit + 4 * unit for axis in np.mgrid[: size_hw[0], : size_hw[1]])
    rough = (x - 160 * unit) ** 2 + (y - 120 * unit) ** 2 < (60 * unit) ** 2
    before = mask_of(rough, whole(size_hw))
    moved = EdgeFinder(red_on_blue(thing), whole(size_hw), SIDE, RADIUS_PX).moved(before)
    assert iou(rough, thing) < 0.94
    assert iou(moved.decode(), thing) > 0.97
    assert moved.area == moved.decode().sum()
    left, top, right, bottom = box_xyxy_of_rle(moved.rle_counts, size_hw)
    assert moved.bbox_xywh == (left, top, right - left, bottom - top)
    assert (moved.predicted_iou, moved.stability_score, moved.point_xy) == (0.5, 0.6, (1, 2))


def test_without_an_edge_nearby_it_stays() -> None:
    size_hw = (SIDE, SIDE)
    flat = np.full((*size_hw, 3), 99, np.uint8)
    before = disc(size_hw, (180, 200), 90)
    moved = EdgeFinder(flat, whole(size_hw), SIDE, RADIUS_PX).moved(mask_of(before, whole(size_hw)))
    assert iou(moved.decode(), before) > 0.97
    # an edge that is further away than the radius
    far = red_on_blue(disc(size_hw, (180, 200), 130))
    moved = EdgeFinder(far, whole(size_hw), SIDE, RADIUS_PX).moved(mask_of(before, whole(size_hw)))
    assert iou(moved.decode(), before) > 0.97


def test_within_a_crop() -> None:
    """Its pixels are the crop's: a finer filter than the whole image has, and nothing outside changes."""
    size_hw, crop = (400, 600), Crop((300, 100, 500, 300), 1)
    thing = disc(size_hw, (400, 200), 40)
    rough = disc(size_hw, (402, 201), 40)
    image = red_on_blue(thing)
    by_crop = EdgeFinder(image, crop, SIDE, RADIUS_PX).moved(mask_of(rough, crop)).decode()
    assert iou(rough, thing) < 0.95
    assert iou(by_crop, thing) > 0.98
    x0, y0, x1, y1 = crop.box_xyxy
    assert by_crop[y0:y1, x0:x1].sum() == by_crop.sum()


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 50), (50, 1), (3, 2), (4000, 5), (31, 257)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_any_size_and_any_mask(size_hw: tuple[int, int], share: float) -> None:
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    before = mask_of(rng.random(size_hw) < share, whole(size_hw))
    moved = EdgeFinder(image, whole(size_hw), SIDE, RADIUS_PX).moved(before)
    assert moved.rle_counts.sum() == size_hw[0] * size_hw[1]
    # nothing is better than a mask without a pixel
    assert moved.area > 0 or before.area == 0
    if share == 1.0:
        assert moved.area == before.area


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("min_area", [0, 60])
def test_the_generator_moves_the_masks_that_stay(layers: int, min_area: int) -> None:
    sam, image = small_sam(), smooth_image(203, 270)
    parameters = {"points_per_side": 6, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    parameters |= {"crop_n_layers": layers, "min_mask_region_area": min_area}
    plain = AutomaticMaskGenerator(sam, **parameters).generate(image)
    moved = AutomaticMaskGenerator(sam, **parameters, edge_radius_px=RADIUS_PX).generate(image)
    same = ("predicted_iou", "stability_score", "point_coords", "crop_box")
    scores_of = [[mask[key] for key in same] for mask in plain]
    stayed = [scores_of.index([mask[key] for key in same]) for mask in moved]
    assert stayed == sorted(set(stayed)), "in their order, each once"
    assert len(stayed) > len(plain) / 2
    changed = 0
    for number, after in zip(stayed, moved, strict=True):
        assert after["area"] == np.asarray(after["segmentation"]).sum() > 0
        changed += not np.array_equal(plain[number]["segmentation"], after["segmentation"])
    assert changed > len(moved) / 2
    for number, mask in enumerate(moved):
        for other in moved[:number]:
            both, either = (
                f(mask["segmentation"], other["segmentation"]).sum() for f in (np.logical_and, np.logical_or)
            )
            assert both <= TWIN_IOU * either, "nearly the same twice"
