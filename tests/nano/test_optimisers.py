"""Muon and AdamW side by side: each moves its own, alone or shared between processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import optimisers as optimisers_module
from optimisers import Group, Optimisers, as_matrix

pytestmark = pytest.mark.skipif(
    not hasattr(torch.optim, "Muon"), reason="training needs PyTorch 2.9, the package less"
)

SETTINGS = {"lr": 0.01, "weight_decay": 0.02}
TWO_PROCESSES = Path(__file__).parent / "optimisers_in_two_processes.py"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(32, 40, 3), nn.Linear(24, 48), nn.Linear(48, 48), nn.LayerNorm(48))
    return layers.to(memory_format=torch.channels_last)


def set_gradients(layers: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in layers.parameters():
        parameter.grad = torch.randn_like(parameter)


def steps(layers: nn.Module, optimisers: Optimisers, seeds: range) -> None:
    for seed in seeds:
        set_gradients(layers, seed)
        optimisers.set_learning_rate(0.5)
        optimisers.step()


def test_a_matrix_is_a_view_of_its_weight() -> None:
    weight = torch.randn(40, 32, 3, 3).to(memory_format=torch.channels_last)
    matrix = as_matrix(weight)
    assert matrix is not None
    assert matrix.shape == (40, 288)
    matrix[7, 5] = 1000  # the first pixel of the kernel: its 32 inputs come first
    assert weight[7, 5, 0, 0] == 1000


@pytest.mark.parametrize("shape", [(64,), (8, 128), (4, 128), (24, 3, 3, 3), (128, 32, 2, 2)])
def test_what_is_small_or_laid_out_otherwise_is_no_matrix(shape: tuple[int, ...]) -> None:
    assert as_matrix(torch.zeros(shape)) is None


def test_each_moves_its_own() -> None:
    layers = network()
    muon = nn.Parameter(layers[0].weight.detach().permute(0, 2, 3, 1).flatten(1).clone())
    adam = nn.Parameter(layers[0].bias.detach().clone())
    optimisers = Optimisers([Group(list(layers.parameters()), 0.02)], 0.02, with_muon=True)
    steps(layers, optimisers, range(1))
    assert layers[0].weight.grad is not None
    muon.grad = layers[0].weight.grad.permute(0, 2, 3, 1).flatten(1).clone()
    adam.grad = layers[0].bias.grad
    torch.optim.Muon([muon], adjust_lr_fn="match_rms_adamw", **SETTINGS).step()
    torch.optim.AdamW([adam], betas=(0.9, 0.99), **SETTINGS).step()
    torch.testing.assert_close(layers[0].weight.permute(0, 2, 3, 1).flatten(1), muon)
    torch.testing.assert_close(layers[0].bias, adam)


def test_without_muon_it_is_adam() -> None:
    layers, other = network(), network()
    steps(layers, Optimisers([Group(list(layers.parameters()), 0.02)], 0.02, with_muon=False), range(1))
    set_gradients(other, 0)
    torch.optim.AdamW(other.parameters(), betas=(0.9, 0.99), **SETTINGS).step()
    for own, wanted in zip(layers.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(own, wanted)


def test_two_processes_share_the_work_and_one_goes_on_from_what_they_saved(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(optimisers_module.__file__).parent)}
    subprocess.run([sys.executable, str(TWO_PROCESSES), str(tmp_path)], env=environment, check=True, timeout=120)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = network()
    steps(alone, Optimisers([Group(list(alone.parameters()), 0.02)], 0.02, with_muon=True), range(3))
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(first["after"][name], value)
        torch.testing.assert_close(second["after"][name], value)
    resumed = network()
    resumed.load_state_dict(first["before"])
    optimisers = Optimisers([Group(list(resumed.parameters()), 0.02)], 0.02, with_muon=True)
    optimisers.load_state_dict(first["optimisers"])
    steps(resumed, optimisers, range(2, 3))
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value)
