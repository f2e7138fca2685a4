"""Reading an image file: what the viewer shows of it, and what the model sees."""

import contextlib
import dataclasses
import io
import math
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.orientation import UPRIGHT
from rerun_loader_sam.sniff import open_regular

_ROWS_AT_ONCE = 256
_MAX_PIXEL_BYTES = 8
"""Four channels of 16 bits: in a file nothing that Pillow reads has more."""
_METADATA_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class LoadedImage:
    """An image, upright.

    pixels: what is shown: (H, W) uint8, uint16 or float32 for grey, (H, W, 3) or (H, W, 4) uint8 for colour.
    rgb: what the model sees: (H, W, 3) uint8; transparency lies on white, deep grey is stretched to 8 bits.
    note: what a person may want to know of the conversion, or empty.
    orientation: EXIF value, 1 to 8, by which the file's pixels were turned upright; 1 if they were so already.
    """

    pixels: NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32]
    rgb: NDArray[np.uint8]
    color_model: Literal["L", "RGB", "RGBA"]
    note: str
    orientation: int = UPRIGHT

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.rgb.shape[:2]
        return height, width


def load_image(path: Path, max_megapixels: float) -> LoadedImage:
    """Read the first frame of any image that Pillow reads, oriented by its EXIF data.

    Raises UserError where the file cannot be read or has more than `max_megapixels` million pixels.
    """
    # Our own limit, which a person can set, in place of Pillow's fixed one, at twice which it refuses: also images
    # within icons, and tiles, which nobody else sees before they are read.
    Image.MAX_IMAGE_PIXELS = math.ceil(max_megapixels * 1e6 / 2)
    try:
        with _opened(path) as (file, image):
            # The TIFF library maps all that it can; see `_opened`.
            if _is_mapped(image, os.fstat(file.fileno()).st_size):
                file.seek(0)
                with Image.open(io.BytesIO(file.read())) as copy:
                    return _loaded(copy)
            return _loaded(image)
    except Image.DecompressionBombError as error:
        count = re.search(r"(\d+) pixels", str(error))
        size = f"{int(count[1]) / 1e6:.0f} megapixels, " if count else ""
        raise UserError(
            f"{path} has {size}more than the {max_megapixels:g} allowed; nothing was segmented, raise "
            "RERUN_SAM_MAX_MEGAPIXELS if it is meant"
        ) from error
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there any more; nothing was segmented") from error
    except PermissionError as error:
        raise UserError(f"{path} cannot be opened: permission denied; nothing was segmented") from error
    except MemoryError as error:
        raise UserError(f"{path} is too large for this machine's memory; nothing was segmented") from error
    except Exception as error:  # Pillow's readers raise whatever their parsing happens to: struct.error, KeyError, …
        reason = "no reader for this format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UserError(
            f"{path} cannot be read as an image ({reason or type(error).__name__}); nothing was segmented, "
            "check the file or convert it to PNG"
        ) from error


