"""Real viewers that are followed, and what they hold."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from recordings import Contents, Recording, read
from sdks import LOADERS, Sdk

TIMEOUT_S = 150.0
SETTLED_S = 1.5
WINDOW = ("--window-size", "1000x700")
XDND = Path(__file__).parent / "xdnd.py"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def put_on_path(folder: Path, sdk: Sdk, *loaders: str) -> dict[str, str]:
    """An environment in which `rerun` is the command of this SDK, with no other loaders on PATH than these."""
    folder.mkdir(exist_ok=True)
    command = folder / "rerun"
    command.write_text(f"#!{sys.executable}\nimport sys\nfrom rerun_cli.__main__ import main\nsys.exit(main())\n")
    command.chmod(0o755)
    for name in loaders:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(Path(sys.executable).parent / name)
    others = [entry for entry in os.environ["PATH"].split(os.pathsep) if not list(Path(entry).glob("rerun*"))]
    return sdk.environment() | {"PATH": os.pathsep.join([str(folder), *others])}


class Dialogs:
    """Answers the file dialogs of viewers, which ask `zenity` where no desktop portal is running.

    A stand-in for the dialog alone: the viewer takes its answer as that of the real one.
    """

    def __init__(self, folder: Path) -> None:
        # A busy viewer may ask long after the keys were pressed: what to open and where to save are kept apart.
        self.opened, self.saved = folder / "opened.answer", folder / "saved.answer"
        opened, saved = shlex.quote(str(self.opened)), shlex.quote(str(self.saved))
        program = folder / "zenity"
        program.write_text(f'#!/bin/sh\ncase "$*" in *--save*) cat {saved} ;; *) cat {opened} ;; esac\n')
        program.chmod(0o755)

    def environment(self) -> dict[str, str]:
        """What keeps a viewer from the portal of whoever runs the tests."""
        return {"DBUS_SESSION_BUS_ADDRESS": "unix:path=/nonexistent"}


class Process:
    """A process group of a test, with its output in a file."""

    def __init__(
        self, command: list[str | Path], environ: Mapping[str, str], log: Path, cwd: Path | None = None
    ) -> None:
        self.log = log
        with log.open("wb") as file:
            self.popen = subprocess.Popen(
                [str(part) for part in command],
                env=dict(environ),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def said(self) -> str:
        """What it wrote so far."""
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str) -> None:
        """Until it has written `text`."""
        wait_until(lambda: text in self.said(), f"{text!r} in {self.log}", self)

    def end(self) -> int:
        """End it with all its children; returns its exit code."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.popen.pid, number)
            except ProcessLookupError:
                break
            try:
                self.popen.wait(10)
                break
            except subprocess.TimeoutExpired:
                continue
        return self.popen.wait(10)


