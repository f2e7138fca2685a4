"""Everything in an image: grid prompts, filters, duplicates removed. The drop-in for upstream's generator."""

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from segment_anything.modeling import Sam

from rerun_loader_sam.engine.agreement import Agreed, Look, agreed_masks, looks_of
from rerun_loader_sam.engine.decoder import can_fold
from rerun_loader_sam.engine.edges import EdgeFinder
from rerun_loader_sam.engine.encoder import encode
from rerun_loader_sam.engine.geometry import Crop, crops, layer_point_grids, resized_crop
from rerun_loader_sam.engine.grid import Standing, grid_masks, sketched_grid_masks
from rerun_loader_sam.engine.parallel import Cores, reporting
from rerun_loader_sam.engine.prompting import EmbeddedCrop, Filters, token_px
from rerun_loader_sam.engine.suppression import clean_masks, suppress_duplicates, without_specks, without_twins
from rerun_loader_sam.engine.views import AS_IT_IS, View
from rerun_loader_sam.masks import Mask

Strategy = Literal["exhaustive", "adaptive"]
OutputMode = Literal["binary_mask", "uncompressed_rle", "coco_rle"]
Pixels = npt.NDArray[np.uint8]

# On a CPU, image tokens times prompts of a batch: enough prompts to share a reading of the token-side weights (and,
# for small models, the cost of starting operations), few enough to stop and to report soon.
_CPU_BATCH_TOKENS = 8 * 4096
_MAX_CPU_BATCH = 32

