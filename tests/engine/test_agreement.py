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
from rerun_loader_sam.engine.agreement import (
    LEAST_SHARE_INSIDE,
    LIKENESS_IOU,
    VIEWS,
    Agreed,
    AnsweredPrompts,
    Candidates,
    Look,
    looks_of,
)
from rerun_loader_sam.engine.boxes import BoxBounds
from rerun_loader_sam.engine.generator import TWIN_IOU
from rerun_loader_sam.engine.geometry import Crop, crops, layer_point_grids, point_grid
from rerun_loader_sam.engine.grid import interleaved
from rerun_loader_sam.engine.prompting import EmbeddedCrop, Filters, SketchedPrompt, Unmade
from rerun_loader_sam.engine.sketches import SketchGrid
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
    grid = SketchGrid(crop.box_xyxy, embedded.sketch_grid.cell_wh, (rows, columns))
    candidates = Candidates(prompts, grid)
    for some in (prompts[:6], prompts[6:]):
        candidates.hear(AnsweredPrompts.of(some, grid))
    is_candidate = [one is not None for prompt in prompts for one in prompt.unmade]
    assert sum(is_candidate) > len(is_candidate) / 2
    np.testing.assert_allclose(candidates.agreement.numpy(), expected.ravel()[is_candidate], atol=1e-5)
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


def answers_of_look(sam: Sam, image: NDArray[np.uint8], look: Look) -> Pixels:
    """Of a square crop, by upstream: sketches (P, 3, rows, columns)."""
    x0, y0, x1, y1 = look.crop.box_xyxy
    part = image[y0:y1, x0:x1][:, :, list(look.view.channels)]
    if not look.view.mirrored:
        return answers_of(sam, part, look.points_xy)[0]
    # The last pixel of the input, not of the crop, is where the mirrored input begins.
    last = x1 - x0 - (x1 - x0) / sam.image_encoder.img_size
    points_xy = look.points_xy * (-1, 1) + (last, 0)
    return answers_of(sam, part[:, ::-1], points_xy, first_column=1)[0][..., ::-1]


Box = tuple[int, int, int, int]


def on_grid(mask: Pixels, box_xyxy: Box, start_xy: tuple[int, int], cell: float, cells: int) -> Pixels:
    """A square mask that covers a box, at the centres of cells by cells of a grid that starts there."""
    found = np.zeros((cells, cells), bool)
    own_cell = (box_xyxy[2] - box_xyxy[0]) / len(mask)
    for row, column in np.ndindex(*found.shape):
        x, y = start_xy[0] + (column + 0.5) * cell, start_xy[1] + (row + 0.5) * cell
        own_row, own_column = int((y - box_xyxy[1]) // own_cell), int((x - box_xyxy[0]) // own_cell)
        if min(own_row, own_column) >= 0 and max(own_row, own_column) < len(mask):
            found[row, column] = mask[own_row, own_column]
    return found


def share_inside(mask: Pixels, box_xyxy: Box, other_xyxy: Box) -> float:
    """Of a square mask that covers one box, the share of cells whose centres lie in another."""
    size = (box_xyxy[2] - box_xyxy[0]) / len(mask)
    y, x = ((np.argwhere(mask) + 0.5) * size + (box_xyxy[1], box_xyxy[0])).T
    inside = (x >= other_xyxy[0]) & (x < other_xyxy[2]) & (y >= other_xyxy[1]) & (y < other_xyxy[3])
    return float(inside.mean()) if len(inside) else 1.0


def test_prompts_of_all_crops_that_see_a_mask_agree_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "CUT_OFF_TOKENS", -1)
    sam, image, threshold = small_sam(2), smooth_image(128, 128), 0.45
    looks = looks_of(crops(image.shape[:2], 1, 0.25), layer_point_grids(6, 1, 2), 8)  # all crops are square
    answers = [answers_of_look(sam, image, look) for look in looks]
    boxes = [look.crop.box_xyxy for look in looks]
    agreements: list[tuple[float, int, int, int]] = []
    for number, prompt, mask in ((n, *of) for n, some in enumerate(answers) for of in np.ndindex(*some.shape[:2])):
        candidate = answers[number][prompt, mask]
        likeness = weight = 0.0
        for look, some, box in zip(looks, answers, boxes, strict=True):
            if share_inside(candidate, boxes[number], box) < LEAST_SHARE_INSIDE and box != boxes[number]:
                continue
            cell = (box[2] - box[0]) / 8
            seen = on_grid(candidate, boxes[number], box[:2], cell, 8)
            for (x, y), three in zip(look.points_xy / cell, some, strict=True):
                if seen[int(y), int(x)]:
                    likeness += max(iou_of(seen, answer) for answer in three) / cell**2
                    weight += 1 / cell**2
        agreements.append((likeness / weight if weight else 0.0, number, prompt, mask))
    expected: list[tuple[int, int, Pixels]] = []
    cell = min(box[2] - box[0] for box in boxes) / 8
    for value, number, prompt, mask in sorted(agreements, key=lambda one: -one[0]):
        seen = on_grid(answers[number][prompt, mask], boxes[number], (0, 0), cell, round(128 / cell))
        if value > threshold and all(iou_of(seen, other) <= LIKENESS_IOU for _, _, other in expected):
            expected.append((number, prompt, seen))
    settings = {**OPEN, "crop_n_layers": 1, "crop_n_points_downscale_factor": 2, "crop_overlap_ratio": 0.25}
    settings |= {"agreement_thresh": threshold}
    masks = AutomaticMaskGenerator(sam, 6, 5, **settings).generate(image)
    found = sorted((mask["crop_box"], mask["point_coords"][0]) for mask in masks)
    of_crops = [number for number, _, _ in expected if looks[number].crop.layer]
    assert 2 < len(of_crops) < len(expected) < len(agreements) / 2
    assert found == sorted(
        ([x0, y0, x1 - x0, y1 - y0], (looks[number].points_xy[prompt] + (x0, y0)).tolist())
        for number, prompt, _ in expected
        for x0, y0, x1, y1 in [boxes[number]]
    )


