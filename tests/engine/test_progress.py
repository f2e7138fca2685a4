"""Reports while a run goes on, stopping it, and the adaptive strategy."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam
from small_sams import small_sam, smooth_image, upstream_masks

from rerun_loader_sam import AutomaticMaskGenerator
from rerun_loader_sam.allocator import engine_env
from rerun_loader_sam.engine.boxes import BoxBounds
from rerun_loader_sam.engine.generator import Strategy
from rerun_loader_sam.engine.geometry import is_cut_off
from rerun_loader_sam.engine.tracing import Outline, Tracer
from rerun_loader_sam.masks import Mask

OPEN = {"points_per_side": 6, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}


@pytest.fixture(scope="module")
def sam() -> Sam:
    return small_sam()


def key(mask: Mask) -> tuple[object, ...]:
    return mask.point_xy, round(mask.predicted_iou, 5), mask.area, mask.crop_box_xywh


@pytest.mark.parametrize("strategy", ["exhaustive", "adaptive"])
@pytest.mark.parametrize("layers", [0, 1])
def test_reports(sam: Sam, strategy: str, layers: int) -> None:
    generator = AutomaticMaskGenerator(sam, **OPEN, crop_n_layers=layers, strategy=strategy)
    image = smooth_image(120, 170)
    reports = list(generator.iterate(image))
    assert reports[0].stage == "encode"
    assert [report.stage for report in reports].count("done") == 1
    last = reports[-1]
    assert last.stage == "done"
    assert last.done == last.total == 36 * (1 + 4 * layers)
    counts = [report.done for report in reports]
    assert counts == sorted(counts)
    seen = {key(mask) for report in reports[:-1] for mask in report.masks}
    assert seen
    if layers == 0:
        assert {key(mask) for mask in last.masks} <= seen
    assert len(generator.generate(image)) == len(last.masks)


@pytest.mark.parametrize("stage", ["encode", "prompts"])
@pytest.mark.parametrize("strategy", ["exhaustive", "adaptive"])
def test_closing_ends_the_work(sam: Sam, stage: str, strategy: str) -> None:
    threads, torch_threads = threading.active_count(), torch.get_num_threads()
    generator = AutomaticMaskGenerator(sam, points_per_side=64, pred_iou_thresh=0.0, strategy=strategy)
    run = generator.iterate(smooth_image(300, 300))
    report = next(report for report in run if report.stage == stage)
    assert report.done < report.total
    run.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads
    assert torch.get_num_threads() == torch_threads


ADAPTIVE_CASES = [
    ((120, 170), {}),
    ((1, 1), {}),
    ((3, 200), {}),
    ((37, 211), {"points_per_batch": 1}),
    ((301, 457), {"points_per_batch": 5}),
    ((203, 270), {"crop_n_layers": 1}),
    ((203, 270), {"min_mask_region_area": 150}),
    ((203, 270), {"pred_iou_thresh": 0.8, "stability_score_thresh": 0.1}),
    ((203, 270), {"box_nms_thresh": 0.4, "points_per_batch": 2}),
]


@pytest.mark.parametrize(("size", "parameters"), ADAPTIVE_CASES, ids=str)
@pytest.mark.parametrize("box_nms_thresh", [0.9, 1.0])
def test_adaptive_gives_upstreams_masks(
    sam: Sam, size: tuple[int, int], parameters: dict[str, float], box_nms_thresh: float
) -> None:
    image, both = smooth_image(*size), {**OPEN, "box_nms_thresh": box_nms_thresh, **parameters}
    upstream = upstream_masks(sam, image, both)
    found = AutomaticMaskGenerator(sam, **both, strategy="adaptive").generate(image)
    assert upstream
    assert_matched(upstream, found, least=1)
    assert_matched(found, upstream, least=1)


@pytest.mark.parametrize("seed", range(4))
def test_adaptive_without_duplicates(seed: int) -> None:
    sam, image = small_sam(seed), smooth_image(150, 220, seed)
    exhaustive = AutomaticMaskGenerator(sam, **OPEN).generate(image)
    found = AutomaticMaskGenerator(sam, **OPEN, strategy="adaptive").generate(image)
    assert_matched(exhaustive, found, least=0.9)
    best = exhaustive[0]
    assert found[0]["point_coords"] == best["point_coords"]
    np.testing.assert_array_equal(found[0]["segmentation"], best["segmentation"])


@pytest.mark.parametrize("seed", [0, 2])
def test_adaptive_judges_stability_by_sketches(seed: int) -> None:
    sam, image = small_sam(seed, size=512), smooth_image(203, 270, seed=3)
    both = {**OPEN, "stability_score_thresh": 0.3, "box_nms_thresh": 0.7}
    upstream = upstream_masks(sam, image, both)
    assert upstream
    found = AutomaticMaskGenerator(sam, **both, strategy="adaptive").generate(image)
    assert_matched(upstream, found, least=1)
    assert_matched(found, upstream, least=1)


def test_adaptive_looks_closely_at_few_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    large, looked_at = small_sam(size=512), {"adaptive": 0, "exhaustive": 0}
    bounds = Tracer.box_bounds
    for strategy in looked_at:

        def counted(self: Tracer, logits: torch.Tensor, strategy: str = strategy) -> BoxBounds | None:
            looked_at[strategy] += 1
            return bounds(self, logits)

        monkeypatch.setattr(Tracer, "box_bounds", counted)
        both = {**OPEN, "points_per_side": 10, "points_per_batch": 2}
        AutomaticMaskGenerator(large, **both, strategy=strategy).generate(smooth_image(150, 220))
    assert looked_at["exhaustive"] == 300
    assert looked_at["adaptive"] < 200


@pytest.mark.parametrize("strategy", ["adaptive", "exhaustive"])
def test_few_masks_that_a_crop_cuts_off_are_made(strategy: Strategy, monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[bool] = []
    trace = Tracer.trace

    def traced_too(self: Tracer, logits: torch.Tensor, min_stability: float) -> tuple[float, Outline | None]:
        stability, outline = trace(self, logits, min_stability)
        traced.append(outline is not None and is_cut_off(outline.box_xyxy, self._crop, self._image_hw))
        return stability, outline

    monkeypatch.setattr(Tracer, "trace", traced_too)
    both = {**OPEN, "crop_n_layers": 1, "box_nms_thresh": 0.9}
    AutomaticMaskGenerator(small_sam(), **both, strategy=strategy).generate(smooth_image(400, 500))
    assert traced.count(True) < 0.1 * len(traced)


def test_adaptive_gives_the_same_every_time(sam: Sam) -> None:
    image, generator = smooth_image(150, 220), AutomaticMaskGenerator(sam, **OPEN, strategy="adaptive")
    first, again = ([key(mask) for mask in list(generator.iterate(image))[-1].masks] for _ in range(2))
    assert first == again


def test_adaptive_asks_all_of_a_model_that_has_no_sketches() -> None:
    sam, image = small_sam(4), smooth_image(90, 130)
    sam.mask_decoder.output_upscaling.append(torch.nn.Tanh())
    exhaustive = AutomaticMaskGenerator(sam, **OPEN).generate(image)
    assert_matched(exhaustive, AutomaticMaskGenerator(sam, **OPEN, strategy="adaptive").generate(image), least=1)


def assert_matched(masks: list[dict[str, object]], others: list[dict[str, object]], least: float) -> None:
    """That of `masks` at least a share has one of IoU >= 0.9 among `others`."""
    stack = np.stack([np.asarray(other["segmentation"]) for other in others])
    hits = 0
    for mask in masks:
        pixels = np.asarray(mask["segmentation"])
        shared, either = (stack & pixels).sum((1, 2)), (stack | pixels).sum((1, 2))
        hits += bool(np.any(shared >= 0.9 * either))
    assert hits >= least * len(masks), f"{hits} of {len(masks)}"


MEASURE = """
import resource, sys, torch
from small_sams import small_sam, smooth_image
from rerun_loader_sam import AutomaticMaskGenerator
sam, image = small_sam(), smooth_image(3000, 4000)
generator = AutomaticMaskGenerator(sam, points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.0)
list(generator.iterate(smooth_image(100, 100)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
*_, last = generator.iterate(image)
assert last.masks
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
def test_a_large_photo_needs_little_memory() -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        env=engine_env({**os.environ, "PYTHONPATH": paths}),
        capture_output=True,
        text=True,
        check=True,
    )
    # One mask of 12 megapixels as float32 is 46 MB; upstream has 48 of them at once.
    assert int(done.stdout) < 150


def test_what_a_person_set_for_the_allocator_stays() -> None:
    environment = engine_env({"MALLOC_TOP_PAD_": "7", "HOME": "/home/a"})
    assert environment["MALLOC_TOP_PAD_"] == "7"
    assert environment["HOME"] == "/home/a"
    assert int(environment["MALLOC_MMAP_THRESHOLD_"]) >= 2**20
