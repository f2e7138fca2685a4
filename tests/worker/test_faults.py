"""kill -9 of worker, loader and viewer at random moments: nothing hangs, nothing is left, the next image works."""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import PATIENCE_S, load, make_photos, pids_with, wait_until, worker_pids

from rerun_loader_sam.results import ResultCache, results_path
from rerun_loader_sam.settings import load_settings
from rerun_loader_sam.stamp import file_stamp
from rerun_loader_sam.worker.control import worker_status
from sdks import NATIVE, Sdk

pytestmark = [pytest.mark.viewer, pytest.mark.usefixtures("user")]

SEED = 20261122


@pytest.mark.parametrize("kills", [8, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_kills_at_random_moments(
    kills: int,
    tmp_path: Path,
    sdk: Callable[[str], Sdk],
    loaders_on_path: Callable[..., Path],
) -> None:
    loaders_on_path("rerun-loader-sam")
    viewer_program = sdk(NATIVE).viewer
    environment = sdk(NATIVE).environment()
    chance = random.Random(SEED)  # noqa: S311  # the same kills in each run, as far as the machine lets it
    photos = make_photos(tmp_path / "photos", 40)
    command = [viewer_program, chance.choice(photos), "--save", tmp_path / "out.rrd", "--port", "0"]
    for number in range(kills):
        command[1] = chance.choice(photos)
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as viewer:
            time.sleep(chance.choice((0.05, 0.3, 1.0, 3.0)) * chance.random() * 2)
            for pid in (worker_pids, loader_pids, lambda pid=viewer.pid: {pid})[number % 3]():
                with contextlib.suppress(ProcessLookupError):  # it had ended by itself
                    os.kill(pid, signal.SIGKILL)
            viewer.wait(PATIENCE_S)
        assert_all_has_ended(number)
        if number % 5 == 4:
            outcome = load(chance.choice(photos))
            assert (outcome.returncode, outcome.stderr) == (0, b""), f"after kill {number}"
    # With the viewer's SDK, as the results were made.
    assert load(photos[0]).returncode == 0
    assert len(worker_pids()) == 1
    assert_cache_is_whole(photos)


def assert_all_has_ended(number: int) -> None:
    """That no loader is left, one worker at most, and that nothing is in hand."""
    wait_until(lambda: not loader_pids(), lambda: f"kill {number}: loaders {loader_pids()} are left")
    wait_until(lambda: len(worker_pids()) <= 1, lambda: f"kill {number}: workers {worker_pids()}")
    wait_until(lambda: (worker_status() or {"running": []})["running"] == [], worker_status)


def loader_pids() -> set[int]:
    """The loaders of this test's user."""
    return pids_with(b"rerun-loader-sam") - worker_pids()


def assert_cache_is_whole(photos: list[Path]) -> None:
    """That each result in the cache is complete, and there are no others."""
    with sqlite3.connect(results_path()) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (count,) = connection.execute("SELECT count(*) FROM results").fetchone()
    connection.close()
    cache = ResultCache(load_settings())
    keys = [cache.key(photo, file_stamp(photo)) for photo in photos]
    found = [cache.find(key) for key in keys if key]
    assert count == sum(result is not None for result in found) > 0
