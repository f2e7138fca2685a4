"""The wheel in environments of its own, with the oldest and with the newest of everything that it says it works with.

Gigabytes are downloaded, most of them PyTorch: `pytest -m slow tests/packaging`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recordings import is_whole, read
from sdks import NEWEST, Sdk

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def oldest_of(requirements: list[str]) -> list[str]:
    """The requirements, each pinned to its lower bound."""
    pinned = []
    for requirement in requirements:
        match = re.match(r"([\w.-]+)(\[\w+\])?(?:>=|==)([\d.]+)", requirement)
        assert match, f"{requirement} has no lower bound"
        pinned.append(f"{match[1]}{match[2] or ''}=={match[3]}")
    return pinned


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_what_is_needed_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("examples/coffee.jpg") for name in names)
    assert any(name.endswith(".safetensors") for name in names)
    assert {name.split("/")[0].removesuffix("-0.1.0.dist-info") for name in names} == {"rerun_loader_sam"}


@pytest.fixture(scope="module", params=["oldest", "newest"])
def programs(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder with the programs of an environment in which the wheel is installed, and nothing else was before."""
    environment = tmp_path_factory.mktemp(request.param)
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pinned = oldest_of(PROJECT["dependencies"]) if request.param == "oldest" else []
    install = [environment / "bin" / "pip", "install", "-q", wheel, *pinned]
    outcome = subprocess.run(install, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr[-2000:]
    listing = subprocess.run(
        [environment / "bin" / "pip", "list", "--format=json"], capture_output=True, text=True, check=True
    )
    installed = {entry["name"].lower(): entry["version"] for entry in json.loads(listing.stdout)}
    for pin in pinned:
        name, version = re.sub(r"\[\w+\]", "", pin).split("==")
        assert installed[name].startswith(version)
    yield environment / "bin"
    shutil.rmtree(environment)


@pytest.mark.usefixtures("user")
def test_it_works_there(
    programs: Path, photo: Path, tmp_path: Path, sdk: Callable[[str], Sdk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("RERUN_SAM_PRED_IOU_THRESH", "0")  # so that there are masks

    def run(*command: str | Path) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(command, capture_output=True, cwd=tmp_path, timeout=600, check=False)

    for worker in ("1", "0"):
        monkeypatch.setenv("RERUN_SAM_WORKER", worker)
        monkeypatch.setenv("RERUN_SAM_CACHE_MIB", "0")
        outcome = run("rerun-loader-sam", photo)
        assert (outcome.returncode, outcome.stderr) == (0, b"")
        assert is_whole(outcome.stdout)
    out = tmp_path / "out.rrd"
    outcome = run("rerun-importer-sam", photo, "--save", out)
    assert (outcome.returncode, outcome.stderr) == (0, b"")
    (recording,) = read(out, sdk(NEWEST)).recordings
    assert recording.pixels("/image").shape == (400, 600, 3)
    assert recording.tensor().shape[2] > 1
    for command in (("models", "list"), ("worker", "status"), ("demo", "--help")):
        outcome = run("rerun-sam", *command)
        assert (outcome.returncode, outcome.stderr) == (0, b""), command
    outcome = run("rerun-sam", "doctor")
    assert b"Traceback" not in outcome.stdout + outcome.stderr
    program = (
        "import sys, numpy, PIL.Image\nfrom rerun_loader_sam import AutomaticMaskGenerator, load_model\n"
        "image = numpy.asarray(PIL.Image.open(sys.argv[1]))\n"
        "all_of_them = {'pred_iou_thresh': 0.0, 'stability_score_thresh': 0.0}\n"
        "generator = AutomaticMaskGenerator(load_model('nano'), points_per_side=4, **all_of_them)\n"
        "print(len(generator.generate(image)))"
    )
    outcome = run(programs / "python", "-c", program, photo)
    assert outcome.returncode == 0, outcome.stderr.decode()
    assert int(outcome.stdout) >= 1
    run("rerun-sam", "worker", "stop")


def test_no_known_vulnerability_is_in_the_newest(programs: Path, tmp_path: Path) -> None:
    environment = programs.parent
    if environment.name.startswith("oldest"):
        pytest.skip("a person who keeps old packages knows of their faults")
    audit = tmp_path / "audit"
    subprocess.run([sys.executable, "-m", "venv", audit], check=True)
    subprocess.run([audit / "bin" / "pip", "install", "-q", "pip-audit"], capture_output=True, check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    outcome = subprocess.run(
        [audit / "bin" / "pip-audit", "--path", packages, "--format", "json", "--progress-spinner", "off"],
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(outcome.stdout)["dependencies"] if outcome.stdout else []
    audited = [package for package in found if "vulns" in package]
    if not audited:
        # It calls that "no known vulnerabilities".
        reason = found[0]["skip_reason"] if found else outcome.stderr.strip()[-200:]
        pytest.skip(f"the service with the vulnerabilities cannot be asked from here: {reason}")
    assert [package for package in audited if package["vulns"] and package["name"] != "pip"] == []
