"""What the training minimises."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from scene_files import UNLABELLED

CROSS_ENTROPY_WEIGHT = 2.0
"""To dice. Plain cross entropy, not Segment Anything's focal loss: that leaves logits so near zero in a short
training that no mask is stable.
"""


@dataclass(frozen=True, slots=True)
class MaskLosses:
    """Losses: `mask` and `predicted_iou`. Figures for the log: the other two.

    `best_iou`: mean over right answers of the best output's IoU; `calibration`: mean of |predicted - real IoU|.
    """

    mask: Tensor
    predicted_iou: Tensor
    best_iou: Tensor
    calibration: Tensor


def pairwise_mask_cost(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross entropy plus dice loss, and IoU, of every output with every target.

    `logits` (N, K, L), `targets` (N, T, L) coverage in 0..1; returns two (N, K, T). All sums over pixels are matrix
    products.
    """
    probability = logits.sigmoid()
    across = targets.transpose(1, 2)
    entropy = (functional.softplus(logits).sum(2, keepdim=True) - logits @ across) / logits.shape[2]
    area, target_area = probability.sum(2, keepdim=True), targets.sum(2)[:, None]
    dice = 1 - (2 * (probability @ across) + 1) / (area + target_area + 1)
    with torch.no_grad():
        found, wanted = (logits > 0).float(), (targets > 0.5).float()
        common = found @ wanted.transpose(1, 2)
        union = found.sum(2, keepdim=True) + wanted.sum(2)[:, None] - common
        iou = common / union.clamp(min=1)
    return CROSS_ENTROPY_WEIGHT * entropy + dice, iou


def prompt_losses(
    logits: Tensor, predicted: Tensor, targets: Tensor, valid: Tensor, boxed: Tensor | None, *, spare_weight: float
) -> MaskLosses:
    """Losses of a batch of prompts.

    `logits` (N, 4, h, w), `predicted` IoU (N, 4), `targets` (N, 3, h, w) uint8 in 0..4, `valid` (N, 3). Every right
    answer of a point pulls the output that is nearest to it, and, by `spare_weight`, every output is pulled to its
    nearest right answer. Output 0 answers with the largest one. Boxes train it alone: `boxed` (N,) says which target
    each prompt's box is that of, and is None for points.
    """
    coverage = targets.flatten(2).float() / 4
    if boxed is not None:
        wanted = coverage.gather(1, boxed[:, None, None].expand(-1, 1, coverage.shape[2]))
        cost, iou = pairwise_mask_cost(logits[:, :1].flatten(2), wanted)
        error = predicted[:, 0] - iou[:, 0, 0]
        return MaskLosses(cost.mean(), error.square().mean(), iou.mean(), error.detach().abs().mean())
    cost, iou = pairwise_mask_cost(logits.flatten(2), coverage)
    nearest = cost[:, 1:].min(1).values
    mask = (nearest * valid).sum() / valid.sum()
    spare = cost[:, 1:].masked_fill(~valid[:, None], torch.inf).min(2).values.mean()
    single = cost[:, 0, 2].mean()
    real = (iou * valid[:, None]).amax(2)
    real[:, 0] = iou[:, 0, 2]
    error = predicted - real
    best = (iou[:, 1:].amax(1) * valid).sum() / valid.sum()
    total = mask + spare_weight * spare + 0.3 * single
    return MaskLosses(total, error.square().mean(), best, error[:, 1:].detach().abs().mean())


class DenseHelp(nn.Module):
    """Losses on the embedding alone; they teach the encoder long before the decoder can. Not part of the model.

    Cells of one region shall be alike and others not (balanced cross entropy on cosines, at the level of parts and of
    wholes), and a linear map of a cell shall tell the borders inside it at stride 2. Nothing is asked of what is not
    labelled, but for its border.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.part_space = nn.Linear(embed_dim, 48)
        self.whole_space = nn.Linear(embed_dim, 48)
        self.border = nn.Conv2d(embed_dim, 16, 1)

    def forward(self, embeddings: Tensor, regions: Tensor, wholes: Tensor) -> tuple[Tensor, Tensor]:
        """`embeddings` (B, C, h, w), `regions` and `wholes` (B, 4h, 4w); returns (likeness loss, border loss)."""
        cells = embeddings.flatten(2).transpose(1, 2)
        picked = torch.randperm(cells.shape[1])[:256]
        cells = cells[:, picked]
        likeness = sum(
            _likeness(functional.normalize(space(cells), dim=2), labels[:, 2::4, 2::4].flatten(1)[:, picked])
            for space, labels in ((self.part_space, regions), (self.whole_space, wholes))
        )
        logits = functional.pixel_shuffle(self.border(embeddings), 4)[:, 0]
        border = torch.zeros_like(logits)
        border[:, :, 1:] = (regions[:, :, 1:] != regions[:, :, :-1]).float()
        border[:, 1:] = torch.maximum(border[:, 1:], (regions[:, 1:] != regions[:, :-1]).float())
        loss = functional.binary_cross_entropy_with_logits(logits, border, reduction="none")
        known = regions != UNLABELLED
        weight = (1 + 4 * border) * (known | (border > 0))
        return torch.as_tensor(likeness), (loss * weight).sum() / weight.sum()


def _likeness(unit: Tensor, labels: Tensor) -> Tensor:
    same = (labels[:, :, None] == labels[:, None]).float()
    loss = functional.binary_cross_entropy_with_logits(8 * unit @ unit.transpose(1, 2) - 4, same, reduction="none")
    known = (labels != UNLABELLED).float()
    known = known[:, :, None] * known[:, None]
    same, different = same * known, (1 - same) * known
    alike, apart = ((loss * pairs).sum() / pairs.sum().clamp(min=1) for pairs in (same, different))
    return 0.5 * (alike + apart)
