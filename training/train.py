"""Train the shipped nano model on a CPU.

    python training/train.py --run DIR                                   # from nothing, through STAGES
    python training/train.py --run OTHER --start DIR/nano.safetensors    # goes on, through LATER_STAGES

A later run has the batch norms folded away, cutouts in its scenes (see `cutouts`) if they are installed, and, with
`--rendered DIR`, the scenes that `rendered.py` wrote there; with `--photographs DIR`, those of `photographs.py`.
Its matrices move by Muon, which PyTorch has since 2.9 (see `optimisers`).
It logs to DIR/log.jsonl, keeps DIR/last.pt to resume from (run the same command again), and writes the averaged
weights to DIR/nano.safetensors. Everything runs at the lowest priority: one single-threaded process for each core,
that meets the others once a step to average gradients (threads would meet at every operation, and wait for each
other whenever somebody else uses a core), and for each of them one that makes data.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ALLOCATOR_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Large buffers stay with the process instead of costing page faults at every step; waiting threads leave the cores
to others. Both are read before a process starts, so the script starts itself again with them."""

if __name__ == "__main__" and any(os.environ.get(name) != v for name, v in ALLOCATOR_ENVIRONMENT.items()):
    os.execve(  # noqa: S606  # no shell wanted
        sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR_ENVIRONMENT}
    )

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from segment_anything.modeling import Sam  # noqa: E402
from torch.multiprocessing.spawn import start_processes  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from cutouts import OPEN_CLIP_ART, cutout_files  # noqa: E402
from decode import decode_prompts  # noqa: E402
from losses import DenseHelp, prompt_losses  # noqa: E402
from optimisers import Group, Optimisers  # noqa: E402
from rerun_loader_sam.engine.nano import (  # noqa: E402
    NanoConfig,
    build_nano,
    fold_batch_norms,
    save_nano,
)
from samples import Batch, BatchStream, Stage  # noqa: E402
from scenes import Ingredients  # noqa: E402

STAGES = (
    Stage(size=128, batch=8, prompts=8, steps=1400, new_scenes=0.5),
    Stage(size=256, batch=4, prompts=10, steps=1800, new_scenes=0.5),
    Stage(size=384, batch=2, prompts=10, steps=400, new_scenes=0.5),
)
LATER_STAGES = (
    Stage(size=192, batch=8, prompts=10, steps=1200, new_scenes=1.0),
    Stage(size=384, batch=2, prompts=10, steps=1600, new_scenes=0.5),
)
"""Many small images teach what things look like at the cost of few large ones, which teach where they end."""
SHIPPED_IMG_SIZE = 384
"""Input side of the written checkpoint: the size of the last stage, where it is best (benchmarks/quality.py)."""
GENERATOR_DEFAULTS: dict[str, float | int] = {
    "points_per_side": 24,
    "pred_iou_thresh": 0.25,
    "stability_score_thresh": 0.5,
    "box_nms_thresh": 0.7,
    "crop_n_layers": 1,
    "crop_n_points_downscale_factor": 2,
    "min_mask_region_area": 150,
    "agreement_thresh": 0.6,
    "edge_radius_px": 12,
}
"""What the automatic mask generator should use with this model; chosen with benchmarks/quality.py."""

HELD_OUT_SEED = 90_001
HELD_OUT = Stage(size=256, batch=8, prompts=10, steps=4, new_scenes=8)
HALF_PRODUCTS = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
"""Whether the CPU multiplies bfloat16 by itself; where it does not, float32 is several times faster."""
SAVE_EVERY, LOG_EVERY, EVALUATE_EVERY = 200, 50, 400


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """Learning rates are peaks: they rise over `warmup` steps and fall over the last `decay` of all steps."""

    encoder_lr: float = 1.5e-3
    decoder_lr: float = 6e-4
    warmup: int = 200
    decay: float = 0.5
    weight_decay: float = 0.02
    box_share: float = 0.12
    average: float = 0.998
    predicted_iou_weight: float = 1.0
    spare_output_weight: float = 0.15
    with_muon: bool = False


