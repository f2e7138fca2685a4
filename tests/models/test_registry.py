"""What is known of the models, and what a checkpoint says of itself."""

import dataclasses
import inspect
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.models.registry import (
    ENTRIES,
    NANO,
    OFFICIAL,
    GeneratorParameters,
    checkpoint_generator_parameters,
    from_mirror,
    known_entry,
)
from rerun_loader_sam.settings import GENERATOR_PARAMETERS


def checkpoint(path: Path, generator: str | None) -> Path:
    metadata = None if generator is None else {"generator": generator}
    safetensors.numpy.save_file({"weight": np.zeros(3, np.float32)}, path, metadata)
    return path


def test_the_names_are_those_of_upstream() -> None:
    assert set(ENTRIES) == {"vit_b", "vit_l", "vit_h", "nano"}


def test_official_entries_are_complete() -> None:
    for name, entry in OFFICIAL.items():
        assert entry.name == name
        assert entry.url == f"https://dl.fbaipublicfiles.com/segment_anything/{entry.file}"
        assert len(entry.sha256) == 64
        assert int(entry.sha256, 16)


def test_the_defaults_are_those_of_upstream() -> None:
    from segment_anything import SamAutomaticMaskGenerator

    upstream = inspect.signature(SamAutomaticMaskGenerator).parameters
    ours = dataclasses.asdict(GeneratorParameters())
    assert set(ours) == set(GENERATOR_PARAMETERS)
    for name in ("agreement_thresh", "edge_radius_px"):  # ours alone: upstream's masks, as they are
        assert ours.pop(name) == 0
    assert ours == {name: upstream[name].default for name in ours}


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(UserError, match="vit_b, vit_l, vit_h, nano"):
        known_entry("vit_x")


@pytest.mark.parametrize("base", ["https://mirror.example/sam", "https://mirror.example/sam/"])
def test_a_mirror_has_the_same_file(base: str) -> None:
    entry = OFFICIAL["vit_b"]
    moved = from_mirror(entry, base)
    assert moved.url == "https://mirror.example/sam/sam_vit_b_01ec64.pth"
    assert moved.sha256 == entry.sha256
    assert from_mirror(entry, "") == entry


def test_parameters_are_read_from_the_metadata(tmp_path: Path) -> None:
    generator = json.dumps({"points_per_side": 16, "pred_iou_thresh": 0.5, "stability_score_offset": 2})
    parameters = checkpoint_generator_parameters(checkpoint(tmp_path / "a.safetensors", generator))
    assert parameters == GeneratorParameters(points_per_side=16, pred_iou_thresh=0.5, stability_score_offset=2.0)
    assert isinstance(parameters.stability_score_offset, float)


@pytest.mark.parametrize("generator", [None, "mytool 1.2", "[1, 2]", "3"])
def test_without_parameters_the_defaults(tmp_path: Path, generator: str | None) -> None:
    path = checkpoint(tmp_path / "a.safetensors", generator)
    assert checkpoint_generator_parameters(path) == GeneratorParameters()


def test_a_pickle_is_not_looked_into(tmp_path: Path) -> None:
    assert checkpoint_generator_parameters(tmp_path / "not-there.pth") == GeneratorParameters()


@pytest.mark.parametrize(
    ("generator", "named"),
    [
        ({"points_per_sides": 16}, "points_per_sides"),
        ({"points_per_side": "16"}, "points_per_side is '16'"),
        ({"points_per_side": 1.5}, "points_per_side is 1.5"),
        ({"pred_iou_thresh": None}, "pred_iou_thresh is None"),
        ({"crop_n_layers": True}, "crop_n_layers is True"),
    ],
)
def test_wrong_parameters_are_named(tmp_path: Path, generator: dict[str, object], named: str) -> None:
    path = checkpoint(tmp_path / "a.safetensors", json.dumps(generator))
    with pytest.raises(UserError) as caught:
        checkpoint_generator_parameters(path)
    assert named in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        struct.pack("<Q", 3) + b"{{{",
        struct.pack("<Q", 2) + b"\xff\xfe",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
    ],
)
def test_what_is_no_safetensors_file_is_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is no safetensors file"):
        checkpoint_generator_parameters(path)


@pytest.mark.parametrize("content", [b"[]", b"3", b'{"__metadata__": 3}', b'{"__metadata__": {"generator": 3}}'])
def test_odd_headers_have_the_defaults(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(content)) + content)
    assert checkpoint_generator_parameters(path) == GeneratorParameters()


def test_the_shipped_model_has_parameters_of_its_own() -> None:
    from rerun_loader_sam.models.store import find_checkpoint

    path = find_checkpoint(NANO)
    assert path is not None
    checkpoint_generator_parameters(path)
