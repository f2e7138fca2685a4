"""The exhaustive strategy against segment_anything's own generator, the only judge there is."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam
from small_sams import small_sam, smooth_image, upstream_masks

from rerun_loader_sam import AutomaticMaskGenerator, load_model
from rerun_loader_sam.masks import decode_rle

OPEN = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}


@pytest.fixture(scope="module")
def sam() -> Sam:
    return small_sam()


def pixels(record: Mapping[str, object]) -> np.ndarray:
    segmentation = record["segmentation"]
    if isinstance(segmentation, np.ndarray):
        return segmentation
    assert isinstance(segmentation, dict)
    return decode_rle(segmentation["counts"], tuple(segmentation["size"]))


def assert_same(ours: Sequence[Mapping[str, object]], upstream: Sequence[Mapping[str, object]]) -> None:
    """Same number, same order but for ties in the score, pixel by pixel all but a few."""
    assert len(ours) == len(upstream)
    left = list(ours)
    for theirs in upstream:
        same_prompt = [
            mask
            for mask in left
            if mask["point_coords"] == theirs["point_coords"]
            and mask["crop_box"] == theirs["crop_box"]
            and mask["predicted_iou"] == pytest.approx(theirs["predicted_iou"], abs=1e-4)
        ]
        assert same_prompt, f"no mask of ours belongs to {theirs['point_coords']}"
        mask = same_prompt[0]
        left.remove(mask)
        assert mask.keys() == theirs.keys()
        assert {key: type(value) for key, value in mask.items()} == {
            key: type(value) for key, value in theirs.items()
        }
        assert mask["stability_score"] == pytest.approx(theirs["stability_score"], abs=1e-3, nan_ok=True)
        ours_in, theirs_in = pixels(mask), pixels(theirs)
        assert ours_in.shape == theirs_in.shape
        assert (ours_in != theirs_in).sum() <= 1e-4 * ours_in.size
        assert mask["bbox"] == pytest.approx(theirs["bbox"], abs=2)
        assert mask["area"] == pytest.approx(theirs["area"], abs=1e-4 * ours_in.size)


SIZES = [(90, 120), (120, 90), (128, 128), (1, 1), (2, 3), (37, 211), (3, 200), (200, 3), (511, 293), (301, 457)]


@pytest.mark.parametrize("size", SIZES)
def test_sizes(sam: Sam, size: tuple[int, int]) -> None:
    image = smooth_image(*size)
    assert_same(AutomaticMaskGenerator(sam, **OPEN).generate(image), upstream_masks(sam, image, OPEN))


@pytest.mark.parametrize(
    "shape",
    [
        {"depth": 1},
        {"depth": 3},
        {"dim": 32, "heads": 4},
        {"dim": 96, "heads": 3},
        {"size": 192, "window": 5},
        {"window": 8},
    ],
)
def test_shapes_of_the_model(shape: dict[str, int]) -> None:
    sam, image = small_sam(5, **shape), smooth_image(150, 220)
    assert_same(AutomaticMaskGenerator(sam, **OPEN).generate(image), upstream_masks(sam, image, OPEN))


@pytest.mark.parametrize(
    "parameters",
    [
        {"box_nms_thresh": 0.7},
        {"pred_iou_thresh": 0.8},
        {"stability_score_offset": 0.3, "stability_score_thresh": 0.5},
        {"stability_score_offset": 0.1, "stability_score_thresh": 0.8},
        {"points_per_batch": 1},
        {"points_per_batch": 5},
        {"points_per_batch": 1000},
        {"points_per_side": 1},
        {"points_per_side": 7},
        {"crop_n_layers": 1},
        {"crop_n_layers": 2, "crop_n_points_downscale_factor": 2, "crop_overlap_ratio": 0.2},
        {"crop_n_layers": 1, "box_nms_thresh": 0.6, "crop_nms_thresh": 0.5},
        {"min_mask_region_area": 150},
        {"points_per_side": 2, "min_mask_region_area": 60, "crop_n_layers": 1, "box_nms_thresh": 0.8},
    ],
    ids=str,
)
def test_parameters(sam: Sam, parameters: dict[str, float]) -> None:
    image = smooth_image(203, 270, seed=3)
    both = {**OPEN, **parameters}
    upstream = upstream_masks(sam, image, both)
    assert upstream
    assert_same(AutomaticMaskGenerator(sam, **both).generate(image), upstream)


def test_grids_of_points(sam: Sam) -> None:
    grids = [np.array([[0.1, 0.2], [0.5, 0.5], [0.99, 0.01]]), np.array([[0.3, 0.6]])]
    both = {**OPEN, "points_per_side": None, "point_grids": grids, "crop_n_layers": 1}
    image = smooth_image(140, 100)
    assert_same(AutomaticMaskGenerator(sam, **both).generate(image), upstream_masks(sam, image, both))


def test_uncompressed_rle_is_upstreams_to_the_number(sam: Sam) -> None:
    both = {**OPEN, "output_mode": "uncompressed_rle"}
    image = smooth_image(64, 96)
    ours = AutomaticMaskGenerator(sam, **both).generate(image)
    upstream = upstream_masks(sam, image, both)
    assert sorted(str(mask["segmentation"]) for mask in ours) == sorted(
        str(mask["segmentation"]) for mask in upstream
    )


def test_coco_rle(sam: Sam) -> None:
    pytest.importorskip("pycocotools", reason="an extra that upstream needs for this output mode too")
    both = {**OPEN, "output_mode": "coco_rle"}
    image = smooth_image(64, 96)
    ours = AutomaticMaskGenerator(sam, **both).generate(image)
    upstream = upstream_masks(sam, image, both)
    assert sorted(str(mask["segmentation"]) for mask in ours) == sorted(
        str(mask["segmentation"]) for mask in upstream
    )


@pytest.mark.parametrize("parameters", [{"pred_iou_thresh": 2.0}, {"stability_score_thresh": 1.1}], ids=str)
@pytest.mark.parametrize("layers", [0, 1])
def test_nothing_found(sam: Sam, parameters: dict[str, float], layers: int) -> None:
    both = {**OPEN, **parameters, "crop_n_layers": layers, "min_mask_region_area": 10}
    for strategy in ("exhaustive", "adaptive"):
        assert AutomaticMaskGenerator(sam, **both, strategy=strategy).generate(smooth_image(50, 60)) == []


def test_a_plain_image(sam: Sam) -> None:
    image = np.full((80, 110, 3), 128, np.uint8)
    assert_same(AutomaticMaskGenerator(sam, **OPEN).generate(image), upstream_masks(sam, image, OPEN))


def test_a_moved_mask_threshold() -> None:
    sam, image = small_sam(2), smooth_image(90, 130)
    sam.mask_threshold = 0.5
    assert_same(AutomaticMaskGenerator(sam, **OPEN).generate(image), upstream_masks(sam, image, OPEN))


def test_the_shipped_model_on_an_image() -> None:
    sam, image = load_model("nano"), smooth_image(240, 320)
    both = {**OPEN, "points_per_side": 3}
    assert_same(AutomaticMaskGenerator(sam, **both).generate(image), upstream_masks(sam, image, both))


def test_a_model_with_another_decoder_falls_back_to_it() -> None:
    sam, image = small_sam(4), smooth_image(90, 130)
    sam.mask_decoder.output_upscaling.append(torch.nn.Tanh())
    assert_same(AutomaticMaskGenerator(sam, **OPEN).generate(image), upstream_masks(sam, image, OPEN))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"points_per_side": None}, "points_per_side"),
        ({"point_grids": [np.zeros((1, 2))]}, "points_per_side"),
        ({"output_mode": "polygons"}, "polygons"),
        ({"strategy": "lazy"}, "lazy"),
    ],
)
def test_refused_arguments(sam: Sam, arguments: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AutomaticMaskGenerator(sam, **arguments)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_refused_images(sam: Sam, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        AutomaticMaskGenerator(sam).generate(image)
