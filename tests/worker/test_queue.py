"""Several at once: images first, one segmented at a time, nobody starved."""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import PATIENCE_S, Loading, load, make_photos, status, wait_until, worker_pids

from rerun_loader_sam.worker.address import socket_path
from rerun_loader_sam.worker.client import connect, segment_order
from rerun_loader_sam.worker.control import worker_status
from rerun_loader_sam.worker.wire import MAX_HEADER_BYTES, encode_header

pytestmark = pytest.mark.usefixtures("user")

Start = Callable[..., Loading]


def running() -> list[str]:
    """What the worker has in hand, if there is one."""
    paths = (worker_status() or {"running": []})["running"]
    assert isinstance(paths, list)
    return paths


class TestOrder:
    @pytest.mark.usefixtures("long_work")
    def test_images_are_shown_while_another_is_segmented(self, photos: list[Path], start: Start) -> None:
        loadings = [start(photo) for photo in photos]
        for loading in loadings:
            loading.read_image()
        # Each of them takes minutes: none is done, and all but one wait for their turn.
        assert set(running()) == set(map(str, photos))
        wait_until(lambda: status()["waiting_count"] == len(photos) - 1, status)

    def test_a_folder_does_not_keep_a_single_image_waiting(
        self, tmp_path: Path, photos: list[Path], start: Start
    ) -> None:
        folder = tmp_path / "folder"
        make_photos(folder, 24)
        whole = start(folder)
        whole.read_image()
        single = start(photos[0])
        assert single.finish()[0] == 0
        assert running() == [str(folder)]
        assert whole.finish()[0] == 0

    def test_a_viewer_that_reads_nothing_keeps_nobody_waiting(
        self, tmp_path: Path, photos: list[Path], start: Start
    ) -> None:
        (large,) = make_photos(tmp_path / "large", 1, width=3000)
        silent = start(large)  # its pipe and socket take less than the image, and nobody reads
        wait_until(lambda: running() == [str(large)])
        for photo in photos[:2]:
            assert load(photo).returncode == 0
        assert silent.process.poll() is None

    @pytest.mark.usefixtures("long_work")
    def test_files_that_vanish_or_change_while_they_wait(self, photos: list[Path], start: Start) -> None:
        loadings = []
        for photo in photos[:3]:
            loadings.append(start(photo))
            loadings[-1].read_image()
            wait_until(lambda: status()["waiting_count"] == len(loadings) - 1, status)
        photos[1].unlink()
        photos[2].write_bytes(photos[3].read_bytes())
        loadings[0].process.kill()
        for loading, what in zip(loadings[1:], ("is not there any more", "was changed while it waited"), strict=True):
            code, _, error = loading.finish()
            assert (code, error.count("\n"), what in error) == (1, 1, True), error


