"""Files that are broken in every way, and arguments and settings that nobody would write by hand."""

import os
import random
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from corpus import KINDS, mutated
from recordings import read
from rerun_loader_sam import loader, sniff
from rerun_loader_sam.command import parse
from rerun_loader_sam.errors import UserError
from rerun_loader_sam.images import LoadedImage, load_image
from rerun_loader_sam.settings import GENERATOR_PARAMETERS, Settings, load_settings
from rerun_loader_sam.worker.control import worker_status
from sdks import NEWEST, Sdk

LOADER = str(Path(sys.executable).parent / "rerun-loader-sam")
MUTATIONS = 60


@pytest.mark.parametrize("kind", KINDS)
def test_a_mutated_image_is_read_or_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    rng = random.Random(kind)  # noqa: S311
    extension, encode = KINDS[kind]
    content = encode()
    path = tmp_path / f"mutated{extension}"
    outcomes = {"read": 0, "refused": 0}
    for _ in range(MUTATIONS):
        path.write_bytes(mutated(content, rng))
        sniff.kind_of(str(path))
        try:
            loaded = load_image(path, 4)
        except UserError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)
            outcomes["refused"] += 1
        else:
            assert isinstance(loaded, LoadedImage)
            assert loaded.pixels.shape[:2] == loaded.rgb.shape[:2] == loaded.size_hw
            outcomes["read"] += 1
    assert outcomes["refused"], "mutations that break nothing show nothing"


