"""How good checkpoints are: `python benchmarks/quality.py nano.safetensors other.safetensors [--pictures DIR]`.

On synthetic scenes that no training saw (fixed seed): the best of three masks for a point prompt, average recall
and precision of automatic masks, and how far predicted IoU is from real IoU. On photographs that no training saw:
how well the automatic masks fit the outlines that were drawn by hand around their main things (photographs.json),
and pictures to look at. The settings of nano were chosen with some of them (`photograph_...`), without the others
(`unseen_...`). And on those of the training's outlined photographs that were held out of it (`outlined_...`).
With `--opencv-doc DIR`, also on 24 images of OpenCV's examples (`opencv_...`; Debian: `apt install opencv-doc`, and
DIR is /usr/share/doc/opencv-doc/examples). Prints a table, or JSON with `--json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

from rerun_loader_sam.engine.checkpoint import load_model
from rerun_loader_sam.engine.generator import AutomaticMaskGenerator
from rerun_loader_sam.models.registry import GeneratorParameters, checkpoint_generator_parameters

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "training"))

from photographs import index, outlined  # noqa: E402
from samples import ancestry, right_answers  # noqa: E402
from scene_files import Scene  # noqa: E402
from scenes import make_scene  # noqa: E402

SEED = 77_003
"""Of the scenes; the training uses other seeds."""
POINTS_PER_SCENE = 16
SMALLEST_PX = 256
"""A thousandth of a scene; smaller regions are not asked for."""
OUTLINES = Path(__file__).parent / "photographs.json"
"""Of the main things in photographs: polygons [x, y] and ellipses [x, y, x radius, y radius], `without` polygons."""
OPENCV_OUTLINES = Path(__file__).parent / "opencv_photographs.json"
"""The same for images of OpenCV's examples."""
WELL_FOUND_IOU = 0.75
SETTINGS = ("pred_iou_thresh", "stability_score_thresh", "agreement_thresh", "edge_radius_px")
IOU_THRESHOLDS = np.arange(0.5, 0.96, 0.05)
HELD_OUT_PHOTOGRAPHS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "motorcycle_left.png",
    "rocket.jpg",
)
"""Of scikit-image's; none of them is in training/textures.py."""
UNSEEN_PHOTOGRAPHS = Path(__file__).parent / "photographs"
"""A folder of others, that no training saw either."""
OUTLINED_PHOTOGRAPHS = UNSEEN_PHOTOGRAPHS / "outlined"
"""Those in training/outlines that are held out."""
INSIDE, FRAGMENT_IOU = 0.85, 0.5
"""A mask is a fragment of a thing if so much of it is inside, and it has less IoU with any thing or part."""

Masks = NDArray[np.bool_]
SegmentedPhotograph = tuple[str, NDArray[Any], list[dict[str, Any]]]
"""Name, RGB image, and its automatic masks."""


def point_prompts(rng: np.random.Generator, scene: Scene) -> list[tuple[int, int, list[NDArray[np.uint8]]]]:
    """Points (y, x) with their right answers: half anywhere, half one in a random region each."""
    table = ancestry(scene.parents)
    areas = np.bincount(scene.regions.ravel(), minlength=256)
    visible = np.nonzero(areas >= SMALLEST_PX)[0]
    prompts = []
    for number in range(POINTS_PER_SCENE):
        if number % 2:
            y, x = (int(v) for v in rng.integers(scene.regions.shape))
        else:
            ys, xs = np.nonzero(scene.regions == rng.choice(visible))
            pick = int(rng.integers(len(ys)))
            y, x = int(ys[pick]), int(xs[pick])
        prompts.append((y, x, right_answers(scene.regions, scene.parents, table, y, x)))
    return prompts


