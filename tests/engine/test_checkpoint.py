"""Checkpoint files of every kind, good and bad."""

import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from segment_anything.modeling import Sam
from small_sams import small_sam

from rerun_loader_sam import load_model
from rerun_loader_sam.errors import UserError


@pytest.fixture(scope="module")
def sam() -> Sam:
    # Eight heads in the decoder, as all of Meta's have: checkpoints don't say.
    return small_sam(heads=8, size=160)


def assert_loaded(loaded: Sam, sam: Sam) -> None:
    assert not loaded.training
    assert loaded.image_encoder.img_size == sam.image_encoder.img_size
    assert [block.window_size for block in loaded.image_encoder.blocks] == [
        block.window_size for block in sam.image_encoder.blocks
    ]
    expected = sam.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    pixels = torch.randint(0, 256, (1, 3, 100, 160))
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.image_encoder(loaded.preprocess(pixels)), sam.image_encoder(sam.preprocess(pixels))
        )


@pytest.mark.parametrize("name", ["a.pth", "b.pt", "no-such-name-known"])
def test_pickled_files(sam: Sam, tmp_path: Path, name: str) -> None:
    torch.save(sam.state_dict(), tmp_path / name)
    assert_loaded(load_model(tmp_path / name), sam)


def test_a_file_of_an_old_torch(sam: Sam, tmp_path: Path) -> None:
    torch.save(sam.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(tmp_path / "old.pth")
    assert_loaded(load_model(str(tmp_path / "old.pth")), sam)


def test_safetensors(sam: Sam, tmp_path: Path) -> None:
    save_file(sam.state_dict(), str(tmp_path / "a.safetensors"))
    assert_loaded(load_model(tmp_path / "a.safetensors"), sam)


@pytest.mark.parametrize("wrapping", ["model", "state_dict"])
def test_what_training_scripts_save(sam: Sam, tmp_path: Path, wrapping: str) -> None:
    state = {f"module.{name}": tensor for name, tensor in sam.state_dict().items()}
    torch.save({wrapping: state, "epoch": 3}, tmp_path / "a.pth")
    assert_loaded(load_model(tmp_path / "a.pth"), sam)


def test_the_shipped_model() -> None:
    loaded = load_model("nano")
    assert not loaded.training
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))


def refused(path: Path | str, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_model(path)
    message = str(caught.value)
    assert str(path) in message
    for word in (*words, "nothing was loaded"):
        assert word in message


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    refused(tmp_path / "none.pth", "does not exist")
    refused(tmp_path, "is a folder")
    with pytest.raises(UserError, match="vit_b"):
        load_model("vit_q")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x80\x04\x95", b"PK\x03\x04" + b"\0" * 100])
def test_files_that_are_no_checkpoints(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "fetch it again")


def test_a_file_cut_short(sam: Sam, tmp_path: Path) -> None:
    torch.save(sam.state_dict(), tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(content[: len(content) // 2])
    refused(tmp_path / "a.pth")


class Surprise:
    """What a pickle may do."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, ("surprise",)


def test_a_file_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"image_encoder": Surprise()}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth")
    assert not (tmp_path / "surprise").exists()


def test_other_models(sam: Sam, tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    refused(tmp_path / "other.pth", "vit_b")
    torch.save([1, 2], tmp_path / "list.pth")
    refused(tmp_path / "list.pth")
    torch.save({"epoch": 1}, tmp_path / "numbers.pth")
    refused(tmp_path / "numbers.pth")
    state = sam.state_dict()
    del state["mask_decoder.iou_token.weight"]
    torch.save(state, tmp_path / "part.pth")
    refused(tmp_path / "part.pth", "mask_decoder.iou_token.weight")


def test_devices_that_are_not_there(sam: Sam, tmp_path: Path) -> None:
    torch.save(sam.state_dict(), tmp_path / "a.pth")
    for device in ("cuda:63", "toaster"):
        with pytest.raises(UserError, match=device):
            load_model(tmp_path / "a.pth", device)
