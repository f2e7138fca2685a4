"""The training script and its parts: exact algebra, honest data, runs that can be resumed."""

import json
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from copies import TWINS, copy_thing, standings, things_apart
from cutouts import cutout_files, place_cutout
from decode import decode_prompts
from losses import pairwise_mask_cost
from reliefs import place_relief
from rerun_loader_sam.engine.checkpoint import load_model
from rerun_loader_sam.engine.nano import NanoConfig, build_nano, fold_batch_norms, save_nano
from rerun_loader_sam.models.registry import checkpoint_generator_parameters
from samples import CUT_BOXES, ancestry, make_sample, right_answers
from scene_files import Scene, whole_of_each, write_scene
from scenes import SCENE_SIZE, Ingredients, make_scene
from textures import PHOTO_TEXTURES
from train import SHIPPED_IMG_SIZE

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "rerun-loader-sam/rerun_loader_sam/weights/nano.safetensors"
SMALL = NanoConfig(img_size=64, widths=(8, 8, 16, 16))


def test_folding_changes_no_result(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sam = build_nano(SMALL)
    sam.image_encoder(torch.randn(4, 3, 64, 64))  # gives the batch norms statistics of their own
    for module in sam.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    sam.eval()
    folded = build_nano(NanoConfig(img_size=64, widths=(8, 8, 16, 16), folded=True)).eval()
    folded.load_state_dict(fold_batch_norms(sam.state_dict()))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(folded.image_encoder(image), sam.image_encoder(image), rtol=1e-4, atol=1e-5)


def test_configuration_and_settings_survive_the_file(tmp_path: Path) -> None:
    config = NanoConfig(img_size=96, embed_dim=64, widths=(8, 16, 16, 24), decoder_mlp_dim=128, folded=True)
    state = build_nano(config).state_dict()
    path = tmp_path / "any_name.safetensors"
    save_nano(path, state, config, {"points_per_side": 7, "pred_iou_thresh": 0.25})
    sam = load_model(path)
    assert sam.image_encoder.img_size == 96
    assert sam.prompt_encoder.image_embedding_size == (12, 12)
    assert sam.image_encoder(torch.zeros(1, 3, 96, 96)).shape == (1, 64, 12, 12)
    for name, value in sam.state_dict().items():
        torch.testing.assert_close(value, state[name].half().float())
    parameters = checkpoint_generator_parameters(path)
    assert (parameters.points_per_side, parameters.pred_iou_thresh) == (7, 0.25)


@pytest.mark.parametrize("boxes", [False, True])
def test_folded_decoder_equals_upstream(boxes: bool) -> None:
    torch.manual_seed(1)
    sam = build_nano(SMALL).eval()
    embeddings = torch.randn(2, 128, 8, 8)
    points = None if boxes else torch.rand(2, 3, 2) * 64
    corners = torch.rand(2, 3, 2) * 30
    xyxy = torch.cat([corners, corners + 30], 2) if boxes else None
    with torch.no_grad():
        logits, predicted = decode_prompts(sam, embeddings, points, xyxy)
        for image in range(2):
            sparse, dense = sam.prompt_encoder(
                None if points is None else (points[image][:, None], torch.ones(3, 1)),
                None if xyxy is None else xyxy[image],
                None,
            )
            expected, expected_iou = sam.mask_decoder.predict_masks(
                embeddings[image : image + 1], sam.prompt_encoder.get_dense_pe(), sparse, dense
            )
            own = slice(3 * image, 3 * image + 3)
            torch.testing.assert_close(logits[own], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(predicted[own], expected_iou, rtol=1e-4, atol=1e-5)


def test_mask_cost_equals_its_definition() -> None:
    torch.manual_seed(2)
    logits, targets = torch.randn(2, 4, 50) * 3, (torch.rand(2, 3, 50) > 0.5).float()
    cost, iou = pairwise_mask_cost(logits, targets)
    for n, k, t in np.ndindex(2, 4, 3):
        x, y = logits[n, k], targets[n, t]
        p = x.sigmoid()
        of_truth = torch.where(y > 0, p, 1 - p)
        dice = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
        torch.testing.assert_close(cost[n, k, t], 2 * -of_truth.log().mean() + dice, rtol=1e-4, atol=1e-5)
        found, wanted = x > 0, y > 0
        torch.testing.assert_close(iou[n, k, t], (found & wanted).sum() / (found | wanted).sum())


def test_scenes_are_the_same_every_time() -> None:
    first, again, other = make_scene(5, 1), make_scene(5, 1), make_scene(5, 2)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.regions, again.regions)
    assert (first.image != other.image).any()


@pytest.mark.parametrize("index", range(6))
def test_right_answers_are_nested_and_hold_their_point(index: int) -> None:
    scene = make_scene(6, index)
    table = ancestry(scene.parents)
    rng = np.random.default_rng(index)
    for _ in range(10):
        y, x = (int(v) for v in rng.integers(scene.regions.shape))
        answers = right_answers(scene.regions, scene.parents, table, y, x)
        assert all(answer[y, x] == 1 for answer in answers)
        for inner, outer in pairwise(answers):
            assert not (inner > outer).any()
            assert inner.sum() <= 0.9 * outer.sum()


def test_targets_are_those_of_the_points() -> None:
    sample = make_sample(np.random.default_rng(0), make_scene(6, 0), 128, 5)
    assert sample.image.shape == (3, 128, 128)
    assert sample.targets.shape == (5, 3, 64, 64)
    assert sample.targets.max() == 4
    assert sample.valid[:, 0].all()
    assert sample.regions.shape == sample.wholes.shape == (64, 64)
    for (x, y), levels in zip(sample.points.astype(int), sample.targets, strict=True):
        assert (levels[:, y // 2, x // 2] > 0).all()
    assert sample.boxes.shape == (5, 4)
    assert sample.valid[np.arange(5), sample.boxed].all()


def test_boxes_are_about_those_of_their_targets() -> None:
    off, levels = [], []
    for number in range(30):
        sample = make_sample(np.random.default_rng(number), make_scene(6, number), 128, 5)
        for box_xyxy, level, masks, right in zip(
            sample.boxes, sample.boxed, sample.targets, sample.valid, strict=True
        ):
            left, top, width, height = cv2.boundingRect(masks[level])
            sides = 2 * np.array([left, top, left + width, top + height])
            off.append(np.abs(box_xyxy - sides) / (2 * np.array([width, height, width, height])))
            levels.append((level, right.sum() - 1))
    # pixels of targets are two of the image's
    assert np.median(off) < 0.1
    assert np.mean(np.max(off, 1) > 0.25) == pytest.approx(CUT_BOXES / 2, abs=0.08)
    assert {level for level, largest in levels} == {0, 1, 2}
    assert np.mean([level == largest for level, largest in levels]) > 0.5


@pytest.fixture
def cutouts(tmp_path: Path) -> Path:
    """A folder with a picture of a red disc with a blue right half on nothing, and two that are no cutouts."""
    folder = tmp_path / "cutouts"
    (folder / "icons").mkdir(parents=True)
    picture = np.zeros((200, 240, 4), np.uint8)
    cv2.circle(picture, (120, 100), 80, (0, 0, 255, 255), -1)
    picture[:, 120:, :3][picture[:, 120:, 3] > 0] = (255, 0, 0)
    cv2.imwrite(str(folder / "disc.png"), picture)
    cv2.imwrite(str(folder / "icons" / "sign.png"), picture)
    cv2.imwrite(str(folder / "full.png"), picture[:, :, :3])
    return folder


def test_a_cutout_is_placed_with_its_outline_and_its_parts(cutouts: Path) -> None:
    assert [path.name for path in cutout_files(cutouts)] == ["disc.png", "full.png"]
    assert place_cutout(np.random.default_rng(0), cutouts / "full.png", 256, (128, 128), 50) is None
    n_parts = set()
    for seed in range(8):
        placed = place_cutout(np.random.default_rng(seed), cutouts / "disc.png", 256, (128, 128), 50)
        assert placed is not None
        inside = placed.patch.alpha > 0.5
        assert inside.sum() == pytest.approx(np.pi * 50**2, rel=0.05)
        y, x = (axis.mean() for axis in np.nonzero(inside))
        assert (placed.patch.y + y, placed.patch.x + x) == pytest.approx((128, 128), abs=2)
        assert placed.colours.shape == (*inside.shape, 3)
        assert placed.parts.shape == inside.shape
        n_parts.add(int(placed.parts.max()))
        for number in range(1, int(placed.parts.max()) + 1):
            assert (placed.parts == number)[inside].mean() == pytest.approx(0.5, abs=0.05)
    assert n_parts == {0, 2}


def test_a_relief_is_one_surface_with_edges_in_it_that_the_canvas_may_cut(cutouts: Path) -> None:
    assert place_relief(np.random.default_rng(0), cutouts / "full.png", 256, (128, 128), 50) is None
    assert place_relief(np.random.default_rng(0), cutouts / "disc.png", 256, (400, 128), 50) is None
    n_round = 0
    for seed in range(8):
        placed = place_relief(np.random.default_rng(seed), cutouts / "disc.png", 256, (128, 128), 50)
        assert placed is not None
        inside = placed.patch.alpha > 0.5
        assert np.pi * 50**2 * 0.9 < inside.sum() < 101**2 * 1.1
        n_round += inside.sum() == pytest.approx(np.pi * 50**2, rel=0.08)
        assert not placed.parts.any()
        assert placed.colours[inside].std(0).min() > 2
        cut = place_relief(np.random.default_rng(seed), cutouts / "disc.png", 256, (0, 128), 50)
        assert cut is not None
        assert cut.patch.x == 0
        assert (cut.patch.alpha > 0.5).sum() == pytest.approx(inside.sum() / 2, rel=0.1)
        assert cut.colours.shape[:2] == cut.patch.alpha.shape == cut.parts.shape
    assert 2 <= n_round < 8


def test_emoji_of_things_are_cutouts_whose_parts_end_at_edges_and_not_in_their_shading(tmp_path: Path) -> None:
    y, x = np.mgrid[:200, :200]
    picture = np.zeros((200, 200, 4), np.uint8)
    inside = np.hypot(x - 100, y - 100) < 90
    shade = (60 + 0.7 * y)[:, :, None]
    picture[inside] = np.concatenate(
        [np.where((x < 100)[:, :, None], (0, 0, 1), (1, 0, 0)) * shade, shade * 0 + 255], 2
    )[inside].astype(np.uint8)
    for name in ("1f344", "1f469-1f3fd-200d-1f680", "1f1e9-1f1ea", "0023-20e3", "1f550"):
        cv2.imwrite(str(tmp_path / f"{name}.webp"), picture, [cv2.IMWRITE_WEBP_QUALITY, 101])
    assert [path.name for path in cutout_files(tmp_path)] == ["1f344.webp"]
    placed = [place_cutout(np.random.default_rng(s), tmp_path / "1f344.webp", 256, (128, 128), 60) for s in range(8)]
    n_parts = {int(p.parts.max()) for p in placed if p is not None}
    assert n_parts == {0, 2}


def test_scenes_hold_cutouts_and_their_parts_belong_to_them(cutouts: Path) -> None:
    files = cutout_files(cutouts)
    with_parts = 0
    for index in range(12):
        scene, again = (make_scene(7, index, Ingredients(files)) for _ in range(2))
        np.testing.assert_array_equal(scene.image, again.image)
        np.testing.assert_array_equal(scene.regions, again.regions)
        whole_of = ancestry(scene.parents)
        with_parts += bool((whole_of.sum(1)[np.unique(scene.regions[scene.regions < 255])] > 1).any())
    assert with_parts > 3


def house_between_walls() -> Scene:
    """A house with a door and a window in it, and a wall that the border cuts; the window is a part of the door."""
    regions = np.zeros((SCENE_SIZE, SCENE_SIZE), np.uint8)
    regions[:, :40] = 1
    regions[150:300, 200:320] = 2
    regions[200:300, 230:270] = 3
    regions[210:240, 240:260] = 4
    image = np.stack([regions * 50] * 3, 2)
    parents = np.zeros(255, np.uint8)
    parents[:5] = 0, 1, 2, 2, 3
    return Scene(image, regions, parents)


def test_things_are_copied_with_their_parts_and_what_the_border_cuts_is_not() -> None:
    scene = house_between_walls()
    assert things_apart(scene) == [2]
    for seed in range(8):
        copied = copy_thing(np.random.default_rng(seed), scene, 2, (256.0, 256.0), 90.0 + 10 * seed)
        assert copied is not None
        assert copied.regions == [3, 4]
        inside = copied.patch.alpha > 0.5
        assert set(np.unique(copied.labels[inside])) == {2, 3, 4}
        for number, share in ((3, 4000 - 600), (4, 600)):
            assert (copied.labels == number)[inside].mean() == pytest.approx(share / 18000, rel=0.15)
        assert math.sqrt(np.count_nonzero(inside)) == pytest.approx(90 + 10 * seed, rel=0.05)
        y, x = (axis.mean() for axis in np.nonzero(inside))
        assert (copied.patch.y + y, copied.patch.x + x) == pytest.approx((256, 256), abs=2)
    assert copy_thing(np.random.default_rng(0), scene, 2, (-900.0, 256.0), 90.0) is None


def test_some_things_are_copied_a_few_times_so_that_the_copies_overlap() -> None:
    rng = np.random.default_rng(0)
    groups = [list(standings(rng, SCENE_SIZE)) for _ in range(400)]
    assert sum(len(group) > 1 for group in groups) / len(groups) == pytest.approx(TWINS, abs=0.07)
    for group in groups:
        extents_px = [extent_px for _, extent_px in group]
        assert max(extents_px) < 1.4 * min(extents_px)
    steps = [
        math.dist(one, other) / extent_px for group in groups for (one, extent_px), (other, _) in pairwise(group)
    ]
    assert 0.3 < np.median(steps) < 1


def test_rendered_scenes_hold_things_of_others_and_their_parts_belong_to_them(tmp_path: Path) -> None:
    write_scene(tmp_path / "1.npz", house_between_walls())
    n_more = 0
    for index in range(40):
        scene, again = (make_scene(3, index, Ingredients(rendered=(tmp_path / "1.npz",))) for _ in range(2))
        np.testing.assert_array_equal(scene.image, again.image)
        np.testing.assert_array_equal(scene.regions, again.regions)
        if scene.parents[:5].tolist() == [0, 1, 2, 2, 3] and scene.parents[5:9].tolist() == [5, 5, 6, 8]:
            n_more += 1
            wholes = whole_of_each(scene.parents)
            assert wholes[:8].tolist() == [0, 1, 2, 2, 2, 5, 5, 5]
            if (scene.regions == 7).any():
                assert (scene.regions == 6).any()
    assert n_more > 3


def test_photographs_for_looking_at_are_not_in_the_textures() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from quality import HELD_OUT_PHOTOGRAPHS

    assert not set(HELD_OUT_PHOTOGRAPHS) & set(PHOTO_TEXTURES)


@pytest.mark.slow
def test_training_runs_and_resumes(tmp_path: Path) -> None:
    def train(steps: str) -> dict[str, object]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "rerun-loader-sam")}
        command = [sys.executable, "training/train.py", "--run", str(tmp_path), "--steps", steps]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=250)
        saved: dict[str, object] = torch.load(tmp_path / "last.pt", weights_only=True)
        return saved

    first = train("2,0,0")
    assert first["step"] == 2
    second = train("3,1,0")
    assert second["step"] == 4
    assert float(str(second["seconds"])) > float(str(first["seconds"]))
    assert json.loads((tmp_path / "settings.json").read_text())["seed"] == 1
    sam = load_model(tmp_path / "nano.safetensors")
    assert sam.image_encoder.img_size == SHIPPED_IMG_SIZE


@pytest.mark.slow
def test_a_few_minutes_reach_the_first_figures_of_the_log(tmp_path: Path) -> None:
    logged = json.loads((ROOT / "training/first_minutes.jsonl").read_text().splitlines()[0])
    command = [sys.executable, "training/train.py", "--run", str(tmp_path), "--minutes", "0", "--processes", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "rerun-loader-sam")}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=280)
    reached = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert reached["step"] == logged["step"]
    for name in ("mask", "iou_loss", "best_iou", "likeness", "border"):
        assert reached[name] == pytest.approx(logged[name], rel=0.05), name


@pytest.mark.slow
def test_training_goes_on_from_a_checkpoint(tmp_path: Path, cutouts: Path) -> None:
    command = [sys.executable, "training/train.py", "--run", str(tmp_path / "run"), "--steps", "1,1"]
    command += ["--start", str(SHIPPED), "--cutouts", str(cutouts)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "rerun-loader-sam")}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=250)
    before, after = load_model(SHIPPED).state_dict(), load_model(tmp_path / "run" / "nano.safetensors").state_dict()
    name = "image_encoder.stage2.conv.weight"
    assert not torch.equal(after[name], before[name])
    torch.testing.assert_close(after[name], before[name], rtol=0.1, atol=0.01)
