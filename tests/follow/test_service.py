"""`rerun-sam service` and `rerun-sam doctor`, as commands of a user without a session manager."""

import configparser
import os
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
def systemctl(user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A session manager's command that writes down what it is told; returns where."""
    told = tmp_path / "told"
    folder = tmp_path / "manager"
    folder.mkdir()
    (folder / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(told))}\n')
    (folder / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return told


@LINUX_ONLY
def test_the_service_comes_and_goes(systemctl: Path, user: Path) -> None:
    unit = user / "config" / "systemd" / "user" / "rerun-sam-watch.service"
    assert rerun_sam("service", "remove").stdout == "no service was installed\n"
    installed = rerun_sam("service", "install")
    assert installed.returncode == 0, installed.stderr
    assert str(unit) in installed.stdout
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read(unit)
    assert shlex.split(parsed["Service"]["ExecStart"]) == [str(RERUN_SAM), "watch"]
    assert "--user enable rerun-sam-watch.service" in systemctl.read_text()
    removed = rerun_sam("service", "remove")
    assert removed.returncode == 0
    assert not unit.exists()
    assert "--user disable --now rerun-sam-watch.service" in systemctl.read_text()


@LINUX_ONLY
def test_without_a_session_manager_it_says_what_to_do(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(user))
    installed = rerun_sam("service", "install")
    assert installed.returncode == 0
    assert "it could not be started now (systemctl: no such file or directory)" in installed.stdout
    assert "rerun-sam watch" in installed.stdout


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
