"""From point prompts to filtered masks, for one embedded crop of an image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from rerun_loader_sam.engine.boxes import BoxBounds
from rerun_loader_sam.engine.decoder import FoldedDecoder, FoldedPrediction, FoldedPrompts, can_fold
from rerun_loader_sam.engine.geometry import Crop, Floats, is_cut_off, model_input_hw
from rerun_loader_sam.engine.reference import ReferenceImage, ReferencePrediction
from rerun_loader_sam.engine.sketches import SketchGrid
from rerun_loader_sam.engine.tracing import Tracer
from rerun_loader_sam.engine.views import AS_IT_IS, View
from rerun_loader_sam.masks import Mask, box_xywh


@dataclass(frozen=True, slots=True)
class Filters:
    """What a mask has to pass; see `AutomaticMaskGenerator`."""

    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float


@dataclass(slots=True, eq=False)
class Unmade:
    """A mask that is not made, as long as a better one is there that has nearly its box. None equals another.

    Attributes:
        point_xy: Its prompt, in pixels of the crop: float64, (2,).
        mask: Which of the prompt's masks it is.
        predicted_iou: The model's own estimate of the mask's quality.
        box: What is known of its box.
        answer: What the decoder said, and of which prompt of its batch this is; None if it has to be asked again.
    """

    point_xy: Floats
    mask: int
    predicted_iou: float
    box: BoxBounds
    answer: tuple["Prediction", int] | None = None


@dataclass(frozen=True, slots=True)
class SketchedPrompt:
    """What a point is answered with.

    Attributes:
        cell_xy: Column and row of the logit of a sketch that lies nearest to it.
        sketches: One logit of sixteen of each mask, whether it is in the mask: bool, (masks, rows, columns).
        unmade: Those of the masks that may pass the filters; None of the others.
    """

    cell_xy: tuple[int, int]
    sketches: Tensor
    unmade: list[Unmade | None]


Prediction = FoldedPrediction | ReferencePrediction
IsNeedless = Callable[[BoxBounds, float], object]
Made = Mask | Unmade | None
"""A mask that passed the filter of predicted IoU; None if it passes not all filters."""


class EmbeddedCrop:
    """Answers point prompts on one crop of an image.

    Args:
        sam: The model.
        embedding: Of the crop, (1, C, h, w).
        crop: Where it lies.
        image_hw: The whole image's size.
        filters: What masks have to pass.
        folded: Whether the fast decoder may be used; the plain one serves models that it does not fit.
        view: What the embedding shows of the crop; another than `AS_IT_IS` needs the fast decoder.
    """

    def __init__(
        self,
        sam: Sam,
        embedding: Tensor,
        crop: Crop,
        image_hw: tuple[int, int],
        filters: Filters,
        *,
        folded: bool = True,
        view: View = AS_IT_IS,
    ) -> None:
        long_side: int = sam.image_encoder.img_size
        input_hw = model_input_hw(crop.size_hw, long_side)
        self._device: torch.device = embedding.device
        self._crop = crop
        self._image_hw = image_hw
        self._filters = filters
        self._scale = np.array([input_hw[1] / crop.size_hw[1], input_hw[0] / crop.size_hw[0]])
        self._token_px = token_px(sam)
        self._view, self._input_w = view, input_hw[1]
        self._decoder: FoldedPrompts | ReferenceImage
        if folded and can_fold(sam):
            self._decoder = FoldedDecoder(sam).with_image(embedding, input_hw, mirrored=view.mirrored)
        else:
            self._decoder = ReferenceImage(sam, embedding)
        self._threshold: float = sam.mask_threshold
        self._tracer = Tracer(
            crop,
            image_hw,
            long_side=long_side,
            logits_per_side=4 * max(embedding.shape[-2:]),
            threshold=self._threshold,
            offset=filters.stability_score_offset,
        )

    @property
    def can_sketch(self) -> bool:
        """Whether there are sketches; the plain decoder has none."""
        return isinstance(self._decoder, FoldedPrompts)

    @property
    def sketch_grid(self) -> SketchGrid:
        """Where the logits of sketches lie; see `can_sketch`."""
        assert isinstance(self._decoder, FoldedPrompts)  # noqa: S101  # for the type checker
        width, height = (self._token_px / self._scale).tolist()
        return SketchGrid(self._crop.box_xyxy, (width, height), self._decoder.sketch_hw)

    @torch.no_grad()
    def answer(self, points_xy: Floats, is_needless: IsNeedless | None) -> list[Made]:
        """The masks that pass the filter of predicted IoU, in the order of the points.

        Args:
            points_xy: (P, 2), in pixels of the crop.
            is_needless: Whether a mask with that box and predicted IoU need not be made; None if all are to be.
        """
        prediction, wanted = self._predict(points_xy)
        made: list[Made] = []
        for prompt, masks in enumerate(wanted):
            made += self._trace(prediction, prompt, masks, points_xy[prompt], is_needless)
        return made

    @torch.no_grad()
    def sketch(self, points_xy: Floats) -> list[Unmade]:
        """The masks that may pass the filters, as far as sketches tell, none of them made.

        Args:
            points_xy: (P, 2), in pixels of the crop.
        """
        prediction, wanted = self._predict_sketches(points_xy)
        found: list[Unmade] = []
        for prompt, masks in enumerate(wanted):
            if not masks:
                continue
            for mask, logits in zip(masks, prediction.coarse_logits(prompt, masks).cpu(), strict=True):
                if unmade := self._unmade(points_xy[prompt], mask, prediction, prompt, logits):
                    unmade.answer = prediction, prompt
                    found.append(unmade)
        return found

    @torch.no_grad()
    def sketch_all(self, points_xy: Floats) -> list[SketchedPrompt]:
        """Everything that points are answered with, as sketches.

        Args:
            points_xy: (P, 2), in pixels of the crop.
        """
        prediction, wanted = self._predict_sketches(points_xy)
        every_mask = list(range(prediction.predicted_iou.shape[1]))
        found: list[SketchedPrompt] = []
        cells_xy = points_xy * self._scale / self._token_px
        for prompt, masks in enumerate(wanted):
            logits = prediction.coarse_logits(prompt, every_mask).cpu()
            unmade = [
                self._unmade(points_xy[prompt], mask, prediction, prompt, logits[mask]) if mask in masks else None
                for mask in every_mask
            ]
            last_xy = np.array(logits.shape[:0:-1]) - 1
            x, y = np.minimum(cells_xy[prompt].astype(int), last_xy).tolist()
            found.append(SketchedPrompt((x, y), logits > self._threshold, unmade))
        return found

    def _predict_sketches(self, points_xy: Floats) -> tuple[FoldedPrediction, list[list[int]]]:
        """As `_predict`, of a decoder that can sketch; see `can_sketch`."""
        prediction, wanted = self._predict(points_xy)
        assert isinstance(prediction, FoldedPrediction)  # noqa: S101  # for the type checker
        return prediction, wanted

    def _unmade(
        self, point_xy: Floats, mask: int, prediction: FoldedPrediction, prompt: int, logits: Tensor
    ) -> Unmade | None:
        """A mask that passes the filter of predicted IoU, if it may pass the others as far as its sketch tells."""
        if not self._tracer.may_be_stable(logits, self._filters.stability_score_thresh):
            return None
        box = self._tracer.sketched_box(logits)
        if box.is_cut_off(self._crop, self._image_hw):
            return None
        return Unmade(point_xy, mask, float(prediction.predicted_iou[prompt, mask]), box)

    @torch.no_grad()
    def realise(self, unmade: Sequence[Unmade], is_needless: IsNeedless | None) -> list[Made]:
        """Make masks that were not made until now, if they are needed, sorted by `prompt_of`; see `answer`."""
        by_prompt = [list(masks) for _, masks in groupby(sorted(unmade, key=prompt_of), key=prompt_of)]
        asked_again = [masks for masks in by_prompt if masks[0].answer is None]
        if asked_again:
            prediction, _ = self._predict(np.stack([masks[0].point_xy for masks in asked_again]))
            for prompt, masks in enumerate(asked_again):
                masks[0].answer = prediction, prompt
        made: list[Made] = []
        for masks in by_prompt:
            assert masks[0].answer  # noqa: S101  # for the type checker: it was given or asked for
            prediction, prompt = masks[0].answer
            made += self._trace(prediction, prompt, [one.mask for one in masks], masks[0].point_xy, is_needless)
        return made

    def _predict(self, points_xy: Floats) -> tuple[Prediction, list[list[int]]]:
        """What the decoder says of points, and which masks of each pass the filter of predicted IoU."""
        prediction = self._decoder.predict(self._as_input(points_xy))
        return prediction, [self._passing(row) for row in prediction.predicted_iou.tolist()]

    def _as_input(self, points_xy: Floats) -> Tensor:
        seen_xy = self._view.points(points_xy * self._scale, self._input_w, self._token_px)
        return torch.from_numpy(seen_xy.astype(np.float32)).to(self._device)

    def _passing(self, scores: list[float]) -> list[int]:
        """Which of a prompt's masks pass the filter of predicted IoU."""
        least = self._filters.pred_iou_thresh
        return [i for i, score in enumerate(scores) if least <= 0 or score > least]

    def _trace(
        self,
        prediction: Prediction,
        prompt: int,
        masks: list[int],
        point_xy: Floats,
        is_needless: IsNeedless | None,
    ) -> list[Made]:
        if not masks:
            return []
        x0, y0, _, _ = self._crop.box_xyxy
        x, y = point_xy.tolist()
        found: list[Made] = []
        for mask, logits in zip(masks, prediction.low_res_logits(prompt, masks).cpu(), strict=True):
            predicted_iou = float(prediction.predicted_iou[prompt, mask])
            box = self._tracer.box_bounds(logits) if is_needless else None
            if box and box.is_cut_off(self._crop, self._image_hw):
                found.append(None)
                continue
            if is_needless and box and is_needless(box, predicted_iou):
                found.append(Unmade(point_xy, mask, predicted_iou, box))
                continue
            stability, outline = self._tracer.trace(logits, self._filters.stability_score_thresh)
            if outline is None or is_cut_off(outline.box_xyxy, self._crop, self._image_hw):
                found.append(None)
                continue
            found.append(
                Mask(
                    size_hw=self._image_hw,
                    rle_counts=outline.rle_counts,
                    bbox_xywh=box_xywh(outline.box_xyxy),
                    area=outline.area,
                    predicted_iou=predicted_iou,
                    stability_score=stability,
                    point_xy=(x + x0, y + y0),
                    crop_box_xywh=self._crop.box_xywh,
                )
            )
        return found


def token_px(sam: Sam) -> int:
    """Pixels of the model's input along a side of an image token."""
    side_px: int = sam.image_encoder.img_size // sam.prompt_encoder.image_embedding_size[0]
    return side_px


def prompt_of(unmade: Unmade) -> tuple[float, float]:
    """Its point, to sort by."""
    x, y = unmade.point_xy.tolist()
    return x, y
