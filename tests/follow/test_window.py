"""A real window, files dropped on it as a file manager drops them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from viewers import Open, OpenViewer, Process, masks_over, wait_until

from recordings import Contents
from sdks import Sdk

pytestmark = [pytest.mark.viewer, pytest.mark.window]


def entity_path(path: Path) -> str:
    """Of a file whose path needs no escapes."""
    return f"/{path.relative_to(path.anchor)}"


def copies(photo: Path, *names: str) -> list[Path]:
    """Copies of the photograph beside it."""
    return [Path(shutil.copy(photo, photo.with_name(name))) for name in names]


def wait_for_masks(viewer: OpenViewer, process: Process, *paths: Path) -> None:
    wait_until(lambda: all(viewer.is_done(entity_path(path)) for path in paths), f"masks over {paths}", process)


def test_drops_on_the_newest(newest: Sdk, display: str, open_viewer: Open, photo: Path, tmp_path: Path) -> None:
    many = copies(photo, "b.jpg", "c.jpg", "d.jpg")
    [mixed] = copies(photo, "mixed.jpg")
    text = photo.with_name("note.txt")
    text.write_text("a note")
    folder = photo.with_name("folder")
    folder.mkdir()
    inside = Path(shutil.copy(photo, folder / "inside.jpg"))

    viewer, process = open_viewer(newest, display=display)
    viewer.client()
    viewer.drop(photo)
    wait_for_masks(viewer, process, photo)
    viewer.drop(*many)
    wait_for_masks(viewer, process, *many)
    viewer.drop(folder)  # for the loader: none is on PATH here, so nobody works on it
    viewer.drop(text, mixed)
    wait_for_masks(viewer, process, mixed)

    received = viewer.received(tmp_path / "received.rrd")
    dropped = [photo, *many, mixed]
    for path in dropped:
        masks_over(received, viewer.recording_of(entity_path(path)), entity_path(path))
    entities = viewer.entities()[viewer.recording_of(entity_path(photo))]
    assert entity_path(inside) in entities
    assert f"{entity_path(inside)}/masks" not in entities
    assert process.said().count("rerun-sam: segmenting") == len(dropped)


def test_a_drop_that_watch_follows(
    newest: Sdk, display: str, open_viewer: Open, watch: Callable[[Sdk], Process], photo: Path
) -> None:
    watching = watch(newest)
    viewer, _ = open_viewer(newest, by="rerun", display=display)
    viewer.client()
    [other] = copies(photo, "other.jpg")
    viewer.drop(photo, other)
    wait_for_masks(viewer, watching, photo, other)
    received = viewer.received(photo.with_suffix(".rrd"))
    for path in (photo, other):
        masks_over(received, viewer.recording_of(entity_path(path)), entity_path(path))


@pytest.mark.parametrize(
    "version",
    [pytest.param("0.25.0", marks=pytest.mark.slow), "0.36.2", pytest.param("0.40.0", marks=pytest.mark.slow)],
)
def test_older_viewers_get_a_recording_of_its_own(
    sdk: Callable[[str], Sdk], version: str, display: str, open_viewer: Open, photo: Path
) -> None:
    others = copies(photo, "b.jpg", "c.jpg")
    text = photo.with_name("note.txt")
    text.write_text("a note")
    # Viewers of that time keep nothing of what they are sent for others to read, unless they are told to.
    viewer, process = open_viewer(sdk(version), photo, "--server-memory-limit", "1GB", display=display)
    process.wait_for("Listening for gRPC connections")
    process.wait_for("wgpu adapter")
    wait_until(lambda: _segmented(viewer.received(photo.with_suffix(".rrd"))) == 1, "one recording", process)
    viewer.drop(*others, text)
    wait_until(lambda: _segmented(viewer.received(photo.with_suffix(".rrd"))) == 3, "three recordings", process)
    received = viewer.received(photo.with_suffix(".rrd"))
    own = [recording for recording in received.recordings if recording.of("/mask_tensor", "Tensor:data")]
    assert sorted(recording.application_id for recording in own) == [
        f"{path.stem} [Segment Anything]" for path in (others[0], others[1], photo)
    ]
    for recording in own:
        assert recording.pixels("/image").shape == (400, 600, 3)
        assert recording.pixels("/image/masks", "SegmentationImage").any()
    assert set(received.blueprint_applications) == {recording.application_id for recording in own}


def _segmented(contents: Contents) -> int:
    return sum(len(recording.of("/mask_tensor", "Tensor:data")) for recording in contents.recordings)
