"""Fixtures of the worker's tests."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import LOADER, Loading, make_photos

from rerun_loader_sam.worker.start import start_worker


@pytest.fixture
def start(user: Path) -> Iterator[Callable[..., Loading]]:
    """Call with arguments: a loader is started; it is ended with the test."""
    processes = []

    def run(*arguments: str | Path, program: tuple[str, ...] = (LOADER,), **variables: str) -> Loading:

        process = subprocess.Popen(
            [*program, *map(str, arguments)],
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        processes.append(process)
        return Loading(process)

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Four different photographs."""
    return make_photos(tmp_path / "photos", 4)


@pytest.fixture
def long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings under which one image takes minutes."""
    monkeypatch.setenv("RERUN_SAM_POINTS_PER_SIDE", "128")
    monkeypatch.setenv("RERUN_SAM_STRATEGY", "exhaustive")


@pytest.fixture
def worker(user: Path) -> None:
    """A worker that runs, and has done nothing yet."""
    start_worker().close()
