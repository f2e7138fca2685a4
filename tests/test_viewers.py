"""Real viewers run the loader, and what they receive is what the model found.

0.24.1 calls loaders for images; the newest for folders and unlisted extensions; a pipe serves all.
"""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recordings import Contents, Recording, read
from rerun_loader_sam import AutomaticMaskGenerator, load_model
from rerun_loader_sam.follow.announcements import calls_loaders_for_images
from rerun_loader_sam.masks import Mask
from rerun_loader_sam.models.choose import choose_model
from rerun_loader_sam.settings import load_settings
from sdks import COMPUTE_THREADS, LOADERS, NATIVE, NEWEST, Sdk

pytestmark = [pytest.mark.viewer, pytest.mark.usefixtures("user")]

Save = Callable[..., Contents]


def slowly(*versions: str) -> list[object]:
    """Parameters of versions that are tried in the slow tests only."""
    return [pytest.param(version, marks=pytest.mark.slow) for version in versions]


@pytest.fixture
def save(tmp_path: Path, sdk: Callable[[str], Sdk]) -> Save:
    """Call with a version and what to open: what that viewer, with its own SDK in the loader, has received."""

    def run(version: str, *opened: Path, stdin: "subprocess.Popen[bytes] | None" = None) -> Contents:
        out = tmp_path / "received.rrd"
        command = [sdk(version).viewer, *(opened or ["-"]), "--save", out, "--port", "0", *COMPUTE_THREADS]
        outcome = subprocess.run(
            command,
            env=sdk(version).environment(),
            stdin=stdin and stdin.stdout,
            capture_output=True,
            timeout=120,
            check=False,
        )
        print(outcome.stderr.decode())  # noqa: T201  # pytest shows it with a failure
        assert outcome.returncode == 0
        return read(out, sdk(NEWEST))

    return run


def expected_masks(photo: Path) -> list[Mask]:
    """What the generator gives for the photograph, asked directly."""
    settings = load_settings()
    chosen = choose_model(settings, "cpu")
    generator = AutomaticMaskGenerator(
        load_model(chosen.path), **(chosen.generator_parameters | settings.generator_overrides())
    )
    *_, last = generator.iterate(np.asarray(Image.open(photo).convert("RGB")))
    return last.masks


def assert_holds(recording: Recording, photo: Path, step: int = 0, below: str = "") -> None:
    """That `recording` holds the photograph and its masks, pixel by pixel, at `step`."""
    masks = expected_masks(photo)
    assert masks, "a test without masks would show nothing"
    assert np.array_equal(recording.pixels(f"{below}/image", step=step), np.asarray(Image.open(photo)))
    numbers = recording.pixels(f"{below}/image/masks", "SegmentationImage", step)
    tensor = recording.tensor(step, f"{below}/mask_tensor")
    assert tensor.shape == (*numbers.shape, len(masks) + 1)
    assert not tensor[:, :, 0].any()
    for number, mask in enumerate(masks, start=1):
        assert np.array_equal(tensor[:, :, number] > 0, mask.decode())
    by_size = sorted(range(len(masks)), key=lambda index: -masks[index].area)
    layered = np.zeros_like(numbers)
    for index in by_size:
        layered[masks[index].decode()] = index + 1
    assert np.array_equal(numbers, layered)

    boxes = recording.one(f"{below}/image/boxes", "Boxes2D:centers", step).data
    assert boxes["Boxes2D:class_ids"] == list(range(1, len(masks) + 1))
    half = np.array([mask.bbox_xywh[2:] for mask in masks]) / 2
    corner = np.array([mask.bbox_xywh[:2] for mask in masks])
    np.testing.assert_allclose(boxes["Boxes2D:half_sizes"], half, atol=1e-3)
    np.testing.assert_allclose(boxes["Boxes2D:centers"], corner + half, atol=1e-3)
    assert boxes["area"] == [mask.area for mask in masks]
    np.testing.assert_allclose(boxes["predicted_iou"], [mask.predicted_iou for mask in masks], rtol=1e-4)
    np.testing.assert_allclose(boxes["stability_score"], [mask.stability_score for mask in masks], rtol=1e-4)


def labels(recording: Recording, below: str = "") -> dict[int, str]:
    (row,) = recording.of(f"{below}/image", "AnnotationContext:context")
    infos = [entry["class_description"]["info"] for entry in row.data["AnnotationContext:context"][0]]
    return {info["id"]: info["label"] for info in infos}


