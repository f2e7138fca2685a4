"""`rerun-sam` as a process, and that the README tells of all there is."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from rerun_loader_sam.cli.main import COMMANDS
from rerun_loader_sam.settings import Settings

README = Path(__file__).parents[1] / "README.md"
RERUN_SAM = str(Path(sys.executable).parent / "rerun-sam")


def run(*arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([RERUN_SAM, *arguments], capture_output=True, text=True, cwd=cwd, timeout=120, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_is_in_the_readme(command: str) -> None:
    outcome = run(command, "--help")
    assert outcome.returncode == 0
    assert f"rerun-sam {command}" in README.read_text()


@pytest.mark.parametrize("command", ["models", "service", "worker"])
def test_every_action_of_a_command_has_help_and_is_in_the_readme(command: str) -> None:
    actions = re.findall(r"^    ([a-z][a-z-]+)(?:  |$)", run(command, "--help").stdout, re.MULTILINE)
    assert len(actions) >= 2
    for action in actions:
        assert run(command, action, "--help").returncode == 0
        assert re.search(rf"`?rerun-sam {command} [^`\n]*{action}", README.read_text()), action


def test_every_command_of_the_readme_is_one() -> None:
    named = set(re.findall(r"rerun-sam ([a-z]+)", README.read_text()))
    assert named == set(COMMANDS)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Settings)])
def test_every_setting_is_in_the_readme_with_its_default(name: str) -> None:
    (row,) = re.findall(rf"^\| `{name}` \| (.+?) \|", README.read_text(), re.MULTILINE)
    default = getattr(Settings(), name)
    shown = {None: "model's own", "": "none", True: "`true`", False: "`false`"}.get(
        default, f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
    )
    assert row == shown


def test_wrong_usage_and_version() -> None:
    assert run("nonsense").returncode == 2
    assert re.fullmatch(r"rerun-sam \d+\.\d+\.\d+\n", run("--version").stdout)


@pytest.mark.usefixtures("user")
class TestDemo:
    @pytest.fixture(autouse=True)
    def no_display(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("DISPLAY", "WAYLAND_DISPLAY"):
            monkeypatch.delenv(name, raising=False)

    def test_without_a_display_it_writes_a_recording_and_a_picture(self, tmp_path: Path) -> None:
        outcome = run("demo", cwd=tmp_path)
        assert outcome.returncode == 0, outcome.stderr
        assert (tmp_path / "demo.rrd").read_bytes()[:4] == b"RRF2"
        with Image.open(tmp_path / "demo.png") as picture:
            assert picture.size == (600, 400)
        assert str(tmp_path / "demo.rrd") in outcome.stdout

    def test_an_image_that_is_none_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "bad.jpg").write_text("no image")
        outcome = run("demo", "bad.jpg", cwd=tmp_path)
        assert outcome.returncode == 1
        assert len(outcome.stderr.splitlines()) == 1
        assert "bad.jpg" in outcome.stderr

    def test_a_window_that_does_not_open_gives_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DISPLAY", ":9999")  # nobody serves it
        assert "PATH" in os.environ
        outcome = run("demo", cwd=tmp_path)
        assert outcome.returncode == 0, outcome.stderr
        assert (tmp_path / "demo.png").exists()
