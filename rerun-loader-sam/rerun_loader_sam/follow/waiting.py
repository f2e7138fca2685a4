"""What lies over images that nobody works on yet, or any more.

Into recordings that are open only: what is sent to one that the person has closed brings it back.
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from rerun_loader_sam.command import parse
from rerun_loader_sam.follow.segment import FollowRequest, loader_arguments

if TYPE_CHECKING:
    from rerun_loader_sam.recording.stream import Recording


def show_waiting(request: FollowRequest) -> None:
    """Say over an image that it waits, where its loader will say how far it is. Raises UserError: no viewer."""
    from rerun_loader_sam.images import stored_size_hw
    from rerun_loader_sam.recording import contents

    size_hw = stored_size_hw(request.location)
    if size_hw is None:  # when its turn comes, the loader says what is wrong
        return

    def log(recording: "Recording") -> None:
        contents.place_progress(recording, size_hw)
        contents.log_text(recording, contents.WAITS)

    _send(request, log)


def clear_progress(request: FollowRequest) -> None:
    """Take off an image what was only for the time of the work, since it has ended. Raises UserError: no viewer."""
    from rerun_loader_sam.recording import contents

    def log(recording: "Recording") -> None:
        contents.clear(recording, contents.PROGRESS)
        contents.clear(recording, contents.MASKS_SO_FAR)

    _send(request, log)


def _send(request: FollowRequest, log: Callable[["Recording"], None]) -> None:
    os.environ.pop("RERUN", None)  # it would switch logging off
    # Rerun, and what is logged with it, only where there is something to log.
    from rerun_loader_sam.recording.stream import Recording, release_finished

    # By the loader's own command line: what it logs is to replace this.
    recording = Recording(parse(loader_arguments(request)).request, lambda content: None)
    log(recording)
    recording.finish()
    del recording  # only what nobody refers to any more is released
    release_finished()