@pytest.mark.usefixtures("user")
class TestOddPaths:
    @pytest.mark.parametrize(
        "name",
        [
            b"with space.jpg",
            b"quote'\".jpg",
            b"line\nbreak.jpg",
            b"-dash.jpg",
            b"\xff\xfe no utf-8.jpg",
            "日本.jpg".encode(),
        ],
    )
    def test_a_name_may_be_anything(self, name: bytes, photo: Path, tmp_path: Path) -> None:
        odd = Path(os.fsdecode(os.fsencode(photo.parent) + b"/" + name))
        photo.rename(odd)
        out = tmp_path / "out.rrd"
        outcome = subprocess.run([LOADER, odd, "--save", out], capture_output=True, timeout=120, check=False)
        assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, b"", b"")
        assert out.read_bytes()[:4] == b"RRF2"

    def test_what_is_no_file_is_declined_without_being_opened(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.png")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(tmp_path / "socket.png"))
            (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
            for name, code in (("pipe.png", 66), ("socket.png", 66), ("/dev/zero", 66), ("loop.png", 1)):
                outcome = subprocess.run([LOADER, tmp_path / name], capture_output=True, timeout=60, check=False)
                assert (outcome.returncode, outcome.stdout) == (code, b""), name

    def test_ten_thousand_files_that_are_no_images(self, tmp_path: Path) -> None:
        for number in range(10_000):
            (tmp_path / f"{number}.txt").touch()
        outcome = subprocess.run([LOADER, tmp_path], capture_output=True, timeout=60, check=False)
        assert (outcome.returncode, outcome.stdout, outcome.stderr) == (66, b"", b"")


@pytest.mark.usefixtures("user")
class TestOddImages:
    @pytest.mark.slow
    @pytest.mark.timeout(900)
    def test_a_folder_of_every_kind(
        self, tmp_path: Path, sdk: Callable[[str], Sdk], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RERUN_SAM_POINTS_PER_SIDE", "2")
        folder = tmp_path / "folder"
        folder.mkdir()
        for name, image in (
            ("one", Image.new("RGB", (1, 1))),
            ("tall", Image.effect_noise((1, 20000), 50).convert("RGB")),
            ("wide", Image.effect_noise((20000, 1), 50)),
            ("bomb", Image.new("1", (20000, 20000))),
        ):
            image.save(folder / f"{name}.png")
        for number, (extension, encode) in enumerate(KINDS.values()):
            (folder / f"kind{number}{extension}").write_bytes(encode())
        (folder / "circle").symlink_to(folder)
        (folder / "circle.png").symlink_to(folder / "circle.png")
        out = tmp_path / "out.rrd"
        outcome = subprocess.run([LOADER, folder, "--save", out], capture_output=True, timeout=800, check=False)
        assert (outcome.returncode, outcome.stderr) == (0, b"")
        (recording,) = read(out, sdk(NEWEST)).recordings
        paths = sniff.iter_images(str(folder))
        assert len(paths) == len(KINDS) - 1 + 4, "all but Sun's raster format, and each once"
        for step, path in enumerate(paths):
            if "bomb" not in path:
                assert recording.pixels("/image", step=step).shape[:2] == load_image(Path(path), 200).size_hw, path
                assert recording.one("/image/masks", "SegmentationImage:buffer", step)
        (error,) = [text for level, text in recording.texts() if level == "ERROR"]
        assert "bomb.png has 400 megapixels, more than the 200 allowed" in error

    def test_a_bomb_costs_the_worker_nothing(self, photo: Path) -> None:
        bomb = photo.with_name("bomb.png")
        Image.new("RGB", (20000, 20000)).save(bomb)
        assert subprocess.run([LOADER, photo], capture_output=True, timeout=120, check=False).returncode == 0
        before = peak_mib()
        outcome = subprocess.run([LOADER, bomb], capture_output=True, timeout=120, check=False)
        assert (outcome.returncode, outcome.stdout) == (1, b"")
        assert outcome.stderr.count(b"\n") == 1
        assert b"RERUN_SAM_MAX_MEGAPIXELS" in outcome.stderr
        assert peak_mib() - before < 100
        assert subprocess.run([LOADER, photo], capture_output=True, timeout=120, check=False).returncode == 0


def peak_mib() -> float:
    """The most memory that the worker has had."""
    answer = worker_status()
    assert answer is not None
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{answer['pid']}/status").read_text())
    return int(line) / 1024


def decline_as_nobody(path: Path) -> tuple[int, bytes]:
    """Exit code and standard error of the loader, run without root's rights; for a path that it does not read."""
    with tempfile.TemporaryFile() as error:
        pid = os.fork()
        if pid == 0:
            code: object = 99
            try:
                os.dup2(error.fileno(), 2)
                if os.getuid() == 0:
                    os.setgid(65534)
                    os.setuid(65534)
                sys.argv = ["rerun-loader-sam", str(path)]
                loader.main()
            except SystemExit as end:
                code = end.code
            finally:
                os._exit(code if isinstance(code, int) else 99)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        error.seek(0)
        return code, error.read()


def test_what_may_not_be_read_is_told_if_it_is_called_an_image() -> None:
    # Not pytest's own folder, into which nobody else may look.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "photo.png").touch(0o000)
        (folder / "notes").touch(0o000)
        (folder / "closed").mkdir(0o000)
        code, error = decline_as_nobody(folder / "photo.png")
        assert (code, error.count(b"\n")) == (1, 1)
        assert b"permission denied; nothing was segmented" in error
        assert decline_as_nobody(folder / "notes") == (66, b"")
        assert decline_as_nobody(folder / "closed") == (66, b"")
        assert decline_as_nobody(folder) == (66, b"")
        assert decline_as_nobody(folder / "closed" / "photo.png")[0] == 1


FLAGS = [
    "--application-id", "--recording-id", "--opened-application-id", "--opened-recording-id", "--entity-path-prefix",
    "--static", "--timeless", "--sequence", "--time", "--time_sequence", "--time_duration_nanos", "--new-flag",
]  # fmt: skip
TEXT = st.text(alphabet=st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=20)


@given(st.lists(st.one_of(st.sampled_from(FLAGS), TEXT), max_size=8))
@hypothesis_settings(max_examples=300, deadline=None)
def test_any_flags_are_understood_or_refused_by_name(arguments: list[str]) -> None:
    try:
        command = parse(["photo.jpg", *arguments])
    except SystemExit as error:
        assert error.code in (0, 2)  # 0: among them was --help, or --version
    else:
        assert command.request.path == Path("photo.jpg") or any(not a.startswith("-") for a in arguments)


@given(st.sampled_from(["MODEL", "DEVICE", "DOWNLOAD", "TENSOR_MIB", *map(str.upper, GENERATOR_PARAMETERS)]), TEXT)
@hypothesis_settings(max_examples=300, deadline=None)
def test_any_setting_is_taken_or_refused_by_name(name: str, value: str) -> None:
    try:
        settings = load_settings({f"RERUN_SAM_{name}": value})
    except UserError as error:
        assert f"RERUN_SAM_{name}" in str(error)
        assert "\n" not in str(error)
    else:
        assert isinstance(settings, Settings)
