"""Masks that prompts agree on, against the definition worked out with upstream's predictor."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from small_sams import small_sam, smooth_image

from rerun_loader_sam import AutomaticMaskGenerator, load_model
from rerun_loader_sam.engine import agreement
from rerun_loader_sam.engine.agreement import LIKENESS_IOU, Agreed, agreement_of
from rerun_loader_sam.engine.boxes import BoxBounds
from rerun_loader_sam.engine.generator import TWIN_IOU
from rerun_loader_sam.engine.geometry import Crop, point_grid
from rerun_loader_sam.engine.grid import interleaved
from rerun_loader_sam.engine.prompting import EmbeddedCrop, Filters, SketchedPrompt, Unmade
from rerun_loader_sam.masks import Mask, encode_rle
from rerun_loader_sam.models.registry import NANO, SHIPPED_FOLDER

EXAMPLE = Path(__file__).parents[2] / "examples" / "coffee.jpg"
OPEN = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
SIZE_HW = (203, 270)
TOKEN_PX = 16

Pixels = NDArray[np.bool_]


def iou_of(one: Pixels, other: Pixels) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))


def answers_of(
    sam: Sam, image: NDArray[np.uint8], points_xy: NDArray[np.float64], *, first_column: int = 2
) -> tuple[Pixels, NDArray[np.int64], NDArray[np.int64]]:
    """By upstream: sketches (P, 3, rows, columns), and the column and row of each point."""
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    scaled = torch.from_numpy(predictor.transform.apply_coords(points_xy, image.shape[:2]))[:, None]
    _, _, logits = predictor.predict_torch(scaled, torch.ones(len(scaled), 1))
    rows, columns = (-(-size // TOKEN_PX) for size in predictor.input_size)
    sketches = (logits[:, :, 2::4, first_column::4][:, :, :rows, :columns] > 0).numpy()
    x, y = (scaled[:, 0].numpy() // TOKEN_PX).astype(int).T
    return sketches, x, y


def answers_in_all_views(sam: Sam, image: NDArray[np.uint8], points_xy: NDArray[np.float64]) -> tuple[Pixels, Pixels]:
    """Of a square image, by upstream: sketches (P, 3, rows, columns), and which each point lies in (P, 3, P)."""
    quarters = np.split(points_xy, 4)
    mirror, last = np.array((-1, 1)), np.array((image.shape[1] - 1, 0))
    _, x, y = answers_of(sam, image, points_xy)
    sketches = np.concatenate(
        [
            answers_of(sam, image, quarters[0])[0],
            answers_of(sam, image[:, ::-1], quarters[1] * mirror + last, first_column=1)[0][..., ::-1],
            answers_of(sam, image[:, :, ::-1], quarters[2])[0],
            answers_of(sam, image[:, ::-1, [1, 2, 0]], quarters[3] * mirror + last, first_column=1)[0][..., ::-1],
        ]
    )
    return sketches, sketches[:, :, y, x]


def agreement_by_definition(sketches: Pixels, inside: Pixels) -> NDArray[np.float64]:
    """(P, 3)."""
    found = np.zeros(sketches.shape[:2])
    for prompt, mask in np.ndindex(*found.shape):
        likest = [
            max(iou_of(sketches[prompt, mask], answer) for answer in sketches[other])
            for other in np.flatnonzero(inside[prompt, mask])
        ]
        found[prompt, mask] = np.mean(likest) if likest else 0
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_agreement_is_as_defined(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sam, image = small_sam(seed), smooth_image(*SIZE_HW)
    points_xy = point_grid(5) * SIZE_HW[::-1]
    answered, x, y = answers_of(sam, image, points_xy)
    expected = agreement_by_definition(answered, answered[:, :, y, x])
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    crop = Crop((0, 0, *SIZE_HW[::-1]), 0)
    embedded = EmbeddedCrop(sam, predictor.get_image_embedding(), crop, SIZE_HW, Filters(0.0, 0.0, 1.0))
    # An input of 96 rows has exactly six tokens; a seventh is looked at for interpolation.
    rows, columns = 96 // TOKEN_PX, 128 // TOKEN_PX
    prompts = [
        SketchedPrompt(prompt.cell_xy, prompt.sketches[:, :rows, :columns], prompt.unmade)
        for prompt in embedded.sketch_all(points_xy)
    ]
    # As for grids so fine that not all fits into memory.
    monkeypatch.setattr(agreement, "_MASKS_AT_ONCE", 7)
    monkeypatch.setattr(agreement, "_PROMPTS_AT_ONCE", 4)
    found = agreement_of(torch.cat([prompt.sketches for prompt in prompts]), prompts)
    np.testing.assert_allclose(found.numpy(), expected.ravel(), atol=1e-5)
    assert len(np.unique(expected.round(3))) > 10


@pytest.mark.parametrize("threshold", [0.3, 0.6])
def test_what_prompts_agree_on_stays(threshold: float) -> None:
    sam, image = small_sam(2), smooth_image(128, 128)  # square: no token lies in the padding
    points_xy = interleaved(point_grid(6) * (128, 128))
    sketches, inside = answers_in_all_views(sam, image, points_xy)
    agreements = agreement_by_definition(sketches, inside).ravel()
    pixels = sketches.reshape(-1, *sketches.shape[2:])
    expected: list[int] = []
    for number in np.argsort(-agreements, kind="stable"):
        if agreements[number] > threshold and all(
            iou_of(pixels[number], pixels[k]) <= LIKENESS_IOU for k in expected
        ):
            expected.append(int(number))
    assert 2 < len(expected) < len(agreements)
    generator = AutomaticMaskGenerator(sam, 6, 5, box_nms_thresh=0.1, agreement_thresh=threshold, **OPEN)
    points = [mask["point_coords"][0] for mask in generator.generate(image)]
    assert sorted(points) == sorted(points_xy[number // 3].tolist() for number in expected)


def test_the_strategy_says_nothing() -> None:
    sam = load_model(SHIPPED_FOLDER / NANO.file)
    image = np.asarray(Image.open(EXAMPLE).convert("RGB"))
    settings = {"pred_iou_thresh": 0.1, "stability_score_thresh": 0.2, "agreement_thresh": 0.5, "crop_n_layers": 1}
    exhaustive, adaptive = (
        AutomaticMaskGenerator(sam, 8, strategy=strategy, output_mode="uncompressed_rle", **settings).generate(image)
        for strategy in ("exhaustive", "adaptive")
    )
    assert len({str(mask["crop_box"]) for mask in exhaustive}) > 2
    assert exhaustive == adaptive


@pytest.mark.parametrize("points", [0, 1, 3])
def test_few_points(points: int) -> None:
    grid = np.full((points, 2), 0.5) + np.arange(points)[:, None] / 10
    settings = {**OPEN, "points_per_side": None, "point_grids": [grid], "agreement_thresh": 0.1}
    masks = AutomaticMaskGenerator(small_sam(2), **settings).generate(smooth_image(90, 120))
    assert (len(masks) > 0) == (points > 0)


@pytest.mark.parametrize(("corner", "cell_xy"), [((0.0, 0.0), (0, 0)), ((1.0, 1.0), (7, 7))])
def test_a_point_in_the_corner(corner: tuple[float, float], cell_xy: tuple[int, int]) -> None:
    crop, embedding = Crop((0, 0, 128, 128), 0), torch.randn(1, 64, 8, 8)
    embedded = EmbeddedCrop(small_sam(2), embedding, crop, (128, 128), Filters(0.0, 0.0, 1.0))
    (prompt,) = embedded.sketch_all(128 * np.array([corner]))
    assert prompt.cell_xy == cell_xy
    settings = {**OPEN, "points_per_side": None, "point_grids": [np.array([corner])], "agreement_thresh": 0.0001}
    assert AutomaticMaskGenerator(small_sam(2), **settings).generate(smooth_image(128, 128)) is not None


def a_prompt(number: int, *masks: Pixels) -> SketchedPrompt:
    bounds = BoxBounds(np.zeros(4), np.zeros(4))
    unmade: list[Unmade | None] = [Unmade(np.array([float(number), 0.0]), k, 0.5, bounds) for k in range(len(masks))]
    return SketchedPrompt((number, 0), torch.from_numpy(np.stack(masks)), unmade)


def test_what_does_not_pass_the_filters_stands_for_nothing() -> None:
    whole = np.zeros((4, 8), bool)
    whole[:, :6] = True
    nearly = whole.copy()
    nearly[3, :4] = False
    elsewhere = np.zeros((4, 8), bool)
    elsewhere[:, 6:] = True
    agreed = Agreed(0.5)
    agreed.compare([a_prompt(0, whole), a_prompt(1, whole), a_prompt(2, nearly), a_prompt(7, elsewhere)])
    due = agreed.due()
    assert [one.point_xy[0] for one in due] == [0, 7]
    assert agreed.take(due, [None, a_mask(7)]) == [a_mask(7)]
    likeness = agreed.due()
    assert [one.point_xy[0] for one in likeness] == [1]
    assert agreed.take(likeness, [None]) == []
    last = agreed.due()
    assert [one.point_xy[0] for one in last] == [2]
    agreed.take(last, [a_mask(2)])
    assert agreed.due() == []
    assert agreed.kept == [a_mask(7), a_mask(2)]


def a_mask(number: int) -> Mask:
    nothing = encode_rle(np.zeros((4, 8), np.bool_))
    return Mask((4, 8), nothing, (0, 0, 1, 1), 0, 0.5, 0.5, (float(number), 0.0), (0, 0, 8, 4))


def test_more_prompts_may_agree_on_others() -> None:
    small, large = np.zeros((4, 8), bool), np.zeros((4, 8), bool)
    small[:, :3] = True
    large[:, :4] = True
    agreed = Agreed(0.0)
    agreed.compare([a_prompt(0, small), a_prompt(1, large)])
    assert [one.point_xy[0] for one in agreed.due()] == [0]
    agreed.take(agreed.due(), [a_mask(0)])
    assert agreed.kept == [a_mask(0)]
    agreed.compare([a_prompt(2, large), a_prompt(3, large)])
    assert [one.point_xy[0] for one in agreed.due()] == [1]
    agreed.take(agreed.due(), [a_mask(1)])
    assert agreed.kept == [a_mask(1)]


def test_a_model_without_sketches_goes_by_predicted_iou() -> None:
    sam, image = small_sam(), smooth_image(90, 120)
    sam.mask_decoder.output_upscaling.append(torch.nn.Tanh())
    settings = {**OPEN, "box_nms_thresh": 1.0, "output_mode": "uncompressed_rle"}
    without, with_it = (
        AutomaticMaskGenerator(sam, 4, agreement_thresh=threshold, **settings).generate(image)
        for threshold in (0.0, 0.9)
    )
    assert len(without) > 2
    assert without == with_it


def test_masks_with_like_boxes_stay_when_they_are_cleaned_but_no_twins() -> None:
    sam = load_model(SHIPPED_FOLDER / NANO.file)
    image = np.asarray(Image.open(EXAMPLE).convert("RGB"))
    filters = {"pred_iou_thresh": 0.1, "stability_score_thresh": 0.2, "min_mask_region_area": 150}
    generator = AutomaticMaskGenerator(sam, 12, agreement_thresh=0.3, edge_radius_px=12, **filters)
    masks = generator.generate(image)
    largest_box_iou = 0.0
    for number, mask in enumerate(masks):
        for other in masks[:number]:
            assert iou_of(mask["segmentation"], other["segmentation"]) <= TWIN_IOU
            boxes = [np.zeros(image.shape[:2], bool) for _ in range(2)]
            for box, (x, y, width, height) in zip(boxes, (mask["bbox"], other["bbox"]), strict=True):
                box[y : y + height + 1, x : x + width + 1] = True
            largest_box_iou = max(largest_box_iou, iou_of(*boxes))
    assert largest_box_iou > generator.box_nms_thresh
