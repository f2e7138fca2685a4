"""Follows one viewer of 0.41 or later: has each image that it opens segmented once, over that image."""

import contextlib
import dataclasses
import functools
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.follow.announcements import VIEWER_IMAGE_EXTENSIONS, OpenedFile, entity_parts, opened_path
from rerun_loader_sam.follow.once import Claim, claim_image
from rerun_loader_sam.follow.received import received_image
from rerun_loader_sam.follow.segment import FollowRequest, segment_into_viewer
from rerun_loader_sam.follow.viewer import HeldImage, StoreName, UnreachableViewerError, Viewer
from rerun_loader_sam.follow.waiting import clear_progress, show_waiting
from rerun_loader_sam.settings import load_settings

POLL_S = 1.0
_PLACING_S = 30.0  # how long a viewer may take from announcing a file to holding its image
_FAILURES_TOLD = 10
_STREAMING_TURNS = 10  # how often a recording that nobody announced is looked at


@dataclasses.dataclass
class _Announced:
    file: OpenedFile
    deadline_s: float


@dataclasses.dataclass
class _Work:
    image: HeldImage
    location: Path
    claim: Claim
    is_copy: bool = False
    """Whether the file is our own, to be removed."""
    process: "subprocess.Popen[bytes] | None" = None
    is_told: bool = False
    """Whether it says over the image that it waits."""


