"""From point prompts to filtered masks, for one embedded crop of an image."""

from dataclasses import dataclass

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from rerun_loader_sam.engine.decoder import FoldedDecoder, FoldedPrompts, can_fold
from rerun_loader_sam.engine.geometry import Crop, Floats, is_cut_off, model_input_hw
from rerun_loader_sam.engine.reference import ReferenceImage
from rerun_loader_sam.engine.tracing import Tracer
from rerun_loader_sam.masks import Mask


@dataclass(frozen=True, slots=True)
class Filters:
    """What a mask has to pass; see `AutomaticMaskGenerator`."""

    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float


class EmbeddedCrop:
    """Answers point prompts on one crop of an image.

    Args:
        sam: The model.
        embedding: Of the crop, (1, C, h, w).
        crop: Where it lies.
        image_hw: The whole image's size.
        filters: What masks have to pass.
        folded: Whether the fast decoder may be used; the plain one serves models that it does not fit.
    """

    def __init__(
        self,
        sam: Sam,
        embedding: Tensor,
        crop: Crop,
        image_hw: tuple[int, int],
        filters: Filters,
        folded: bool = True,
    ) -> None:
        long_side: int = sam.image_encoder.img_size
        input_hw = model_input_hw(crop.size_hw, long_side)
        self.device: torch.device = embedding.device
        self._crop = crop
        self._image_hw = image_hw
        self._filters = filters
        self._scale = np.array([input_hw[1] / crop.size_hw[1], input_hw[0] / crop.size_hw[0]])
        self._decoder: FoldedPrompts | ReferenceImage
        if folded and can_fold(sam):
            self._decoder = FoldedDecoder(sam).with_image(embedding, input_hw)
        else:
            self._decoder = ReferenceImage(sam, embedding)
        logits_per_side = 4 * max(embedding.shape[-2:])
        self._tracer = Tracer(
            crop, image_hw, long_side, logits_per_side, sam.mask_threshold, filters.stability_score_offset
        )

    @torch.no_grad()
    def answer(self, points_xy: Floats) -> list[Mask]:
        """Masks that pass the filters, in the order of the points: (P, 2), in pixels of the crop."""
        filters, crop = self._filters, self._crop
        points = torch.from_numpy((points_xy * self._scale).astype(np.float32)).to(self.device)
        prediction = self._decoder.predict(points)
        predicted_iou = prediction.predicted_iou.cpu()
        passing = (
            predicted_iou > filters.pred_iou_thresh
            if filters.pred_iou_thresh > 0
            else torch.ones_like(predicted_iou, dtype=torch.bool)
        )
        x0, y0, _, _ = crop.box_xyxy
        found: list[Mask] = []
        for prompt, row in enumerate(passing):
            wanted: list[int] = row.nonzero().flatten().tolist()
            if not wanted:
                continue
            for mask, logits in zip(wanted, prediction.low_res_logits(prompt, wanted).cpu(), strict=True):
                stability, outline = self._tracer.trace(logits, filters.stability_score_thresh)
                if outline is None or is_cut_off(outline.box_xyxy, crop, self._image_hw):
                    continue
                left, top, right, bottom = outline.box_xyxy
                x, y = points_xy[prompt].tolist()
                found.append(
                    Mask(
                        size_hw=self._image_hw,
                        rle_counts=outline.rle_counts,
                        bbox_xywh=(float(left), float(top), float(right - left), float(bottom - top)),
                        area=outline.area,
                        predicted_iou=float(predicted_iou[prompt, mask]),
                        stability_score=stability,
                        point_xy=(x + x0, y + y0),
                        crop_box_xywh=crop.box_xywh,
                    )
                )
        return found
