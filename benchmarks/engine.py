"""Upstream's mask generator beside ours: seconds, memory, and whether the masks are the same.

    python benchmarks/engine.py                      # nano on photographs, then vit_b with random weights
    python benchmarks/engine.py --case vit_b --json
    python benchmarks/engine.py --case nano --image a.jpg b.jpg
    python benchmarks/engine.py --case vit_b --megapixels 12 --points-per-side 6 --runs exhaustive   # memory

Every measurement is a process of its own, one after another. `allocator` means that glibc keeps freed memory
(`rerun_loader_sam.allocator`). CPU seconds are those of all threads; on a machine that does other things too they say
more than the seconds that passed.
"""

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rerun_loader_sam.allocator import engine_env
from rerun_loader_sam.masks import decode_rle

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

RUNS = ("upstream", "upstream+allocator", "exhaustive", "exhaustive+allocator", "adaptive", "adaptive+allocator")
MATCHING_IOU = 0.9
VIT_B_SEED = 2


@dataclass(frozen=True)
class Measurement:
    """One run of one generator on one image; seconds, megabytes above the loaded model."""

    case: str
    image: str
    size: str
    run: str
    encode_s: float
    prompts_s: float
    total_s: float
    cpu_s: float
    peak_mb: float
    masks: int
    upstream_matched: float
    ours_matched: float


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=("nano", "vit_b", "both"), default="both")
    parser.add_argument("--checkpoint", default="nano", help="for the case nano: another checkpoint")
    parser.add_argument("--image", nargs="*", help="image files (default: photographs that scikit-image ships)")
    parser.add_argument("--megapixels", type=float, help="resize the images to this first")
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--runs", nargs="*", choices=RUNS, help="default: all; without adaptive for vit_b")
    parser.add_argument("--set", nargs="*", default=[], metavar="PARAMETER=NUMBER", help="more generator parameters")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(json.loads(arguments.measure))
        return
    images = arguments.image or default_photographs()
    extra = {name: float(value) for name, value in (pair.split("=") for pair in arguments.set)}
    results: list[Measurement] = []
    for case in ("nano", "vit_b") if arguments.case == "both" else (arguments.case,):
        parameters = {**generator_parameters(case, arguments.checkpoint), **extra}
        parameters["points_per_side"] = arguments.points_per_side
        # With no duplicates removed, nothing is left for the adaptive strategy to leave out.
        runs = arguments.runs or [run for run in RUNS if case == "nano" or not run.startswith("adaptive")]
        for image in images if case == "nano" else images[:1]:
            job = {"case": case, "checkpoint": arguments.checkpoint, "image": image, "parameters": parameters}
            results += compare({**job, "megapixels": arguments.megapixels}, runs)
            if not arguments.json:
                print_table(results[-len(runs) :])
    if arguments.json:
        print(json.dumps([asdict(result) for result in results], indent=1))
    else:
        print_summary(results)


