"""Where the worker is reached, and what makes it the right one. Standard library only, without pathlib."""

import os
import sys

from rerun_loader_sam import __version__
from rerun_loader_sam.folders import runtime_path

_MAX_PATH_BYTES = 100  # the kernel's limit is 108 with the zero at the end, on macOS 104
_VARIABLES = ("HOME", "PYTHONPATH", "TORCH_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")


def socket_path() -> str:
    """The worker's socket. Where the runtime folder's path is too long for one it lies in a folder of /tmp."""
    folder = runtime_path()
    path = os.path.join(folder, "worker.sock")
    if len(os.fsencode(path)) <= _MAX_PATH_BYTES:
        return path
    import hashlib

    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    # A fixed place: a viewer and a terminal may have different TMPDIR. Whoever makes or uses it checks the owner.
    return f"/tmp/rerun-loader-sam-{os.getuid()}-{digest}/worker.sock"  # noqa: S108


def identity() -> dict[str, str]:
    """What loader and worker must have in common: the installation, its packages, the user's folders.

    What pip installs or removes changes the time of `site-packages`: after an upgrade of this package, of
    Rerun or of torch a worker with the old code in memory has to go.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    folders = sorted({entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))})
    times = [_modified_ns(place) for place in (os.path.join(package, "__init__.py"), *folders)]
    return {
        "version": __version__,
        "package": package,
        "prefix": sys.prefix,
        "installed": " ".join(map(str, times)),
        **{name: os.environ.get(name, "") for name in _VARIABLES},
    }


def _modified_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