def regions_to_find(scene: Scene) -> Masks:
    """(N, H, W): every region alone and with its parts, without repetitions and specks."""
    table = ancestry(scene.parents)
    found: list[NDArray[np.bool_]] = []
    for region in np.unique(scene.regions):
        found.append(scene.regions == region)
        whole = table[:, region][scene.regions].astype(bool)
        if np.count_nonzero(whole) * 0.9 > np.count_nonzero(found[-1]):
            found.append(whole)
        root = region
        while scene.parents[root] != root:
            root = scene.parents[root]
        found.append(table[:, root][scene.regions].astype(bool))
    unique = {mask.tobytes(): mask for mask in found if np.count_nonzero(mask) >= SMALLEST_PX}
    return np.stack(list(unique.values()))


def pairwise_iou(a: Masks, b: Masks) -> NDArray[np.float32]:
    """(N, H, W) and (M, H, W) to (N, M)."""
    left, right = a.reshape(len(a), -1).astype(np.float32), b.reshape(len(b), -1).astype(np.float32)
    common = left @ right.T
    iou: NDArray[np.float32] = common / np.maximum(left.sum(1)[:, None] + right.sum(1)[None] - common, 1)
    return iou


@torch.no_grad()
def point_figures(sam: Sam, scenes: list[Scene]) -> dict[str, float]:
    """Best-of-three IoU, the IoU of the mask that the model itself ranks first, and the error of predicted IoU."""
    rng = np.random.default_rng(SEED)
    predictor = SamPredictor(sam)
    best, chosen, error = [], [], []
    for scene in scenes:
        prompts = point_prompts(rng, scene)
        predictor.set_image(scene.image)
        xy = np.array([[x, y] for y, x, _ in prompts], np.float32)
        coordinates = predictor.transform.apply_coords_torch(torch.from_numpy(xy), scene.regions.shape)
        masks, predicted, _ = predictor.predict_torch(coordinates[:, None], torch.ones(len(prompts), 1))
        for answers, three, scores in zip((p[2] for p in prompts), masks.numpy(), predicted.numpy(), strict=True):
            iou = pairwise_iou(three, np.stack(answers).astype(bool))
            best += list(iou.max(0))
            real = iou.max(1)
            chosen.append(real[scores.argmax()])
            error += list(np.abs(real - scores))
    return {
        "best_of_three_iou": float(np.mean(best)),
        "first_ranked_iou": float(np.mean(chosen)),
        "predicted_iou_error": float(np.mean(error)),
    }


def automatic_figures(sam: Sam, parameters: dict[str, Any], scenes: list[Scene]) -> dict[str, float]:
    """Average recall (IoU .5 to .95) over all regions, and the share of masks that have IoU .5 with one."""
    generator = AutomaticMaskGenerator(sam, **parameters)
    recalls, right, counts, seconds = [], [], [], []
    for scene in scenes:
        started = time.perf_counter()
        records = generator.generate(scene.image)
        seconds.append(time.perf_counter() - started)
        counts.append(len(records))
        wanted = regions_to_find(scene)
        if not records:
            recalls += [0.0] * len(wanted)
            continue
        iou = pairwise_iou(np.stack([np.asarray(record["segmentation"], bool) for record in records]), wanted)
        recalls += [float((value >= IOU_THRESHOLDS - 1e-6).mean()) for value in iou.max(0)]
        right += list(iou.max(1) >= 0.5)
    return {
        "average_recall": float(np.mean(recalls)),
        "precision_at_half": float(np.mean(right)) if right else 0.0,
        "masks_per_image": float(np.mean(counts)),
        "seconds_per_image": float(np.median(seconds)),
    }


