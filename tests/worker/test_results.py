"""The masks of images that were segmented before: used when nothing has changed, bounded, never half."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from processes import Loading, load, make_photos, status, worker_pids

from rerun_loader_sam.masks import Mask, encode_rle
from rerun_loader_sam.models.choose import choose_model
from rerun_loader_sam.results import Result, ResultCache, results_path
from rerun_loader_sam.segmenter import LoadedModel
from rerun_loader_sam.settings import Settings
from rerun_loader_sam.stamp import file_stamp

pytestmark = pytest.mark.usefixtures("user")

Start = Callable[..., Loading]


def kept_count() -> int:
    with sqlite3.connect(results_path()) as connection:
        (count,) = connection.execute("SELECT count(*) FROM results").fetchone()
    connection.close()
    assert isinstance(count, int)
    return count


def has_used_cache(photo: Path, *arguments: str) -> bool:
    outcome = load(photo, *arguments)
    assert outcome.returncode == 0, outcome.stderr
    return b"segmented by nano before" in outcome.stdout


class TestLoader:
    def test_the_same_image_is_segmented_once(self, photos: list[Path], tmp_path: Path) -> None:
        assert not has_used_cache(photos[0])
        assert has_used_cache(photos[0])
        assert not has_used_cache(photos[1])
        renamed = Path(shutil.copy(photos[0], tmp_path / "renamed.jpg"))
        assert has_used_cache(renamed), "its content counts, not its name"

    def test_it_outlives_the_worker_and_needs_no_model(self, photos: list[Path]) -> None:
        from rerun_loader_sam.worker.control import stop_worker

        load(photos[0])
        stop_worker()
        assert has_used_cache(photos[0])
        assert status()["model"] is None

    def test_a_changed_image_or_setting_is_segmented_again(
        self, photos: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        load(photos[0])
        stamp = photos[0].stat()
        shutil.copy(photos[1], photos[0])
        os.utime(photos[0], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert not has_used_cache(photos[0])
        assert has_used_cache(photos[0])
        monkeypatch.setenv("RERUN_SAM_PRED_IOU_THRESH", "0.5")
        assert not has_used_cache(photos[0])
        monkeypatch.setenv("RERUN_SAM_TENSOR_MIB", "1")  # has no part in the masks
        assert has_used_cache(photos[0])

    def test_without_size_there_is_none(self, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RERUN_SAM_CACHE_MIB", "0")
        for _ in range(2):
            assert not has_used_cache(photos[0])
        assert not results_path().exists()

    def test_a_damaged_cache_is_replaced(self, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        load(photos[0])
        results_path().write_bytes(b"this is no database" * 1000)
        assert not has_used_cache(photos[0])
        assert has_used_cache(photos[0])

    def test_without_a_worker_it_is_used_too(self, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RERUN_SAM_WORKER", "0")
        assert not has_used_cache(photos[0])
        assert has_used_cache(photos[0])
        assert not worker_pids()


def some_result(settings: Settings, seed: int) -> Result:
    """Two masks of noise."""
    chosen = choose_model(settings, "cpu")
    pixels = np.random.default_rng(seed).random((2, 90, 110)) > 0.5
    masks = [
        Mask(
            (90, 110),
            encode_rle(mask),
            (0.0, 1.0, 2.0, 3.5),
            int(mask.sum()),
            0.9,
            score,
            (5.0, 6.5),
            (0, 0, 110, 90),
        )
        for mask, score in zip(pixels, (0.97, float("nan")), strict=True)
    ]
    return Result(masks, LoadedModel(chosen, "cpu", {"points_per_side": 6}, file_stamp(chosen.path)), 1.7e9)


class TestResultCache:
    def test_what_is_found_is_what_was_kept(self) -> None:
        settings = Settings(model="nano")
        cache = ResultCache(settings)
        kept = some_result(settings, 1)
        cache.keep("key", kept)
        found = cache.find("key")
        assert found is not None
        assert found.model == kept.model
        assert found.made_at_s == kept.made_at_s
        for mask, original in zip(found.masks, kept.masks, strict=True):
            assert np.array_equal(mask.decode(), original.decode())
            assert mask.rle_counts.dtype == original.rle_counts.dtype
            assert (mask.bbox_xywh, mask.area, mask.predicted_iou) == (
                original.bbox_xywh,
                original.area,
                original.predicted_iou,
            )
            assert np.array_equal(mask.stability_score, original.stability_score, equal_nan=True)
            assert (mask.point_xy, mask.crop_box_xywh) == (original.point_xy, original.crop_box_xywh)
        assert cache.find("another key") is None

    def test_no_masks_are_a_result_too(self) -> None:
        settings = Settings(model="nano")
        cache = ResultCache(settings)
        result = some_result(settings, 1)
        cache.keep("key", Result([], result.model, result.made_at_s))
        found = cache.find("key")
        assert found is not None
        assert found.masks == []

    def test_the_least_recently_used_make_room(self) -> None:
        settings = Settings(model="nano", cache_mib=0.05)
        cache = ResultCache(settings)
        for number in range(40):
            cache.keep(f"key {number}", some_result(settings, number))
            assert cache.find("key 0") is not None
        assert cache.find("key 1") is None
        assert cache.find("key 39") is not None
        assert 2 < kept_count() < 40
        used = sum(file.stat().st_size for file in results_path().parent.glob("results.sqlite3"))
        assert used < 3 * settings.cache_mib * 2**20

    def test_one_that_is_too_large_drives_out_nothing(self) -> None:
        settings = Settings(model="nano", cache_mib=0.02)
        ResultCache(settings).keep("small", some_result(settings, 1))
        small = Settings(model="nano", cache_mib=0.001)
        ResultCache(small).keep("large", some_result(small, 2))
        assert ResultCache(settings).find("large") is None
        assert ResultCache(settings).find("small") is not None

    def test_a_damaged_result_is_none(self) -> None:
        settings = Settings(model="nano")
        cache = ResultCache(settings)
        cache.keep("key", some_result(settings, 1))
        with sqlite3.connect(results_path()) as connection:
            (value,) = connection.execute("SELECT value FROM results").fetchone()
            for damaged in (b"", value[:-20], value[:100], b"x" * 50, None, "text"):
                connection.execute("UPDATE results SET value = ?", (damaged,))
                connection.commit()
                assert cache.find("key") is None
        connection.close()

    def test_a_folder_that_cannot_be_written_harms_nobody(self, photos: list[Path], user: Path) -> None:
        (user / "cache").rmdir()
        (user / "cache").write_text("no folder")
        settings = Settings(model="nano")
        cache = ResultCache(settings)
        key = cache.key(photos[0], file_stamp(photos[0]))
        assert key
        cache.keep(key, some_result(settings, 1))
        assert cache.find(key) is None

    def test_a_file_that_changes_meanwhile_has_no_key(self, tmp_path: Path) -> None:
        (photo,) = make_photos(tmp_path / "one", 1)
        stamp = file_stamp(photo)
        cache = ResultCache(Settings(model="nano"))
        assert cache.key(photo, stamp) == cache.key(photo, stamp)
        photo.write_bytes(photo.read_bytes() + b"\0")
        assert cache.key(photo, stamp) is None
