"""The worker as a process: one for all, warm, ready to make room, gone without a trace."""

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pytest
from processes import (
    LOADER,
    PATIENCE_S,
    Loading,
    held,
    least,
    load,
    make_photos,
    pids_with,
    status,
    wait_until,
    worker_pids,
)

from rerun_loader_sam.folders import runtime_dir
from rerun_loader_sam.worker.address import socket_path
from rerun_loader_sam.worker.client import connect
from rerun_loader_sam.worker.control import stop_worker, worker_status
from rerun_loader_sam.worker.start import log_path, start_worker

pytestmark = pytest.mark.usefixtures("user")

RERUN_SAM = str(Path(sys.executable).parent / "rerun-sam")
Start = Callable[..., Loading]


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([RERUN_SAM, "worker", *arguments], capture_output=True, text=True, check=False)


def thread_count(pid: int) -> int:
    """How many threads a process has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def address_space_bytes(pid: int) -> int:
    """How much memory a process has asked for."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


def settled(pid: int) -> int:
    """The same, half a second later: stacks of threads that end are freed by then."""
    time.sleep(0.5)
    return address_space_bytes(pid)


@contextlib.contextmanager
def own_limit(kind: int, soft: int) -> Iterator[None]:
    """A limit of this process, and of those that it starts."""
    old = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, old)


