"""`rerun-sam doctor`: what is there, whether it fits together, and what to do about it."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rerun_loader_sam import __version__
from rerun_loader_sam.errors import UserError, describe
from rerun_loader_sam.follow.announcements import calls_loaders_for_images, can_ask_viewers, version_tuple
from rerun_loader_sam.settings import config_file, load_settings

if TYPE_CHECKING:
    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

LOADERS = ("rerun-loader-sam", "rerun-importer-sam")
_IMPORTERS_FROM = (0, 32)
_SELF_TEST_TIMEOUT_S = 300.0


class Finding(NamedTuple):
    """One line: how it is (`ok`, `note`, `problem`) and what to do, if anything."""

    level: str
    text: str
    advice: str = ""


def add_parser(subparsers: "_Subparsers") -> None:
    """Add `doctor` to the commands."""
    subparsers.add_parser(
        "doctor",
        help="check viewer, loader, versions, worker, model and device",
        description="Looks at everything that a mask over an image depends on, and says what to do where something "
        "is amiss. Exit code 1 where there is a problem.",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print each finding as it is made; returns 1 where there is a problem."""
    del arguments
    has_problem = False
    for check in (_loaders, _viewer, _settings, _watching, _worker, _model, _self_test):
        for finding in _guarded(check):
            has_problem |= finding.level == "problem"
            print(f"{finding.level:8}{finding.text}", flush=True)
            if finding.advice:
                print(f"{'':8}-> {finding.advice}", flush=True)
    return int(has_problem)


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check; one that fails is a finding too, and the others follow."""
    try:
        yield from check()
    except Exception as error:
        yield Finding("problem", describe(error))


def _loaders() -> Iterator[Finding]:
    yield Finding("ok", f"rerun-loader-sam {__version__}, Python {sys.version.split()[0]}, {sys.executable}")
    found = {name: path for name in LOADERS if (path := shutil.which(name))}
    for name, path in found.items():
        yield Finding("ok", f"{name} on PATH: {path}")
    if not found:
        yield Finding(
            "problem",
            f"neither {' nor '.join(LOADERS)} is on PATH: no viewer can find the loader",
            f"put {Path(sys.executable).parent} on PATH, or run install.sh",
        )


def _viewer() -> Iterator[Finding]:
    sdk_version = version("rerun-sdk")
    path = shutil.which("rerun")
    if path is None:
        yield Finding("problem", "there is no viewer (`rerun`) on PATH", "`pip install rerun-sdk` brings one")
        return
    viewer_version = _viewer_version(path)
    if not viewer_version:
        yield Finding("problem", f"{path} --version did not say its version", "install rerun-sdk again")
        return
    yield Finding("ok", f"viewer {viewer_version} on PATH: {path}")
    if calls_loaders_for_images(viewer_version):
        yield Finding("ok", "this viewer calls loaders for images itself: open one as ever")
    elif can_ask_viewers(viewer_version) and can_ask_viewers(sdk_version):
        yield Finding(
            "ok", "this viewer calls no loader for images: `rerun-sam watch` or `rerun-sam view` puts masks over them"
        )
    else:
        yield Finding(
            "note",
            "this viewer calls no loader for images, and cannot be asked which it opened",
            "open images with `rerun-sam view`; their masks come as a recording of their own",
        )
    names = [name for name in LOADERS if shutil.which(name)]
    if version_tuple(viewer_version) < _IMPORTERS_FROM and names == [LOADERS[1]]:
        yield Finding(
            "problem",
            f"viewers before 0.32 do not look for {LOADERS[1]}",
            f"put {LOADERS[0]} on PATH, beside it",
        )
    fitting = f"{sys.executable} -m pip install rerun-sdk=={viewer_version}"
    if version_tuple(sdk_version) > version_tuple(viewer_version):
        yield Finding(
            "problem",
            f"rerun-sdk {sdk_version} here is newer than the viewer {viewer_version}, which may lose what it is sent",
            fitting,
        )
    elif version_tuple(sdk_version) < version_tuple(viewer_version):
        yield Finding("note", f"rerun-sdk {sdk_version} here is older than the viewer {viewer_version}", fitting)
    else:
        yield Finding("ok", f"rerun-sdk {sdk_version} here fits the viewer")


def _viewer_version(path: str) -> str:
    environ = {name: value for name, value in os.environ.items() if name != "RERUN_CLI_PATH"}
    outcome = subprocess.run(
        [path, "--version"], env=environ, capture_output=True, text=True, errors="replace", timeout=60, check=False
    )
    words = outcome.stdout.split()
    return words[1] if len(words) > 1 else ""


def _settings() -> Iterator[Finding]:
    load_settings()
    path = config_file()
    yield Finding("ok", f"settings: {path if path.exists() else f'defaults ({path} is not there)'}")
    for name, value in sorted(os.environ.items()):
        if name.startswith("RERUN_SAM_"):
            yield Finding("note", f"{name}={value}", "variables of a shell do not reach a viewer started elsewhere")


def _watching() -> Iterator[Finding]:
    from rerun_loader_sam.follow.service import service_file
    from rerun_loader_sam.follow.watching import watching_pid

    pid = watching_pid()
    if pid is not None:
        yield Finding("ok", f"`rerun-sam watch` runs, process {pid}")
    elif can_ask_viewers(version("rerun-sdk")):
        is_installed = service_file().exists()
        yield Finding(
            "note",
            f"`rerun-sam watch` does not run{', though it is installed as a service' if is_installed else ''}",
            "`rerun-sam service install` starts it now and at every login",
        )
    override = os.environ.get("RERUN_CLI_PATH")
    if override and not os.access(override, os.X_OK):
        yield Finding(
            "problem", f"RERUN_CLI_PATH={override} is no program", "unset it, or `rerun-sam service shell-line`"
        )
    elif override:
        yield Finding("ok", f"RERUN_CLI_PATH={override}")


def _worker() -> Iterator[Finding]:
    from rerun_loader_sam.worker.control import worker_status

    status = worker_status()
    if not load_settings().worker:
        yield Finding(
            "note", "the background worker is off: every image loads the model anew", "unset RERUN_SAM_WORKER"
        )
    elif status is None:
        yield Finding("ok", "the background worker does not run; the first image starts it")
    else:
        yield Finding(
            "ok", f"the background worker runs, process {status['pid']}, model {status['model'] or 'none yet'}"
        )


def _model() -> Iterator[Finding]:
    from rerun_loader_sam.engine.device import choose_device
    from rerun_loader_sam.models.choose import choose_model

    settings = load_settings()
    device = choose_device(settings.device)
    yield Finding("ok", f"device: {device}")
    chosen = choose_model(settings, device)
    level = "note" if chosen.is_fallback else "ok"
    advice = chosen.hint.removeprefix(f"{chosen.reason}; ")
    yield Finding(level, f"model: {chosen.name} ({chosen.reason}), {chosen.path}", advice)


def _self_test() -> Iterator[Finding]:
    import numpy as np
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "self-test.png"
        rows, columns = np.mgrid[:96, :128]
        disc = (rows - 48) ** 2 + (columns - 64) ** 2 < 30**2
        Image.fromarray(np.where(disc[:, :, None], (220, 60, 40), (40, 90, 60)).astype(np.uint8)).save(path)
        started = time.monotonic()
        outcome = subprocess.run(
            [sys.executable, "-m", "rerun_loader_sam.loader", str(path)],
            # The way is tested, not the masks: with all prompts a large model would take a minute.
            env=os.environ | {"RERUN_SAM_POINTS_PER_SIDE": "8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SELF_TEST_TIMEOUT_S,
            check=False,
        )
        seconds = time.monotonic() - started
    said = outcome.stderr.decode(errors="replace").strip()
    if outcome.returncode or not outcome.stdout.startswith(b"RRF2"):
        raise UserError(f"the self-test failed with exit code {outcome.returncode}: {said or 'nothing was said'}")
    yield Finding(
        "ok", f"self-test: an image of 128 x 96 became {len(outcome.stdout)} bytes of RRD in {seconds:.1f} s"
    )
