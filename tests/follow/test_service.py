"""`rerun-sam service` and `rerun-sam doctor`, as commands of a user without a session manager."""

import configparser
import os
import plistlib
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from viewers import free_port, put_on_path

from sdks import Sdk

RERUN_SAM = Path(sys.executable).parent / "rerun-sam"
LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="systemd")


def rerun_sam(*arguments: str, environ: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([RERUN_SAM, *arguments], env=environ, capture_output=True, text=True, check=False)


@pytest.fixture
def told(user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `systemctl` and `launchctl` were told: here they write it down, and do nothing."""
    told = tmp_path / "told"
    folder = tmp_path / "manager"
    folder.mkdir()
    for name in ("systemctl", "launchctl"):
        (folder / name).write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(told))}\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return told


@LINUX_ONLY
def test_the_service_comes_and_goes(told: Path, user: Path) -> None:
    unit = user / "config" / "systemd" / "user" / "rerun-sam-watch.service"
    assert rerun_sam("service", "remove").stdout == "no service was installed\n"
    installed = rerun_sam("service", "install")
    assert installed.returncode == 0, installed.stderr
    assert str(unit) in installed.stdout
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read(unit)
    assert shlex.split(parsed["Service"]["ExecStart"]) == [str(RERUN_SAM), "watch"]
    assert "--user enable rerun-sam-watch.service" in told.read_text()
    removed = rerun_sam("service", "remove")
    assert removed.returncode == 0
    assert not unit.exists()
    assert "--user disable --now rerun-sam-watch.service" in told.read_text()


@LINUX_ONLY
def test_without_a_session_manager_it_says_what_to_do(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(user))
    installed = rerun_sam("service", "install")
    assert installed.returncode == 0
    assert "it could not be started now (systemctl: no such file or directory)" in installed.stdout
    assert "rerun-sam watch" in installed.stdout


@pytest.mark.viewer
def test_an_sdk_that_cannot_watch_is_no_service(told: Path, user: Path, sdk: Callable[[str], Sdk]) -> None:
    for command, undone in ((("service", "install"), "no service was installed"), (("watch",), "nothing is watched")):
        refused = rerun_sam(*command, environ=sdk("0.36.2").environment())
        assert refused.returncode == 1
        (line,) = refused.stderr.splitlines()
        assert line.startswith("rerun-sam: rerun-sdk 0.36.2 is installed here")
        assert f"; {undone}. Install rerun-sdk 0.41 or later" in line
    assert not told.exists()
    assert not list(user.rglob("*.service"))


LAUNCHD = """
import sys
from rerun_loader_sam.cli.main import main
import rerun_loader_sam.follow.service  # and psutil, which is made for this system
sys.platform = "darwin"
main()
"""


def test_the_agent_of_macos(told: Path, user: Path) -> None:
    agent = user / "Library" / "LaunchAgents" / "rerun-loader-sam.watch.plist"

    def as_on_macos(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", LAUNCHD, *arguments], capture_output=True, text=True, check=True
        ).stdout

    assert str(agent) in as_on_macos("service", "install")
    description = plistlib.loads(agent.read_bytes())
    assert description["ProgramArguments"] == [str(RERUN_SAM), "watch"]
    assert description["RunAtLoad"] is True
    assert description["KeepAlive"] == {"SuccessfulExit": False}
    domain = f"gui/{os.getuid()}"
    assert told.read_text().splitlines() == [
        f"bootout {domain}/{description['Label']}", f"bootstrap {domain} {agent}"
    ]  # fmt: skip
    as_on_macos("service", "remove")
    assert not agent.exists()
    assert told.read_text().splitlines()[2:] == [f"bootout {domain}/{description['Label']}"]


def test_the_line_for_a_shell_names_a_program(user: Path) -> None:
    line = rerun_sam("service", "shell-line").stdout
    export, assignment = shlex.split(line)
    name, _, program = assignment.partition("=")
    assert (export, name) == ("export", "RERUN_CLI_PATH")
    assert Path(program).stat().st_mode & stat.S_IXUSR


def test_only_one_watch_runs(user: Path, tmp_path: Path) -> None:
    first = subprocess.Popen([RERUN_SAM, "watch", f"--port={free_port()}"], stderr=subprocess.PIPE, text=True)
    try:
        assert first.stderr
        assert "watching for viewers" in first.stderr.readline()
        second = rerun_sam("watch")
        assert second.returncode == 1
        assert (
            second.stderr == f"rerun-sam: `rerun-sam watch` runs already (process {first.pid}); nothing was started\n"
        )
    finally:
        first.terminate()
        assert first.wait() == 0
        first.communicate()


@pytest.mark.viewer
@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.24.1", "this viewer calls loaders for images itself"),
        ("0.36.2", "open images with `rerun-sam view`; their masks come as a recording of their own"),
    ],
)
def test_doctor_knows_the_viewer(
    sdk: Callable[[str], Sdk], user: Path, tmp_path: Path, version: str, expected: str
) -> None:
    environ = put_on_path(tmp_path / "bin", sdk(version))
    examined = rerun_sam("doctor", environ=environ)
    assert expected in examined.stdout
    assert f"viewer {version} on PATH" in examined.stdout
    assert "no viewer can find the loader" in examined.stdout  # that PATH has none
    assert "self-test: an image of 128 x 96 became" in examined.stdout, examined.stdout
    assert examined.returncode == 1


def test_doctor_reports_a_wrong_setting(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERUN_SAM_DEVICE", "abacus")
    examined = rerun_sam("doctor")
    assert examined.returncode == 1
    assert "RERUN_SAM_DEVICE" in examined.stdout
    assert "Traceback" not in examined.stdout + examined.stderr
