"""Viewers that are followed: without a display, and in a real window."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from viewers import WINDOW, Dialogs, Open, OpenViewer, Process, free_port, put_on_path

from sdks import NEWEST, Sdk

# Few prompts, and masks from whatever model is shipped: which masks is not the question here.
QUICK = {
    "RERUN_SAM_POINTS_PER_SIDE": "4",
    "RERUN_SAM_PRED_IOU_THRESH": "0.2",
    "RERUN_SAM_STABILITY_SCORE_THRESH": "0.4",
}
RERUN_SAM = Path(sys.executable).parent / "rerun-sam"


@pytest.fixture(scope="session")
def display() -> Iterator[str]:
    """The name of an X display of its own, on which Vulkan works without a graphics card."""
    if shutil.which("Xvfb") is None:
        pytest.skip("Xvfb is not installed (Debian: xvfb)")
    if not list(Path("/usr/share/vulkan/icd.d").glob("lvp_icd*")):
        pytest.skip("no software Vulkan driver is installed (Debian: mesa-vulkan-drivers)")
    pytest.importorskip("Xlib", reason="python-xlib is not installed")
    reading, writing = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1000x700x24", "-nolisten", "tcp"],
        pass_fds=[writing],
        stderr=subprocess.DEVNULL,
    )
    os.close(writing)
    with os.fdopen(reading) as number:
        name = f":{number.readline().strip()}"
    yield name
    server.terminate()
    server.wait()


@pytest.fixture
def newest(sdk: Callable[[str], Sdk]) -> Sdk:
    """The newest SDK; skips where the tests themselves cannot ask a viewer."""
    import rerun.experimental

    if not hasattr(rerun.experimental, "ViewerClient"):
        pytest.skip("the rerun-sdk that is installed for the tests is older than 0.41")
    return sdk(NEWEST)


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    """What a test starts is added here, and ended after it."""
    started: list[Process] = []
    yield started
    for process in reversed(started):
        process.end()


@pytest.fixture
def ports() -> list[int]:
    """The ports of this test's viewers, in order: other tests may run beside it, with viewers of their own."""
    return [free_port() for _ in range(3)]


@pytest.fixture
def open_viewer(
    user: Path, tmp_path: Path, processes: list[Process], sdk: Callable[[str], Sdk], ports: list[int]
) -> Open:
    """Call with an SDK, and how: a viewer on a port of its own, and its process.

    arguments: of the viewer.
    by: `view`, `rerun`, or `override` (`rerun` with RERUN_CLI_PATH).
    loaders: those on PATH.
    display: the X display; without one the viewer has no window.
    """

    for process in psutil.process_iter(["cmdline"]):
        *_, program, command = ["", "", *(process.info["cmdline"] or [])]
        if command == "watch" and program.endswith("rerun-sam"):
            pytest.fail(
                f"process {process.pid}, a `rerun-sam watch`, would follow the viewers of the tests: end it first"
            )

    unused = list(ports)

    def start(
        viewer_sdk: Sdk,
        *arguments: str | Path,
        by: str = "view",
        display: str | None = None,
        cwd: Path | None = None,
        loaders: Sequence[str] = (),
    ) -> tuple[OpenViewer, Process]:
        environ = put_on_path(tmp_path / "bin", viewer_sdk, *loaders)
        environ |= QUICK
        dialogs = None
        if display:
            dialogs = Dialogs(tmp_path / "bin")
            environ |= dialogs.environment() | {"DISPLAY": display}
        if by == "override":
            environ["RERUN_CLI_PATH"] = str(RERUN_SAM.with_name("rerun-sam-viewer"))
        port = unused.pop(0)
        command = [RERUN_SAM, "view"] if by == "view" else [tmp_path / "bin" / "rerun"]
        shown = WINDOW if display else ("--headless",)
        process = Process(
            [*command, *arguments, "--port", str(port), *shown], environ, tmp_path / f"{by}-{port}.log", cwd
        )
        processes.append(process)
        environ.pop("RERUN_CLI_PATH", None)
        return OpenViewer(viewer_sdk, port, environ, sdk(NEWEST), dialogs), process

    return start


@pytest.fixture
def watch(user: Path, tmp_path: Path, processes: list[Process], ports: list[int]) -> Callable[..., Process]:
    """Call with an SDK, and the `points_per_side` of the grid if it is to be slow: `rerun-sam watch`, running."""

    def start(sdk: Sdk, points_per_side: int = 4) -> Process:
        environ = put_on_path(tmp_path / "bin", sdk) | QUICK | {"RERUN_SAM_POINTS_PER_SIDE": str(points_per_side)}
        only = [f"--port={port}" for port in ports]
        process = Process([RERUN_SAM, "watch", *only], environ, tmp_path / f"watch-{len(processes)}.log")
        processes.append(process)
        process.wait_for("watching for viewers")
        return process

    return start


@pytest.fixture
def watched(open_viewer: Open, watch: Callable[..., Process]) -> Open:
    """Call as `open_viewer`: a viewer that somebody started as ever, and the `rerun-sam watch` that follows it."""

    def start(sdk: Sdk, *arguments: str | Path, display: str | None = None) -> tuple[OpenViewer, Process]:
        watching = watch(sdk)
        viewer, _ = open_viewer(sdk, *arguments, by="rerun", display=display)
        viewer.client()
        watching.wait_for("following the viewer")
        return viewer, watching

    return start
