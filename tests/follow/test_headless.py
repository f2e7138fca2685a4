"""Current viewers without a window: every way of opening that needs none."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from viewers import (
    Open,
    Process,
    copies,
    entity_path,
    masks_over,
    put_on_path,
    wait_for_masks,
    wait_until,
)

from recordings import Recording
from rerun_loader_sam.recording.contents import WAITS
from sdks import Sdk

pytestmark = pytest.mark.viewer

Watch = Callable[..., Process]


def test_an_image_of_the_command_line(newest: Sdk, open_viewer: Open, photo: Path, tmp_path: Path) -> None:
    viewer, process = open_viewer(newest, photo)
    path = entity_path(photo)
    wait_for_masks(viewer, process, photo)
    recording = masks_over(viewer.received(tmp_path / "received.rrd"), viewer, photo)
    (row,) = recording.of(f"{path}/masks", "SegmentationImage:buffer")
    form = row.data["SegmentationImage:format"][0]
    with Image.open(photo) as image:
        assert (form["width"], form["height"]) == image.size
    assert row.data["SegmentationImage:buffer"].any()
    # What would take a view from the person's layout: only the image has one.
    assert [view.origin for view in viewer.client().get_state().views] == [path]


def test_a_relative_path_of_the_command_line(newest: Sdk, open_viewer: Open, photo: Path, tmp_path: Path) -> None:
    viewer, process = open_viewer(newest, photo.name, cwd=photo.parent)
    wait_for_masks(viewer, process, Path("coffee.jpg"))
    masks_over(viewer.received(tmp_path / "received.rrd"), viewer, Path("coffee.jpg"))


def test_plain_rerun_by_its_override(newest: Sdk, open_viewer: Open, photo: Path, tmp_path: Path) -> None:
    viewer, process = open_viewer(newest, photo, by="override")
    wait_for_masks(viewer, process, photo)
    received = viewer.received(tmp_path / "received.rrd")
    masks_over(received, viewer, photo)


def test_watch_follows_viewers_that_run_and_that_come(
    newest: Sdk, open_viewer: Open, watch: Watch, photo: Path, tmp_path: Path
) -> None:
    [second] = copies(photo, "second.jpg")
    early, early_process = open_viewer(newest, photo, by="rerun")
    early.client()
    watching = watch(newest)
    late, _ = open_viewer(newest, by="rerun")
    late.client().open(str(second))  # what the dialog does
    wait_for_masks(early, watching, photo)
    wait_for_masks(late, watching, second)
    for viewer, path in ((early, photo), (late, second)):
        masks_over(viewer.received(tmp_path / "received.rrd"), viewer, path)
    early_process.end()
    watching.wait_for(f"the viewer on port {early.port} has ended")
    late.client().open(str(photo))
    wait_for_masks(late, watching, photo)
    assert watching.end() == 0


def test_view_and_watch_and_a_new_watch_segment_once(
    newest: Sdk, open_viewer: Open, watch: Watch, photo: Path, tmp_path: Path
) -> None:
    watching = watch(newest)
    viewer, process = open_viewer(newest, photo)
    watching.wait_for("following the viewer")
    others = copies(photo, "b.jpg", "c.jpg")
    viewer.client().open([str(path) for path in others])
    wait_for_masks(viewer, process, photo, *others)
    watching.end()
    again = watch(newest)
    again.wait_for("following the viewer")
    time.sleep(5)
    received = viewer.received(tmp_path / "received.rrd")
    for path in [photo, *others]:
        masks_over(received, viewer, path)


def test_a_second_rerun_in_an_open_viewer(newest: Sdk, watched: Open, photo: Path, tmp_path: Path) -> None:
    viewer, watching = watched(newest)
    command = [tmp_path / "bin" / "rerun", photo.name, "--port", str(viewer.port)]
    subprocess.run(command, env=viewer.environ, cwd=photo.parent, check=True)
    wait_for_masks(viewer, watching, Path("coffee.jpg"))
    # Here what it streamed itself, the image, came through the same server.
    masks_over(viewer.received(tmp_path / "received.rrd"), viewer, Path("coffee.jpg"))


def test_a_second_view_in_an_open_viewer(newest: Sdk, open_viewer: Open, photo: Path, tmp_path: Path) -> None:
    viewer, process = open_viewer(newest)
    viewer.client()
    command = [Path(sys.executable).parent / "rerun-sam", "view", photo.name, "--port", str(viewer.port)]
    outcome = subprocess.run(
        command, env=viewer.environ, cwd=photo.parent, capture_output=True, text=True, check=True, timeout=120
    )
    assert "Another viewer is already running" in outcome.stderr
    wait_for_masks(viewer, process, Path("coffee.jpg"))
    masks_over(viewer.received(tmp_path / "received.rrd"), viewer, Path("coffee.jpg"))


PROGRAM = """
import sys, time
import rerun as rr
rr.init("program", recording_id="of-a-program", spawn=False)
rr.connect_grpc(sys.argv[1])
rr.log("camera.jpg", rr.EncodedImage(path=sys.argv[2]), static=True)
rr.disconnect()
"""


def test_an_image_of_a_program_is_left_alone(newest: Sdk, watched: Open, photo: Path, tmp_path: Path) -> None:
    viewer, watching = watched(newest)
    subprocess.run([sys.executable, "-c", PROGRAM, viewer.url, str(photo)], env=viewer.environ, check=True)
    wait_until(lambda: "of-a-program" in viewer.entities(), "the program's recording")
    viewer.client().open(str(photo))
    wait_for_masks(viewer, watching, photo)
    time.sleep(5)
    assert "/camera.jpg/masks" not in viewer.entities()["of-a-program"]


PROGRAM_WITH_FILES = """
import sys, time
import rerun as rr
rr.init("program", recording_id="of-a-program", spawn=False)
rr.connect_grpc(sys.argv[1])
rr.log("note", rr.TextLog("of the program"))
for path in sys.argv[2:]:
    rr.log_file_from_path(path)
