"""`python -m rerun_loader_sam.follow.attach PID PORT`: follows one running viewer to its end, then ends too.

A process of its own, since Rerun, which it needs, takes 90 MB: `rerun-sam watch` pays only while a viewer runs.
"""

import os
import signal
import sys
from types import FrameType

from rerun_loader_sam.errors import describe
from rerun_loader_sam.follow.announcements import proxy_url
from rerun_loader_sam.follow.discover import viewers_of
from rerun_loader_sam.follow.follower import Follower
from rerun_loader_sam.follow.say import say
from rerun_loader_sam.follow.viewer import UnsupportedViewerError, reach
from rerun_loader_sam.loader import ERROR

NOT_SUPPORTED = 3


def main() -> int:
    """Run; returns 0 when the viewer has ended, NOT_SUPPORTED where it is older than 0.41, ERROR after an error."""
    pid, port = int(sys.argv[1]), int(sys.argv[2])
    process = next((found for found in viewers_of(pid) if found.port == port), None)
    if process is None:
        return 0
    parent = os.getppid()

    def is_over() -> bool:
        return not process.is_running() or os.getppid() != parent

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    try:
        viewer = reach(proxy_url(port), is_over)
        if viewer is None:
            return 0
        say(f"following the viewer {viewer.version} on port {port}")
        Follower(viewer, process.folder, say).follow(is_over)
    except UnsupportedViewerError as error:
        say(f"process {pid} on port {port} is left alone: {error}")
        return NOT_SUPPORTED
    except Exception as error:
        say(f"{describe(error)}; the viewer on port {port} is followed no more, start `rerun-sam watch` again")
        return ERROR
    say(f"the viewer on port {port} has ended")
    return 0


def _end(number: int, frame: FrameType | None) -> None:
    # A service, or a terminal, ends all its processes at once, and `rerun-sam watch` then ends this one again: that
    # is not to cut short what is done at the end.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
