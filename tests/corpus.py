"""Images of every format and kind that can be made here, and broken ones made of them."""

import io
import random
import struct
from collections.abc import Callable

import numpy as np
from PIL import Image, features
from PIL.TiffImagePlugin import ImageFileDirectory_v2

SIDE = 64


def photograph(mode: str = "RGB", side: int = SIDE) -> Image.Image:
    """A gradient with noise, the same each time."""
    gradient = np.linspace(0, 255, side * side * 3).reshape(side, side, 3)
    noise = np.random.default_rng(0).integers(-20, 20, gradient.shape)
    image = Image.fromarray(np.clip(gradient + noise, 0, 255).astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 200)
    return image.convert(mode)


def encoded(form: str, mode: str = "RGB", frames: int = 1, **options: object) -> bytes:
    """The photograph in a format of Pillow's, or several turned ones as frames or pages."""
    images = [photograph(mode).rotate(90 * number) for number in range(frames)]
    buffer = io.BytesIO()
    if frames > 1:
        options |= {"save_all": True, "append_images": images[1:]}
    images[0].save(buffer, format=form, **options)
    return buffer.getvalue()


def _rotated_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    return exif


def _huge_metadata() -> ImageFileDirectory_v2:
    tags = ImageFileDirectory_v2()
    tags[270] = "x" * 100_000
    for number in range(65000, 65200):
        tags.tagtype[number] = 2
        tags[number] = "y" * 50
    return tags


def _psd() -> bytes:
    """Photoshop: header, three empty sections, then planes without compression."""
    planes = np.asarray(photograph()).transpose(2, 0, 1).tobytes()
    return struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, SIDE, SIDE, 8, 3) + bytes(12) + bytes(2) + planes


def _fits() -> bytes:
    cards = ["SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", f"NAXIS1  = {SIDE}", f"NAXIS2  = {SIDE}", "END"]
    header = "".join(card.ljust(80) for card in cards).ljust(2880).encode()
    return header + photograph("L").tobytes().ljust(5760, b"\0")


def _xpm() -> bytes:
    rows = ",\n".join('"' + "ab" * (SIDE // 2) + '"' for _ in range(SIDE))
    colors = '"a c #102030",\n"b c #a0b0c0",\n'
    return f'/* XPM */\nstatic char *x[] = {{\n"{SIDE} {SIDE} 2 1",\n{colors}{rows}\n}};\n'.encode()


def _sun() -> bytes:
    pixels = photograph().tobytes()
    return struct.pack(">8I", 0x59A66A95, SIDE, SIDE, 24, len(pixels), 1, 0, 0) + pixels


def _cursor() -> bytes:
    icon = bytearray(encoded("ICO", bitmap_format="bmp", sizes=[(32, 32)]))
    icon[2] = 2
    return bytes(icon)


KINDS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "BMP": (".bmp", lambda: encoded("BMP")),
    "BMP, palette": (".bmp", lambda: encoded("BMP", "P")),
    "CUR": (".cur", _cursor),
    "DDS": (".dds", lambda: encoded("DDS")),
    "DDS, DXT5": (".dds", lambda: encoded("DDS", "RGBA", pixel_format="DXT5")),
    "FITS": (".fits", _fits),
    "GIF": (".gif", lambda: encoded("GIF")),
    "GIF, animated": (".gif", lambda: encoded("GIF", frames=4)),
    "ICNS": (".icns", lambda: encoded("ICNS")),
    "ICO": (".ico", lambda: encoded("ICO")),
    "JPEG": (".jpg", lambda: encoded("JPEG")),
    "JPEG, CMYK": (".jpg", lambda: encoded("JPEG", "CMYK")),
    "JPEG, progressive, turned by EXIF": (".jpg", lambda: encoded("JPEG", progressive=True, exif=_rotated_exif())),
    "JPEG 2000": (".jp2", lambda: encoded("JPEG2000")),
    "MPO": (".mpo", lambda: encoded("MPO", frames=3)),
    "PCX": (".pcx", lambda: encoded("PCX")),
    "PNG": (".png", lambda: encoded("PNG")),
    "PNG, 16-bit": (".png", lambda: encoded("PNG", "I;16")),
    "PNG, animated": (".png", lambda: encoded("PNG", frames=4)),
    "PNG, palette with alpha": (".png", lambda: encoded("PNG", "P", transparency=bytes(range(256)))),
    "PPM": (".ppm", lambda: encoded("PPM")),
    "PFM, float": (".pfm", lambda: encoded("PPM", "F")),
    "PSD": (".psd", _psd),
    "SGI": (".sgi", lambda: encoded("SGI")),
    "SUN": (".ras", _sun),
    "TGA": (".tga", lambda: encoded("TGA")),
    "TGA, run lengths": (".tga", lambda: encoded("TGA", compression="tga_rle")),
    "TIFF": (".tif", lambda: encoded("TIFF")),
    "TIFF, CMYK": (".tif", lambda: encoded("TIFF", "CMYK")),
    "TIFF, LZW, several pages": (".tif", lambda: encoded("TIFF", frames=4, compression="tiff_lzw")),
    "TIFF, JPEG": (".tif", lambda: encoded("TIFF", compression="jpeg")),
    "TIFF, deflate, 16-bit": (".tif", lambda: encoded("TIFF", "I;16", compression="tiff_adobe_deflate")),
    "TIFF, float": (".tif", lambda: encoded("TIFF", "F")),
    "TIFF, huge metadata": (".tif", lambda: encoded("TIFF", tiffinfo=_huge_metadata())),
    "WEBP": (".webp", lambda: encoded("WEBP")),
    "WEBP, animated": (".webp", lambda: encoded("WEBP", frames=4)),
    "WEBP, lossless with alpha": (".webp", lambda: encoded("WEBP", "RGBA", lossless=True)),
    "XPM": (".xpm", _xpm),
}
"""Of each kind the file's extension, and what makes its content."""

Image.init()
if "QOI" in Image.SAVE:  # from Pillow 12 on
    KINDS["QOI"] = (".qoi", lambda: encoded("QOI"))
if features.check("avif"):
    KINDS["AVIF"] = (".avif", lambda: encoded("AVIF"))
    KINDS["AVIF, animated"] = (".avif", lambda: encoded("AVIF", frames=3))


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The file cut, with bits flipped, with a piece lost, doubled or overwritten, or with another's after it."""
    result = bytearray(content)
    match rng.randrange(6):
        case 0:
            del result[rng.randrange(len(result)) :]
        case 1:
            for _ in range(rng.randrange(1, 20)):
                result[rng.randrange(len(result))] ^= 1 << rng.randrange(8)
        case 2:
            start = rng.randrange(len(result))
            del result[start : start + rng.randrange(1, 64)]
        case 3:
            start = rng.randrange(len(result))
            result[start:start] = result[start : start + rng.randrange(1, 64)]
        case 4:
            # Headers are where lengths and sizes are.
            start = rng.randrange(min(64, len(result)))
            result[start : start + 4] = rng.randbytes(4)
        case 5:
            for _ in range(rng.randrange(1, 4)):
                start = rng.randrange(len(result))
                result[start : start + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"))
    return bytes(result)