class TestOneForAll:
    def test_the_second_image_finds_the_model_in_memory(self, photos: list[Path]) -> None:
        assert load(photos[0]).returncode == 0
        first = status()
        assert load(photos[1]).returncode == 0
        second = status()
        assert second["pid"] == first["pid"]
        assert (first["served_count"], second["served_count"]) == (1, 2)
        assert second["model"] == "nano"

    def test_many_at_the_same_instant_start_one(self, tmp_path: Path, start: Start) -> None:
        loadings = [start(photo) for photo in make_photos(tmp_path / "many", 8)]
        seen: set[int] = set()
        while any(loading.process.poll() is None for loading in loadings[:1]):
            seen |= worker_pids()
            loadings[0].process.stdout.read(4096)  # type: ignore[union-attr]
        for loading in loadings[1:]:
            code, out, error = loading.finish()
            assert (code, error) == (0, "")
            assert out.startswith(b"RRF2")
        assert len(seen) == 1
        assert status()["served_count"] == 8

    def test_what_an_image_needs_is_free_again_afterwards(self, photos: list[Path]) -> None:
        assert load(photos[0]).returncode == 0
        (pid,) = worker_pids()
        fewest_threads, fewest_held = least(lambda: thread_count(pid)), least(lambda: len(held(pid)))
        for photo in photos[1:]:
            assert load(photo).returncode == 0
        wait_until(lambda: thread_count(pid) <= fewest_threads, lambda: (fewest_threads, thread_count(pid)))
        wait_until(lambda: len(held(pid)) <= fewest_held, lambda: "\n".join(held(pid)))

    @pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of other processes are Linux's")
    def test_where_no_thread_starts_it_goes_on_and_the_loader_helps_itself(self, photos: list[Path]) -> None:
        # Of what is left to this worker a thread's stack is twice too much, and anything else little.
        with own_limit(resource.RLIMIT_STACK, 1 << 30):
            assert load(photos[0]).returncode == 0
        before = status()
        pid = int(str(before["pid"]))
        wait_until(lambda: address_space_bytes(pid) == settled(pid), lambda: settled(pid))
        unlimited = resource.prlimit(pid, resource.RLIMIT_AS)
        resource.prlimit(pid, resource.RLIMIT_AS, (address_space_bytes(pid) + (1 << 29), unlimited[1]))
        with contextlib.ExitStack() as silent:  # they take the stacks that threads which have ended left behind
            for _ in range(8):
                silent.enter_context(connect() or contextlib.nullcontext())
            outcome = load(photos[1])
        resource.prlimit(pid, resource.RLIMIT_AS, unlimited)
        assert (outcome.returncode, outcome.stderr) == (0, b"")
        assert "cannot serve" in log_path().read_text()
        assert load(photos[2]).returncode == 0
        after = status()
        assert (after["pid"], after["served_count"]) == (pid, 2)

    def test_what_only_the_loader_can_open_is_opened_by_it(self, photos: list[Path]) -> None:
        assert load(photos[0]).returncode == 0
        with photos[1].open("rb") as file:
            outcome = subprocess.run([LOADER, "/dev/stdin"], stdin=file, capture_output=True, timeout=99, check=False)
        assert (outcome.returncode, outcome.stderr) == (0, b"")
        assert outcome.stdout.startswith(b"RRF2")
        assert status()["served_count"] == 1

    def test_neither_output_of_a_loader_is_inherited(self, photos: list[Path], start: Start) -> None:
        # Would it be, communicate() would wait for the worker to end.
        assert start(photos[0]).finish()[0] == 0
        (pid,) = worker_pids()
        assert os.getsid(pid) == pid
        opened = {str(Path(f"/proc/{pid}/fd/{number}").readlink()) for number in (0, 1, 2)}
        assert opened == {os.devnull, str(log_path())}

    @pytest.mark.parametrize("policy", [None, "ACTIVE"])
    def test_its_threads_sleep_while_they_wait_unless_a_person_says_otherwise(
        self, policy: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        if policy is not None:
            monkeypatch.setenv("OMP_WAIT_POLICY", policy)
        start_worker().close()
        (pid,) = worker_pids()
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert f"OMP_WAIT_POLICY={policy or 'PASSIVE'}".encode() in environ

    def test_its_files_are_for_the_user_alone(self, photos: list[Path]) -> None:
        load(photos[0])
        assert Path(socket_path()).stat().st_mode & 0o077 == 0
        assert Path(socket_path()).parent.stat().st_mode & 0o777 == 0o700
        assert runtime_dir().stat().st_mode & 0o777 == 0o700

    def test_a_runtime_folder_with_a_long_name_does_too(
        self, photos: list[Path], user: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = user / ("long" * 30)
        folder.mkdir(mode=0o700)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        try:
            assert load(photos[0]).returncode == 0
            assert not Path(socket_path()).is_relative_to(folder)
            assert Path(socket_path()).parent.stat().st_mode & 0o777 == 0o700
            assert status()["served_count"] == 1
        finally:
            stop_worker()
            shutil.rmtree(Path(socket_path()).parent)

    def test_the_loader_of_a_warm_worker_imports_little(self, photos: list[Path]) -> None:
        load(photos[0])
        program = (
            "import atexit, sys\n"
            "atexit.register(lambda: sys.stderr.write(' '.join(sys.modules)))\n"
            f"sys.argv = ['rerun-loader-sam', {str(photos[1])!r}, '--recording-id', 'r']\n"
            "from rerun_loader_sam.loader import main\n"
            "main()\n"
        )
        outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
        assert outcome.returncode == 0
        assert outcome.stdout.startswith(b"RRF2")
        imported = set(outcome.stderr.decode().split())
        assert "rerun_loader_sam.worker.client" in imported
        assert not imported & {"torch", "numpy", "rerun", "PIL", "argparse", "dataclasses", "pathlib", "subprocess"}


class TestOutcome:
    def test_a_broken_image_is_one_line_and_exit_1(self, tmp_path: Path) -> None:
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)
        for _ in range(2):  # with a worker that has yet to start, and with one that runs
            outcome = load(broken)
            assert outcome.returncode == 1
            (line,) = outcome.stderr.decode().splitlines()
            assert str(broken) in line

    def test_a_wrong_setting_is_one_line_though_the_worker_runs(
        self, photos: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        load(photos[0])
        monkeypatch.setenv("RERUN_SAM_POINTS_PER_SIDE", "many")
        outcome = load(photos[1])
        assert outcome.returncode == 1
        (line,) = outcome.stderr.decode().splitlines()
        assert "RERUN_SAM_POINTS_PER_SIDE" in line
        assert "many" in line
        assert status()["served_count"] == 1

    def test_wrong_usage_is_told_by_the_loader(self, photos: list[Path]) -> None:
        load(photos[0])
        outcome = load(photos[1], "--sequence", "frame=first")
        assert outcome.returncode == 2
        assert b"frame=first" in outcome.stderr

    def test_a_path_is_relative_to_the_folder_of_the_loader(self, photos: list[Path]) -> None:
        for _ in range(2):
            outcome = subprocess.run([LOADER, photos[0].name], cwd=photos[0].parent, capture_output=True, check=False)
            assert outcome.returncode == 0, outcome.stderr
            assert len(outcome.stdout) > 1 << 14

    def test_a_saved_file_is_complete_or_not_there(self, photos: list[Path], tmp_path: Path) -> None:
        out = tmp_path / "out" / "photo.rrd"
        out.parent.mkdir()
        assert load(photos[0], "--save", out).returncode == 0
        assert out.read_bytes().startswith(b"RRF2")
        out.unlink()
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)
        assert load(broken, "--save", out).returncode == 1
        assert list(out.parent.iterdir()) == []

    def test_a_relative_checkpoint_is_the_loaders(
        self, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from rerun_loader_sam.models.registry import SHIPPED_FOLDER

        shutil.copy(SHIPPED_FOLDER / "nano.safetensors", tmp_path / "mine.safetensors")
        monkeypatch.setenv("RERUN_SAM_MODEL", "./mine.safetensors")
        monkeypatch.chdir(tmp_path)
        for photo in photos[:2]:
            outcome = load(photo)
            assert outcome.returncode == 0, outcome.stderr
        assert status()["served_count"] == 2


class TestMakingRoom:
    def test_other_settings_get_another_worker_and_running_work_completes(
        self, photos: list[Path], start: Start
    ) -> None:
        slow = start(photos[0], RERUN_SAM_POINTS_PER_SIDE="24")
        slow.read_image()
        first = status()["pid"]
        other = start(photos[1], RERUN_SAM_POINTS_PER_SIDE="5")
        assert other.finish()[0] == 0
        second = status()["pid"]
        assert second != first
        assert slow.finish()[0] == 0
        wait_until(lambda: worker_pids() == {second}, worker_pids)

    def test_settings_of_the_config_file_count(self, photos: list[Path], user: Path) -> None:
        load(photos[0])
        first = status()["pid"]
        config = user / "config" / "rerun-loader-sam" / "config.toml"
        config.parent.mkdir()
        config.write_text("tensor_mib = 8\n")
        assert load(photos[0]).returncode == 0
        assert status()["pid"] != first

    def test_another_version_takes_over_whichever_is_newer(
        self, photos: list[Path], tmp_path: Path, start: Start
    ) -> None:
        import rerun_loader_sam

        source = Path(rerun_loader_sam.__file__).parent
        copy = tmp_path / "older" / source.name
        shutil.copytree(source, copy)
        init = copy / "__init__.py"
        init.write_text(init.read_text().replace(rerun_loader_sam.__version__, "0.0.9"))
        older = (sys.executable, "-P", "-m", "rerun_loader_sam.loader")
        assert start(photos[0], program=older, PYTHONPATH=str(copy.parent)).finish()[0] == 0
        assert status()["version"] == "0.0.9"
        assert load(photos[0]).returncode == 0
        assert status()["version"] == rerun_loader_sam.__version__
        assert start(photos[1], program=older, PYTHONPATH=str(copy.parent)).finish()[0] == 0
        wait_until(lambda: len(worker_pids()) == 1, worker_pids)
        assert status()["version"] == "0.0.9"

    def test_a_changed_checkpoint_is_loaded_anew(
        self, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from safetensors import safe_open
        from safetensors.torch import load_file, save_file

        from rerun_loader_sam.models.registry import SHIPPED_FOLDER

        checkpoint = tmp_path / "mine.safetensors"
        shutil.copy(SHIPPED_FOLDER / "nano.safetensors", checkpoint)
        monkeypatch.setenv("RERUN_SAM_MODEL", str(checkpoint))
        monkeypatch.setenv("RERUN_SAM_PRED_IOU_THRESH", "0")
        monkeypatch.setenv("RERUN_SAM_STABILITY_SCORE_THRESH", "0")
        before = load(photos[0])
        assert before.returncode == 0
        with safe_open(checkpoint, "pt") as file:
            metadata = file.metadata()
        state = load_file(checkpoint)
        for name in state:
            if name.startswith("mask_decoder.iou_prediction_head") and name.endswith("bias"):
                state[name] = state[name] * 0 + 0.5
        save_file(state, checkpoint, metadata)
        after = load(photos[0])
        assert after.returncode == 0
        # The very same photograph: neither the model in memory nor the result on disk was used.
        assert before.stdout != after.stdout
        assert b"was segmented" not in after.stdout

    def test_it_leaves_when_idle(self, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RERUN_SAM_WORKER_IDLE_S", "0.5")
        assert load(photos[0]).returncode == 0
        wait_until(lambda: not worker_pids(), worker_pids)
        assert not Path(socket_path()).exists()
        assert load(photos[1]).returncode == 0


class TestCommand:
    def test_status_and_stop(self, photos: list[Path]) -> None:
        nothing = command("status")
        assert (nothing.returncode, nothing.stdout) == (1, "no worker is running\n")
        load(photos[0])
        (pid,) = worker_pids()
        running = command("status")
        assert running.returncode == 0
        assert f"process {pid}" in running.stdout
        assert "nano on cpu" in running.stdout
        assert command("stop").stdout == f"stopped the worker, process {pid}\n"
        assert not worker_pids()
        assert command("stop").stdout == "no worker is running\n"

    @pytest.mark.usefixtures("long_work")
    def test_stop_tells_the_loaders(self, photos: list[Path], start: Start) -> None:
        loadings = [start(photo) for photo in photos[:2]]
        for loading in loadings:
            loading.read_image()
        assert command("stop").returncode == 0
        for loading in loadings:
            code, _, error = loading.finish()
            assert code == 1
            assert len(error.splitlines()) == 1, error

    def test_a_worker_that_hangs_is_ended_all_the_same(self, photos: list[Path]) -> None:
        load(photos[0])
        (pid,) = worker_pids()
        os.kill(pid, signal.SIGSTOP)
        assert stop_worker() == pid
        assert worker_status() is None
        assert load(photos[1]).returncode == 0


class TestWithoutWorker:
    def test_the_loader_does_the_work(self, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RERUN_SAM_WORKER", "0")
        outcome = load(photos[0])
        assert outcome.returncode == 0
        assert len(outcome.stdout) > 1 << 14
        assert not worker_pids()

    def test_they_take_turns_with_the_image_shown_first(self, photos: list[Path], start: Start) -> None:
        runtime_dir().mkdir(mode=0o700, parents=True)
        turn = filelock.FileLock(runtime_dir() / "turn.lock")
        with turn:
            loadings = [start(photo, RERUN_SAM_WORKER="0") for photo in photos[:3]]
            for loading in loadings:
                loading.read_image()
            assert all(loading.process.poll() is None for loading in loadings)
        for loading in loadings:
            code, out, _ = loading.finish()
            assert code == 0
            assert out


def test_a_model_is_fetched_through_the_proxy_of_who_asks(
    start: Start, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RERUN_SAM_MODEL", "auto")
    monkeypatch.setenv("RERUN_SAM_DOWNLOAD", "auto")
    monkeypatch.setenv("RERUN_SAM_CHECKPOINT_URL", "https://checkpoints.invalid")
    for variable in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    start_worker().close()
    pid = status()["pid"]
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(PATIENCE_S)
        url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        loader = start(photos[0], HTTPS_PROXY=url, https_proxy=url, NO_PROXY="", no_proxy="")
        assert loader.finish()[0] == 0
        client, _ = proxy.accept()
        with client:
            assert client.recv(4096).startswith(b"CONNECT checkpoints.invalid:443 ")
    assert status()["pid"] == pid
    for fetching in pids_with(b"rerun_loader_sam.models.background"):
        os.kill(fetching, signal.SIGKILL)
