"""Files that are broken in every way, and arguments and settings that nobody would write by hand."""

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from corpus import KINDS, mutated
from rerun_loader_sam import sniff
from rerun_loader_sam.command import parse
from rerun_loader_sam.errors import UserError
from rerun_loader_sam.images import LoadedImage, load_image
from rerun_loader_sam.settings import GENERATOR_PARAMETERS, Settings, load_settings

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