def wait_until(
    is_so: Callable[[], bool], what: str, process: Process | None = None, timeout_s: float = TIMEOUT_S
) -> None:
    """Until something is so; fails with what the process said after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            said = process.said()[-4000:] if process else ""
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}\n{said}")
        time.sleep(0.5)


class OpenViewer:
    """A viewer on a port, whoever started it; what it received is read with the SDK `reader`."""

    def __init__(
        self, sdk: Sdk, port: int, environ: Mapping[str, str], reader: Sdk, dialogs: Dialogs | None = None
    ) -> None:
        self.sdk = sdk
        self._dialogs = dialogs
        self._reader = reader
        self.environ = dict(environ)
        self.url = f"rerun+http://127.0.0.1:{port}/proxy"
        self.port = port

    def client(self) -> Any:
        """A `ViewerClient`, once the viewer answers. For viewers of 0.41 or later."""
        from rerun.experimental import ViewerClient

        found: list[Any] = []

        def is_there() -> bool:
            try:
                client = ViewerClient(self.url)
                client.get_state()
                found.append(client)
            except (ConnectionError, RuntimeError):
                return False
            return True

        wait_until(is_there, "the viewer answers")
        return found[0]

    def entities(self) -> dict[str, dict[str, set[str]]]:
        """By recording id, as the viewer has it: the components of each entity."""
        client = self.client()
        return {
            recording.store_id.rpartition(":")[2]: {
                entity.entity_path: {component.component for component in entity.components}
                for entity in client.get_recording_schema(recording.store_id).entities
            }
            for recording in client.get_state().recordings
        }

    def recording_of(self, entity_path: str) -> str:
        """The id of the only recording with an image at `entity_path`."""
        (found,) = [
            recording_id
            for recording_id, entities in self.entities().items()
            if "EncodedImage:blob" in entities.get(entity_path, ())
        ]
        return found

    def is_done(self, entity_path: str) -> bool:
        """Whether the image there has been segmented, to the last line of the log."""
        return any(
            "Clear:is_recursive" in entities.get(f"{entity_path}/progress", ())
            for entities in self.entities().values()
        )

    def drop(self, *files: Path) -> None:
        """Drop files on the window as a file manager does."""
        outcome = subprocess.run(
            [sys.executable, XDND, "Rerun", *files], env=self.environ, capture_output=True, text=True, check=False
        )
        assert outcome.returncode == 0, outcome.stderr

    def open_by_dialog(self, path: Path) -> None:
        """File > Open, by its shortcut."""
        assert self._dialogs is not None, "only a viewer with a window has dialogs"
        self._dialogs.opened.write_text(f"{path}\n")
        self._press("o")

    def saved(self, rrd: Path) -> Contents:
        """The recording that is shown, saved by the viewer itself: File > Save, by its shortcut."""
        rrd.unlink(missing_ok=True)
        assert self._dialogs is not None, "only a viewer with a window has dialogs"
        self._dialogs.saved.write_text(f"{rrd}\n")
        self._press("s")
        size = -1

        def is_written() -> bool:
            nonlocal size
            before, size = size, rrd.stat().st_size if rrd.exists() else -1
            return size == before > 0

        wait_until(is_written, f"the viewer writes {rrd}")
        return read(rrd, self._reader)

    def _press(self, letter: str) -> None:
        from keys import press_control_and  # needs python-xlib, which is not everywhere

        press_control_and(letter, self.environ["DISPLAY"], "Rerun")

    def received(self, rrd: Path) -> Contents:
        """Everything that was streamed to this viewer; not what it opened itself."""
        rrd.unlink(missing_ok=True)
        saver = Process(
            [self._reader.viewer, self.url, "--save", rrd, "--port", "0"], self.environ, rrd.with_suffix(".log")
        )
        size, since = -1, time.monotonic()
        while time.monotonic() - since < SETTLED_S:
            now = rrd.stat().st_size if rrd.exists() else -1
            if now != size or now <= 0:
                size, since = now, time.monotonic()
            assert saver.popen.poll() is None, saver.said()
            time.sleep(0.1)
        saver.end()
        return read(rrd, self._reader)


Open = Callable[..., tuple[OpenViewer, Process]]
"""The fixture `open_viewer`."""


def entity_path(image: Path) -> str:
    """Where a viewer holds the image of a file whose path needs no escapes."""
    return f"/{image.relative_to(image.anchor)}"


def copies(photo: Path, *names: str) -> list[Path]:
    """Copies of the photograph beside it."""
    return [Path(shutil.copy(photo, photo.with_name(name))) for name in names]


def wait_for_masks(viewer: OpenViewer, process: Process, *images: Path) -> None:
    """Until each image has been segmented; fails with what the process said."""
    wait_until(lambda: all(viewer.is_done(entity_path(path)) for path in images), f"masks over {images}", process)


def masks_over(contents: Contents, viewer: OpenViewer, image: Path) -> Recording:
    """The viewer's recording of an image, which must be the one with masks, boxes and the rest, exactly once."""
    entity = entity_path(image)
    recording_id = viewer.recording_of(entity)
    beside = f"/__properties/segment_anything{entity}"
    for path, component in (
        (f"{entity}/masks", "SegmentationImage:buffer"),
        (f"{entity}/boxes", "Boxes2D:class_ids"),
        (entity, "AnnotationContext:context"),
        (f"{beside}/mask_tensor", "Tensor:data"),
        (f"{beside}/description", "TextDocument:text"),
    ):
        rows = [(found.recording_id, row) for found in contents.recordings for row in found.of(path, component)]
        assert [found for found, _ in rows] == [recording_id], (path, component)
        assert rows[0][1].times == {}
    (found,) = [found for found in contents.recordings if found.recording_id == recording_id]
    return found


def folder_masks(contents: Contents, folder: Path) -> list[int]:
    """The step of each image of a folder whose masks a loader logged below the path of that folder."""
    return sorted(
        row.times["image"]
        for recording in contents.recordings
        for row in recording.rows
        if row.entity_path == f"{folder}/image/masks" and "SegmentationImage:buffer" in row.data
    )


def loaders_of(path: Path) -> list[int]:
    """The loaders that run for a file or folder, by their process ids."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if str(path) in command and any(part.endswith(LOADERS) for part in command):
            found.append(process.pid)
    return found
