"""One viewer that is started here and followed: `rerun-sam view`."""

import contextlib
import importlib.metadata
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

from rerun_loader_sam.errors import describe
from rerun_loader_sam.follow.announcements import (
    OpenedFile,
    calls_loaders_for_images,
    listening_port,
    opened_path,
    other_viewer_url,
    proxy_url,
    version_tuple,
)
from rerun_loader_sam.follow.follower import POLL_S, Follower
from rerun_loader_sam.follow.say import say
from rerun_loader_sam.follow.segment import FollowRequest, own_application_id, segment_into_viewer
from rerun_loader_sam.follow.viewer import UnsupportedViewerError, Viewer, reach

_CHUNK_BYTES = 1 << 16


class ViewSession:
    """A viewer process, what it says, and what is done about it."""

    def __init__(self, command: list[str], environ: Mapping[str, str]) -> None:
        self._command = command
        self._environ = environ
        self._folder = Path.cwd()
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._is_over = threading.Event()
        self._viewer_version = ""
        self._is_wanted = threading.Event()
        self._is_wanted.set()

    def run(self) -> int:
        """Run to the viewer's end; returns its exit code, 128 + N where signal N ended it."""
        process = subprocess.Popen(self._command, env=dict(self._environ), stderr=subprocess.PIPE)
        # The viewer has its own answer to Ctrl-C, which the terminal sends it too; then this ends as well.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, frame: self._pass_on(process, number))
        reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        follower = threading.Thread(target=self._follow, daemon=True)
        reader.start()
        follower.start()
        code = process.wait()
        # Another viewer that it started and left behind, as `rerun &` in a script does, may hold the pipe.
        reader.join(timeout=1)
        self._lines.put(None)
        self._is_over.set()
        follower.join()
        return code if code >= 0 else 128 - code

    def _pass_on(self, process: "subprocess.Popen[bytes]", number: int) -> None:
        """Send a signal to the viewer: `rerun` may be a script that waits for the process that is meant."""
        self._is_wanted.clear()
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    child.send_signal(number)
        process.send_signal(number)

    def _read(self, process: "subprocess.Popen[bytes]") -> None:
        """Pass on what the viewer says, as it comes, and keep its lines."""
        if process.stderr is None:
            return
        rest = b""
        while chunk := os.read(process.stderr.fileno(), _CHUNK_BYTES):
            with contextlib.suppress(OSError):
                os.write(2, chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._lines.put(os.fsdecode(line))
        self._lines.put(None)

    def _follow(self) -> None:
        try:
            self._follow_what_it_is()
        except Exception as error:  # the viewer goes on as if it had been started without this
            say(f"{describe(error)}; what is opened from now on is not segmented, start `rerun-sam view` again")

    def _follow_what_it_is(self) -> None:
        version = self._viewer_version = self._version()
        if version and calls_loaders_for_images(version):
            return  # it does all this itself
        files: list[OpenedFile] = []
        for line in self._next_lines():
            path = opened_path(line)
            if path is not None:
                files.append(OpenedFile(path, self._folder))
            if (port := listening_port(line)) is not None:
                self._follow_viewer(proxy_url(port), files)
                return
            if (url := other_viewer_url(line)) is not None:
                self._hand_over(url, files)
                return

    def _version(self) -> str:
        result = subprocess.run(
            [*self._command[:1], "--version"],
            env=dict(self._environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        words = result.stdout.split()
        return words[1] if len(words) > 1 else ""

    def _follow_viewer(self, url: str, files: list[OpenedFile]) -> None:
        """Follow the viewer that was started, to its end."""
        viewer = self._ask(url, self._is_over.is_set)
        if viewer is not None:
            Follower(viewer, self._folder, say).follow(self._is_over.is_set, self._is_over.wait)
            return
        for file in files:
            self._beside(url, file, self._is_over.is_set)
        for line in self._next_lines():
            path = opened_path(line)
            if path is not None and not self._is_over.is_set():
                self._beside(url, OpenedFile(path, self._folder), self._is_over.is_set)

    def _hand_over(self, url: str, files: list[OpenedFile]) -> None:
        """Have the files segmented that went to a viewer which was open already."""
        # Viewers of some versions name the files after this, and all of them are there once the process is over.
        files += [OpenedFile(path, self._folder) for line in self._next_lines() if (path := opened_path(line))]
        self._is_over.wait()

        def is_enough() -> bool:
            return not self._is_wanted.is_set()

        viewer = self._ask(url, is_enough)
        if viewer is not None:
            follower = Follower(viewer, self._folder, say, only_announced=True)
            for file in files:
                if file.is_for_us():
                    follower.announce(file)
            follower.follow(lambda: is_enough() or follower.is_idle)
            return
        for file in files:
            self._beside(url, file, is_enough)

    def _ask(self, url: str, is_over: Callable[[], bool]) -> Viewer | None:
        """The viewer, once it answers; None where it, or the SDK here, cannot tell what was opened."""
        try:
            return reach(url, is_over)
        except UnsupportedViewerError as error:
            say(f"{error}; masks come as a recording of their own")
            sdk_version = importlib.metadata.version("rerun-sdk")
            if version_tuple(sdk_version) > version_tuple(self._viewer_version):
                say(
                    f"rerun-sdk {sdk_version} here is newer than this viewer, which may lose what it is sent: "
                    f"`{sys.executable} -m pip install rerun-sdk=={self._viewer_version}` makes them fit"
                )
        return None

    def _beside(self, url: str, file: OpenedFile, is_over: Callable[[], bool]) -> None:
        """Have a file segmented into a recording of its own, with the image."""
        if not file.is_for_us() or is_over():
            return
        say(f"segmenting {file.location}")
        request = FollowRequest(file.location, url, own_application_id(file.location))
        process = segment_into_viewer(request)
        while process.poll() is None:
            if is_over():
                process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)

    def _next_lines(self) -> Iterator[str]:
        while (line := self._lines.get()) is not None:
            yield line
