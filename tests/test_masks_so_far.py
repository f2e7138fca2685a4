"""Masks that are shown while the work goes on, and taken off when it is done."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from recordings import Recording, Row, read
from rerun_loader_sam import job
from rerun_loader_sam.command import parse
from rerun_loader_sam.engine.generator import Progress
from rerun_loader_sam.errors import UserError
from rerun_loader_sam.models import choose
from rerun_loader_sam.models.registry import NANO
from rerun_loader_sam.models.store import checkpoint_path
from rerun_loader_sam.segmenter import Segmenter
from rerun_loader_sam.settings import load_settings
from sdks import NEWEST, Sdk

SO_FAR = "/image/masks_so_far"


class FailsAtTheEnd(Segmenter):
    def segment(self, rgb: NDArray[np.uint8]) -> Iterator[Progress]:
        for progress in super().segment(rgb):
            if progress.stage == "done":
                raise UserError("the disk is gone")
            yield progress


@pytest.fixture
def run(
    user: Path, photo: Path, tmp_path: Path, sdk: Callable[[str], Sdk], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Recording]:
    """Call with the class of the segmenter and the viewer's flags: what was logged of the photograph."""
    monkeypatch.setattr(job, "FIRST_MASKS_AFTER_S", 0.0)
    monkeypatch.setenv("RERUN_SAM_POINTS_PER_SIDE", "16")

    def log(kind: type[Segmenter], *flags: str, path: Path = photo) -> Recording:
        out = tmp_path / "out.rrd"
        settings = load_settings()
        work = job.Job(parse([str(path), "--recording-id", "r", *flags]).request, settings, kind(settings), out)
        try:
            work.run()
        except UserError:
            assert kind is FailsAtTheEnd
        (recording,) = read(out, sdk(NEWEST)).recordings
        return recording

    return log


def drawn_and_cleared(recording: Recording) -> tuple[list[Row], Row]:
    rows = [row for row in recording.rows if row.entity_path == SO_FAR]
    *drawn, last = rows
    assert drawn
    assert all("SegmentationImage:buffer" in row.data for row in drawn)
    assert all("AnnotationContext:context" in row.data for row in drawn)
    assert "Clear:is_recursive" in last.data
    assert {row.times["image"] for row in rows} == {0}
    return drawn, last


def test_masks_come_while_the_work_goes_on_and_give_way_to_the_final_ones(
    run: Callable[..., Recording],
) -> None:
    recording = run(Segmenter)
    drawn, cleared = drawn_and_cleared(recording)
    final = recording.one("/image/masks", "SegmentationImage:buffer")
    assert drawn[0].data["SegmentationImage:buffer"].any()
    assert drawn[0].data["SegmentationImage:format"] == final.data["SegmentationImage:format"]
    in_order = [row for row in recording.rows if row.entity_path in ("/image/masks", SO_FAR)]
    assert in_order[-1] is cleared
    assert in_order[-2] is final


def test_they_are_taken_off_when_the_work_fails(run: Callable[..., Recording]) -> None:
    recording = run(FailsAtTheEnd)
    drawn_and_cleared(recording)
    assert not recording.of("/image/masks", "SegmentationImage:buffer")
    assert recording.texts()[-1] == ("ERROR", "the disk is gone")


def test_none_come_into_a_recording_with_a_layout_that_is_not_ours(
    run: Callable[..., Recording],
) -> None:
    recording = run(Segmenter, "--opened-application-id", "theirs", "--opened-recording-id", "open")
    assert [row for row in recording.rows if row.entity_path.endswith("/image/masks")]
    assert not [row for row in recording.rows if row.entity_path.endswith(SO_FAR)]


@pytest.fixture
def large_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint that is set, and that counts as large; nothing of what it finds is drawn before the end."""
    path = tmp_path / "large.safetensors"
    path.write_bytes(checkpoint_path(NANO).read_bytes())
    monkeypatch.setenv("RERUN_SAM_MODEL", str(path))
    monkeypatch.setattr(choose, "_LARGE_CHECKPOINT_BYTES", 1_000_000)
    monkeypatch.setattr(job, "FIRST_MASKS_AFTER_S", 1e9)
    return path


def test_a_large_model_has_a_preview_by_the_small_one(run: Callable[..., Recording], large_model: Path) -> None:
    recording = run(Segmenter)
    (preview,), _ = drawn_and_cleared(recording)
    final = recording.one("/image/masks", "SegmentationImage:buffer")
    # The same weights and prompts: here the preview is what comes in the end, but for the masks' numbers.
    shown, stays = (np.ravel(row.data["SegmentationImage:buffer"]) for row in (preview, final))
    assert shown.any()
    assert len(np.unique([shown, stays], axis=1).T) == len(np.unique(shown)) == len(np.unique(stays))
    texts = [text for _, text in recording.texts()]
    (line,) = [number for number, text in enumerate(texts) if text.startswith("Preview: ")]
    assert texts[line - 1].startswith(f"Segmenting with {large_model.name}")
    assert "masks by nano, until there are better ones" in texts[line]
    assert texts[-1].endswith(f"by {large_model.name}")


def test_there_is_no_preview_where_nobody_would_see_it_or_wait_for_long(
    run: Callable[..., Recording], large_model: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photo.parent / "folder"
    folder.mkdir()
    (folder / photo.name).write_bytes(photo.read_bytes())
    into_theirs = ("--opened-application-id", "theirs", "--opened-recording-id", "open")
    logged = [run(Segmenter, path=folder), run(Segmenter, *into_theirs)]
    monkeypatch.setattr(choose, "_LARGE_CHECKPOINT_BYTES", large_model.stat().st_size + 1)
    logged.append(run(Segmenter))
    for recording in logged:
        assert [row for row in recording.rows if row.entity_path.endswith("/image/masks")]
        assert not [row for row in recording.rows if row.entity_path.endswith(SO_FAR)]
        assert not any("Preview" in text for _, text in recording.texts())
