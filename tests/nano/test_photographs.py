"""Outlined photographs as training scenes: what there is, and that nothing is asked where nobody outlined."""

import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from losses import DenseHelp
from photographs import GCOMPRIS, OUTLINES, index, mosaic, outlined, read_packaged, square_view, turned
from samples import make_sample
from scene_files import UNLABELLED, Scene, parents_table, whole_of_each, write_scene
from scenes import SCENE_SIZE, Ingredients, make_scene

HELD_OUT = Path(__file__).resolve().parents[2] / "benchmarks/photographs/outlined"
RED, GREEN, GREY = (200, 40, 40), (40, 190, 60), (120, 120, 120)


def test_every_outlined_photograph_may_be_used_and_its_outlines_fit_what_is_said_of_them() -> None:
    known = index()
    assert {path.stem for path in OUTLINES.glob("*.png")} == set(known)
    for name, photograph in known.items():
        assert photograph["licence"] in ("public domain", "CC0-1.0", "CC-BY-2.0", "CC-BY-3.0", "CC-BY-4.0"), name
        assert photograph["author"], name
        assert photograph["source"].startswith("http"), name
        parents = [thing["parent"] for thing in photograph["things"]]
        assert all(parent <= number for number, parent in enumerate(parents)), name
        regions = cv2.imread(str(OUTLINES / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
        assert regions is not None
        labels = set(np.unique(regions)) - {UNLABELLED}
        assert labels <= set(range(len(parents))), name
        assert (regions != UNLABELLED).mean() > 0.05, f"{name}: views with nothing to ask for are drawn again"


def test_the_held_out_photographs_are_beside_the_benchmark_in_the_size_of_their_outlines() -> None:
    held_out = {name for name, photograph in index().items() if photograph["held_out"]}
    assert {path.stem for path in HELD_OUT.glob("*.webp")} == held_out
    for name in held_out:
        image = cv2.imread(str(HELD_OUT / f"{name}.webp"))
        assert image is not None
        scene = outlined(name, np.asarray(image, np.uint8))
        assert scene.image.shape[:2] == scene.regions.shape == image.shape[:2]


@pytest.fixture
def photograph() -> Scene:
    """A red thing (region 0) with a green part (1) before something grey that nobody outlined, (300, 500)."""
    regions = np.full((300, 500), UNLABELLED, np.uint8)
    cv2.circle(regions, (250, 150), 100, 0, -1)
    cv2.circle(regions, (250, 150), 40, 1, -1)
    image = np.full((300, 500, 3), GREY, np.uint8)
    image[regions == 0], image[regions == 1] = RED, GREEN
    return Scene(image, regions, parents_table([0, 0]))


def test_a_square_view_cuts_and_squeezes_what_is_too_long_and_keeps_labels_on_their_pixels(photograph: Scene) -> None:
    view = square_view(np.random.default_rng(1), photograph, 256)
    assert view.image.shape == (256, 256, 3)
    for region, colour in ((0, RED), (1, GREEN), (UNLABELLED, GREY)):
        inside = cv2.erode((view.regions == region).astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
        assert inside.any()
        assert np.abs(view.image[inside] - np.array(colour, float)).max() < 3
    ys, xs = np.nonzero(view.regions != UNLABELLED)
    height, width = np.ptp(ys) + 1, np.ptp(xs) + 1
    assert height / width == pytest.approx((500 / 300) ** 0.5, rel=0.03)
    tall = Scene(photograph.image.swapaxes(0, 1), photograph.regions.T, photograph.parents)
    ys, xs = np.nonzero(square_view(np.random.default_rng(1), tall, 256).regions != UNLABELLED)
    assert (np.ptp(xs) + 1) / (np.ptp(ys) + 1) == pytest.approx((500 / 300) ** 0.5, rel=0.03)


def test_a_turned_photograph_keeps_labels_on_their_pixels_and_has_none_beyond_its_border(photograph: Scene) -> None:
    regions = np.where(photograph.regions == UNLABELLED, np.uint8(2), photograph.regions)
    labelled = Scene(photograph.image, regions, parents_table([0, 0, 2]))
    beyond = 0
    for seed in range(12):
        view = turned(np.random.default_rng(seed), labelled)
        assert view.image.shape == photograph.image.shape
        for region, colour in ((0, RED), (1, GREEN), (2, GREY)):
            # The view's own border may lie in what was blended with a neighbour.
            own = np.pad((view.regions == region).astype(np.uint8)[1:-1, 1:-1], 1)
            inside = cv2.erode(own, np.ones((7, 7), np.uint8)) > 0
            assert inside.any()
            assert np.abs(view.image[inside] - np.array(colour, float)).max() < 3
        assert 1 <= (view.regions == 1).sum() / (regions == 1).sum() < 2
        beyond += int((view.regions == UNLABELLED).any())
    assert 0 < beyond < 12, "some are magnified so much that no corner is seen"


def test_a_mosaic_keeps_each_photograph_in_its_quarter_and_its_things_apart(photograph: Scene) -> None:
    dark = Scene(photograph.image // 2, photograph.regions, photograph.parents)
    whole = mosaic(np.random.default_rng(2), [photograph, dark, photograph, dark], 200)
    assert set(np.unique(whole.regions)) == {*range(8), UNLABELLED}
    wholes = whole_of_each(whole.parents)
    for number, (y, x) in enumerate(((0, 0), (0, 100), (100, 0), (100, 100))):
        regions = whole.regions[y : y + 100, x : x + 100]
        assert set(np.unique(regions)) == {2 * number, 2 * number + 1, UNLABELLED}
        assert set(wholes[regions][regions != UNLABELLED]) == {2 * number}
        inside = cv2.erode((regions == 2 * number + 1).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        expected = np.array(GREEN) // (1 + number % 2)
        assert np.abs(whole.image[y : y + 100, x : x + 100][inside] - expected.astype(float)).max() < 3


def test_prompts_are_where_somebody_outlined_something(photograph: Scene, tmp_path: Path) -> None:
    write_scene(tmp_path / "one.npz", photograph)
    ingredients = Ingredients(photographs=(tmp_path / "one.npz",))
    seen = 0
    for number in range(40):
        scene = make_scene(3, number, ingredients)
        assert scene.image.shape == (SCENE_SIZE, SCENE_SIZE, 3)
        if not (scene.regions == UNLABELLED).any():
            continue
        seen += 1
        assert scene.parents[UNLABELLED] == UNLABELLED
        sample = make_sample(np.random.default_rng(number), scene, 128, 6)
        unlabelled = sample.regions == UNLABELLED
        assert sample.valid[:, 0].all()
        assert ((sample.wholes == UNLABELLED) == unlabelled).all()
        for (x, y), levels in zip(sample.points.astype(int), sample.targets, strict=True):
            assert (levels[:, y // 2, x // 2] > 0).all()
            # Nothing that is asked for reaches into what nobody outlined.
            assert not (levels[:, unlabelled] == 4).any()
    assert 4 <= seen <= 30


def test_nothing_is_learnt_inside_of_what_nobody_outlined() -> None:
    torch.manual_seed(0)
    help_ = DenseHelp(16)
    embeddings = torch.randn(1, 16, 16, 16, requires_grad=True)
    regions = torch.zeros(1, 64, 64, dtype=torch.uint8)
    regions[:, :, 16:] = 1
    regions[:, :, 32:] = UNLABELLED
    likeness, border = help_(embeddings, regions, regions)
    (likeness + border).backward()
    assert embeddings.grad is not None
    pull = embeddings.grad.abs().sum(1)[0]
    assert (pull[:, :8] > 0).all()
    assert (pull[:, 8] > 0).all(), "the border of a thing is known, whatever is behind it"
    assert (pull[:, 9:] == 0).all()


def test_a_picture_is_read_from_the_packages(tmp_path: Path) -> None:
    pytest.importorskip("PySide6.QtCore", reason="only the training from photographs needs it")
    image = np.zeros((8, 12, 3), np.uint8)
    image[:, 6:] = RED
    folder = tmp_path / "gcompris/src/activities/some/resource"
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "a.png"), image[:, :, ::-1])
    listed = '<RCC><qresource prefix="/"><file>gcompris/src/activities/some/resource/a.png</file></qresource></RCC>'
    (tmp_path / "some.qrc").write_text(listed)
    (tmp_path / GCOMPRIS).mkdir(parents=True)
    compiled = str(tmp_path / GCOMPRIS / "some.rcc")
    subprocess.run(["pyside6-rcc", "--binary", "some.qrc", "-o", compiled], cwd=tmp_path, check=True)
    np.testing.assert_array_equal(read_packaged(tmp_path, "some/resource/a.png"), image)
    with pytest.raises(FileNotFoundError, match="has no some/resource/b"):
        read_packaged(tmp_path, "some/resource/b.png")
    with pytest.raises(FileNotFoundError, match="see --root"):
        read_packaged(tmp_path, "other/resource/b.png")


def test_a_picture_is_read_from_where_its_package_put_it(tmp_path: Path) -> None:
    image = np.zeros((8, 12, 3), np.uint8)
    image[:, 6:] = RED
    (tmp_path / "usr/share/some").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "usr/share/some/a b.png"), image[:, :, ::-1])
    np.testing.assert_array_equal(read_packaged(tmp_path, "/usr/share/some/a b.png"), image)
    with pytest.raises(FileNotFoundError, match="see --root"):
        read_packaged(tmp_path, "/usr/share/some/b.png")
    (tmp_path / "usr/share/some/c.png").write_text("no picture")
    with pytest.raises(ValueError, match="not an image"):
        read_packaged(tmp_path, "/usr/share/some/c.png")
