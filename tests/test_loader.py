"""The loader as a process: exit codes, what is on its outputs, interruption, saving."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recordings import is_whole, read
from sdks import NEWEST, Sdk

LOADER = str(Path(sys.executable).parent / "rerun-loader-sam")


def load(*arguments: str | Path, timeout_s: float = 120) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([LOADER, *map(str, arguments)], capture_output=True, timeout=timeout_s, check=False)


def error_line(outcome: "subprocess.CompletedProcess[bytes]") -> str:
    lines = outcome.stderr.decode().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.usefixtures("user")
class TestDeclining:
    @pytest.mark.parametrize("content", [b"", b"hello", b"\x7fELF" + b"\0" * 99])
    @pytest.mark.parametrize("name", ["notes.txt", "photo.jpg"])
    def test_what_is_no_image_by_content_is_silently_not_ours(
        self, content: bytes, name: str, tmp_path: Path
    ) -> None:
        (tmp_path / name).write_bytes(content)
        outcome = load(tmp_path / name, "--recording-id", "r")
        assert (outcome.returncode, outcome.stdout, outcome.stderr) == (66, b"", b"")

    def test_a_folder_without_images_is_not_ours(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("hello")
        assert load(tmp_path, "--recording-id", "r").returncode == 66

    @pytest.mark.parametrize(("kind", "says"), [("text", "no image and no folder"), ("pipe", "`rerun-loader-sam -`")])
    def test_a_person_is_told_why(self, kind: str, says: str, tmp_path: Path) -> None:
        path = tmp_path / "photo.jpg"
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.write_text("hello")
        terminal, end = pty.openpty()
        outcome = subprocess.run([LOADER, path], stdout=subprocess.PIPE, stderr=end, timeout=120, check=False)
        os.close(end)
        assert (outcome.returncode, outcome.stdout) == (66, b"")
        (line,) = os.read(terminal, 1000).decode().splitlines()
        os.close(terminal)
        assert line.startswith(f"rerun-loader-sam: {path} ")
        assert says in line
        assert line.endswith("; left alone")

    def test_nothing_but_the_standard_library_is_imported_to_decline(self, tmp_path: Path) -> None:
        path = tmp_path / "notes.txt"
        path.write_text("hello")
        program = (
            "import atexit, sys\n"
            "atexit.register(lambda: print(sorted({name.partition('.')[0] for name in sys.modules})))\n"
            "from rerun_loader_sam.loader import main\n"
            f"sys.argv = ['rerun-loader-sam', {str(path)!r}]\n"
            "main()\n"
        )
        outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert outcome.returncode == 66
        imported = set(eval(outcome.stdout))  # noqa: S307  # what our own program printed
        assert not imported & {"torch", "numpy", "rerun", "PIL", "argparse", "dataclasses", "json", "pathlib"}


def test_a_home_that_cannot_be_written_costs_no_masks(
    user: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no_folder").touch()
    for variable in ("HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "no_folder"))
    names = (Path(LOADER), Path(LOADER).with_name("rerun-importer-sam"))
    calls = [[name, photo, "--recording-id", "r", "--application-id", "a"] for name in names]
    ours, other = (subprocess.run(call, capture_output=True, timeout=120, check=False) for call in calls)
    assert (ours.returncode, ours.stderr) == (0, b"")
    assert is_whole(ours.stdout)
    assert (other.returncode, other.stdout, other.stderr) == (66, b"", b"")


@pytest.mark.usefixtures("user")
class TestErrors:
    def test_an_image_that_cannot_be_read_is_one_line_and_no_output(self, photo: Path) -> None:
        photo.write_bytes(photo.read_bytes()[:2000])
        outcome = load(photo, "--recording-id", "r")
        assert (outcome.returncode, outcome.stdout) == (1, b"")
        assert str(photo) in error_line(outcome)

    def test_a_path_that_does_not_exist(self, tmp_path: Path) -> None:
        outcome = load(tmp_path / "gone.jpg")
        assert outcome.returncode == 1
        assert "no such file" in error_line(outcome)

    def test_the_image_itself_is_never_overwritten(self, photo: Path) -> None:
        content = photo.read_bytes()
        link = photo.with_name("link.rrd")
        link.symlink_to(photo)
        for name in (photo, link):
            outcome = load(photo, "--save", name)
            assert outcome.returncode == 2
            assert "is the image itself" in error_line(outcome)
        assert photo.read_bytes() == content

    def test_a_path_writes_no_second_line_and_nothing_that_a_terminal_obeys(self, tmp_path: Path) -> None:
        outcome = load(tmp_path / "a\nb\x1b]0;title\x07.jpg")
        assert outcome.returncode == 1
        assert "a?b?]0;title?.jpg: no such file" in error_line(outcome)

    def test_a_wrong_setting_is_named(self, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RERUN_SAM_POINTS_PER_SIDE", "many")
        outcome = load(photo, "--recording-id", "r")
        assert (outcome.returncode, outcome.stdout) == (1, b"")
        assert "RERUN_SAM_POINTS_PER_SIDE: 'many'" in error_line(outcome)

    def test_a_model_that_cannot_be_loaded_still_shows_the_image(
        self, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sdk: Callable[[str], Sdk]
    ) -> None:
        (tmp_path / "bad.pth").write_bytes(b"no checkpoint")
        monkeypatch.setenv("RERUN_SAM_MODEL", str(tmp_path / "bad.pth"))
        outcome = load(photo, "--recording-id", "r")
        assert outcome.returncode == 1
        assert "bad.pth" in error_line(outcome)
        (tmp_path / "out.rrd").write_bytes(outcome.stdout)
        (recording,) = read(tmp_path / "out.rrd", sdk(NEWEST)).recordings
        assert recording.pixels("/image").shape == (400, 600, 3)
        assert "bad.pth" in dict(recording.texts())["ERROR"]

    def test_a_terminal_gets_no_binary(self, photo: Path) -> None:
        terminal, end = pty.openpty()
        outcome = subprocess.run([LOADER, str(photo)], stdout=end, stderr=subprocess.PIPE, check=False)
        os.close(end)
        os.close(terminal)
        assert outcome.returncode == 2
        assert "--save" in error_line(outcome)

    def test_help_and_version(self) -> None:
        assert b"--recording-id" in load("--help").stdout
        assert load("--version").stdout.startswith(b"rerun-loader-sam ")


@pytest.mark.usefixtures("user")
class TestOutput:
    def test_stdout_holds_rrd_and_nothing_else(
        self, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sdk: Callable[[str], Sdk]
    ) -> None:
        # A library that writes to both outputs, past Python too, whenever it is imported.
        noisy = tmp_path / "noisy"
        noisy.mkdir()
        (noisy / "numpy.py").write_text(
            "import os, sys\nos.write(1, b'x' * 100_000)\nos.write(2, b'y' * 100_000)\nprint('z')\n"
            f"sys.path.remove({str(noisy)!r})\ndel sys.modules['numpy']\nimport numpy\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(noisy))
        outcome = load(photo, "--recording-id", "r")
        assert (outcome.returncode, outcome.stderr) == (0, b"")
        assert outcome.stdout.startswith(b"RRF2")
        (tmp_path / "out.rrd").write_bytes(outcome.stdout)
        (recording,) = read(tmp_path / "out.rrd", sdk(NEWEST)).recordings
        assert recording.recording_id == "r"
        assert np.array_equal(recording.pixels("/image"), np.asarray(Image.open(photo)))

    def test_save_writes_a_file_that_is_valid_as_a_whole(
        self, photo: Path, tmp_path: Path, sdk: Callable[[str], Sdk]
    ) -> None:
        out = tmp_path / "out.rrd"
        outcome = load(photo, "--save", out)
        assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, b"", b"")
        verified = subprocess.run([sdk(NEWEST).viewer, "rrd", "verify", out], capture_output=True, check=False)
        assert verified.returncode == 0, verified.stderr
        assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []

    def test_save_where_nothing_can_be_written_is_one_line(self, photo: Path, tmp_path: Path) -> None:
        outcome = load(photo, "--save", tmp_path / "missing" / "out.rrd")
        assert outcome.returncode == 1
        assert "cannot write" in error_line(outcome)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_an_interrupted_save_leaves_nothing(self, number: signal.Signals, photo: Path, tmp_path: Path) -> None:
        folder = tmp_path / "saved"
        folder.mkdir()
        process = subprocess.Popen([LOADER, str(photo), "--save", str(folder / "out.rrd")])
        wait_until(lambda: any(folder.iterdir()))
        process.send_signal(number)
        assert process.wait(timeout=30) == 130
        assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("user")
class TestStandardInput:
    @pytest.fixture(autouse=True)
    def temporary(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """Where what comes is kept; nothing is left there."""
        folder = tmp_path / "temporary"
        folder.mkdir()
        monkeypatch.setenv("TMPDIR", str(folder))
        yield folder
        assert list(folder.glob("rerun-loader-sam-*")) == []

    def piped(self, content: bytes, *arguments: str | Path) -> "subprocess.CompletedProcess[bytes]":
        command = [LOADER, *map(str, arguments), "-"]
        return subprocess.run(command, input=content, capture_output=True, timeout=120, check=False)

    def test_an_image_is_segmented(self, photo: Path, tmp_path: Path, sdk: Callable[[str], Sdk]) -> None:
        outcome = self.piped(photo.read_bytes())
        assert (outcome.returncode, outcome.stderr) == (0, b"")
        (tmp_path / "out.rrd").write_bytes(outcome.stdout)
        (recording,) = read(tmp_path / "out.rrd", sdk(NEWEST)).recordings
        assert np.array_equal(recording.pixels("/image"), np.asarray(Image.open(photo)))
        saved = self.piped(photo.read_bytes(), "--save", tmp_path / "saved.rrd")
        assert (saved.returncode, saved.stdout, saved.stderr) == (0, b"", b"")
        assert (tmp_path / "saved.rrd").stat().st_size > len(outcome.stdout) // 2

    @pytest.mark.parametrize("content", [b"", b"hello"])
    def test_what_is_no_image_is_an_error(self, content: bytes) -> None:
        outcome = self.piped(content)
        assert (outcome.returncode, outcome.stdout) == (1, b"")
        assert "standard input holds no image" in error_line(outcome)

    def test_an_endless_stream_that_is_no_image_is_not_waited_for(self) -> None:
        with Path("/dev/zero").open("rb") as zeros:
            outcome = subprocess.run([LOADER, "-"], stdin=zeros, capture_output=True, timeout=60, check=False)
        assert outcome.returncode == 1
        assert "standard input holds no image" in error_line(outcome)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_all_of_it(
        self, number: signal.Signals, photo: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RERUN_SAM_POINTS_PER_SIDE", "256")
        with photo.open("rb") as file:
            process = subprocess.Popen(
                [LOADER, "-"], stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            )
        assert process.stdout is not None
        try:
            assert process.stdout.read(4) == b"RRF2"
            if number == signal.SIGINT:
                os.killpg(process.pid, number)  # as a terminal does
            else:
                process.send_signal(number)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 128 + number
        assert errors == b""


@pytest.mark.usefixtures("user")
class TestInterruption:
    @pytest.fixture(autouse=True)
    def minutes_of_work(self, monkeypatch: pytest.MonkeyPatch, user: Path) -> None:
        monkeypatch.setenv("RERUN_SAM_POINTS_PER_SIDE", "256")

    def test_a_reader_that_goes_away_ends_the_loader(self, photo: Path, tmp_path: Path) -> None:
        with started(photo, tmp_path / "errors") as process:
            assert process.stdout is not None
            assert process.stdout.read(4) == b"RRF2"
            process.stdout.close()
            assert process.wait(timeout=30) != 0
        assert (tmp_path / "errors").read_text() == ""

    def test_ctrl_c_ends_the_loader_quietly(self, photo: Path, tmp_path: Path) -> None:
        with started(photo, tmp_path / "errors") as process:
            assert process.stdout is not None
            assert process.stdout.read(4) == b"RRF2"
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) != 0
        assert (tmp_path / "errors").read_text() == ""


@contextlib.contextmanager
def started(photo: Path, errors: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A loader at work; it is gone afterwards whatever happens."""
    with errors.open("wb") as stderr:
        command = [LOADER, str(photo), "--recording-id", "r"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr) as process:
            try:
                yield process
            finally:
                process.kill()


def wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