def stored_size_hw(path: Path) -> tuple[int, int] | None:
    """Height and width of an image as its file says, which is not read any further; None where it cannot be read."""
    with contextlib.suppress(Exception), _opened(path) as (_, image):  # Pillow's readers raise anything, as above
        return image.height, image.width
    return None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, ImageFile.ImageFile]]:
    """A file and the image in it, of which the first bytes are read; closed again afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd metadata; what cannot be read raises
        # An open file, not its path: Pillow would map some, and a mapped file that is cut meanwhile kills the
        # process.
        with open_regular(path) as file, Image.open(file) as image:
            yield file, image


def _is_mapped(image: ImageFile.ImageFile, file_bytes: int) -> bool:
    """Whether the TIFF library would map the file, and that is no larger than one image can be.

    Many pages, of which only the first is wanted, may be more than the memory holds.
    """
    is_small = file_bytes <= _MAX_PIXEL_BYTES * image.width * image.height + _METADATA_BYTES
    return is_small and any(codec == "libtiff" for codec, *_ in image.tile)


def _loaded(image: ImageFile.ImageFile) -> LoadedImage:
    """The first frame of an image that was opened, upright."""
    if any(codec == "fits_gzip" for codec, *_ in image.tile):
        # Pillow's reader works in Python, for a minute where a small file claims to be large.
        raise ValueError("compressed FITS is not supported")
    is_one_of_several = _is_animated(image)
    image.load()
    orientation = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    ImageOps.exif_transpose(image, in_place=True)  # a copy of a large image costs hundreds of MB
    return dataclasses.replace(_convert(image, is_one_of_several), orientation=orientation)


def _is_animated(image: Image.Image) -> bool:
    """Whether there are other frames, or pages; how many would take a walk through the whole file."""
    with contextlib.suppress(Exception):  # whatever is wrong with the second frame, the first may be right
        return image.format in ("GIF", "PNG", "WEBP", "TIFF", "AVIF") and getattr(image, "is_animated", False)
    return True


def _convert(image: Image.Image, is_one_of_several: bool) -> LoadedImage:
    notes = ["the first of several frames"] if is_one_of_several else []
    height, width = image.height, image.width
    if image.mode.startswith("I") or image.mode == "F":
        is_16_bit = image.mode.startswith("I;16")
        values = np.empty((height, width), np.uint16 if is_16_bit else np.float32)
        for rows, piece in _pieces(image):
            values[rows] = np.asarray(piece)
        notes.append(f"{'16' if is_16_bit else '32'}-bit grey, stretched to 8 bits for the model")
        return LoadedImage(values, _stretched(values), "L", ", ".join(notes))
    rgb = np.empty((height, width, 3), np.uint8)
    if image.mode in ("1", "L"):
        grey = np.empty((height, width), np.uint8)
        for rows, piece in _pieces(image):
            grey[rows] = np.asarray(piece.convert("L"))
        rgb[:] = grey[:, :, None]
        return LoadedImage(grey, rgb, "L", ", ".join(notes))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = np.empty((height, width, 4), np.uint8)
        for rows, piece in _pieces(image):
            # Pillow turns premultiplied colours into plain ones, and LA into RGBA, in steps of their own.
            plain = piece.convert(piece.mode.upper()).convert("RGBA")
            rgba[rows] = np.asarray(plain)
            backdrop = Image.new("RGBA", plain.size, "white")
            rgb[rows] = np.asarray(Image.alpha_composite(backdrop, plain).convert("RGB"))
        notes.append("transparency on white for the model")
        return LoadedImage(rgba, rgb, "RGBA", ", ".join(notes))
    if image.mode not in ("RGB", "P"):
        notes.append(f"{image.mode} converted to RGB")
    for rows, piece in _pieces(image):
        rgb[rows] = np.asarray(piece.convert("RGB"))
    return LoadedImage(rgb, rgb, "RGB", ", ".join(notes))


def _pieces(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """The image by some rows at a time: a copy of all of a large one costs hundreds of MB."""
    for top in range(0, image.height, _ROWS_AT_ONCE):
        bottom = min(top + _ROWS_AT_ONCE, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def _stretched(values: NDArray[np.uint16] | NDArray[np.float32]) -> NDArray[np.uint8]:
    """Grey values from their smallest to their largest finite one as (H, W, 3) uint8 from 0 to 255."""
    # In pieces: what lies between takes several times the memory of the result.
    pieces = [values[row : row + _ROWS_AT_ONCE] for row in range(0, len(values), _ROWS_AT_ONCE)]
    ranges = [(some.min(), some.max()) for piece in pieces if (some := piece[np.isfinite(piece)]).size]
    low = min((float(lowest) for lowest, _ in ranges), default=0.0)
    high = max((float(highest) for _, highest in ranges), default=0.0)
    scale = 255.0 / (high - low) if high > low else 0.0
    rgb = np.empty((*values.shape, 3), np.uint8)
    for number, piece in enumerate(pieces):
        grey = (np.nan_to_num(piece.astype(np.float32), nan=low, posinf=high, neginf=low) - low) * scale
        row = number * _ROWS_AT_ONCE
        rgb[row : row + len(piece)] = np.clip(grey, 0, 255).astype(np.uint8)[:, :, None]
    return rgb
