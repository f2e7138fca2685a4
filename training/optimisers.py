"""What moves the weights: AdamW, and Muon for matrices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer

FEWEST_ROWS, FEWEST_INPUTS = 24, 16
"""Of a matrix that Muon moves. Smaller ones have hardly a direction that the others hide; colours are three."""


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters whose learning rate peaks at `peak`."""

    parameters: list[nn.Parameter]
    peak: float


def _flat(weight: Tensor) -> Tensor:
    """A weight, or its gradient, as (outputs, what makes one); for a convolution in channels-last order a view."""
    return weight.permute(0, 2, 3, 1).flatten(1) if weight.ndim == 4 else weight


def as_matrix(weight: Tensor) -> Tensor | None:
    """A linear map's or convolution's weight as a view (outputs, what makes one), or None if it is no such thing."""
    is_view = weight.ndim == 2 or (weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last))
    if not is_view:
        return None
    matrix = _flat(weight)
    if min(matrix.shape) < FEWEST_ROWS or weight.shape[1] < FEWEST_INPUTS:
        return None
    return matrix


class Optimisers:
    """AdamW for all parameters, or, `with_muon`, for all but matrices, which Muon moves.

    Muon (Jordan et al. 2024; with the scale of Liu et al. 2025, Muon is Scalable for LLM Training, that lets it have
    AdamW's learning rates) takes steps whose singular values are about equal, so that rare directions are learnt as
    well. They cost more than AdamW's: of several processes each takes those of its share of the matrices.
    """

    def __init__(self, groups: Sequence[Group], weight_decay: float, *, with_muon: bool) -> None:
        self._matrices: list[tuple[nn.Parameter, nn.Parameter]] = []
        by_adam: list[dict[str, Any]] = []
        by_muon: list[dict[str, Any]] = []
        for group in groups:
            matrices, others = [], []
            for parameter in group.parameters:
                matrix = as_matrix(parameter.detach()) if with_muon else None
                if matrix is None:
                    others.append(parameter)
                else:
                    matrices.append(nn.Parameter(matrix))
                    self._matrices.append((parameter, matrices[-1]))
            by_adam.append({"params": others, "peak": group.peak})
            by_muon.append({"params": matrices, "peak": group.peak})
        self._all = [parameter for group in groups for parameter in group.parameters]
        self._adam = torch.optim.AdamW(by_adam, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)
        self._muon: torch.optim.Optimizer | None = None
        if with_muon:
            settings: dict[str, Any] = {"weight_decay": weight_decay, "adjust_lr_fn": "match_rms_adamw"}
            if dist.is_initialized():
                self._muon = ZeroRedundancyOptimizer(by_muon, torch.optim.Muon, **settings)
            else:
                self._muon = torch.optim.Muon(by_muon, **settings)

    def _each(self) -> Iterator[torch.optim.Optimizer]:
        yield self._adam
        if self._muon is not None:
            yield self._muon

    def set_learning_rate(self, share: float) -> None:
        """`share` of each group's peak."""
        for optimiser in self._each():
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * share

    def gradients(self) -> list[Tensor]:
        """Of all parameters that have one."""
        return [parameter.grad for parameter in self._all if parameter.grad is not None]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self._all:
            parameter.grad = None

    def step(self) -> None:
        """One step of all parameters, by their gradients."""
        for parameter, matrix in self._matrices:
            matrix.grad = None if parameter.grad is None else _flat(parameter.grad)
        for optimiser in self._each():
            optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        """What the process of rank 0 needs to save; all processes have to call it together."""
        if isinstance(self._muon, ZeroRedundancyOptimizer):
            self._muon.consolidate_state_dict()
            if dist.get_rank() != 0:
                return {}
        return {"adam": self._adam.state_dict(), "muon": self._muon and self._muon.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._adam.load_state_dict(state["adam"])
        if self._muon is not None:
            self._muon.load_state_dict(state["muon"])
