"""A recording for which there is no room: one line, nothing half written, and a worker that serves the next one."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from recordings import is_whole
from rerun_loader_sam.worker.control import worker_status
from sdks import NATIVE, NEWEST, Sdk

LOADER = str(Path(sys.executable).parent / "rerun-loader-sam")
# Writing more than 200 blocks of 512 bytes into a file fails as on a full disk, but needs no root's rights.
LIMITED = ("/bin/sh", "-c", 'ulimit -f 200 && exec "$0" "$@"', LOADER)

pytestmark = [pytest.mark.usefixtures("user"), pytest.mark.parametrize("worker", ["1", "0"])]


@pytest.mark.parametrize("version", [NEWEST, pytest.param(NATIVE, marks=pytest.mark.slow)])
def test_a_file_that_cannot_hold_it_is_not_there(
    version: str, worker: str, photo: Path, tmp_path: Path, sdk: Callable[[str], Sdk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RERUN_SAM_WORKER", worker)
    monkeypatch.setenv("PYTHONPATH", sdk(version).environment()["PYTHONPATH"])
    out = tmp_path / "out"
    out.mkdir()
    command = [*LIMITED, photo, "--save", out / "photo.rrd"]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert outcome.stderr.splitlines() == [
        f"rerun-loader-sam: cannot write into {out}: File too large; nothing was saved"
    ]
    assert list(out.iterdir()) == []
    if worker == "1":  # it was started under the limit too
        assert_the_same_worker_serves(photo)


def test_a_pipe_that_takes_no_more_is_said(worker: str, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERUN_SAM_WORKER", worker)
    with Path("/dev/full").open("wb") as full:
        outcome = subprocess.run([LOADER, photo], stdout=full, stderr=subprocess.PIPE, timeout=120, check=False)
    assert outcome.returncode == 1
    assert outcome.stderr == (
        b"rerun-loader-sam: cannot write the recording: no space left on device; it ends early\n"
    )
    if worker == "1":
        assert_the_same_worker_serves(photo)


def assert_the_same_worker_serves(photo: Path) -> None:
    """That the worker that met the full disk segments the next image."""
    before = worker_status()
    outcome = subprocess.run([LOADER, photo], capture_output=True, timeout=120, check=False)
    assert (outcome.returncode, outcome.stderr) == (0, b"")
    assert is_whole(outcome.stdout)
    after = worker_status()
    assert before is not None
    assert after is not None
    assert after["pid"] == before["pid"]