def drawn(outline: dict[str, list[Any]], shape_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask (H, W) of a thing in `OUTLINES`: all its polygons and ellipses, without what is before it."""
    mask = np.zeros(shape_hw, np.uint8)
    for polygon in outline.get("polygons", []):
        cv2.fillPoly(mask, [np.array(polygon, np.int32)], 1)
    for x, y, x_radius, y_radius in outline.get("ellipses", []):
        cv2.ellipse(mask, ((x, y), (2 * x_radius, 2 * y_radius), 0), 1, -1)
    for polygon in outline.get("without", []):
        cv2.fillPoly(mask, [np.array(polygon, np.int32)], 0)
    return mask.astype(bool)


def photograph_figures(segmented: list[SegmentedPhotograph], kind: str) -> dict[str, float]:
    """Best IoU of an automatic mask with each outlined thing, and the share of things with `WELL_FOUND_IOU`.

    Both are means over photographs of the means over their things: 24 coins count as much as one cup and saucer. For
    `opencv`, how many fragments lie in each thing too; parts that nobody outlined count as such.
    """
    outlines = json.loads(OUTLINES.read_text()) | json.loads(OPENCV_OUTLINES.read_text())
    best, fragments = [], []
    for name, image, records in segmented:
        wanted = np.stack([drawn(outline, image.shape[:2]) for outline in outlines[name].values()])
        masks = _masks(image, records)
        iou = pairwise_iou(masks, wanted)
        best.append(iou.max(0))
        fragments.append(_fragments(masks, iou, wanted))
    figures = _found_figures(best, kind)
    return figures | {"opencv_fragments": float(np.mean(fragments))} if kind == "opencv" else figures


def _masks(image: NDArray[Any], records: list[dict[str, Any]]) -> Masks:
    """(N, H, W); an empty one if there are no records."""
    return np.stack([np.asarray(r["segmentation"], bool) for r in records] or [np.zeros(image.shape[:2], bool)])


def _found_figures(best: list[NDArray[np.float32]], kind: str) -> dict[str, float]:
    """Of the best IoU of each thing, one array for each photograph."""
    return {
        f"{kind}_iou": float(np.mean([iou.mean() for iou in best])),
        f"{kind}_well_found": float(np.mean([(iou >= WELL_FOUND_IOU).mean() for iou in best])),
    }


def _fragments(masks: Masks, iou: NDArray[np.float32], wholes: Masks) -> float:
    """How many masks lie in a whole, as a mean, that are none of the things with which they have `iou` (N, M)."""
    loose = [mask for mask, values in zip(masks, iou, strict=True) if mask.any() and values.max() < FRAGMENT_IOU]
    return float(np.mean([sum(whole[mask].mean() > INSIDE for mask in loose) for whole in wholes]))


def outlined_figures(segmented: list[SegmentedPhotograph]) -> dict[str, float]:
    """As `photograph_figures`, for the wholes in `OUTLINED_PHOTOGRAPHS`; and how many fragments lie in each whole."""
    best, fragments = [], []
    for title, image, records in segmented:
        name = Path(title).stem
        scene = outlined(name, image)
        table = ancestry(scene.parents)
        numbers = np.arange(len(index()[name]["things"]))
        things = np.stack([table[:, number][scene.regions] for number in numbers]).astype(bool)
        is_whole = scene.parents[numbers] == numbers
        masks = _masks(image, records)
        iou = pairwise_iou(masks, things)
        best.append(iou.max(0)[is_whole])
        fragments.append(_fragments(masks, iou, things[is_whole]))
    return _found_figures(best, "outlined") | {"outlined_fragments": float(np.mean(fragments))}


def overlay(image: NDArray[np.uint8], records: list[dict[str, Any]]) -> NDArray[np.uint8]:
    """Masks in colour over an image, the large ones first, with their borders."""
    rng = np.random.default_rng(3)
    shown = image.astype(np.float32) * 0.55
    lines = np.zeros(image.shape[:2], bool)
    for record in sorted(records, key=lambda r: -int(r["area"])):
        mask = np.asarray(record["segmentation"], bool)
        hsv = np.array([[[rng.integers(180), 200, 255]]], np.uint8)
        colour = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]
        shown[mask] = image[mask] * 0.45 + colour.astype(np.float32) * 0.55
        edge = mask ^ cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        lines = (lines & ~mask) | edge
    shown[lines] = 255
    return shown.astype(np.uint8)


def photographs(opencv_doc: Path | None = None) -> dict[str, list[tuple[str, NDArray[Any]]]]:
    """Name and RGB image of the photographs of each kind that figures are named after."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    found = {
        "photograph": [_read_photograph(folder / name) for name in HELD_OUT_PHOTOGRAPHS],
        "unseen": [_read_photograph(path) for path in sorted(UNSEEN_PHOTOGRAPHS.glob("*.jpg"))],
        "outlined": [
            _read_photograph(OUTLINED_PHOTOGRAPHS / f"{name}.webp") for name, k in index().items() if k["held_out"]
        ],
    }
    if opencv_doc:
        names = json.loads(OPENCV_OUTLINES.read_text())
        found["opencv"] = [(name, _read_photograph(opencv_doc / name)[1]) for name in names]
    return found


