"""Every mode that Pillow reads, as a viewer shows it and as the model sees it."""

import contextlib
import gzip
import io
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.images import load_image

SIZE = (7, 5)  # width, height
NEEDS_PROC = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def save(tmp_path: Path, image: Image.Image, form: str, **options: object) -> Path:
    path = tmp_path / f"image.{form.lower()}"
    image.save(path, format=form, **options)
    return path


@pytest.mark.parametrize(
    ("mode", "form", "color_model"),
    [
        ("1", "PNG", "L"),
        ("L", "PNG", "L"),
        ("P", "GIF", "RGB"),
        ("P", "PNG", "RGB"),
        ("RGB", "JPEG", "RGB"),
        ("CMYK", "TIFF", "RGB"),
        ("CMYK", "JPEG", "RGB"),
        ("YCbCr", "JPEG", "RGB"),
        ("LAB", "TIFF", "RGB"),
        ("RGBA", "PNG", "RGBA"),
        ("LA", "PNG", "RGBA"),
        ("I;16", "TIFF", "L"),
        ("I;16", "PNG", "L"),
        ("I", "TIFF", "L"),
        ("F", "TIFF", "L"),
    ],
)
def test_every_mode_is_shown_and_seen(mode: str, form: str, color_model: str, tmp_path: Path) -> None:
    loaded = load_image(save(tmp_path, Image.new(mode, SIZE), form), 1)
    assert loaded.color_model == color_model
    assert loaded.size_hw == (5, 7)
    assert loaded.rgb.shape == (5, 7, 3)
    assert loaded.rgb.dtype == np.uint8
    assert loaded.pixels.shape == {"L": (5, 7), "RGB": (5, 7, 3), "RGBA": (5, 7, 4)}[color_model]


def test_deep_grey_is_shown_as_it_is_and_stretched_for_the_model(tmp_path: Path) -> None:
    values = np.array([[1000, 2000], [3000, 1000]], np.uint16)
    loaded = load_image(save(tmp_path, Image.fromarray(values), "PNG"), 1)
    assert loaded.pixels.dtype == np.uint16
    assert np.array_equal(loaded.pixels, values)
    assert loaded.rgb[:, :, 0].tolist() == [[0, 127], [255, 0]]
    assert "16-bit" in loaded.note


def test_values_that_are_no_numbers_do_no_harm(tmp_path: Path) -> None:
    values = np.array([[np.nan, 0.0], [np.inf, 4.0]], np.float32)
    loaded = load_image(save(tmp_path, Image.fromarray(values), "TIFF"), 1)
    assert loaded.rgb[:, :, 0].tolist() == [[0, 0], [255, 255]]
    empty = np.full((2, 2), np.nan, np.float32)
    assert load_image(save(tmp_path, Image.fromarray(empty), "TIFF"), 1).rgb.max() == 0


def test_transparency_lies_on_white_for_the_model(tmp_path: Path) -> None:
    loaded = load_image(save(tmp_path, Image.new("RGBA", SIZE, (200, 0, 0, 0)), "PNG"), 1)
    assert loaded.pixels[0, 0].tolist() == [200, 0, 0, 0]
    assert loaded.rgb[0, 0].tolist() == [255, 255, 255]


def test_a_palette_may_be_transparent(tmp_path: Path) -> None:
    path = save(tmp_path, Image.new("P", SIZE), "GIF", transparency=0)
    assert load_image(path, 1).color_model == "RGBA"


def test_exif_turns_the_image_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", SIZE, "blue")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter to the left: the camera's top left is the photograph's top right
    loaded = load_image(save(tmp_path, image, "PNG", exif=exif), 1)
    assert loaded.size_hw == (7, 5)
    assert loaded.pixels[0, 4].tolist() == [255, 255, 255]


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", SIZE, color) for color in ("red", "green", "blue")]
    path = save(tmp_path, frames[0], "GIF", save_all=True, append_images=frames[1:])
    loaded = load_image(path, 1)
    assert loaded.rgb[0, 0].tolist() == [255, 0, 0]
    assert "the first of several frames" in loaded.note


def test_one_pixel_and_very_wide(tmp_path: Path) -> None:
    assert load_image(save(tmp_path, Image.new("RGB", (1, 1)), "PNG"), 1).size_hw == (1, 1)
    assert load_image(save(tmp_path, Image.new("L", (20000, 1)), "PNG"), 1).size_hw == (1, 20000)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_a_clear_error(share: float, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = save(tmp_path, Image.fromarray(noise), "PNG")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"cannot be read as an image \(.+\); nothing was segmented"):
        load_image(path, 1)


def test_too_many_pixels_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = save(tmp_path, Image.new("1", (20000, 20000)), "PNG")
    with pytest.raises(UserError, match=r"400 megapixels, more than the 200 allowed.*RERUN_SAM_MAX_MEGAPIXELS"):
        load_image(path, 200)


