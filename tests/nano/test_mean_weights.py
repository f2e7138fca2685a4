"""The mean of two checkpoints' weights."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mean_weights import mean_weights

ROOT = Path(__file__).resolve().parents[2]


def test_the_mean_is_written_with_the_other_ones_metadata(tmp_path: Path) -> None:
    one, other, out = (tmp_path / f"{name}.safetensors" for name in ("one", "other", "out"))
    save_file({"a": torch.tensor([0.0, 4.0]).half(), "b": torch.ones(2, 2)}, one, metadata={"config": "first"})
    save_file({"a": torch.tensor([8.0, 8.0]).half(), "b": torch.zeros(2, 2)}, other, metadata={"config": "second"})
    command = [sys.executable, "training/mean_weights.py", str(one), str(other), "--share-of-other", "0.75"]
    subprocess.run([*command, "--out", str(out)], cwd=ROOT, check=True, timeout=120)
    weights = load_file(out)
    assert weights["a"].dtype == torch.float16
    assert weights["a"].tolist() == [6.0, 7.0]
    assert weights["b"].tolist() == [[0.25, 0.25], [0.25, 0.25]]
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"config": "second"}


def test_of_different_models_there_is_none(tmp_path: Path) -> None:
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, one)
    save_file({"a": torch.zeros(3)}, other)
    with pytest.raises(ValueError, match="not of the same model"):
        mean_weights(one, other, 0.5)
    command = [sys.executable, "training/mean_weights.py", str(one), str(other), "--out", str(tmp_path / "out")]
    failed = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=120)
    assert failed.returncode == 1
    assert failed.stderr.startswith("mean_weights.py: ")
    assert len(failed.stderr.splitlines()) == 1
