"""The decoder as Meta wrote it: the plain path that the fast one is tested against.

It also serves models whose decoder is not the one that `engine.decoder` has rearranged.
"""

from dataclasses import dataclass

import torch
from segment_anything.modeling import Sam


@dataclass(frozen=True, slots=True)
class ReferencePrediction:
    """What a batch of prompts gave: predicted IoU (P, masks) and logits (P, masks, h, w), both float32."""

    predicted_iou: torch.Tensor
    logits: torch.Tensor

    def low_res_logits(self, prompt: int, masks: list[int]) -> torch.Tensor:
        """Logits of chosen masks of one prompt, (len(masks), h, w)."""
        return self.logits[prompt, masks]


class ReferenceImage:
    """An embedded image that answers point prompts through `Sam`'s own modules."""

    def __init__(self, sam: Sam, embedding: torch.Tensor) -> None:
        self._sam = sam
        self._embedding = embedding

    def predict(self, points_xy: torch.Tensor) -> ReferencePrediction:
        """Three masks for each foreground point (P, 2), given in pixels of the model's input."""
        labels = torch.ones(len(points_xy), 1, dtype=torch.int, device=points_xy.device)
        sparse, dense = self._sam.prompt_encoder(points=(points_xy[:, None], labels), boxes=None, masks=None)
        logits, predicted_iou = self._sam.mask_decoder(
            image_embeddings=self._embedding,
            image_pe=self._sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        return ReferencePrediction(predicted_iou, logits)
