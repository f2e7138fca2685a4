"""Has one image segmented into a viewer, in a process of its own: a loader, and so the warm worker where it is on."""

import dataclasses
import subprocess
import sys
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class FollowRequest:
    """An image that a viewer has opened by itself.

    Attributes:
        location: The file, in full.
        viewer_url: Where that viewer takes recordings.
        application_id: Of the recording that holds the image, or of the one to make.
        recording_id: Of the recording that holds the image; None makes one, with the image and a layout.
        image_entity: Where that recording holds the image, in Rerun's syntax; None together with recording_id.
    """

    location: Path
    viewer_url: str
    application_id: str
    recording_id: str | None = None
    image_entity: str | None = None


def segment_into_viewer(request: FollowRequest) -> "subprocess.Popen[bytes]":
    """Start it. Ends with 0, or 1 after a line on standard error; whoever ends the process stops the work."""
    command = [sys.executable, "-m", "rerun_loader_sam.follow.run_loader", *loader_arguments(request)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def loader_arguments(request: FollowRequest) -> list[str]:
    """What the loader is asked, as its command line."""
    # In one word each: an application id may start with a dash.
    arguments = [str(request.location), f"--into-viewer={request.viewer_url}"]
    if request.recording_id is None or request.image_entity is None:
        return [*arguments, f"--application-id={request.application_id}"]
    arguments += [f"--opened-application-id={request.application_id}"]
    return [*arguments, f"--opened-recording-id={request.recording_id}", f"--over={request.image_entity}", "--static"]


def own_application_id(location: Path) -> str:
    """What to call a recording of our own: not as the viewer calls its own, whose layout would be ours then."""
    return f"{location.stem} [Segment Anything]"