def icon_around(png: bytes) -> bytes:
    """A Windows icon that calls the PNG in it 16 x 16."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(png), 22) + png


def mac_icon_around(png: bytes) -> bytes:
    """An icon of macOS that calls the PNG in it 128 x 128."""
    return struct.pack(">4sI4sI", b"icns", 16 + len(png), b"ic07", 8 + len(png)) + png


@NEEDS_PROC
@pytest.mark.parametrize("around", [icon_around, mac_icon_around])
def test_an_image_within_an_icon_is_refused_before_it_is_read(
    around: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    png = io.BytesIO()
    Image.new("1", (20000, 20000)).save(png, "PNG")
    path = tmp_path / "icon"
    path.write_bytes(around(png.getvalue()))
    outcome, taken_mib = read_elsewhere(path)
    assert "400 megapixels, more than the 200 allowed" in outcome
    assert taken_mib < 100


@NEEDS_PROC
@pytest.mark.parametrize(("mode", "limit"), [("L", 6), ("RGB", 9), ("RGBA", 13), ("I;16", 9)])
def test_a_large_image_takes_little_more_memory_than_what_is_made_of_it(
    mode: str, limit: int, tmp_path: Path
) -> None:
    """limit: bytes for each pixel, Pillow's own (4 where there are several channels) among them."""
    outcome, taken_mib = read_elsewhere(save(tmp_path, Image.new(mode, (4000, 4000)), "PNG"))
    assert outcome == "(4000, 4000)"
    assert taken_mib < limit * 16e6 / 2**20


def read_elsewhere(path: Path) -> tuple[str, float]:
    """What becomes of the file in a process of its own, and by how many MiB that one's peak memory grew."""
    program = (
        "import re, sys\nfrom pathlib import Path\nfrom PIL import Image\nfrom rerun_loader_sam import images\n"
        "def peak():\n"  # not getrusage's, which counts in what the parent had when it forked
        "    return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) / 1024\n"
        "Image.init()\nbefore = peak()\n"
        "try:\n    outcome = images.load_image(Path(sys.argv[1]), 200).size_hw\n"
        "except images.UserError as error:\n    outcome = error\nprint(peak() - before)\nprint(outcome)"
    )
    command = [sys.executable, "-c", program, path]
    taken_mib, outcome = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return outcome, float(taken_mib)


def test_compressed_fits_is_refused_before_it_takes_a_minute(tmp_path: Path) -> None:
    side = 10_000
    first = ["SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 0", "END"]
    table = ["XTENSION= 'BINTABLE'", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 8", "NAXIS2  = 1", "ZIMAGE  = T"]
    table += ["ZCMPTYPE= 'GZIP_1  '", "ZBITPIX = 8", "ZNAXIS  = 2", f"ZNAXIS1 = {side}", f"ZNAXIS2 = {side}", "END"]
    headers = ["".join(card.ljust(80) for card in cards).ljust(2880).encode() for cards in (first, table)]
    path = tmp_path / "image.fits"
    path.write_bytes(b"".join(headers) + bytes(8) + gzip.compress(bytes(4 * side * side), 1))
    with pytest.raises(UserError, match="compressed FITS is not supported"):
        load_image(path, 200)


def test_frames_that_are_broken_or_countless_are_left_alone(tmp_path: Path) -> None:
    pages = [Image.effect_noise((64, 64), sigma) for sigma in range(50, 54)]
    path = save(tmp_path, pages[0], "TIFF", save_all=True, append_images=pages[1:])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "the first of several frames" in load_image(path, 1).note
    # A page's list of tags that names itself as the next one.
    path = save(tmp_path, pages[0], "TIFF")
    content = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    struct.pack_into("<I", content, start + 2 + 12 * count, start)
    path.write_bytes(content)
    assert load_image(path, 1).size_hw == (64, 64)


@pytest.mark.parametrize("form", ["BMP", "PPM", "TIFF"])
def test_a_file_that_is_cut_while_it_is_read_kills_nobody(form: str, tmp_path: Path) -> None:
    path = save(tmp_path, Image.effect_noise((512, 512), 50), form)
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom PIL import ImageOps\nfrom rerun_loader_sam import images\n"
        "path, transpose = Path(sys.argv[1]), ImageOps.exif_transpose\n"
        "def cut_first(*arguments):\n    os.truncate(path, 0)\n    return transpose(*arguments)\n"
        "ImageOps.exif_transpose = cut_first\n"
        "try:\n    print(images.load_image(path, 1).size_hw)\nexcept images.UserError:\n    print('refused')"
    )
    outcome = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout in ("(512, 512)\n", "refused\n")


@NEEDS_PROC
def test_a_compressed_tiff_is_never_mapped(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3000, 3000, 3), np.uint8)
    path = save(tmp_path, Image.fromarray(noise), "TIFF", compression="tiff_lzw")
    program = "import sys\nfrom pathlib import Path\nfrom rerun_loader_sam import images\n"
    program += "print(images.load_image(Path(sys.argv[1]), 200).size_hw)"
    command = [sys.executable, "-c", program, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        while process.poll() is None:
            with contextlib.suppress(OSError):
                if str(path) in maps.read_text():
                    os.truncate(path, 0)  # what any program does that writes it anew: the kernel kills who reads on
        assert process.stdout is not None
        assert (process.returncode, process.stdout.read()) == (0, "(3000, 3000)\n")


def test_what_has_come_into_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match=rf"{path} cannot be read as an image"):
            load_image(path, 1)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png is not there any more"):
        load_image(tmp_path / "gone.png", 1)
