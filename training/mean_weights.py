"""The weighted mean of two checkpoints: `python training/mean_weights.py ONE OTHER --share-of-other 0.75 --out OUT`.

Runs that start from the same weights end near one another, and their mean is often better than either (Wortsman et
al. 2022, Model soups). The metadata is the other one's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def mean_weights(one: Path, other: Path, share_of_other: float) -> dict[str, torch.Tensor]:
    """(1 - share) times the weights of `one` plus share times those of `other`, in the type that they have there.

    Raises:
        ValueError: They are not of the same model.
    """
    weights, others = load_file(one), load_file(other)
    if {name: value.shape for name, value in weights.items()} != {
        name: value.shape for name, value in others.items()
    }:
        raise ValueError(f"{one} and {other} are not of the same model: their weights differ in names or shapes")
    return {
        name: (value.float() * (1 - share_of_other) + others[name].float() * share_of_other).to(value.dtype)
        for name, value in weights.items()
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--share-of-other", type=float, default=0.5)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        weights = mean_weights(arguments.one, arguments.other, arguments.share_of_other)
    except ValueError as error:
        sys.exit(f"mean_weights.py: {error}")
    with safe_open(arguments.other, "pt") as file:
        metadata = file.metadata()
    save_file(weights, arguments.out, metadata=metadata)


if __name__ == "__main__":
    main()
