"""What is an image, by content; which images a folder holds, and in which order."""

import os
from pathlib import Path

import pytest
from PIL import Image

from rerun_loader_sam import sniff

# Every format that Pillow writes and a person may drop; the readers' own names.
WRITTEN = ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "PCX", "SGI", "DDS", "ICNS"]


@pytest.mark.parametrize("form", WRITTEN)
def test_formats_are_told_by_content(form: str, tmp_path: Path) -> None:
    extension = {"TGA": ".tga", "PCX": ".pcx"}.get(form, "")  # the two without magic bytes of their own
    path = tmp_path / f"file{extension}"
    Image.new("RGB", (128, 128), "orange").save(path, format=form)
    assert sniff.kind_of(str(path)) == sniff.IMAGE


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"hello\n",
        b"P",
        b"Print\n",
        b"BM, a text\n" * 9,
        b"\n\nposition\n" * 9,
        b"%PDF-1.7",
        b"RRF2" * 20,
    ],
)
@pytest.mark.parametrize("name", ["notes.txt", "photo.jpg", "noextension", "x.tga"])
def test_other_content_is_not_ours_whatever_its_name(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert sniff.kind_of(str(tmp_path / name)) == sniff.OTHER


def test_pipes_and_devices_are_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert sniff.kind_of(str(tmp_path / "pipe.jpg")) == sniff.OTHER  # opening it would wait for ever
    assert sniff.kind_of("/dev/zero") == sniff.OTHER


def test_what_is_a_pipe_or_a_device_is_told_without_an_error(tmp_path: Path) -> None:
    pipe, file = tmp_path / "pipe", tmp_path / "file"
    os.mkfifo(pipe)
    file.write_text("hello")
    assert [sniff.is_pipe_or_device(str(path)) for path in (pipe, Path("/dev/zero"))] == [True, True]
    for path in (file, tmp_path, tmp_path / "missing", file / "below"):
        assert not sniff.is_pipe_or_device(str(path))


def test_a_folder_counts_by_its_images(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("no image")
    assert sniff.kind_of(str(tmp_path)) == sniff.OTHER
    Image.new("L", (2, 2)).save(tmp_path / "deep" / "er" / "x", format="PNG")
    assert sniff.kind_of(str(tmp_path)) == sniff.FOLDER


def test_images_of_a_folder_come_in_natural_order(tmp_path: Path) -> None:
    names = ["frame10.png", "frame2.png", "Frame1.png", "b/1.png", "a.png"]
    for name in [*names, ".hidden.png", ".git/x.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (2, 2)).save(tmp_path / name)
    (tmp_path / "frame3.png").write_text("no image")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = [os.path.relpath(path, tmp_path) for path in sniff.iter_images(str(tmp_path))]
    assert found == ["a.png", "b/1.png", "Frame1.png", "frame2.png", "frame10.png"]


@pytest.mark.parametrize("kind", ["folders", "files"])
def test_looking_for_images_can_be_ended(tmp_path: Path, kind: str) -> None:
    class EndedError(BaseException):
        pass

    for number in range(9):
        (tmp_path / str(number)).mkdir() if kind == "folders" else (tmp_path / str(number)).touch()
    calls = 0

    def look_up() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise EndedError

    with pytest.raises(EndedError):
        sniff.iter_images(str(tmp_path), look_up)
    assert calls == 4


def test_natural_order_has_no_number_too_large() -> None:
    assert sniff.natural_key("x9" + "9" * 500) > sniff.natural_key("x9")