def test_who_sees_what() -> None:
    looks = looks_of(crops((90, 120), 1, 512 / 1500), layer_point_grids(6, 1, 2), 8)
    assert [look.crop.layer for look in looks] == [0] * 4 + [1] * 8
    assert [look.view for look in looks[:4]] == list(VIEWS)
    assert [VIEWS.index(look.view) for look in looks[4:]] == [1, 2, 0, 3, 1, 2, 0, 3]
    for crop in {look.crop for look in looks}:
        points_xy = np.concatenate([look.points_xy for look in looks if look.crop == crop])
        grid = point_grid(6 // (1 + crop.layer)) * crop.size_hw[::-1]
        assert sorted(points_xy.tolist()) == sorted(grid.tolist())
        assert crop.edge_margin_px == max(crop.size_hw) / 16


def test_crops_give_no_masks_that_their_edges_cut_off() -> None:
    sam = load_model(SHIPPED_FOLDER / NANO.file)
    image = np.asarray(Image.open(EXAMPLE).convert("RGB"))
    settings = {"pred_iou_thresh": 0.1, "stability_score_thresh": 0.2, "agreement_thresh": 0.4, "crop_n_layers": 1}
    masks = AutomaticMaskGenerator(sam, 12, **settings).generate(image)
    of_crops = [mask for mask in masks if mask["crop_box"] != [0, 0, image.shape[1], image.shape[0]]]
    assert len(of_crops) > 3
    near = 0
    for mask in of_crops:
        (x, y, width, height), (left, top, across, down) = mask["bbox"], mask["crop_box"]
        margin = max(across, down) / 96  # half a token
        inner = [x - left] * (left > 0) + [y - top] * (top > 0)
        inner += [left + across - x - width] * (left + across < image.shape[1])
        inner += [top + down - y - height] * (top + down < image.shape[0])
        assert min(inner) > margin
        near += min(inner) <= 20
    assert near, "upstream's margin would have taken some"


@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_grid_too_thin_for_crops_has_a_point_in_each(side: int) -> None:
    settings = {**OPEN, "crop_n_layers": 1, "crop_n_points_downscale_factor": 4, "agreement_thresh": 0.1}
    *_, last = AutomaticMaskGenerator(small_sam(2), side, **settings).iterate(smooth_image(90, 120))
    assert last.done == last.total == side**2 + 4


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


GRID = SketchGrid((0, 0, 8, 4), (1.0, 1.0), (4, 8))


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
    agreed.compare([a_prompt(0, whole), a_prompt(1, whole), a_prompt(2, nearly), a_prompt(7, elsewhere)], GRID)
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
    agreed.compare([a_prompt(0, small), a_prompt(1, large)], GRID)
    assert [one.point_xy[0] for one in agreed.due()] == [0]
    agreed.take(agreed.due(), [a_mask(0)])
    assert agreed.kept == [a_mask(0)]
    agreed.compare([a_prompt(2, large), a_prompt(3, large)], GRID)
    assert [one.point_xy[0] for one in agreed.due()] == [1]
    agreed.take(agreed.due(), [a_mask(1)])
    assert agreed.kept == [a_mask(1)]


def test_a_model_without_sketches_goes_by_predicted_iou_and_boxes() -> None:
    sam = load_model(SHIPPED_FOLDER / NANO.file)
    sam.mask_decoder.output_upscaling.append(torch.nn.Identity())
    image = np.asarray(Image.open(EXAMPLE).convert("RGB"))
    filters = {"pred_iou_thresh": 0.1, "stability_score_thresh": 0.2, "min_mask_region_area": 150}
    without, with_it = (
        AutomaticMaskGenerator(
            sam, 6, agreement_thresh=threshold, output_mode="uncompressed_rle", **filters
        ).generate(image)
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
