"""What a viewer says of the files it opens: the lines of its log. Standard library only."""

import dataclasses
import os
import re
from pathlib import Path, PurePath

# Viewers from 0.25 on read these by themselves and call no loader for them; they call loaders for all else.
# crates/store/re_data_loader (later re_importer), `SUPPORTED_IMAGE_EXTENSIONS`
VIEWER_IMAGE_EXTENSIONS = frozenset(
    (
        ".avif", ".bmp", ".dds", ".exr", ".farbfeld", ".ff", ".gif", ".hdr", ".ico", ".jpeg", ".jpg", ".pam",
        ".pbm", ".pgm", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp",
    )
)  # fmt: skip

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_LOADING = re.compile(r'Loading "((?:[^"\\]|\\.)*)"')
_LISTENING = re.compile(r"Listening for gRPC connections on \S*:(\d+)\.")
_STREAMING_TO = re.compile(r"streaming data to it.*?(rerun\+https?://\S+/proxy)")
_ESCAPE = re.compile(r"\\(?:u\{([0-9a-fA-F]+)\}|x([0-9a-fA-F]{2})|(.))")
_PLAIN_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "0": "\0"}


@dataclasses.dataclass(frozen=True)
class OpenedFile:
    """A file that a viewer opens: its path as the viewer was given it, and the folder that is relative to."""

    path: Path
    folder: Path

    @property
    def location(self) -> Path:
        """Where the file lies."""
        return self.folder / self.path

    def is_for_us(self) -> bool:
        """Whether the viewer reads this file itself, as an image: folders and all else it gives to loaders."""
        return self.path.suffix.lower() in VIEWER_IMAGE_EXTENSIONS and not self.location.is_dir()


def opened_path(line: str) -> Path | None:
    """The path of the file that a line of the viewer's log says is being loaded, if it says so."""
    match = _LOADING.search(_ANSI.sub("", line))
    return Path(_unescaped(match[1])) if match else None


def listening_port(line: str) -> int | None:
    """The port of the viewer's server, where the line says it."""
    match = _LISTENING.search(_ANSI.sub("", line))
    return int(match[1]) if match else None


def other_viewer_url(line: str) -> str | None:
    """The viewer, open already, to which this one streams its files before it ends, where the line says so."""
    match = _STREAMING_TO.search(_ANSI.sub("", line))
    return match[1] if match else None


def proxy_url(port: int) -> str:
    """Where a viewer on this machine that listens on `port` takes recordings."""
    return f"rerun+http://127.0.0.1:{port}/proxy"


def entity_parts(path: PurePath) -> list[str]:
    """The parts, not escaped, of the entity path that a viewer gives to the file at `path`."""
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            del parts[-1:]
        elif part not in (path.anchor, "."):
            parts.append(part)
    return parts


def unescaped_parts(entity_path: str) -> list[str]:
    r"""The parts of an entity path in Rerun's syntax, as `/a\ b/c.jpg`."""
    parts = re.findall(r"(?:\\u\{[0-9a-fA-F]+\}|\\.|[^/\\])+", entity_path)
    return [_unescaped(part) for part in parts]


def _unescaped(text: str) -> str:
    r"""`text` without the escapes of Rust's debug format; bytes that are no UTF-8 as Python has them in paths."""

    def plain(match: "re.Match[str]") -> str:
        code_point, byte, character = match.groups()
        if code_point:
            return chr(int(code_point, 16))
        if byte:
            return os.fsdecode(bytes([int(byte, 16)]))
        return _PLAIN_ESCAPES.get(character, character)

    return _ESCAPE.sub(plain, text)


def can_ask_viewers(version: str) -> bool:
    """Whether a viewer, or an SDK, of this version knows how to tell, or ask, what was opened."""
    return version_tuple(version) >= (0, 41)


def calls_loaders_for_images(version: str) -> bool:
    """Whether a viewer of this version calls external loaders for images itself."""
    return version_tuple(version) < (0, 25)


def version_tuple(version: str) -> tuple[int, int]:
    """Major and minor number of a version such as `0.41.0` or `0.42.0-alpha.1`; 0.0 for anything else."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)