# Different masks may become one another's likeness when their borders move to the same edges.
TWIN_IOU = 0.85


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        stage: `encode` (the image goes through the encoder), `prompts` (masks come), `done` (the last one).
        done: Prompts answered or found unnecessary so far.
        total: All prompts of the run.
        masks: At `prompts`, what came up since the last report: provisional, a better one may still replace
            them. At `done`, all masks that stay, best first.
    """

    stage: Literal["encode", "prompts", "done"]
    done: int
    total: int
    masks: list[Mask]


class AutomaticMaskGenerator:
    """Masks of everything in an image; a drop-in for `segment_anything.SamAutomaticMaskGenerator`.

    Args:
        model: Any `Sam` of segment_anything, on any device.
        points_per_side: Prompts along a side of the grid; None if `point_grids` is given.
        points_per_batch: The most prompts that are decoded at once.
        pred_iou_thresh: Masks stay whose predicted IoU is above this, 0 to 1; 0 keeps all.
        stability_score_thresh: Masks stay whose stability score is at least this, 0 to 1; 0 keeps all.
        stability_score_offset: How far the logit threshold is moved for the stability score.
        box_nms_thresh: Of masks whose boxes overlap by more than this IoU the best one stays.
        crop_n_layers: Layers of crops (of 2**i x 2**i each) that are segmented beside the image itself.
        crop_nms_thresh: `box_nms_thresh` between masks of different crops; smaller crops win.
        crop_overlap_ratio: Overlap of the first layer's crops, as a share of the image's shorter side.
        crop_n_points_downscale_factor: The grid of layer i is thinner by this to the power of i.
        point_grids: Instead of `points_per_side`, a grid for each layer: (n, 2), x and y from 0 to 1.
        min_mask_region_area: Smaller holes are filled and smaller islands removed, in pixels; 0 does neither.
        output_mode: What `generate` gives as `segmentation`: `binary_mask` (bool, H x W), `uncompressed_rle`
            or `coco_rle` (needs pycocotools).
        strategy: `exhaustive` gives upstream's masks. `adaptive` tells most duplicates by one logit of sixteen: a
            mask that seems to fill the box of a better one is not made (with a model whose decoder is not Meta's,
            there are no sketches, and it is `exhaustive`).
        agreement_thresh: Masks stay whose agreement is above this, 0 to 1: the mean IoU, over the prompts in a mask,
            that the likest of their answers have with it (`rerun_loader_sam.engine.agreement`). The mask with more
            agreement stays then where masks are alike, by their pixels and not by their boxes; prompts of all crops
            that see a mask have a say. `strategy` and `crop_nms_thresh` say nothing, and the image goes through the
            encoder four times, each crop twice. 0, as upstream, goes by predicted IoU and boxes; so does a model
            whose decoder is not Meta's.
        edge_radius_px: Borders of the masks that stay move to edges of the image within about so many pixels of the
            model's input (`rerun_loader_sam.engine.edges`); of masks that are nearly the same then the first stays.
            0, as upstream, leaves them as the model has them.

    Raises:
        ValueError: An argument is none of the above.
    """

    def __init__(  # noqa: PLR0917  # positions are upstream's
        self,
        model: Sam,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[npt.NDArray[np.floating]] | None = None,
        min_mask_region_area: int = 0,
        output_mode: OutputMode = "binary_mask",
        strategy: Strategy = "exhaustive",
        agreement_thresh: float = 0.0,
        edge_radius_px: int = 0,
    ) -> None:
        if (points_per_side is None) == (point_grids is None):
            raise ValueError("give either points_per_side or point_grids")
        if output_mode not in ("binary_mask", "uncompressed_rle", "coco_rle"):
            raise ValueError(f"output_mode is {output_mode!r}: binary_mask, uncompressed_rle and coco_rle exist")
        if strategy not in ("exhaustive", "adaptive"):
            raise ValueError(f"strategy is {strategy!r}: exhaustive and adaptive exist")
        if output_mode == "coco_rle":
            # A missing one shows now, not after minutes of work.
            import pycocotools.mask  # type: ignore[import-untyped,unused-ignore]  # noqa: F401
        if points_per_side is not None:
            self.point_grids = layer_point_grids(points_per_side, crop_n_layers, crop_n_points_downscale_factor)
        else:
            assert point_grids is not None  # noqa: S101  # for the type checker; one of both is there, see above
            self.point_grids = [np.asarray(grid, np.float64) for grid in point_grids]
        self.model = model
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode
        self.strategy = strategy
        self.agreement_thresh = agreement_thresh
        self.edge_radius_px = edge_radius_px

    def generate(self, image: Pixels) -> list[dict[str, object]]:
        """All masks of an image, as upstream gives them.

        Args:
            image: RGB, uint8, (H, W, 3).

        Returns:
            A dict for each mask: `segmentation`, `area` (pixels), `bbox` (XYWH), `predicted_iou`,
            `point_coords` ([[x, y]]), `stability_score`, `crop_box` (XYWH).
        """
        masks: list[Mask] = []
        for progress in self.iterate(image):
            masks = progress.masks
        return [self._record(mask) for mask in masks]

    def iterate(self, image: Pixels) -> Iterator[Progress]:
        """The same as a sequence of reports; closing the iterator ends the work.

        Args:
            image: RGB, uint8, (H, W, 3).
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(f"the image is {image.dtype} of shape {image.shape}, not uint8 of (H, W, 3)")
        parts = crops(image.shape[:2], self.crop_n_layers, self.crop_overlap_ratio)
        total = sum(len(self.point_grids[part.layer]) for part in parts)
        if self._is_by_agreement:
            found = yield from self._agree(image, parts, total)
        else:
            found = yield from self._segment(image, parts, total)
        if self.min_mask_region_area > 0:
            found = clean_masks(found, self.min_mask_region_area, self._cleaned_nms_thresh)
        if self.edge_radius_px > 0:
            found = self._on_edges(image, parts, found)
        yield Progress("done", total, total, found)

    def _agree(self, image: Pixels, parts: list[Crop], total: int) -> Generator[Progress, None, list[Mask]]:
        """Report on all crops; returns the masks that prompts agree on, best first."""
        agreed = Agreed(self.agreement_thresh)
        done = 0
        resized = cache(partial(self._resized, image))
        with Cores(self.model.device) as cores:

            def embed(look: Look) -> Generator[None, None, EmbeddedCrop]:
                return self._embed(resized(look.crop), look.crop, image.shape[:2], cores, look.view)

            looks = looks_of(parts, self.point_grids, max(self.model.prompt_encoder.image_embedding_size))
            for answered, fresh in agreed_masks(looks, embed, self._batch_size, cores, agreed):
                done += answered
                yield Progress("prompts" if done else "encode", done, total, fresh)
        return agreed.kept

    def _segment(self, image: Pixels, parts: list[Crop], total: int) -> Generator[Progress, None, list[Mask]]:
        """Report on one crop after the other; returns their masks, those of smaller crops first."""
        done = 0
        found: list[Mask] = []
        for part in parts:
            with Cores(self.model.device) as cores:
                found += yield from self._segment_crop(image, part, cores, done, total)
            done += len(self.point_grids[part.layer])
        if len(parts) > 1:
            scores = [1 / (mask.crop_box_xywh[2] * mask.crop_box_xywh[3]) for mask in found]
            found = [found[i] for i in suppress_duplicates(found, scores, self.crop_nms_thresh)]
        return found

    def _segment_crop(
        self, image: Pixels, crop: Crop, cores: Cores, done: int, total: int
    ) -> Generator[Progress, None, list[Mask]]:
        """Report on one crop, from `done` prompts on; returns its masks, best first."""
        pieces = self._embed(self._resized(image, crop), crop, image.shape[:2], cores, AS_IT_IS)
        embedded = yield from reporting(pieces, Progress("encode", done, total, []))
        yield Progress("encode", done, total, [])
        points = crop.points_xy(self.point_grids[crop.layer])
        standing = Standing(self.box_nms_thresh)
        masks_of = sketched_grid_masks if self.strategy == "adaptive" and embedded.can_sketch else grid_masks
        for answered, fresh in masks_of(embedded, points, self._batch_size, cores, standing):
            done += answered
            yield Progress("prompts", done, total, fresh)
        return standing.kept

    @property
    def _batch_size(self) -> int:
        """Prompts that are decoded at once."""
        if self.model.device.type != "cpu":
            return self.points_per_batch
        tokens: int = math.prod(self.model.prompt_encoder.image_embedding_size)
        return min(self.points_per_batch, _MAX_CPU_BATCH, max(_CPU_BATCH_TOKENS // tokens, 1))

    def _embed(
        self, resized: torch.Tensor, crop: Crop, image_hw: tuple[int, int], cores: Cores, view: View
    ) -> Generator[None, None, EmbeddedCrop]:
        """Embed a crop; yields after each piece of work."""
        embedding = yield from encode(self.model, view.of(resized, token_px(self.model)), cores)
        filters = Filters(self.pred_iou_thresh, self.stability_score_thresh, self.stability_score_offset)
        return EmbeddedCrop(self.model, embedding, crop, image_hw, filters, view=view)

    @property
    def _is_by_agreement(self) -> bool:
        """Whether masks are chosen so; without sketches they cannot be."""
        return self.agreement_thresh > 0 and can_fold(self.model)

    @property
    def _cleaned_nms_thresh(self) -> float:
        """The box IoU above which masks go once they are cleaned."""
        if self._is_by_agreement:
            # a thing and what takes up most of it have about the same box: where prompts agree on both, both stay
            return 1.0
        return max(self.box_nms_thresh, self.crop_nms_thresh)

    def _on_edges(self, image: Pixels, parts: Sequence[Crop], masks: list[Mask]) -> list[Mask]:
        side, radius_px = self.model.image_encoder.img_size, self.edge_radius_px
        used = {mask.crop_box_xywh for mask in masks}
        finders = {part.box_xywh: EdgeFinder(image, part, side, radius_px) for part in parts if part.box_xywh in used}

        def moved(mask: Mask) -> Mask:
            mask = finders[mask.crop_box_xywh].moved(mask)
            return without_specks(mask, self.min_mask_region_area) if self.min_mask_region_area > 0 else mask

        with Cores(torch.device("cpu")) as cores:
            return without_twins(list(cores.in_order(moved, masks)), TWIN_IOU)

    def _resized(self, image: Pixels, crop: Crop) -> torch.Tensor:
        """The crop at the model's size, on the model's device: uint8, (1, 3, h, w)."""
        resized = resized_crop(image, crop, self.model.image_encoder.img_size)
        return torch.from_numpy(resized).to(self.model.device).permute(2, 0, 1)[None]

    def _record(self, mask: Mask) -> dict[str, object]:
        height, width = mask.size_hw
        rle: dict[str, object] = {"size": [height, width], "counts": mask.rle_counts.tolist()}
        segmentation: object = rle
        if self.output_mode == "binary_mask":
            segmentation = mask.decode()
        elif self.output_mode == "coco_rle":
            from pycocotools import mask as coco  # type: ignore[import-untyped,unused-ignore]

            compressed = coco.frPyObjects(rle, height, width)
            segmentation = {**compressed, "counts": compressed["counts"].decode("ascii")}
        return {
            "segmentation": segmentation,
            "area": mask.area,
            "bbox": [int(side) for side in mask.bbox_xywh],
            "predicted_iou": mask.predicted_iou,
            "point_coords": [list(mask.point_xy)],
            "stability_score": mask.stability_score,
            "crop_box": [int(side) for side in mask.crop_box_xywh],
        }
