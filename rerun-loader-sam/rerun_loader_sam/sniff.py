"""What a path holds, told by its content. Standard library only, and of that only `os`: declining must be free."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from io import BufferedReader

IMAGE, FOLDER, OTHER = "image", "folder", "other"

_HEAD_BYTES = 64
_PREFIXES = (
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\x00",  # TIFF, little and big endian, then BigTIFF
    b"MM\x00*",
    b"II+\x00",
    b"MM\x00+",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n",  # JPEG 2000, boxed and bare
    b"\xff\x4f\xff\x51",
    b"\x00\x00\x00\x0cJXL \r\n\x87\n",  # JPEG XL, boxed and bare
    b"\xff\x0a",
    b"qoif",
    b"DDS ",
    b"8BPS",  # Photoshop
    b"icns",
    b"\x01\xda\x00",  # SGI, plain and run-length
    b"\x01\xda\x01",
    b"farbfeld",
    b"v/1\x01",  # OpenEXR
    b"#?RADIANCE",
    b"/* XPM */",
    b"SIMPLE  =",  # FITS
)
_HEIF_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_BMP_HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)
_PNM_BLANKS = b" \t\r\n#"
_EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp",
    ".avif", ".heic", ".ppm", ".pgm", ".pbm", ".tga", ".jp2", ".qoi",
)  # fmt: skip


def _is_image_head(head: bytes, name: str) -> bool:
    """Whether a file that starts with `head` and is called `name` is an image."""
    if head.startswith(_PREFIXES):
        return True
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return True
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return True
    if head[:2] == b"BM" and len(head) > 18 and int.from_bytes(head[14:18], "little") in _BMP_HEADER_SIZES:
        return True
    if head[:1] == b"P" and head[1:2] in b"123456f" and len(head) > 3 and head[2:3] in _PNM_BLANKS:
        return head[3:4] in b"0123456789" + _PNM_BLANKS
    is_icon = head[:4] in (b"\x00\x00\x01\x00", b"\x00\x00\x02\x00") and len(head) >= 22
    if is_icon and 0 < int.from_bytes(head[4:6], "little") <= 256 and head[9:10] == b"\x00":
        return True  # icon or cursor: holds one image or more, and a reserved byte of each is zero
    if head[:1] == b"\n" and len(head) == _HEAD_BYTES:  # PCX: version, encoding, bits a pixel
        return head[1] <= 5 and head[2] <= 1 and head[3] in (1, 2, 4, 8) and name.lower().endswith(".pcx")
    if name.lower().endswith(".tga") and len(head) >= 18:  # Targa has no magic bytes
        return head[1] <= 1 and head[2] in (1, 2, 3, 9, 10, 11) and head[16] in (8, 15, 16, 24, 32)
    return False


def is_image_file(path: str) -> bool:
    """Whether `path` is a regular file with an image's magic bytes; a pipe or a device is never opened.

    Raises OSError where it cannot be read.
    """
    if not _is_regular(os.stat(path)):
        return False
    with open_regular(path) as file:
        return _is_image_head(file.read(_HEAD_BYTES), path)


def open_regular(path: "str | os.PathLike[str]") -> "BufferedReader":
    """Open a file for reading, without waiting for what may have come into its place: a pipe nobody writes to.

    Raises OSError where it is no regular file, or cannot be read.
    """
    file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115  # it is the caller's to close
    if not _is_regular(os.fstat(file.fileno())):
        file.close()
        raise OSError(f"{os.fspath(path)} is no file any more")
    return file


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # which Windows does not have


def _is_regular(status: os.stat_result) -> bool:
    return status.st_mode & 0o170000 == 0o100000


def is_pipe_or_device(path: str) -> bool:
    """Whether there is something at `path` that is neither a file nor a folder, as far as can be seen."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def has_image_name(path: str) -> bool:
    """Whether the name alone promises an image: decides who reports a file that cannot be opened."""
    return path.lower().endswith(_EXTENSIONS)


def iter_images(folder: str, look_up: "Callable[[], None]" = lambda: None) -> "list[str]":
    """The images below `folder`, as full paths, in natural order of their relative paths.

    Hidden files and folders, links to folders and what cannot be read are passed over. It may take minutes:
    `look_up` is called at each file and folder, and ends it by what it raises.
    """
    found = []
    for parent, subfolders, names in os.walk(folder):
        look_up()
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            look_up()
            path = os.path.join(parent, name)
            if not name.startswith(".") and _is_readable_image(path):
                found.append(path)
    found.sort(key=lambda path: natural_key(os.path.relpath(path, folder)))
    return found


def natural_key(text: str) -> "list[tuple[int, int, str]]":
    """A sort key by which `frame2` comes before `frame10`."""
    parts: list[tuple[int, int, str]] = []
    word = ""
    for character in text.casefold() + "\0":
        is_digit = character in "0123456789"
        if word and is_digit != (word[0] in "0123456789"):
            parts.append((0, int(word), "") if word[0] in "0123456789" else (1, 0, word))
            word = ""
        word += character
    return parts


def _is_readable_image(path: str) -> bool:
    try:
        return is_image_file(path)
    except OSError:
        return False


def kind_of(path: str) -> str:
    """IMAGE, FOLDER (it holds an image) or OTHER.

    Raises OSError for a path that does not exist, and for one that cannot be opened but is named like an image.
    """
    if os.path.isdir(path):
        for parent, subfolders, names in os.walk(path):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            if any(not name.startswith(".") and _is_readable_image(os.path.join(parent, name)) for name in names):
                return FOLDER
        return OTHER
    try:
        return IMAGE if is_image_file(path) else OTHER
    except PermissionError:
        if has_image_name(path):
            raise
        return OTHER
