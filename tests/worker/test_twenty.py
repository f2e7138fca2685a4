"""Twenty photographs opened at the same instant in a real viewer."""

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import make_photos, wait_until, worker_pids

from recordings import read
from rerun_loader_sam.worker.control import worker_status
from sdks import NATIVE, NEWEST, Sdk

COUNT = 20


def free_port() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return str(sock.getsockname()[1])


@pytest.mark.viewer
@pytest.mark.usefixtures("user")
def test_all_of_them_complete(
    tmp_path: Path,
    sdk: Callable[[str], Sdk],
    loaders_on_path: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RERUN_SAM_PRED_IOU_THRESH", "0")  # so that each of them has masks
    monkeypatch.setenv("RERUN_SAM_STABILITY_SCORE_THRESH", "0")
    loaders_on_path("rerun-loader-sam")
    photos = make_photos(tmp_path / "photos", COUNT)
    out, port = tmp_path / "received.rrd", free_port()
    # Viewers up to 0.24 wait for loaders in a thread pool as large as the machine has cores.
    environment = sdk(NATIVE).environment() | {"RAYON_NUM_THREADS": "64"}
    program = sdk(NATIVE).viewer
    quiet = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # It serves what it opens instead of showing it: the same program and the same loaders, without a window.
    viewer = subprocess.Popen([program, *photos, "--serve-grpc", "--port", port], **quiet)  # type: ignore[call-overload]
    try:
        wait_until(lambda: (worker_status() or {}).get("served_count") == COUNT, worker_status)
        assert len(worker_pids()) == 1
        proxy = f"rerun+http://127.0.0.1:{port}/proxy"
        saving = subprocess.Popen([program, proxy, "--save", out, "--port", free_port()], **quiet)  # type: ignore[call-overload]
        try:
            wait_until(lambda: out.exists() and count_of_complete(out, sdk(NEWEST)) == COUNT)
        finally:
            saving.terminate()
            saving.wait()
    finally:
        viewer.kill()
        viewer.wait()


def count_of_complete(out: Path, newest: Sdk) -> int:
    """How many recordings hold an image, masks, a tensor and the line with which a loader ends."""
    time.sleep(1)  # the file grows; half a message at its end is no error to the reader
    complete = 0
    for recording in read(out, newest).recordings:
        entities = {row.entity_path for row in recording.rows}
        has_end = any(" s, by nano" in text for _, text in recording.texts())
        complete += has_end and {"/image", "/image/masks", "/image/boxes", "/mask_tensor"} <= entities
    return complete