time.sleep(5)  # it reads in the background, and tells nobody when it is done
rr.disconnect()
"""


def test_images_of_a_program_that_are_asked_for(
    newest: Sdk, watched: Open, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RERUN_SAM_PROGRAM_IMAGES", "yes")
    [other] = copies(photo, "other.jpg")
    viewer, watching = watched(newest)
    command = [sys.executable, "-c", PROGRAM_WITH_FILES, viewer.url, photo, other]
    subprocess.run(command, env=viewer.environ, check=True, timeout=120)
    wait_for_masks(viewer, watching, photo, other)
    received = viewer.received(tmp_path / "received.rrd")
    for path in (photo, other):
        assert masks_over(received, viewer, path).recording_id == "of-a-program"


def test_odd_names_and_what_is_no_image(newest: Sdk, open_viewer: Open, photo: Path, tmp_path: Path) -> None:
    [odd] = copies(photo, "ö 'a\" (1)\\.JPG")
    text = photo.with_name("note.txt")
    text.write_text("a note")
    viewer, process = open_viewer(newest, text, odd)
    wait_until(
        lambda: any(
            "Clear:is_recursive" in components for held in viewer.entities().values() for components in held.values()
        ),
        "masks over the image with the odd name",
        process,
    )
    segmented = [
        path
        for held in viewer.entities().values()
        for path in held
        if path.endswith("/masks") and "__prop" not in path
    ]
    assert len(segmented) == 1
    assert process.said().count("rerun-sam: segmenting") == 1


def test_masks_follow_the_pixels_of_the_file(newest: Sdk, open_viewer: Open, photo: Path, tmp_path: Path) -> None:
    turned = photo.with_name("turned.jpg")
    with Image.open(photo) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif, quality=95)
    viewer, process = open_viewer(newest, photo, turned)
    wait_for_masks(viewer, process, photo, turned)
    received = viewer.received(tmp_path / "received.rrd")
    layers = []
    for path in (photo, turned):
        recording = masks_over(received, viewer, path)
        tensor = recording.of(f"/__properties/segment_anything{entity_path(path)}/mask_tensor", "Tensor:data")
        shape, _, numbers = tensor[0].data["Tensor:data"]
        layers.append(np.asarray(numbers).reshape(shape).any(axis=2))
    upright, stored = layers
    assert stored.shape == upright.shape[::-1]
    agreement = (np.rot90(upright) == stored).mean()
    assert agreement > 0.8  # not 1: the file was compressed once more
    assert agreement > (np.rot90(upright, -1) == stored).mean()


def test_a_file_that_is_gone(newest: Sdk, open_viewer: Open, watch: Watch, photo: Path) -> None:
    viewer, _ = open_viewer(newest, by="rerun")
    viewer.client().open(str(photo))
    photo.unlink()
    watching = watch(newest)
    beside = f"/__properties/segment_anything{entity_path(photo)}/logs"
    wait_until(lambda: any(beside in held for held in viewer.entities().values()), "a line in the log", watching)
    assert not any(f"{entity_path(photo)}/masks" in held for held in viewer.entities().values())


def test_without_a_cache_folder_images_are_segmented_all_the_same(
    newest: Sdk, open_viewer: Open, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no_folder").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no_folder"))
    [other] = copies(photo, "other.jpg")
    viewer, process = open_viewer(newest, photo, other)
    wait_for_masks(viewer, process, photo, other)
    said = process.said()
    assert said.count("XDG_CACHE_HOME") == 1
    assert "Traceback" not in said


def test_an_image_that_cannot_be_read_back_is_said(
    newest: Sdk, watched: Open, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no_folder").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "no_folder"))
    viewer, watching = watched(newest)
    command = [tmp_path / "bin" / "rerun", photo, "--port", str(viewer.port)]
    subprocess.run(command, env=viewer.environ, check=True)
    watching.wait_for("coffee.jpg could not be read back from the viewer")
    time.sleep(3)
    said = watching.said()
    assert said.count("could not be read back") == 1
    assert "Traceback" not in said


def test_what_was_closed_is_not_worked_on(newest: Sdk, open_viewer: Open, photo: Path) -> None:
    others = copies(photo, *(f"{number}.jpg" for number in range(6)))
    viewer, process = open_viewer(newest, *others)
    process.wait_for("segmenting 0.jpg")
    client = viewer.client()
    stores = [recording.store_id for recording in client.get_state().recordings]
    client.close(store_ids=stores)
    client.open(str(photo))
    wait_for_masks(viewer, process, photo)
    assert process.said().count("rerun-sam: segmenting") <= 3
    assert list(viewer.entities()) == [viewer.recording_of(entity_path(photo))]


def test_images_that_wait_say_so(newest: Sdk, open_viewer: Open, photo: Path, tmp_path: Path) -> None:
    waiting = copies(photo, "b.jpg", "c.jpg", "d.jpg", "closed.jpg")
    viewer, process = open_viewer(newest, photo, *waiting)
    closed = entity_path(waiting.pop())
    # The first takes seconds: it starts the worker, which loads the model.
    wait_until(
        lambda: any("Points2D:labels" in held.get(f"{closed}/progress", ()) for held in viewer.entities().values()),
        "a text over the last image",
        process,
    )
    closed_id = viewer.recording_of(closed)
    client = viewer.client()
    client.close(
        store_ids=[found.store_id for found in client.get_state().recordings if found.store_id.endswith(closed_id)]
    )
    wait_for_masks(viewer, process, photo, *waiting)
    assert closed_id not in viewer.entities()
    received = viewer.received(tmp_path / "received.rrd")
    for path in waiting:
        texts = progress_texts(masks_over(received, viewer, path), entity_path(path))
        assert [texts[0], texts.count(WAITS)] == [WAITS, 1], texts
    (alone,) = [recording for recording in received.recordings if recording.recording_id == closed_id]
    assert progress_texts(alone, closed) == [WAITS]
    assert {row.entity_path for row in alone.rows} == {
        f"{closed}/progress", f"/__properties/segment_anything{closed}/logs"
    }  # fmt: skip
    assert WAITS not in progress_texts(masks_over(received, viewer, photo), entity_path(photo))


def test_closing_and_ending_amid_the_work(
    newest: Sdk, open_viewer: Open, watch: Watch, photo: Path, tmp_path: Path
) -> None:
    running, waiting = copies(photo, "b.jpg", "c.jpg")
    watching = watch(newest, points_per_side=64)
    viewer, _ = open_viewer(newest, photo, running, waiting, by="rerun")

    def holds(path: Path, below: str, component: str) -> bool:
        return any(component in held.get(entity_path(path) + below, ()) for held in viewer.entities().values())

    wait_until(lambda: holds(photo, "/masks_so_far", "SegmentationImage:buffer"), "its first masks", watching)
    closed_id = viewer.recording_of(entity_path(photo))
    client = viewer.client()
    client.close(
        store_ids=[found.store_id for found in client.get_state().recordings if found.store_id.endswith(closed_id)]
    )
    wait_until(lambda: holds(running, "/masks_so_far", "SegmentationImage:buffer"), "those of the next", watching)
    assert closed_id not in viewer.entities()
    watching.end()
    # Nobody goes on with these: nothing over them says so, or looks like the result.
    assert holds(running, "/progress", "Clear:is_recursive")
    assert holds(running, "/masks_so_far", "Clear:is_recursive")
    assert holds(waiting, "/progress", "Clear:is_recursive")
    received = viewer.received(tmp_path / "received.rrd")
    (closed,) = [recording for recording in received.recordings if recording.recording_id == closed_id]
    assert not [row for row in closed.rows if "Clear:is_recursive" in row.data]
    assert not any("Tensor:data" in row.data for recording in received.recordings for row in recording.rows)


def progress_texts(recording: Recording, image: str) -> list[str]:
    """What lay over an image, in order."""
    return [row.data["Points2D:labels"][0] for row in recording.of(f"{image}/progress", "Points2D:labels")]


def test_the_viewers_output_and_exit_code(newest: Sdk, tmp_path: Path, user: Path) -> None:
    environ = put_on_path(tmp_path / "bin", newest)
    rerun, ours = [str(tmp_path / "bin" / "rerun")], [str(Path(sys.executable).parent / "rerun-sam"), "view"]
    for arguments in (["--version"], ["--no-such-flag"], ["rrd", "--help"]):
        outcomes = [
            subprocess.run([*command, *arguments], env=environ, capture_output=True, check=False)
            for command in (rerun, rerun, ours)  # the first of all greets a new user
        ][1:]
        assert outcomes[0].returncode == outcomes[1].returncode
        assert outcomes[0].stdout == outcomes[1].stdout
        assert outcomes[0].stderr == outcomes[1].stderr