def default_photographs() -> list[str]:
    """Photographs inside the scikit-image package."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
    return [str(folder / name) for name in names if (folder / name).is_file()]


def generator_parameters(case: str, checkpoint: str) -> dict[str, float]:
    """What the checkpoint asks for; all filters open for random weights, whose scores mean nothing."""
    if case == "vit_b":
        return {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    from rerun_loader_sam.models.registry import checkpoint_generator_parameters, known_entry
    from rerun_loader_sam.models.store import checkpoint_path

    path = Path(checkpoint)
    if not path.is_file():
        path = checkpoint_path(known_entry(checkpoint))
    found = checkpoint_generator_parameters(path)
    names = ("pred_iou_thresh", "stability_score_thresh", "stability_score_offset", "box_nms_thresh")
    return {name: float(getattr(found, name)) for name in names}


def compare(common: dict[str, object], runs: list[str]) -> list[Measurement]:
    """All runs of one image, each matched with the first upstream one; `common` is what `measure` needs to know."""
    case, name = str(common["case"]), Path(str(common["image"])).name
    results: list[Measurement] = []
    reference: list[np.ndarray] | None = None
    for run in runs:
        with tempfile.TemporaryDirectory() as folder:
            job = {**common, "run": run, "out": str(Path(folder) / "masks.pickle")}
            environment = engine_env(os.environ) if run.endswith("allocator") else dict(os.environ)
            print(f"{case} {name} {run} ...", file=sys.stderr, flush=True)
            command = [sys.executable, __file__, "--measure", json.dumps(job)]
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            size_hw, counts = pickle.loads(Path(str(job["out"])).read_bytes())  # noqa: S301  # our own child wrote it
        masks = [np.packbits(decode_rle(count, size_hw)) for count in counts]
        if run.startswith("upstream") and reference is None:
            reference = masks
        shares = (matched(reference, masks), matched(masks, reference)) if reference is not None else (np.nan, np.nan)
        size = f"{size_hw[1]}x{size_hw[0]}"
        results.append(Measurement(case, name, size, run, **found, masks=len(masks),
                                   upstream_matched=shares[0], ours_matched=shares[1]))  # fmt: skip
    return results


def matched(masks: list[np.ndarray], others: list[np.ndarray]) -> float:
    """Share of `masks` (packed bits) for which one of `others` has IoU >= 0.9; 1 if there are none."""
    if not masks:
        return 1.0
    areas = np.array([np.bitwise_count(other).sum(dtype=np.int64) for other in others])
    hits = 0
    for mask in masks:
        area = np.bitwise_count(mask).sum(dtype=np.int64)
        # Two masks cannot overlap by more than the smaller one.
        for i in np.flatnonzero(np.minimum(areas, area) >= MATCHING_IOU * np.maximum(areas, area)):
            union = np.bitwise_count(mask | others[i]).sum(dtype=np.int64)
            if union == 0 or np.bitwise_count(mask & others[i]).sum(dtype=np.int64) >= MATCHING_IOU * union:
                hits += 1
                break
    return hits / len(masks)


def measure(job: dict[str, object]) -> None:
    """One run, in the process of its own."""
    import resource

    import torch
    from PIL import Image
    from segment_anything import SamAutomaticMaskGenerator

    from rerun_loader_sam import AutomaticMaskGenerator, load_model

    sam = random_vit_b() if job["case"] == "vit_b" else load_model(str(job["checkpoint"]))
    picture = Image.open(str(job["image"])).convert("RGB")
    if job["megapixels"] is not None:
        scale = (float(str(job["megapixels"])) * 1e6 / (picture.width * picture.height)) ** 0.5
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    image = np.asarray(picture)
    parameters = dict(job["parameters"])  # type: ignore[call-overload]
    parameters["points_per_side"] = int(parameters["points_per_side"])
    with torch.no_grad():
        float(sum(parameter.sum() for parameter in sam.parameters()))  # brings mapped weights into memory
    run = str(job["run"]).removesuffix("+allocator")
    before_mb = resident_mb()
    cpu, start = time.process_time(), time.perf_counter()
    encode_s = 0.0
    if run == "upstream":
        upstream = SamAutomaticMaskGenerator(sam, output_mode="uncompressed_rle", **parameters)
        set_image = upstream.predictor.set_image

        def timed(*arguments: object) -> None:
            nonlocal encode_s
            began = time.perf_counter()
            set_image(*arguments)
            encode_s += time.perf_counter() - began

        upstream.predictor.set_image = timed
        counts = [record["segmentation"]["counts"] for record in upstream.generate(image)]
    else:
        ours = AutomaticMaskGenerator(sam, strategy=run, **parameters)  # type: ignore[arg-type]
        for progress in ours.iterate(image):
            if progress.stage == "encode":
                encode_s = time.perf_counter() - start
        counts = [mask.rle_counts for mask in progress.masks]
    total_s = time.perf_counter() - start
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before_mb
    cpu_s = time.process_time() - cpu
    Path(str(job["out"])).write_bytes(pickle.dumps((image.shape[:2], counts)))
    print(json.dumps({"encode_s": encode_s, "prompts_s": total_s - encode_s, "total_s": total_s,
                      "cpu_s": cpu_s, "peak_mb": peak_mb}))  # fmt: skip


def resident_mb() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def random_vit_b() -> "Sam":
    """Sam's vit_b with random weights, spread so that masks are blobs of all sizes and not noise around 0."""
    import torch
    from segment_anything.build_sam import build_sam_vit_b

    torch.manual_seed(VIT_B_SEED)
    sam = build_sam_vit_b()
    with torch.no_grad():
        for parameter in sam.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
        for head in sam.mask_decoder.output_hypernetworks_mlps:
            head.layers[-1].weight *= 100
    return sam.eval()


def print_table(results: list[Measurement]) -> None:
    """The runs of one image."""
    first = results[0]
    print(f"\n{first.case}, {first.image} ({first.size})")
    names = ("encode", "prompts", "total", "CPU", "peak", "masks", "matched", "back", "speed")
    print(
        " " * 22 + "".join(f"{name:>{width}}" for name, width in zip(names, (8, 9, 8, 8, 9, 7, 9, 7, 8), strict=True))
    )
    for result in results:
        faster = first.total_s / result.total_s
        print(
            f"{result.run:22}{result.encode_s:7.1f}s{result.prompts_s:8.1f}s{result.total_s:7.1f}s{result.cpu_s:7.1f}s"
            f"{result.peak_mb:6.0f} MB{result.masks:7}{result.upstream_matched:9.1%}{result.ours_matched:7.1%}"
            f"{faster:7.1f}x"
        )


def print_summary(results: list[Measurement]) -> None:
    """All images of a case together."""
    for case in dict.fromkeys(result.case for result in results):
        rows = [result for result in results if result.case == case]
        images = {result.image for result in rows}
        if len(images) < 2:
            continue
        print(f"\n{case}, all {len(images)} images")
        base = sum(result.total_s for result in rows if result.run == rows[0].run)
        n_upstream = {result.image: result.masks for result in rows if result.run.startswith("upstream")}
        for run in dict.fromkeys(result.run for result in rows):
            own = [result for result in rows if result.run == run]
            total = sum(result.total_s for result in own)
            hits = sum(result.upstream_matched * n_upstream.get(result.image, 0) for result in own)
            back = sum(result.ours_matched * result.masks for result in own)
            print(
                f"{run:22}{total:7.1f}s{base / total:7.1f}x  masks {sum(result.masks for result in own)}, "
                f"upstream's matched {hits / max(sum(n_upstream.values()), 1):.1%}, "
                f"ours matched {back / max(sum(result.masks for result in own), 1):.1%}"
            )


if __name__ == "__main__":
    main()
