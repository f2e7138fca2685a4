"""The checkpoint in the package, through the engine's loader, upstream's predictor and upstream's generator."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors import safe_open
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import Sam

import rerun_loader_sam
from rerun_loader_sam.engine.checkpoint import load_model
from rerun_loader_sam.engine.generator import AutomaticMaskGenerator
from rerun_loader_sam.models.registry import checkpoint_generator_parameters

SHIPPED = Path(rerun_loader_sam.__file__).parent / "weights" / "nano.safetensors"
LARGEST_BYTES = 6_000_000


@pytest.fixture(scope="module")
def nano() -> Sam:
    return load_model(SHIPPED)


def still_life() -> tuple[npt.NDArray[np.uint8], list[npt.NDArray[np.bool_]]]:
    """A bright disc and a dark box on a slightly noisy ground, (360, 480, 3), and the masks of both."""
    noise = np.random.default_rng(4).normal(0, 4, (360, 480, 3))
    image = np.full((360, 480, 3), (120, 140, 110), np.uint8)
    disc, box = np.zeros((360, 480), np.uint8), np.zeros((360, 480), np.uint8)
    cv2.circle(disc, (140, 150), 75, 1, -1)
    cv2.rectangle(box, (290, 180), (420, 300), 1, -1)
    image[disc == 1] = (220, 190, 60)
    image[box == 1] = (60, 40, 110)
    return np.clip(image + noise, 0, 255).astype(np.uint8), [disc.astype(bool), box.astype(bool)]


def iou(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_fits_in_the_wheel_in_half_precision() -> None:
    assert SHIPPED.stat().st_size <= LARGEST_BYTES
    with safe_open(str(SHIPPED), framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
        assert json.loads(file.metadata()["config"])["folded"] is True


def test_names_its_own_generator_settings() -> None:
    with safe_open(str(SHIPPED), framework="pt") as file:
        named = json.loads(file.metadata()["generator"])
    parameters = checkpoint_generator_parameters(SHIPPED)
    assert named
    assert {name: getattr(parameters, name) for name in named} == named


def test_all_weights_are_finite(nano: Sam) -> None:
    assert all(bool(parameter.isfinite().all()) for parameter in nano.parameters())
    assert not nano.training


@pytest.mark.parametrize("thing", [0, 1])
def test_point_finds_the_thing_under_it(nano: Sam, thing: int) -> None:
    image, masks = still_life()
    ys, xs = np.nonzero(masks[thing])
    predictor = SamPredictor(nano)
    predictor.set_image(image)
    found, scores, _ = predictor.predict(np.array([[xs.mean(), ys.mean()]]), np.array([1]))
    assert max(iou(mask, masks[thing]) for mask in found) > 0.85
    assert float(scores.max()) > 0.6


@pytest.mark.parametrize("thing", [0, 1])
def test_box_finds_the_thing_in_it(nano: Sam, thing: int) -> None:
    image, masks = still_life()
    x, y, width, height = cv2.boundingRect(masks[thing].astype(np.uint8))
    predictor = SamPredictor(nano)
    predictor.set_image(image)
    found, _, _ = predictor.predict(box=np.array([x, y, x + width, y + height]), multimask_output=False)
    assert iou(found[0], masks[thing]) > 0.8


def test_upstream_generator_finds_everything(nano: Sam) -> None:
    image, masks = still_life()
    parameters = checkpoint_generator_parameters(SHIPPED)
    records = SamAutomaticMaskGenerator(
        nano,
        points_per_side=8,
        pred_iou_thresh=parameters.pred_iou_thresh,
        stability_score_thresh=parameters.stability_score_thresh,
        stability_score_offset=parameters.stability_score_offset,
        box_nms_thresh=parameters.box_nms_thresh,
    ).generate(image)
    for mask in masks:
        assert max(iou(record["segmentation"], mask) for record in records) > 0.8


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 7), (3, 2), (2, 900)])
def test_images_of_a_few_pixels_are_segmented_with_its_settings(nano: Sam, size_hw: tuple[int, int]) -> None:
    parameters = dataclasses.asdict(checkpoint_generator_parameters(SHIPPED))
    generator = AutomaticMaskGenerator(nano, **parameters | {"points_per_side": 4})
    for record in generator.generate(np.full((*size_hw, 3), 90, np.uint8)):
        assert record["segmentation"].shape == size_hw
