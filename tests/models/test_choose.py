"""Which model is used: every situation."""

import os
from pathlib import Path

import pytest
from checkpoint_files import put_official

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.models import store
from rerun_loader_sam.models.choose import choose_model, choose_preview_model
from rerun_loader_sam.models.registry import NANO, OFFICIAL
from rerun_loader_sam.settings import Settings, load_settings


@pytest.mark.parametrize(
    ("device", "present", "expected"),
    [
        ("cpu", ("vit_b", "vit_l", "vit_h"), "vit_b"),
        ("cpu", ("vit_l", "vit_h"), "vit_l"),
        ("cpu", ("vit_h",), "vit_h"),
        ("mps", ("vit_b", "vit_h"), "vit_b"),
        ("cuda", ("vit_b", "vit_l", "vit_h"), "vit_h"),
        ("cuda:1", ("vit_b", "vit_l"), "vit_l"),
        ("cuda", ("vit_b",), "vit_b"),
    ],
)
def test_auto_takes_the_best_there_is(device: str, present: tuple[str, ...], expected: str) -> None:
    for name in present:
        put_official(name)
    chosen = choose_model(Settings(), device)
    assert chosen.name == expected
    assert chosen.path == store.checkpoint_path(OFFICIAL[expected])
    assert (chosen.is_fallback, chosen.hint, chosen.to_fetch) == (False, "", None)
    assert chosen.generator_parameters["pred_iou_thresh"] == 0.88


def test_auto_takes_a_copy_of_torch_hub() -> None:
    copy = put_official("vit_b", store.torch_hub_path(OFFICIAL["vit_b"]).parent)
    assert choose_model(Settings(), "cpu").path == copy


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_auto_with_nothing_is_nano_and_a_fetch(device: str) -> None:
    chosen = choose_model(Settings(), device)
    assert (chosen.name, chosen.path) == ("nano", store.checkpoint_path(NANO))
    assert chosen.is_fallback
    assert chosen.to_fetch == OFFICIAL["vit_b"]
    assert "rerun-sam models fetch vit_b" in chosen.hint
    assert "375 MB" in chosen.hint
    assert not store.checkpoints_dir().exists()


def test_never_fetches_nothing_but_says_how() -> None:
    chosen = choose_model(Settings(download="never"), "cpu")
    assert chosen.name == "nano"
    assert chosen.is_fallback
    assert chosen.to_fetch is None
    assert "rerun-sam models fetch vit_b" in chosen.hint


def test_a_mirror_is_what_is_fetched_from() -> None:
    chosen = choose_model(Settings(checkpoint_url="https://mirror.example"), "cpu")
    assert chosen.to_fetch is not None
    assert chosen.to_fetch.url == "https://mirror.example/sam_vit_b_01ec64.pth"


def test_a_damaged_checkpoint_is_not_chosen() -> None:
    path = put_official("vit_b")
    with path.open("r+b") as file:
        file.truncate(1000)
    assert choose_model(Settings(), "cpu").name == "nano"


def test_a_name_is_taken_whatever_else_is_there() -> None:
    put_official("vit_b")
    put_official("vit_h")
    chosen = choose_model(Settings(model="vit_h"), "cpu")
    assert (chosen.name, chosen.is_fallback) == ("vit_h", False)
    chosen = choose_model(Settings(model="nano"), "cuda")
    assert (chosen.name, chosen.is_fallback, chosen.to_fetch) == ("nano", False, None)


def test_a_missing_name_is_fetched_while_nano_serves() -> None:
    chosen = choose_model(Settings(model="vit_h"), "cpu")
    assert (chosen.name, chosen.is_fallback) == ("nano", True)
    assert chosen.to_fetch == OFFICIAL["vit_h"]
    assert "rerun-sam models fetch vit_h" in chosen.hint


def test_a_missing_name_is_fetched_while_the_best_there_is_serves() -> None:
    put_official("vit_b")
    chosen = choose_model(Settings(model="vit_l", download="never"), "cuda")
    assert (chosen.name, chosen.is_fallback, chosen.to_fetch) == ("vit_b", True, None)
    assert "vit_b stands in for vit_l" in chosen.hint


def test_a_path_is_taken_as_it_is(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "mine.pth").write_bytes(b"anything")
    chosen = choose_model(Settings(model="~/mine.pth"), "cpu")
    assert (chosen.name, chosen.path, chosen.is_fallback) == ("mine.pth", home / "mine.pth", False)
    monkeypatch.chdir(home)
    assert choose_model(Settings(model="mine.pth"), "cpu").path == home / "mine.pth"


def test_a_file_without_a_suffix_is_a_path_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "checkpoint").write_bytes(b"anything")
    monkeypatch.chdir(home)
    assert choose_model(Settings(model="checkpoint"), "cpu").path == home / "checkpoint"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("/nowhere/sam.pth", "no checkpoint /nowhere/sam.pth"),
        ("sam.pth", "sam.pth"),
        ("~nobody-of-that-name/sam.pth", "nobody-of-that-name"),
        ("vit_bb", "did you mean 'vit_b'?"),
        ("something else", "auto, vit_b, vit_l, vit_h, nano"),
        ("/", "is not a file"),
        ("a\0b", "there is no model"),
    ],
)
def test_what_is_neither_name_nor_file_is_an_error(model: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        choose_model(Settings(model=model), "cpu")
    assert said in str(caught.value)


def test_a_pipe_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(UserError, match="is not a file"):
        choose_model(Settings(model=str(tmp_path / "pipe.pth")), "cpu")


def test_the_setting_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERUN_SAM_MODEL", "vit_l")
    monkeypatch.setenv("RERUN_SAM_CHECKPOINT_URL", "https://mirror.example")
    chosen = choose_model(load_settings(), "cpu")
    assert chosen.to_fetch is not None
    assert chosen.to_fetch.url == "https://mirror.example/sam_vit_l_0b3195.pth"


@pytest.mark.parametrize(
    ("device", "megabytes", "expected"),
    [("cpu", 375, "nano"), ("mps", 375, "nano"), ("cuda:0", 375, None), ("cpu", 6, None)],
)
def test_a_preview_is_for_large_models_where_they_take_long(
    device: str, megabytes: int, expected: str | None
) -> None:
    chosen = choose_preview_model(device, megabytes * 1_000_000)
    assert (chosen and chosen.name) == expected
