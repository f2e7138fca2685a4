"""What all tests share: a user of their own, real viewers of several versions, and their recordings."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rerun_loader_sam.worker.control import stop_worker
from sdks import Sdk, install_sdk

EXAMPLE = Path(__file__).parents[1] / "examples" / "coffee.jpg"


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """What a shell has in the background ignores Ctrl-C, and so would the programs that tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The home folder of a user who has set nothing but a small, quick grid of prompts; without a worker yet."""
    for name in list(os.environ):
        if name.startswith(("RERUN", "XDG_")):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    for variable, folder in (
        ("HOME", ""),
        ("XDG_CACHE_HOME", "cache"),
        ("XDG_CONFIG_HOME", "config"),
        ("XDG_DATA_HOME", "data"),
        ("XDG_RUNTIME_DIR", "run"),
    ):
        (home / folder).mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv(variable, str(home / folder))
    (home / "run").chmod(0o700)
    monkeypatch.setenv("RERUN_SAM_MODEL", "nano")
    monkeypatch.setenv("RERUN_SAM_DOWNLOAD", "never")
    monkeypatch.setenv("RERUN_SAM_POINTS_PER_SIDE", "6")
    monkeypatch.setenv("RERUN_SAM_CROP_N_LAYERS", "0")
    # A viewer asks once whether it may send statistics; a test has no say in that.
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    yield home
    stop_worker()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photograph in a folder of its own."""
    folder = tmp_path / "photos"
    folder.mkdir()
    return Path(shutil.copy(EXAMPLE, folder / "coffee.jpg"))


@pytest.fixture
def loaders_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Call with names of loaders: a folder with just these is put on PATH, and returned."""

    def put(*names: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        for name in names:
            (folder / name).symlink_to(Path(sys.executable).parent / name)
        # The environment's own folder must not be there: a viewer would find both names in it.
        system = [entry for entry in os.environ["PATH"].split(os.pathsep) if not list(Path(entry).glob("rerun-*"))]
        monkeypatch.setenv("PATH", os.pathsep.join([str(folder), *system]))
        return folder

    return put


@pytest.fixture
def sdk(pytestconfig: pytest.Config) -> Callable[[str], Sdk]:
    """Call with a version: the SDK and viewer of that version, installed once and kept with pytest's cache."""
    folder = pytestconfig.cache.mkdir("rerun-sdks") if pytestconfig.cache else Path()
    return lambda version: install_sdk(folder, version)