class TestNative:
    """The viewer that calls loaders for images."""

    def test_a_photograph(self, save: Save, photo: Path, loaders_on_path: Callable[..., Path]) -> None:
        loaders_on_path(*LOADERS)
        contents = save(NATIVE, photo)
        (recording,) = contents.recordings
        assert_holds(recording, photo)
        masks = expected_masks(photo)
        assert set(labels(recording)) == set(range(len(masks) + 1))
        assert any(
            "Segment Anything" in row.data["TextDocument:text"][0]
            for row in recording.of("/description", "TextDocument:text")
        )
        texts = [text for _, text in recording.texts()]
        assert any("600 x 400" in text for text in texts)
        assert any(f"{len(masks)} mask" in text for text in texts)
        assert recording.application_id in contents.blueprint_applications

    def test_the_image_is_logged_before_anything_else(
        self, save: Save, photo: Path, loaders_on_path: Callable[..., Path]
    ) -> None:
        loaders_on_path("rerun-loader-sam")
        (recording,) = save(NATIVE, photo).recordings
        ours = [row.entity_path for row in recording.rows if "image" in row.times]
        assert ours[0] == "/image"
        order = [ours.index(path) for path in ("/image", "/image/masks", "/image/boxes", "/mask_tensor")]
        assert order == sorted(order)

    @pytest.mark.parametrize("version", [NATIVE, *slowly("0.23.0")])
    def test_a_folder_is_worked_on_once_in_natural_order(
        self, version: str, save: Save, photo: Path, loaders_on_path: Callable[..., Path]
    ) -> None:
        loaders_on_path(*LOADERS)
        make_folder(photo, ("frame10.png", "frame2.png", "broken.jpg", "notes.txt"))
        (recording,) = save(version, photo.parent).recordings
        assert_folder(recording)

    def test_a_text_file_is_left_to_the_viewer(
        self, save: Save, tmp_path: Path, loaders_on_path: Callable[..., Path]
    ) -> None:
        loaders_on_path(*LOADERS)
        (tmp_path / "notes.txt").write_text("hello")
        (recording,) = save(NATIVE, tmp_path / "notes.txt").recordings
        assert not recording.of("/logs", "TextLog:text")


class TestNewest:
    """The viewer that shows listed image types itself, and calls two names for the others."""

    @pytest.mark.parametrize("names", [LOADERS, LOADERS[:1], LOADERS[1:]])
    def test_an_unlisted_extension(
        self, names: tuple[str, ...], save: Save, photo: Path, loaders_on_path: Callable[..., Path]
    ) -> None:
        loaders_on_path(*names)
        unlisted = photo.rename(photo.with_suffix(".jfif"))
        (recording,) = save(NEWEST, unlisted).recordings
        assert_holds(recording, unlisted)

    @pytest.mark.parametrize("version", [NEWEST, *slowly("0.25.0", "0.36.2", "0.40.0")])
    def test_a_folder(self, version: str, save: Save, photo: Path, loaders_on_path: Callable[..., Path]) -> None:
        loaders_on_path(*LOADERS)
        make_folder(photo, ("frame10.jfif", "frame2", "broken.jfif", "notes.txt"))
        (recording,) = save(version, photo.parent).recordings
        assert_folder(recording)


PROGRAM = """
import sys, time
import psutil
import rerun as rr

rr.init("program", recording_id="of-the-program")
rr.save(sys.argv[1])
for path, prefix in zip(sys.argv[2::2], sys.argv[3::2]):
    rr.log_file_from_path(path, entity_path_prefix=prefix)
loaders = psutil.Process().children
until = time.monotonic() + 15
while time.monotonic() < until and not loaders():
    time.sleep(0.01)
while loaders():
    time.sleep(0.1)
rr.disconnect()
"""


@pytest.mark.parametrize("version", [NATIVE, NEWEST, *slowly("0.23.0", "0.25.0", "0.36.2", "0.40.0")])
def test_log_file_from_path(
    version: str, sdk: Callable[[str], Sdk], photo: Path, tmp_path: Path, loaders_on_path: Callable[..., Path]
) -> None:
    loaders_on_path(*LOADERS)
    unlisted = Path(shutil.copy(photo, photo.with_suffix(".jfif")))
    out = tmp_path / "out.rrd"
    arguments = [out, photo, "listed", unlisted, "unlisted"]
    subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], env=sdk(version).environment(), check=True, timeout=120
    )
    (recording,) = read(out, sdk(NEWEST)).recordings
    assert recording.recording_id == "of-the-program"
    assert_holds(recording, unlisted, below=f"/unlisted{unlisted}")
    if calls_loaders_for_images(version):
        assert_holds(recording, photo, below=f"/listed{photo}")
    else:  # SDKs from 0.25 on read the photograph themselves, and call nobody
        assert not recording.of(f"/listed{photo}/image/masks", "SegmentationImage:buffer")


@pytest.mark.parametrize("version", [NATIVE, "0.32.0", NEWEST, *slowly("0.23.0", "0.25.0", "0.36.2", "0.40.0")])
def test_a_pipe(version: str, save: Save, sdk: Callable[[str], Sdk], photo: Path) -> None:
    command = [shutil.which("rerun-loader-sam") or "rerun-loader-sam", str(photo)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=sdk(version).environment()) as loader:
        contents = save(version, stdin=loader)
    (recording,) = contents.recordings
    assert_holds(recording, photo)
    assert contents.blueprint_applications


