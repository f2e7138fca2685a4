"""Masks that are asked for once more by their boxes, against upstream's predictor."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything import SamPredictor
from small_sams import small_sam, smooth_image
from test_decoder import embedding_of
from torchvision.ops import box_iou

from rerun_loader_sam import AutomaticMaskGenerator, load_model
from rerun_loader_sam.engine.generator import TWIN_IOU
from rerun_loader_sam.engine.geometry import Crop, point_grid
from rerun_loader_sam.engine.parallel import Cores
from rerun_loader_sam.engine.prompting import EmbeddedCrop, Filters
from rerun_loader_sam.engine.second_look import LEAST_GAIN, confirmed_by_box
from rerun_loader_sam.masks import Mask, encode_rle
from rerun_loader_sam.models.registry import NANO, SHIPPED_FOLDER

EXAMPLE = Path(__file__).parents[2] / "examples" / "coffee.jpg"
ANY_GAIN = -10.0
PARAMETERS = {"points_per_side": 6, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
BOXES_XYWH = [(10.0, 20.0, 90.0, 60.0), (0.0, 0.0, 269.0, 202.0), (150.0, 90.0, 30.0, 80.0), (200.0, 5.0, 0.0, 40.0)]


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("crop", [Crop((0, 0, 270, 203), 0), Crop((0, 0, 270, 150), 1)], ids=["image", "crop"])
def test_answers_are_those_of_the_predictor(folded: bool, crop: Crop) -> None:
    image, size_hw = smooth_image(203, 270), (203, 270)
    x0, y0, x1, y1 = crop.box_xyxy
    nothing = encode_rle(np.zeros(size_hw, np.bool_))
    asked = [Mask(size_hw, nothing, box_xywh, 0, 0.5, 0.6, (30, 40), crop.box_xywh) for box_xywh in BOXES_XYWH]
    answered = 0
    for seed in range(6):
        sam = small_sam(seed)
        predictor = SamPredictor(sam)
        predictor.set_image(image[y0:y1, x0:x1])
        embedding = predictor.get_image_embedding()
        embedded = EmbeddedCrop(sam, embedding, crop, size_hw, Filters(0.0, 0.0, 1.0), folded=folded)
        answers = embedded.answer_boxes(asked, ANY_GAIN)
        for (x, y, width, height), (score, answer) in zip(BOXES_XYWH, answers, strict=True):
            box_xyxy = np.array([x - x0, y - y0, x + width + 1 - x0, y + height + 1 - y0])
            masks, scores, _ = predictor.predict(box=box_xyxy, multimask_output=False)
            expected = np.zeros(size_hw, np.bool_)
            expected[y0:y1, x0:x1] = masks[0]
            assert score == pytest.approx(scores[0], abs=1e-4)
            if answer is None:  # at the edge of the crop that is none of the image
                assert crop.layer == 1
                assert expected[y1 - 21 : y1].any()
                continue
            answered += 1
            assert answer.predicted_iou == score
            assert (answer.decode() != expected).mean() < 1e-3
            assert answer.area == answer.decode().sum()
            assert (answer.point_xy, answer.crop_box_xywh) == ((30, 40), crop.box_xywh)
    assert answered > 1


def test_answers_pass_the_filters_but_that_of_stability() -> None:
    sam, crop = small_sam(), Crop((0, 0, 128, 128), 0)
    embedding = embedding_of(sam, torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8))
    asked = [
        Mask(
            (128, 128), encode_rle(np.zeros((128, 128), np.bool_)), (x, x, 50, 50), 0, 0.5, 0.6, (9, 9), (0, 0, 1, 1)
        )
        for x in (0.0, 30.0, 70.0)
    ]

    def answers(filters: Filters) -> list[Mask | None]:
        embedded = EmbeddedCrop(sam, embedding, crop, (128, 128), filters)
        return [mask for _, mask in embedded.answer_boxes(asked, ANY_GAIN)]

    everything = answers(Filters(0.0, 0.0, 1.0))
    found = [mask for mask in everything if mask]
    assert found
    least_iou = float(np.median([mask.predicted_iou for mask in found]))
    for mask, filtered in zip(everything, answers(Filters(least_iou, 0.0, 1.0)), strict=True):
        assert (filtered is not None) == bool(mask and mask.predicted_iou > least_iou)
    assert [mask is None for mask in answers(Filters(0.0, 1.0, 1.0))] == [mask is None for mask in everything]


@pytest.mark.parametrize("least_gain", [-0.3, 0.0, 0.1])
def test_only_much_better_answers_are_made(least_gain: float) -> None:
    sam, image = small_sam(), smooth_image(128, 128)
    embedding = embedding_of(sam, torch.from_numpy(image).permute(2, 0, 1)[None])
    embedded = EmbeddedCrop(sam, embedding, Crop((0, 0, 128, 128), 0), (128, 128), Filters(0.0, 0.0, 1.0))
    masks = [mask for mask in embedded.answer(128 * point_grid(6), None) if isinstance(mask, Mask)]
    answers = embedded.answer_boxes(masks, least_gain)
    assert len(answers) == len(masks)
    for mask, (score, answer) in zip(masks, answers, strict=True):
        assert (answer is not None) == (score > mask.predicted_iou + least_gain)
    assert {answer is None for _, answer in answers} == {True, False}


def test_what_both_answers_find_likely_stays() -> None:
    sam, image, crop = small_sam(), smooth_image(203, 270), Crop((0, 0, 270, 203), 0)
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    embedded = EmbeddedCrop(sam, predictor.get_image_embedding(), crop, (203, 270), Filters(0.0, 0.0, 1.0))
    masks = [mask for mask in embedded.answer(point_grid(6) * (270, 203), None) if isinstance(mask, Mask)]
    answers = embedded.answer_boxes(masks, LEAST_GAIN)
    means = [(mask.predicted_iou + score) / 2 for mask, (score, _) in zip(masks, answers, strict=True)]
    threshold = float(np.median(means))
    with Cores(torch.device("cpu")) as cores:
        stayed = confirmed_by_box(embedded, masks, 7, cores, threshold)
    expected = [
        better.predicted_iou if better else mask.predicted_iou
        for mask, (_, better), mean in zip(masks, answers, means, strict=True)
        if mean > threshold
    ]
    assert 0 < len(expected) < len(masks)
    assert [mask.predicted_iou for mask in stayed] == pytest.approx(expected, abs=1e-5)
    assert any(better for _, better in answers)


def test_of_answers_that_are_nearly_the_same_the_best_stays() -> None:
    sam = load_model(SHIPPED_FOLDER / NANO.file)
    image = np.asarray(Image.open(EXAMPLE).convert("RGB"))
    parameters = {"points_per_side": 12, "pred_iou_thresh": 0.2, "stability_score_thresh": 0.3}
    masks = AutomaticMaskGenerator(sam, **parameters, box_pred_iou_thresh=0.1).generate(image)
    assert len(masks) > 10
    scores = [mask["predicted_iou"] for mask in masks]
    assert scores == sorted(scores, reverse=True)
    for number, mask in enumerate(masks):
        for other in masks[:number]:
            both, either = (
                f(mask["segmentation"], other["segmentation"]).sum() for f in (np.logical_and, np.logical_or)
            )
            assert both <= TWIN_IOU * either


def test_confirmed_masks_with_like_boxes_stay_when_they_are_cleaned() -> None:
    sam = load_model(SHIPPED_FOLDER / NANO.file)
    image = np.asarray(Image.open(EXAMPLE).convert("RGB"))
    parameters = {"points_per_side": 12, "pred_iou_thresh": 0.2, "stability_score_thresh": 0.3}

    def largest_box_iou(box_pred_iou_thresh: float) -> float:
        generator = AutomaticMaskGenerator(
            sam, **parameters, min_mask_region_area=150, box_pred_iou_thresh=box_pred_iou_thresh
        )
        xywh = torch.tensor([mask["bbox"] for mask in generator.generate(image)])
        xyxy = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
        return float(box_iou(xyxy, xyxy).fill_diagonal_(0).max())

    assert largest_box_iou(0.0) <= 0.7 < largest_box_iou(0.1)