class TestCancelling:
    """The work that is cancelled would take minutes: what follows at once shows that it has ended."""

    @pytest.mark.usefixtures("long_work")
    def test_a_killed_loader_frees_its_place(self, photos: list[Path], start: Start) -> None:
        first, second, third = (start(photo) for photo in photos[:3])
        for loading in (first, second, third):
            loading.read_image()
        wait_until(lambda: status()["waiting_count"] == 2, status)
        second.process.kill()
        wait_until(lambda: set(running()) == {str(photos[0]), str(photos[2])}, running)
        first.process.kill()
        wait_until(lambda: running() == [str(photos[2])], running)
        wait_until(lambda: status()["waiting_count"] == 0, status)
        third.process.kill()
        wait_until(lambda: running() == [], running)

    @pytest.mark.usefixtures("long_work")
    def test_a_closed_viewer_ends_loader_and_work(self, photos: list[Path], start: Start) -> None:
        loading = start(photos[0])
        loading.read_image()
        assert loading.process.stdout
        loading.process.stdout.close()
        wait_until(lambda: loading.process.poll() is not None)
        wait_until(lambda: running() == [], running)

    @pytest.mark.usefixtures("long_work")
    def test_a_cancelled_save_leaves_no_file(self, photos: list[Path], tmp_path: Path, start: Start) -> None:
        out = tmp_path / "out"
        out.mkdir()
        loading = start(photos[0], "--save", out / "photo.rrd")
        wait_until(lambda: (worker_status() or {}).get("model") == "nano")
        loading.process.kill()
        wait_until(lambda: running() == [], running)
        wait_until(lambda: list(out.iterdir()) == [], lambda: list(out.iterdir()))

    @pytest.mark.usefixtures("long_work")
    def test_a_killed_worker_is_one_line_and_the_next_image_starts_another(
        self, photos: list[Path], start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loading = start(photos[0])
        loading.read_image()
        (pid,) = worker_pids()
        os.kill(pid, signal.SIGKILL)
        code, _, error = loading.finish()
        assert code == 1
        (line,) = error.splitlines()
        assert "ended before it was done" in line
        assert Path(socket_path()).exists(), "there is a stale socket to cope with"
        monkeypatch.setenv("RERUN_SAM_POINTS_PER_SIDE", "6")
        assert load(photos[1]).returncode == 0
        wait_until(lambda: len(worker_pids()) == 1, worker_pids)


MALFORMED = [
    b"",
    b"GET / HTTP/1.1\r\n\r\n",
    b"RSW1",
    b"\0" * 16,
    b"RSW1" + (MAX_HEADER_BYTES + 1).to_bytes(4, "big") + bytes(8),
    b"RSW1" + (4).to_bytes(4, "big") + (1 << 60).to_bytes(8, "big") + b"{}  ",
    b"RSW1" + (10).to_bytes(4, "big") + bytes(8) + b"[[[[[[[[[[",
    b"RSW1" + (1 << 20).to_bytes(4, "big") + bytes(8) + b"[" * (1 << 20),
    b"RSW1" + (4).to_bytes(4, "big") + bytes(8) + b"null",
    b"RSW1" + (4).to_bytes(4, "big") + bytes(8) + b"\xff\xfe\xfd\xfc",
    encode_header({}),
    encode_header({"do": ["segment"]}),
    encode_header({"do": "segment"}),
    encode_header({"do": "segment", "identity": None}),
    encode_header({"do": "status"}, 5) + b"12345",
]


def as_another_user(ask: Callable[[], bytes]) -> str:
    """What comes of `ask` in a process of the user nobody."""
    outcomes = ["an answer", "no answer", "no connection"]
    pid = os.fork()
    if pid == 0:
        code = len(outcomes)
        try:
            os.setgid(65534)
            os.setuid(65534)
            code = 0 if ask() else 1
        except PermissionError:
            code = 2
        finally:
            os._exit(code)
    return outcomes[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]


@pytest.mark.usefixtures("worker")
class TestMessages:
    def answer(self, message: bytes, path: str | None = None) -> bytes:
        """The first byte that the worker sends back; none where it closes the connection."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path or socket_path())
            sock.settimeout(PATIENCE_S)
            try:
                sock.sendall(message)
                sock.shutdown(socket.SHUT_WR)
                return sock.recv(1)
            except ConnectionError:  # it closed with some of the message unread
                return b""

    def test_a_malformed_one_harms_nobody(self, photos: list[Path]) -> None:
        pid = status()["pid"]
        for message in MALFORMED:
            assert self.answer(message) == b"", message[:40]
        for key in ("identity", "arguments", "program", "cwd", "environ", "pid", "parent_pid"):
            for value in (None, 5.5, ["a", 5], {"a": 5}):
                order = segment_order([str(photos[0])]) | {key: value}
                assert self.answer(encode_header(order)) == b"", (key, value)
        assert load(photos[0]).returncode == 0
        assert status()["pid"] == pid

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
    def test_one_of_another_user_is_not_answered(self) -> None:
        path = socket_path()
        folders = Path(path).parents
        modes = {folder: folder.stat().st_mode for folder in folders}
        assert as_another_user(lambda: self.answer(encode_header({"do": "status"}), path)) == "no connection"
        try:
            for folder in folders:
                folder.chmod(modes[folder] | 0o011)
            Path(path).chmod(0o777)
            assert as_another_user(lambda: self.answer(encode_header({"do": "status"}), path)) == "no answer"
        finally:
            for folder in folders:
                folder.chmod(modes[folder])
        assert self.answer(encode_header({"do": "status"})) == b"R"

    def test_unknown_keys_are_passed_over(self, photos: list[Path]) -> None:
        sock = connect()
        assert sock is not None
        with sock:
            sock.sendall(encode_header(segment_order([str(photos[0])]) | {"of_the_future": [1, 2]}))
            sock.settimeout(60)
            assert sock.recv(4) == b"RSW1"

    def test_one_that_comes_slowly_keeps_nobody_waiting(self, photos: list[Path]) -> None:
        silent = [connect() for _ in range(30)]
        for sock in silent:
            assert sock is not None
            sock.sendall(b"RS")
        assert load(photos[0]).returncode == 0
        for sock in silent:
            assert sock is not None
            sock.close()
