"""Three steps of two processes that share Muon's work; each writes what it has, for `test_optimisers`."""

import sys
from copy import deepcopy
from pathlib import Path

import torch
import torch.distributed as dist
from test_optimisers import network, steps
from torch.multiprocessing.spawn import start_processes

from optimisers import Group, Optimisers


def process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting_point", rank=rank, world_size=2)
    layers = network()
    optimisers = Optimisers([Group(list(layers.parameters()), 0.02)], 0.02, with_muon=True)
    steps(layers, optimisers, range(2))
    before = {name: value.clone() for name, value in layers.state_dict().items()}
    saved = deepcopy(optimisers.state_dict())
    steps(layers, optimisers, range(2, 3))
    torch.save({"before": before, "optimisers": saved, "after": layers.state_dict()}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    start_processes(process, (Path(sys.argv[1]),), nprocs=2, start_method="fork")  # type: ignore[no-untyped-call]
