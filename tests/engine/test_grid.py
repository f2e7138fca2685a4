"""Duplicates that are not made: what is left is what making all of them would have given."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from small_sams import small_sam, smooth_image, upstream_masks
from test_parity import OPEN, assert_same

from rerun_loader_sam import AutomaticMaskGenerator
from rerun_loader_sam.engine.boxes import BoxBounds
from rerun_loader_sam.engine.grid import Standing, grid_masks
from rerun_loader_sam.engine.parallel import Cores
from rerun_loader_sam.engine.prompting import EmbeddedCrop, Unmade
from rerun_loader_sam.engine.suppression import suppress_duplicates
from rerun_loader_sam.masks import Mask, encode_rle

SIZE_HW = (120, 180)
INWARDS = np.array([1, 1, -1, -1])


def torchvisions_choice(masks: list[Mask], iou_threshold: float) -> list[int]:
    """What upstream calls."""
    xywh = torch.tensor([mask.bbox_xywh for mask in masks], dtype=torch.float32)
    boxes_xyxy = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1)
    scores = torch.tensor([mask.predicted_iou for mask in masks], dtype=torch.float32)
    return torchvision.ops.nms(boxes_xyxy, scores, iou_threshold).tolist()  # type: ignore[no-any-return]


class Rectangles:
    """Answers each prompt with a rectangle, whose box it knows to some pixels only until it makes it."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.made_count = self.orphan_count = 0
        self.masks = []
        for number in range(60):
            x0, y0, x1, y1 = np.array([5, 5, 100, 80]) + number % 4 * 9 + random.integers(0, 12, 4)
            pixels = np.zeros(SIZE_HW, bool)
            pixels[y0:y1, x0:x1] = True
            rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
            box = (columns[0], rows[0], columns[-1] - columns[0], rows[-1] - rows[0])
            score = float(random.random())
            area = int(pixels.sum())
            self.masks.append(
                Mask(SIZE_HW, encode_rle(pixels), box, area, score, 1.0, (number, 0.0), (0, 0, 180, 120))
            )

    def answer(self, points_xy, is_needless):  # type: ignore[no-untyped-def]
        return [self._one(self.masks[int(point[0])], is_needless) for point in points_xy]

    def realise(self, candidates, is_needless):  # type: ignore[no-untyped-def]
        self.orphan_count += len(candidates)
        return self.answer([candidate.point_xy for candidate in candidates], is_needless)

    def _one(self, mask, is_needless):  # type: ignore[no-untyped-def]
        box = BoxBounds.of_mask(mask).inner_xyxy
        bounds = BoxBounds(box + INWARDS, box - INWARDS)
        if is_needless(bounds, mask.predicted_iou):
            return Unmade(np.array(mask.point_xy), 0, mask.predicted_iou, bounds)
        self.made_count += 1
        return mask


@pytest.mark.parametrize("iou_threshold", [0.0, 0.3, 0.7, 0.95, 1.0])
def test_duplicates_are_torchvisions(iou_threshold: float) -> None:
    for seed in range(20):
        masks = Rectangles(seed).masks
        # Equal scores, and lines and points, which have no area.
        masks = [replace(mask, predicted_iou=round(mask.predicted_iou, 1)) for mask in masks]
        masks += [
            replace(mask, bbox_xywh=(*mask.bbox_xywh[:2], number % 3, 0.0)) for number, mask in enumerate(masks)
        ]
        scores = [mask.predicted_iou for mask in masks]
        assert suppress_duplicates(masks, scores, iou_threshold) == torchvisions_choice(masks, iou_threshold)
    assert suppress_duplicates([], [], iou_threshold) == []


@pytest.mark.parametrize("box_nms_thresh", [0.3, 0.5, 0.7])
def test_chains_of_duplicates(box_nms_thresh: float) -> None:
    made = orphans = total = 0
    for seed in range(40):
        rectangles = Rectangles(seed)
        points = np.stack([np.arange(60.0), np.zeros(60)], 1)
        standing = Standing(box_nms_thresh)
        with Cores(torch.device("cpu")) as cores:
            list(grid_masks(rectangles, points, 2, cores, standing))  # type: ignore[arg-type]
        everything = rectangles.masks
        expected = torchvisions_choice(everything, box_nms_thresh)
        assert standing.kept == [everything[i] for i in expected]
        made += rectangles.made_count
        orphans += rectangles.orphan_count
        total += len(everything)
    assert made < 0.6 * total
    assert orphans > 0  # or this shows nothing of those that a mask stood for which went itself


def test_most_masks_are_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[Mask] = []
    trace = EmbeddedCrop._trace

    def traced_too(self, *args):  # type: ignore[no-untyped-def]
        made = trace(self, *args)
        traced.extend(mask for mask in made if isinstance(mask, Mask))
        return made

    monkeypatch.setattr(EmbeddedCrop, "_trace", traced_too)
    both = {**OPEN, "points_per_side": 8, "points_per_batch": 2, "box_nms_thresh": 0.8}
    sam, image = small_sam(3), smooth_image(150, 200, 3)
    assert_same(AutomaticMaskGenerator(sam, **both).generate(image), upstream_masks(sam, image, both))
    assert 0 < len(traced) < 3 * 8 * 8 / 2