def _read_photograph(path: Path) -> tuple[str, NDArray[Any]]:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise FileNotFoundError(path)
    return path.name, np.ascontiguousarray(image[:, :, ::-1])


def write_pictures(folder: Path, name: str, segmented: list[SegmentedPhotograph]) -> None:
    """PHOTOGRAPH_NAME.png for each photograph: the image beside its automatic masks."""
    folder.mkdir(parents=True, exist_ok=True)
    for title, image, records in segmented:
        picture = np.concatenate([image, overlay(image, records)], 1)
        cv2.imwrite(str(folder / f"{Path(title).stem}_{name}.png"), picture[:, :, ::-1])


def load(path: Path) -> tuple[Sam, dict[str, Any], float]:
    """A checkpoint as a model, the generator settings that it names, and the milliseconds that loading takes."""
    loads_ms = []
    for _ in range(7):
        started = time.perf_counter()
        sam = load_model(path)
        loads_ms.append(1000 * (time.perf_counter() - started))
    return sam, dataclasses.asdict(checkpoint_generator_parameters(path)), float(np.median(loads_ms))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shipped = ROOT / "rerun-loader-sam/rerun_loader_sam/weights/nano.safetensors"
    parser.add_argument("checkpoints", type=Path, nargs="*", default=[shipped], help="default: the shipped one")
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--pictures", type=Path, help="folder for pictures of the photographs")
    parser.add_argument("--opencv-doc", type=Path, help="folder of OpenCV's examples")
    for name in SETTINGS:
        number = type(getattr(GeneratorParameters(), name))
        parser.add_argument(f"--{name.replace('_', '-')}", type=number, help="for all; default: the checkpoint's own")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    scenes = [make_scene(SEED, index) for index in range(arguments.scenes)]
    all_photographs = photographs(arguments.opencv_doc)
    results = []
    for path in arguments.checkpoints:
        sam, parameters, load_ms = load(path)
        parameters |= {name: value for name in SETTINGS if (value := getattr(arguments, name)) is not None}
        figures = {"load_ms": load_ms} | point_figures(sam, scenes) | automatic_figures(sam, parameters, scenes)
        generator = AutomaticMaskGenerator(sam, **parameters)
        for kind, images in all_photographs.items():
            segmented = [(title, image, generator.generate(image)) for title, image in images]
            figures |= outlined_figures(segmented) if kind == "outlined" else photograph_figures(segmented, kind)
            if arguments.pictures:
                write_pictures(arguments.pictures, path.stem, segmented)
        results.append({"checkpoint": path.name, "scenes": len(scenes), **figures})
    if arguments.json:
        print(json.dumps(results, indent=1))
        return
    width = max(len(name) for name in results[0])
    for name in results[0]:
        cells = [result[name] for result in results]
        print(f"{name:{width}}", *(f"{c:>24.3f}" if isinstance(c, float) else f"{c:>24}" for c in cells))


if __name__ == "__main__":
    main()