class Follower:
    """Follows a viewer.

    folder: the viewer's working folder, which the paths on its command line are relative to.
    say: called with each line for a person.
    only_announced: leave alone what the viewer opens besides: another follows it.
    """

    def __init__(
        self, viewer: Viewer, folder: Path, say: Callable[[str], None], *, only_announced: bool = False
    ) -> None:
        self._viewer = viewer
        self._folder = folder
        self._say = say
        self._only_announced = only_announced
        self._sequence: int | None = None
        self._announced: list[_Announced] = []
        self._turns_unannounced: dict[str, int] = {}
        self._explained: set[str] = set()
        self._has_program_images = _wants_program_images()
        self._turns_of_program_images: Counter[tuple[str, str]] = Counter()
        self._queue: list[_Work] = []
        self._closed: list[HeldImage] = []
        self._is_alone_told = False

    @property
    def is_idle(self) -> bool:
        """Whether everything announced so far is done."""
        return not self._announced and not self._queue

    def announce(self, file: OpenedFile) -> None:
        """Tell of a file that is on its way to the viewer without its log saying so."""
        self._announced.append(_Announced(file, time.monotonic() + _PLACING_S))

    def follow(self, is_over: Callable[[], bool], sleep: Callable[[float], object] = time.sleep) -> None:
        """Follow until `is_over`; then what is under way is ended.

        Raises UnsupportedViewerError where the viewer is older.
        """
        failures = 0
        try:
            while not is_over():
                try:
                    self.turn()
                    failures = 0
                except (UnreachableViewerError, OSError) as error:
                    # The viewer is busy, or on its way out: `is_over` tells. Or no process could be started.
                    failures += 1
                    if failures == _FAILURES_TOLD:
                        self._say(
                            f"what the viewer opens could not be followed {failures} times in a row ({error}); "
                            "still trying"
                        )
                sleep(POLL_S)
        finally:
            self.stop()

    def turn(self) -> None:
        """Look once at what is new, and go on with the work."""
        if not self._only_announced:
            self._read_log()
        stores = self._viewer.stores()
        # A viewer answers once a frame: each recording is asked once, however many images were dropped.
        images = functools.cache(self._viewer.images)
        self._announced = [announced for announced in self._announced if not self._place(announced, stores, images)]
        if not self._only_announced:
            for store in stores:
                if self._has_program_images:
                    self._look_for_program_images(store)
                else:
                    self._look_for_received(store)
        self._work(stores)
        self._tell_those_that_wait()

    def _read_log(self) -> None:
        for sequence, line in self._viewer.log_lines(self._sequence):
            self._sequence = sequence
            path = opened_path(line)
            if path is not None:
                file = OpenedFile(path, self._folder)
                if file.is_for_us():
                    self.announce(file)

    def stop(self) -> None:
        """End what is under way and let go of what waits."""
        for work in self._queue:
            self._end(work)
        with contextlib.suppress(UnreachableViewerError, UserError):  # mostly this ends since the viewer did
            for work in self._queue:
                if (work.process is not None or work.is_told) and self._viewer.still_holds(work.image):
                    clear_progress(self._request(work))
        for work in self._queue:
            self._finish(work, is_done=False)
        self._queue = []

    def _place(
        self, announced: _Announced, stores: list[StoreName], images: Callable[[StoreName], list[HeldImage]]
    ) -> bool:
        """Find the recording that holds an announced image and queue it; whether the announcement is dealt with."""
        parts = entity_parts(announced.file.path)
        if any(self._take_of(parts, images(store), announced) for store in reversed(stores)):
            return True
        if time.monotonic() <= announced.deadline_s:
            return False
        # A viewer that cannot read the file says so itself; one that shows it again opens no new recording. What is
        # left are recordings with more entities than are told at once.
        any(self._take_of(parts, self._viewer.images(store, parts), announced) for store in reversed(stores))
        return True

    def _take_of(self, parts: list[str], images: list[HeldImage], announced: _Announced) -> bool:
        return any(list(image.parts) == parts and self._take(image, announced.file.location) for image in images)

    def _take(self, image: HeldImage, location: Path) -> bool:
        self._explained.add(image.store.store_id)
        if image.has_masks:
            return False
        claim = self._claim(image)
        if claim is None:
            return False
        self._queue.append(_Work(image, location, claim))
        return True

    def _claim(self, image: HeldImage) -> Claim | None:
        try:
            return claim_image(image.store.store_id, image.entity_path)
        except (UserError, OSError) as error:
            if not self._is_alone_told:
                self._is_alone_told = True
                self._say(f"{error}; `rerun-sam view` and `rerun-sam watch` may both segment an image now")
            return Claim(None)

    def _look_for_received(self, store: StoreName) -> None:
        """Find an image that a second `rerun photo.jpg` streamed to this viewer: no line of its log tells of it."""
        turns = self._turns_unannounced.get(store.store_id, 0)
        if store.store_id in self._explained or turns >= _STREAMING_TURNS:
            return
        self._turns_unannounced[store.store_id] = turns + 1
        if turns == 0:  # its announcement may have come since the log was read
            return
        images = self._viewer.images(store)
        if len(images) != 1 or images[0].has_masks or not images[0].is_alone:
            return
        if _is_file(images[0]):
            self._explained.add(store.store_id)
            self._take_received(images[0])

    def _look_for_program_images(self, store: StoreName) -> None:
        """Find every image that was streamed to this viewer under the name of a file."""
        for image in self._viewer.images(store):
            if image.has_masks or not _is_file(image):
                continue
            key = (store.store_id, image.entity_path)
            self._turns_of_program_images[key] += 1
            if self._turns_of_program_images[key] == 2:  # at first its announcement may be on its way
                self._take_received(image)

    def _take_received(self, image: HeldImage) -> None:
        claim = self._claim(image)
        if claim is None:
            return
        name = image.parts[-1]
        try:
            copy = received_image(
                self._viewer.url, image.store, image.entity_path, name, of_programs=self._has_program_images
            )
        except (UserError, OSError) as error:
            self._say(f"{name} could not be read back from the viewer ({error}); open it there by File > Open")
            copy = None
        if copy is None:  # mostly it came from a program: that is left alone for good
            claim.release(is_done=True)
        else:
            self._queue.append(_Work(image, copy, claim, is_copy=True))

    def _work(self, stores: list[StoreName]) -> None:
        """Start the first of the queue where nothing is under way; drop what the person has closed."""
        for image in self._closed:  # what was on its way then may have brought it back
            if image.store in stores:
                self._viewer.close_what_came_back(image)
        for work in list(self._queue):
            if work.process is not None and work.process.poll() is not None:
                self._finish(work, is_done=True)
            elif work.image.store not in stores or (
                # Its recording came back already? Asked of one only: a viewer answers once a frame.
                work is self._queue[0] and not self._viewer.still_holds(work.image)
            ):
                self._end(work)
                self._finish(work, is_done=True)
                self._closed.append(work.image)
            else:
                continue
            self._queue.remove(work)
        if self._queue and self._queue[0].process is None:
            first = self._queue[0]
            first.process = segment_into_viewer(self._request(first))
            self._say(f"segmenting {os.fsdecode(first.image.parts[-1])}")

    def _tell_those_that_wait(self) -> None:
        """Let each image that has come to wait behind others say so over itself, once."""
        for work in self._queue[1:]:
            if work.is_told:
                continue
            work.is_told = True
            if self._viewer.still_holds(work.image):
                try:
                    show_waiting(self._request(work))
                except UserError as error:
                    raise UnreachableViewerError(str(error)) from error

    def _request(self, work: _Work) -> FollowRequest:
        return FollowRequest(
            location=work.location,
            viewer_url=self._viewer.url,
            application_id=work.image.store.application_id,
            recording_id=work.image.store.recording_id,
            image_entity=work.image.entity_path,
        )

    def _end(self, work: _Work) -> None:
        if work.process is not None:
            work.process.terminate()
            work.process.wait()

    def _finish(self, work: _Work, *, is_done: bool) -> None:
        work.claim.release(is_done=is_done)
        if work.is_copy:
            _remove_copy(work.location)


def _wants_program_images() -> bool:
    try:
        return load_settings().program_images
    except UserError:  # the first image says what is wrong with a setting
        return False


def _is_file(image: HeldImage) -> bool:
    """Whether an image is called as the viewer calls that of a file."""
    return bool(image.parts) and Path(image.parts[-1]).suffix.lower() in VIEWER_IMAGE_EXTENSIONS


def _remove_copy(path: Path) -> None:
    shutil.rmtree(path.parent, ignore_errors=True)