LATER_HYPERPARAMETERS = Hyperparameters(
    encoder_lr=6e-4,
    decoder_lr=3e-4,
    warmup=100,
    decay=0.6,
    box_share=0.35,
    predicted_iou_weight=5.0,
    spare_output_weight=0.7,
    with_muon=True,
)
"""For a start from a checkpoint: many right masks are there then, and it is their predicted IoU that tells them.

The generator takes all outputs for masks: one for which there is no further right answer is a fragment of one.
"""


class Training:
    """Model, helpers, optimisers and average; `step` counts the finished steps.

    One of `processes` equal ones: their gradients are averaged at each step, so their weights stay the same.
    """

    def __init__(
        self,
        folder: Path,
        stages: list[Stage],
        hyper: Hyperparameters,
        seed: int,
        *,
        start: Path | None = None,
        compiled: bool = False,
    ) -> None:
        torch.manual_seed(seed)
        self.processes = dist.get_world_size() if dist.is_initialized() else 1
        self.folder, self.stages, self.hyper, self.seed = folder, stages, hyper, seed
        self.config = NanoConfig()
        self.sam: Sam = build_nano(self.config)
        if start is not None:
            self.config = replace(self.config, folded=True)
            self.sam = build_nano(self.config)
            self.sam.load_state_dict(load_file(start))
        self.sam.image_encoder.to(memory_format=torch.channels_last)
        self.encode, self.decode, self.losses = self.sam.image_encoder.forward, decode_prompts, prompt_losses
        if compiled:
            self.encode = torch.compile(self.encode, dynamic=False)
            self.decode = torch.compile(self.decode, dynamic=False)
            self.losses = torch.compile(self.losses, dynamic=False)
        self.help = DenseHelp(self.config.embed_dim)
        encoder = [*self.sam.image_encoder.parameters(), *self.help.parameters()]
        decoder = [*self.sam.prompt_encoder.parameters(), *self.sam.mask_decoder.parameters()]
        groups = Group(encoder, hyper.encoder_lr), Group(decoder, hyper.decoder_lr)
        self.optimisers = Optimisers(groups, hyper.weight_decay, with_muon=hyper.with_muon)
        self.average = {name: value.clone() for name, value in self.sam.state_dict().items()}
        self.step, self.seconds = 0, 0.0
        self.checkpoint = folder / "last.pt"
        if self.checkpoint.exists():
            self._resume()

    @property
    def total_steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)

    def _resume(self) -> None:
        saved = torch.load(self.checkpoint, weights_only=True)
        self.sam.load_state_dict(saved["model"])
        self.help.load_state_dict(saved["help"])
        self.optimisers.load_state_dict(saved["optimisers"])
        self.average = saved["average"]
        self.step, self.seconds = saved["step"], saved["seconds"]

    def save(self) -> None:
        """Write what a resumed run needs, and the averaged weights as a checkpoint. All processes have to call it."""
        optimisers = self.optimisers.state_dict()
        if self.processes > 1 and dist.get_rank() != 0:
            return
        state = {
            "model": self.sam.state_dict(),
            "help": self.help.state_dict(),
            "optimisers": optimisers,
            "average": self.average,
            "step": self.step,
            "seconds": self.seconds,
        }
        unfinished = self.checkpoint.with_suffix(".part")
        torch.save(state, unfinished)
        unfinished.replace(self.checkpoint)
        export = self.folder / "nano.part"
        config = replace(self.config, folded=True, img_size=SHIPPED_IMG_SIZE)
        save_nano(export, fold_batch_norms(self.average), config, GENERATOR_DEFAULTS)
        export.replace(self.folder / "nano.safetensors")

    def _average_gradients(self) -> None:
        gradients = self.optimisers.gradients()
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.processes
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def learn(self, batch: Batch) -> dict[str, float]:
        """One optimiser step; returns its figures."""
        hyper = self.hyper
        decay_steps = max(1, int(hyper.decay * self.total_steps))
        scale = min(1.0, (self.step + 1) / hyper.warmup, (self.total_steps - self.step) / decay_steps)
        self.optimisers.set_learning_rate(max(scale, 0.02))
        torch.manual_seed((self.seed << 24) + self.step)
        by_box = bool(torch.rand(()) < hyper.box_share)
        self.sam.train()
        if len(batch.images) == 1:
            # one image is no population: its statistics would be those of no other
            for module in self.sam.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eval()
        images = (batch.images - self.sam.pixel_mean) / self.sam.pixel_std
        self.sam.prompt_encoder.input_image_size = (images.shape[2], images.shape[3])
        # the fused kernel costs more than it saves on the few positions of small images
        with torch.autocast("cpu", torch.bfloat16, enabled=HALF_PRODUCTS), sdpa_kernel(SDPBackend.MATH):
            embeddings = self.encode(images)
        likeness, border = self.help(embeddings.float(), batch.regions, batch.wholes)
        points, boxes, boxed = (None, batch.boxes, batch.boxed.flatten()) if by_box else (batch.points, None, None)
        logits, predicted = self.decode(
            self.sam, embeddings.bfloat16() if HALF_PRODUCTS else embeddings, points, boxes
        )
        answers = batch.targets.flatten(0, 1), batch.valid.flatten(0, 1)
        result = self.losses(logits, predicted, *answers, boxed, spare_weight=hyper.spare_output_weight)
        loss = result.mask + hyper.predicted_iou_weight * result.predicted_iou + 0.5 * likeness + border
        self.optimisers.zero_grad()
        loss.backward()
        if self.processes > 1:
            self._average_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.sam.parameters(), 1.0)
        if torch.isfinite(norm):
            self.optimisers.step()
        self.step += 1
        keep = min(hyper.average, self.step / (self.step + 20))
        for name, value in self.sam.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - keep)
        return {
            "mask": result.mask.item(),
            "iou_loss": result.predicted_iou.item(),
            "best_iou": result.best_iou.item(),
            "calibration": result.calibration.item(),
            "likeness": likeness.item(),
            "border": border.item(),
        }

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Figures of the averaged weights on held-out scenes, for point prompts."""
        batches = BatchStream(self.folder, HELD_OUT_SEED, [HELD_OUT], 0, capacity=128)
        own = {name: value.clone() for name, value in self.sam.state_dict().items()}
        self.sam.load_state_dict(self.average)
        self.sam.eval()
        best, calibration = [], []
        for batch in batches:
            self.sam.prompt_encoder.input_image_size = (HELD_OUT.size, HELD_OUT.size)
            embeddings = self.sam.image_encoder((batch.images - self.sam.pixel_mean) / self.sam.pixel_std)
            logits, predicted = decode_prompts(self.sam, embeddings, batch.points, None)
            answers = batch.targets.flatten(0, 1), batch.valid.flatten(0, 1)
            result = prompt_losses(logits, predicted, *answers, None, spare_weight=self.hyper.spare_output_weight)
            best.append(result.best_iou.item())
            calibration.append(result.calibration.item())
        self.sam.load_state_dict(own)
        return {
            "held_out_best_iou": sum(best) / len(best),
            "held_out_calibration": sum(calibration) / len(calibration),
        }


def train_process(rank: int, processes: int, arguments: argparse.Namespace) -> None:
    """One of the equal processes; the first one also evaluates, logs and saves."""
    torch.set_num_threads(1)
    folder: Path = arguments.run
    hyper = LATER_HYPERPARAMETERS if arguments.start else Hyperparameters()
    scale = arguments.learning_rate
    hyper = replace(hyper, encoder_lr=hyper.encoder_lr * scale, decoder_lr=hyper.decoder_lr * scale)
    stages, seed = arguments.stages, arguments.seed
    if processes > 1:
        meeting_point = f"file://{folder.resolve()}/meeting_point_{os.getppid()}"
        dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=processes)
    training = Training(folder, stages, hyper, seed, start=arguments.start, compiled=arguments.compile)
    # A first run is to give the same figures wherever it is made.
    ingredients = Ingredients()
    if arguments.start:
        rendered = tuple(file for folder in arguments.rendered for file in sorted(folder.glob("*.npz")))
        cutouts = tuple(file for folder in arguments.cutouts for file in cutout_files(folder))
        photographs = tuple(sorted(arguments.photographs.glob("*.npz"))) if arguments.photographs else ()
        ingredients = Ingredients(cutouts, rendered, photographs)
    shares = [
        replace(stage, batch=stage.batch // processes, new_scenes=stage.new_scenes / processes)
        for stage in training.stages
    ]
    loader = torch.utils.data.DataLoader(
        BatchStream(folder, seed * 100 + rank, shares, training.step, ingredients=ingredients),
        batch_size=None,
        num_workers=1,
        prefetch_factor=6,
        multiprocessing_context="fork",
    )
    started = mark = time.monotonic()
    figures: list[dict[str, float]] = []
    for batch in loader:
        figures.append(training.learn(batch))
        now = time.monotonic()
        training.seconds += now - mark
        mark = now
        step = training.step
        # every process must leave at the same step: the first one's clock decides, at rare steps
        out_of_time = False
        if step % LOG_EVERY == 0:
            votes = torch.tensor(float(rank == 0 and now - started > arguments.minutes * 60))
            if processes > 1:
                dist.all_reduce(votes)
            out_of_time = votes.item() > 0
        if rank == 0 and step % LOG_EVERY == 0:
            means = {name: sum(f[name] for f in figures) / len(figures) for name in figures[0]}
            figures.clear()
            if step % EVALUATE_EVERY == 0:
                means |= training.evaluate()
            line = {"step": step, "size": batch.images.shape[-1], "minutes": training.seconds / 60}
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps({k: round(v, 4) for k, v in (line | means).items()}) + "\n")
        if step % SAVE_EVERY == 0 or out_of_time or step == training.total_steps:
            training.save()
        if out_of_time:
            break


def staged(stages: tuple[Stage, ...], steps: str) -> list[Stage]:
    """`stages` with other numbers of steps: `1400,1800,400`."""
    counts = [int(part) for part in steps.split(",")]
    if len(counts) != len(stages):
        sys.exit(f"train.py: expected {len(stages)} numbers of steps, got {steps!r}")
    return [replace(stage, steps=count) for stage, count in zip(stages, counts, strict=True)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder for log, checkpoints and scenes")
    parser.add_argument("--start", type=Path, help="a checkpoint to begin with")
    parser.add_argument("--steps", help="steps of each stage, with commas between them")
    parser.add_argument(
        "--cutouts", type=Path, nargs="+", default=[OPEN_CLIP_ART], help="folders of pictures of things, if there"
    )
    parser.add_argument("--rendered", type=Path, nargs="+", default=[], help="folders of rendered scenes")
    parser.add_argument("--photographs", type=Path, help="folder that photographs.py wrote")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop, resumably, after this time")
    parser.add_argument("--learning-rate", type=float, default=1.0, help="times the usual ones")
    parser.add_argument(
        "--compile", action="store_true", help="the model first: a minute or two, then a third less time a step"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1), help="1 or 2")
    arguments = parser.parse_args()
    arguments.run.mkdir(parents=True, exist_ok=True)
    os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    stages = LATER_STAGES if arguments.start else STAGES
    arguments.stages = staged(stages, arguments.steps) if arguments.steps else list(stages)
    settings = {"stages": [asdict(s) for s in arguments.stages], "seed": arguments.seed}
    settings |= {"learning_rate": arguments.learning_rate}
    settings |= {"processes": arguments.processes, "start": str(arguments.start)}
    (arguments.run / "settings.json").write_text(json.dumps(settings, indent=1))
    torch.set_num_threads(1)
    if arguments.processes == 1:
        train_process(0, 1, arguments)
        return
    start_processes(  # type: ignore[no-untyped-call]
        train_process, (arguments.processes, arguments), nprocs=arguments.processes, start_method="fork"
    )


if __name__ == "__main__":
    main()