@pytest.mark.parametrize("version", ["0.23.0", NATIVE, "0.36.2", NEWEST])
class TestFlags:
    """The flags of the protocol, with several versions of the SDK in the loader."""

    @staticmethod
    def load(photo: Path, tmp_path: Path, used: Sdk, newest: Sdk, *flags: str) -> Contents:
        out = tmp_path / "out.rrd"
        command = ["rerun-loader-sam", str(photo), "--save", str(out), *flags]
        subprocess.run(command, env=used.environment(), check=True, timeout=120)
        return read(out, newest)

    def test_the_opened_recording_is_used_and_its_layout_left_alone(
        self, version: str, photo: Path, tmp_path: Path, sdk: Callable[[str], Sdk]
    ) -> None:
        flags = ["--recording-id", "new", "--opened-application-id", "theirs", "--opened-recording-id", "open"]
        contents = self.load(photo, tmp_path, sdk(version), sdk(NEWEST), *flags)
        (recording,) = contents.recordings
        assert (recording.application_id, recording.recording_id) == ("theirs", "open")
        assert contents.blueprint_applications == []
        assert not [row for row in recording.rows if row.entity_path.startswith("/__properties")]
        assert_holds(recording, photo, below=str(photo))

    def test_application_and_prefix_and_times(
        self, version: str, photo: Path, tmp_path: Path, sdk: Callable[[str], Sdk]
    ) -> None:
        stamp = 1_700_000_000_123_456_789
        flags = [
            *("--application-id", "app", "--recording-id", "rec", "--entity-path-prefix", "robot/cam"),
            *("--time_sequence", "frame=7", "--sequence", "frame=7"),
            *("--time_duration_nanos", "run=5", "--time", "run=5"),
            *("--time_duration_nanos", f"stamp={stamp}", "--sequence", f"stamp={stamp}"),
        ]
        (recording,) = self.load(photo, tmp_path, sdk(version), sdk(NEWEST), *flags).recordings
        assert (recording.application_id, recording.recording_id) == ("app", "rec")
        assert_holds(recording, photo, below="/robot/cam")
        times = recording.one("/robot/cam/image", "Image:buffer").times
        assert (times["frame"], times["run"], times["stamp"]) == (7, 5, stamp)

    def test_static(self, version: str, photo: Path, tmp_path: Path, sdk: Callable[[str], Sdk]) -> None:
        (recording,) = self.load(
            photo, tmp_path, sdk(version), sdk(NEWEST), "--recording-id", "r", "--timeless", "--static"
        ).recordings
        (row,) = recording.of("/image/masks", "SegmentationImage:buffer")
        assert not row.times


def test_a_viewer_that_is_closed_in_the_middle_takes_its_loaders_along(
    sdk: Callable[[str], Sdk],
    photo: Path,
    tmp_path: Path,
    loaders_on_path: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RERUN_SAM_POINTS_PER_SIDE", "256")  # minutes of work
    loaders_on_path(*LOADERS)
    command = [sdk(NATIVE).viewer, photo, "--save", tmp_path / "out.rrd", "--port", "0"]
    environment = sdk(NATIVE).environment()
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as viewer:
        while not loader_processes(photo):
            time.sleep(0.05)
        time.sleep(2)
        assert loader_processes(photo)
        viewer.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while loader_processes(photo):
        assert time.monotonic() < deadline, "a loader outlived its viewer"
        time.sleep(0.05)


def loader_processes(photo: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes()
        except OSError:
            continue
        if b"rerun-loader-sam\0" in command and str(photo).encode() in command:
            found.append(process.parent.name)
    return found


def make_folder(photo: Path, names: tuple[str, str, str, str]) -> None:
    """Beside `coffee.jpg`: two more images, a broken one and a text file."""
    ten, two, broken, notes = (photo.with_name(name) for name in names)
    with Image.open(photo) as image:
        image.resize((90, 60)).save(ten, format="PNG")
        image.resize((150, 100)).save(two, format="PNG")
    broken.write_bytes(photo.read_bytes()[:1000])
    notes.write_text("no image")


def assert_folder(recording: Recording) -> None:
    """In natural order: broken, coffee, frame2, frame10, each at its step and once."""
    shapes = [recording.pixels("/image", step=step).shape[:2] for step in (1, 2, 3)]
    assert shapes == [(400, 600), (100, 150), (60, 90)]
    for step, shape in zip((1, 2, 3), shapes, strict=True):
        assert recording.pixels("/image/masks", "SegmentationImage", step).shape == shape
        assert recording.tensor(step).shape[:2] == shape
    assert len(recording.of("/image/masks", "SegmentationImage:buffer")) == 3
    (error,) = [text for level, text in recording.texts() if level == "ERROR"]
    assert "broken" in error
