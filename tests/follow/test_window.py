"""A real window: files dropped on it as a file manager drops them, File > Open, and what the viewer itself saves."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from viewers import (
    Open,
    copies,
    entity_path,
    folder_masks,
    loaders_of,
    masks_over,
    wait_for_masks,
    wait_until,
)

from recordings import Contents, Recording
from sdks import COMPUTE_THREADS, LOADERS, Sdk

pytestmark = [pytest.mark.viewer, pytest.mark.window]


@pytest.fixture
def note(photo: Path) -> Path:
    """A text file beside the photograph."""
    path = photo.with_name("note.txt")
    path.write_text("a note")
    return path


@pytest.fixture
def folder(photo: Path) -> Path:
    """A folder of two images and a text beside the photograph."""
    path = photo.with_name("folder")
    path.mkdir()
    for name in ("inside.jpg", "other.jpg"):
        shutil.copy(photo, path / name)
    (path / "note.txt").write_text("a note")
    return path


def test_the_newest(
    newest: Sdk, display: str, open_viewer: Open, photo: Path, note: Path, folder: Path, tmp_path: Path
) -> None:
    one, two, three, mixed, asked = copies(photo, "one.jpg", "two.jpg", "three.jpg", "mixed.jpg", "asked.jpg")
    viewer, process = open_viewer(newest, photo, by="override", display=display, loaders=LOADERS)
    wait_for_masks(viewer, process, photo)
    viewer.drop(one)
    wait_for_masks(viewer, process, one)
    viewer.drop(two, three)
    viewer.drop(note, mixed)
    viewer.open_by_dialog(asked)
    wait_for_masks(viewer, process, two, three, mixed, asked)
    viewer.drop(folder)  # the viewer gives it to the loader
    tensor = f"{entity_path(folder)}/mask_tensor"
    wait_until(lambda: any(tensor in held for held in viewer.entities().values()), "masks of the folder", process)
    wait_until(lambda: not loaders_of(folder), "the end of the loader", process)

    received = viewer.received(tmp_path / "received.rrd")
    for path in (photo, one, two, three, mixed, asked):
        masks_over(received, viewer, path)
    # The dialog opened a recording of its own; the folder was dropped on that.
    saved = viewer.saved(tmp_path / "saved.rrd")
    masks_over(saved, viewer, asked)
    assert folder_masks(saved, folder) == [0, 1]
    assert process.said().count("rerun-sam: segmenting") == 6


def test_watch(newest: Sdk, display: str, watched: Open, photo: Path) -> None:
    viewer, watching = watched(newest, display=display)
    [other] = copies(photo, "other.jpg")
    viewer.drop(photo, other)
    wait_for_masks(viewer, watching, photo, other)
    received = viewer.received(photo.with_suffix(".rrd"))
    for path in (photo, other):
        masks_over(received, viewer, path)


@pytest.mark.parametrize(
    ("version", "by"),
    [
        pytest.param("0.25.0", "view", marks=pytest.mark.slow),
        ("0.36.2", "override"),
        pytest.param("0.40.0", "view", marks=pytest.mark.slow),
    ],
)
def test_viewers_that_cannot_be_asked(
    sdk: Callable[[str], Sdk], version: str, by: str, display: str, open_viewer: Open, photo: Path, note: Path,
    folder: Path,
) -> None:  # fmt: skip
    two, three, asked, second = copies(photo, "two.jpg", "three.jpg", "asked.jpg", "second.jpg")
    # Viewers of that time keep nothing of what they are sent for others to read, unless they are told to.
    keep = ("--server-memory-limit", "1GB")
    viewer, process = open_viewer(sdk(version), photo, *keep, by=by, display=display, loaders=LOADERS)
    rrd = photo.with_suffix(".rrd")

    def wait_for_recordings(count: int) -> None:
        wait_until(lambda: len(own_recordings(viewer.received(rrd))) == count, f"{count} recordings", process)

    process.wait_for("Listening for gRPC connections")
    process.wait_for("wgpu adapter")
    wait_for_recordings(1)
    viewer.drop(two, three, note)
    wait_for_recordings(3)
    viewer.open_by_dialog(asked)
    wait_for_recordings(4)
    command = [Path(sys.executable).with_name("rerun-sam"), "view", second.name, "--port", str(viewer.port)]
    subprocess.run(command, env=viewer.environ, cwd=second.parent, check=True, timeout=120)
    wait_for_recordings(5)
    viewer.drop(folder)
    wait_until(lambda: f'Loading "{folder}"' in process.said(), "the folder", process)
    wait_until(lambda: folder_masks(viewer.saved(rrd), folder) == [0, 1], "masks of the folder", process)

    own = own_recordings(viewer.received(rrd))
    assert sorted(recording.application_id for recording in own) == [
        f"{path.stem} [Segment Anything]" for path in (asked, photo, second, three, two)
    ]
    for recording in own:
        assert recording.pixels("/image").shape == (400, 600, 3)
        assert recording.pixels("/image/masks", "SegmentationImage").any()


def own_recordings(contents: Contents) -> list[Recording]:
    """Those with masks; each must have its layout."""
    own = [found for found in contents.recordings if found.of("/mask_tensor", "Tensor:data")]
    assert {found.application_id for found in own} <= set(contents.blueprint_applications)
    return own


@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.23.0", "0.24.1"])
def test_viewers_that_call_loaders_for_images(
    sdk: Callable[[str], Sdk], version: str, display: str, open_viewer: Open, photo: Path, note: Path, folder: Path
) -> None:
    two, three, asked, second = copies(photo, "two.jpg", "three.jpg", "asked.jpg", "second.jpg")
    viewer, process = open_viewer(sdk(version), *COMPUTE_THREADS, by="rerun", display=display, loaders=LOADERS)
    process.wait_for("wgpu adapter")
    rrd = photo.with_suffix(".rrd")

    def wait_for_masks_below(*paths: Path) -> None:
        process.wait_for(f'Loading "{paths[-1]}"')
        expected = sorted(f"{path}/image/masks" for path in paths)
        wait_until(lambda: segmented(viewer.saved(rrd)) == expected, f"masks below {paths}", process)

    viewer.drop(photo)
    wait_for_masks_below(photo)
    viewer.drop(two, three, note)
    wait_for_masks_below(photo, two, three)
    viewer.drop(folder)
    wait_until(lambda: folder_masks(viewer.saved(rrd), folder) == [0, 1], "masks of the folder", process)

    def wait_for_recording_of(path: Path) -> None:
        def is_shown() -> bool:
            saved = viewer.saved(rrd)
            is_its_own = any(path.stem in recording.application_id for recording in saved.recordings)
            return is_its_own and segmented(saved) == ["/image/masks"]

        wait_until(is_shown, f"a recording with masks of {path}", process)

    viewer.open_by_dialog(asked)
    wait_for_recording_of(asked)
    command = [viewer.environ["PATH"].partition(":")[0] + "/rerun", second.name, "--port", str(viewer.port)]
    subprocess.run(command, env=viewer.environ, cwd=second.parent, check=True, timeout=120)
    wait_for_recording_of(second)


def segmented(contents: Contents) -> list[str]:
    """Where there are masks, once for each time that they were logged."""
    return sorted(
        row.entity_path
        for recording in contents.recordings
        for row in recording.rows
        if "SegmentationImage:buffer" in row.data
    )
