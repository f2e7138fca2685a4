"""Reports while a run goes on, stopping it, and the adaptive strategy."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam
from small_sams import small_sam, smooth_image

from rerun_loader_sam import AutomaticMaskGenerator
from rerun_loader_sam.allocator import engine_env
from rerun_loader_sam.engine import adaptive
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
def test_closing_ends_the_work(sam: Sam, stage: str) -> None:
    threads, torch_threads = threading.active_count(), torch.get_num_threads()
    run = AutomaticMaskGenerator(sam, points_per_side=64, pred_iou_thresh=0.0).iterate(smooth_image(300, 300))
    report = next(report for report in run if report.stage == stage)
    assert report.done < report.total
    run.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads
    assert torch.get_num_threads() == torch_threads


def test_adaptive_makes_every_mask_that_no_other_is_like(sam: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    for constant in ("_ALIKE", "_ALIKE_TO_DUPLICATE"):
        monkeypatch.setattr(adaptive, constant, 1.01)
    image = smooth_image(120, 170)
    both = {**OPEN, "box_nms_thresh": 1.0}
    exhaustive = AutomaticMaskGenerator(sam, **both).generate(image)
    found = AutomaticMaskGenerator(sam, **both, strategy="adaptive").generate(image)
    assert len(exhaustive) > 50

    def areas(records: list[dict[str, object]]) -> list[tuple[object, ...]]:
        return sorted((record["area"], *record["bbox"]) for record in records)  # type: ignore[misc]

    assert areas(found) == areas(exhaustive)


def test_adaptive_keeps_the_best_of_duplicates(sam: Sam) -> None:
    image = smooth_image(120, 170)
    exhaustive = AutomaticMaskGenerator(sam, **OPEN).generate(image)
    best, found = exhaustive[0], AutomaticMaskGenerator(sam, **OPEN, strategy="adaptive").generate(image)[0]
    assert found["point_coords"] == best["point_coords"]
    np.testing.assert_array_equal(found["segmentation"], best["segmentation"])


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
