"""This user's folders. Standard library only, without pathlib at the top: the loader's start imports it."""

import os
import stat
import sys

from rerun_loader_sam.errors import UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

_NAME = "rerun-loader-sam"


def _base(variable: str, macos: str, other: str) -> str:
    """The base folder that `variable` (XDG base directory specification) names, else the platform's own."""
    value = os.environ.get(variable, "")
    if os.path.isabs(value):
        return value
    home = os.path.expanduser("~")
    if sys.platform == "darwin":
        return os.path.join(home, macos)
    if sys.platform == "win32":
        return os.environ.get("LOCALAPPDATA") or os.path.join(home, "AppData", "Local")
    return os.path.join(home, other)


def _path(*parts: str) -> "Path":
    from pathlib import Path

    return Path(*parts)


def _cache_path() -> str:
    return os.path.join(_base("XDG_CACHE_HOME", "Library/Caches", ".cache"), _NAME)


def cache_dir() -> "Path":
    """Checkpoints and results: what can be made again."""
    return _path(_cache_path())


def config_dir() -> "Path":
    """`config.toml`."""
    return _path(_base("XDG_CONFIG_HOME", "Library/Application Support", ".config"), _NAME)


def runtime_path() -> str:
    """`runtime_dir` as a text, for the loader's start."""
    value = os.environ.get("XDG_RUNTIME_DIR", "")
    if value and os.access(value, os.W_OK):
        return os.path.join(value, _NAME)
    return os.path.join(_cache_path(), "run")


def runtime_dir() -> "Path":
    """Sockets, locks and claims: what does not outlive a login.

    Without XDG_RUNTIME_DIR it lies in the cache folder, not in /tmp: nobody else can take the name first.
    """
    return _path(runtime_path())


def ensure_private(folder: "Path") -> "Path":
    """Make `folder` (mode 0700) where it does not exist yet, and return it.

    Raises UserError where it cannot be made, or belongs to another user.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if hasattr(os, "getuid"):
            if status.st_uid != os.getuid():
                raise UserError(
                    f"{folder} belongs to user id {status.st_uid}, not to you: remove it or choose another"
                )
            if stat.S_IMODE(status.st_mode) & 0o077:
                folder.chmod(0o700)
    except OSError as error:
        raise UserError(
            f"cannot use the folder {folder}: {error.strerror or error}; set XDG_CACHE_HOME, and XDG_RUNTIME_DIR if "
            "it is set, to folders that can be written"
        ) from error
    return folder
