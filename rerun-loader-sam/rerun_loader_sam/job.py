"""One request from its path to the last byte: reads, logs, segments, logs."""

import dataclasses
import heapq
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rerun_loader_sam import __version__
from rerun_loader_sam.errors import UserError, describe
from rerun_loader_sam.images import load_image
from rerun_loader_sam.masks import Mask
from rerun_loader_sam.models.background import start_fetch
from rerun_loader_sam.orientation import as_stored, stored_size
from rerun_loader_sam.protocol import Request
from rerun_loader_sam.recording import contents
from rerun_loader_sam.recording.stream import Recording, printable
from rerun_loader_sam.results import Result, ResultCache
from rerun_loader_sam.segmenter import LoadedModel, Preview, Stream
from rerun_loader_sam.settings import Settings
from rerun_loader_sam.sniff import iter_images
from rerun_loader_sam.stamp import FileStamp, file_stamp

if TYPE_CHECKING:
    from rerun_loader_sam.engine.generator import Progress

PROGRESS_EVERY_S = 2.0
# Each drawing of what came up so far stays in the viewer's memory: the next one comes when the time has doubled.
FIRST_MASKS_AFTER_S = 2.0
# Drawing a mask of a large photograph takes some hundredths of a second of a core that is busy with the next one.
MAX_MASKS_SO_FAR = 100


class Job:
    """Segments what a request names and logs it.

    target: called with RRD bytes as early as they exist, or the file to write.
    report: called with each line of the log and its level (INFO, WARN, ERROR), for a person at a terminal.
    drawing: entered while an image, or its masks, are made into bytes: both take memory.
    results: where masks of images that have not changed come from.
    environ: its proxies and certificates are used where a model is to be fetched; os.environ unless given.
    look_up: called while a folder is looked through; raises what ends the job, where nobody waits for it any more.
    """

    def __init__(
        self,
        request: Request,
        settings: Settings,
        segmenter: Stream,
        target: Callable[[bytes], None] | Path,
        report: Callable[[str, str], None] = lambda text, level: None,
        *,
        drawing: Callable[[], AbstractContextManager[None]] = nullcontext,
        results: ResultCache | None = None,
        environ: Mapping[str, str] | None = None,
        look_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._request = request
        self._settings = settings
        self._segmenter = segmenter
        self._target = target
        self._report = report
        self._drawing = drawing
        self._results = results
        self._environ = environ
        self._look_up = look_up
        self._recording: Recording | None = None
        self._annotated_count = -1
        self._has_masks_so_far = False
        self._has_description = False

    def run(self, left_out: frozenset[str] = frozenset()) -> None:
        """Do it all; images of a folder that are in `left_out` are passed over.

        Raises what went wrong, UserError where a person can act on it. In a folder an image that cannot be
        read is an ERROR in the log, the others follow, and it only raises where all of them failed.
        """
        try:
            self._run(left_out)
        finally:
            if self._recording is not None:
                self._recording.finish()

    def _run(self, left_out: frozenset[str]) -> None:
        request = self._request
        if not request.location.is_dir():
            self._file(request.location)
            return
        paths = [path for path in iter_images(str(request.location), self._look_up) if path not in left_out]
        failures = [error for error in self._folder(paths) if error]
        if failures and len(failures) == len(paths):
            raise failures[0]

    def _file(self, path: Path) -> None:
        try:
            self._image(0, path)
        except Exception as error:
            if self._recording is not None or self._request.viewer_url is not None:
                # Whoever started this job is told by the exception; who looks at the viewer, by its log.
                contents.log_text(self._open(0), describe(error), "ERROR")
            raise

    def _folder(self, paths: Iterable[str]) -> Iterable[Exception | None]:
        for step, path in enumerate(paths):
            try:
                self._image(step, Path(path))
                yield None
            except Exception as error:  # whatever one image does, the others follow
                self._log(step, describe(error), "ERROR")
                yield error

    def _image(self, step: int, path: Path) -> None:
        started = time.monotonic()
        with self._drawing():
            shown = self._show(step, path)
        try:
            self._masks(step, shown, started)
        except Exception:  # not where the work was cancelled: the person may have closed the recording
            self._clear_masks_so_far(step)
            raise
        self._clear_masks_so_far(step)
        recording = self._open(step)
        if recording.is_over_image:  # where the last line of the log lies
            contents.clear(recording, contents.PROGRESS)

    def _masks(self, step: int, shown: "_Shown", started: float) -> None:
        """Log the masks of an image that is shown, from the cache or made now."""
        path = shown.path
        key = self._results.key(path, shown.stamp) if self._results else None
        result = self._results.find(key) if self._results and key else None
        if result is None:
            result = self._segment(step, shown, started)
            if self._results and key:
                self._results.keep(key, result)
        else:
            self._introduce(step, result.model)
            made = time.strftime("%Y-%m-%d %H:%M", time.localtime(result.made_at_s))
            self._log(step, f"The same image was segmented by {result.model.chosen.name} before, on {made}")
        with self._drawing():
            self._draw(step, result.masks, shown)
        count = f"{len(result.masks)} masks" if len(result.masks) != 1 else "1 mask"
        self._log(step, f"{count} in {time.monotonic() - started:.1f} s, by {result.model.chosen.name}")
        if not result.masks:
            self._log(step, _why_none(result.model), "WARN")

    def _show(self, step: int, path: Path) -> "_Shown":
        """Log the image, before anything else."""
        try:
            stamp = file_stamp(path)
        except OSError as error:
            raise UserError(f"{path}: {(error.strerror or str(error)).lower()}; nothing was segmented") from error
        image = load_image(path, self._settings.max_megapixels)
        recording = self._open(step)
        if recording.is_over_image:
            contents.place_progress(recording, stored_size(image.size_hw, image.orientation))
        else:
            contents.log_image(recording, image.pixels, image.color_model)
        recording.flush()
        if not self._has_description and not self._request.is_into_opened:
            contents.log_blueprint(recording)
        height, width = image.size_hw
        note = f" ({image.note})" if image.note else ""
        self._log(step, f"{printable(path.name)}: {width} x {height} pixels{note}")
        # Those that have to wait are read again, so that any number of them takes no memory.
        rgb = image.rgb if self._segmenter.is_free else None
        return _Shown(path, stamp, image.size_hw, image.orientation, rgb)

    @property
    def _shows_masks_so_far(self) -> bool:
        # In a layout that is not ours the viewer would open a view for them when they are taken off the image.
        return self._request.image_entity is not None or not self._request.is_into_opened

    def _draw_so_far(self, step: int, masks: list[Mask], shown: "_Shown") -> None:
        recording = self._open(step)
        best = heapq.nlargest(MAX_MASKS_SO_FAR, masks, key=lambda mask: mask.predicted_iou)
        masks, size_hw = _as_shown(recording, best, shown)
        self._has_masks_so_far = True
        with self._drawing():
            contents.log_masks_so_far(recording, masks, size_hw)

    def _clear_masks_so_far(self, step: int) -> None:
        if self._has_masks_so_far:
            self._has_masks_so_far = False
            contents.clear(self._open(step), contents.MASKS_SO_FAR)

    def _draw(self, step: int, masks: list[Mask], shown: "_Shown") -> None:
        recording = self._open(step)
        masks, size_hw = _as_shown(recording, masks, shown)
        if len(masks) > self._annotated_count:
            self._annotated_count = len(masks)
            contents.log_annotations(recording, len(masks))
        tensor_limit_bytes = self._settings.tensor_mib * 2**20
        reduction = contents.log_masks(recording, masks, size_hw, tensor_limit_bytes)
        if reduction > 1:
            self._log(
                step,
                f"mask_tensor holds every {reduction}th row and column, to stay within "
                f"{self._settings.tensor_mib:g} MiB (RERUN_SAM_TENSOR_MIB)",
            )

    def _open(self, step: int) -> Recording:
        if self._recording is None:
            self._recording = Recording(self._request, self._target)
        self._recording.set_sequence(contents.TIMELINE, step)
        return self._recording

    def _log(self, step: int, text: str, level: str = "INFO") -> None:
        recording = self._open(step)
        contents.log_text(recording, text, level)
        recording.flush()
        self._report(text, level)

    def _introduce(self, step: int, model: LoadedModel) -> None:
        """Log what a person needs to know of the model, once."""
        if self._has_description:
            return
        self._has_description = True
        contents.log_description(self._open(step), _description(model, self._open(step)))
        if model.chosen.is_fallback:
            self._log(step, model.chosen.hint, "WARN")
        if model.chosen.to_fetch:
            self._log(step, start_fetch(model.chosen.to_fetch, self._environ))

    def _segment(self, step: int, shown: "_Shown", started: float) -> Result:
        model: LoadedModel | None = None
        masks: list[Mask] = []
        so_far: list[Mask] = []
        n_drawn = 0
        reported = began = time.monotonic()
        draw_after_s = FIRST_MASKS_AFTER_S
        preview_note = ""
        if not self._segmenter.is_free:
            self._log(step, contents.WAITS)
        # Nobody watches one image of a folder, and each preview makes the next ones wait.
        with_preview = self._shows_masks_so_far and not self._request.location.is_dir()
        for event in self._segmenter.stream(lambda: self._pixels(shown), with_preview=with_preview):
            if isinstance(event, LoadedModel):
                model = event
                self._introduce(step, model)
                self._log(step, f"Segmenting with {model.chosen.name} on {model.device}")
                continue
            if isinstance(event, Preview):
                self._log(
                    step, f"Preview: {len(event.masks)} masks by {event.model_name}, until there are better ones"
                )
                self._draw_so_far(step, event.masks, shown)
                n_drawn, preview_note = len(event.masks), f" (shown: preview by {event.model_name})"
                continue
            if event.stage == "done":
                masks = event.masks
                continue
            so_far += event.masks
            now = time.monotonic()
            if now - reported >= PROGRESS_EVERY_S:
                reported = now
                self._log(step, f"{_progress_text(event, len(so_far))}, {now - started:.0f} s{preview_note}")
            if self._shows_masks_so_far and now - began >= draw_after_s and len(so_far) > n_drawn:
                draw_after_s, n_drawn, preview_note = 2 * (now - began), len(so_far), ""
                self._draw_so_far(step, so_far, shown)
        if model is None:
            raise RuntimeError("the segmenter named no model")
        return Result(masks, model, time.time())

    def _pixels(self, shown: "_Shown") -> NDArray[np.uint8]:
        """The image as the model sees it, (H, W, 3), uint8. Raises UserError where it was changed since."""
        if shown.rgb is not None:
            return shown.rgb
        rgb = load_image(shown.path, self._settings.max_megapixels).rgb
        if rgb.shape[:2] != shown.size_hw or file_stamp(shown.path) != shown.stamp:
            raise UserError(f"{shown.path} was changed while it waited for its turn; open it again")
        return rgb


@dataclasses.dataclass(frozen=True)
class _Shown:
    """An image that is in the viewer, and has yet to be segmented."""

    path: Path
    stamp: FileStamp
    size_hw: tuple[int, int]
    orientation: int
    rgb: NDArray[np.uint8] | None
    """(H, W, 3), unless it is to be read again."""


def _as_shown(recording: Recording, masks: list[Mask], shown: _Shown) -> tuple[list[Mask], tuple[int, int]]:
    """Masks, and their image's size, as the image lies in the recording."""
    if not recording.is_over_image:
        return masks, shown.size_hw
    # The viewer's own image loader shows the pixels as the file has them, whatever its EXIF data say.
    stored = [as_stored(mask, shown.orientation) for mask in masks]
    return stored, stored_size(shown.size_hw, shown.orientation)


def _progress_text(progress: "Progress", found: int) -> str:
    if progress.stage == "encode":
        return "Encoding the image"
    candidates = f", {found} candidate masks" if found else ""
    return f"{progress.done} of {progress.total} prompts{candidates}"


def _why_none(model: LoadedModel) -> str:
    limits = ", ".join(f"{name} {model.parameters[name]}" for name in ("pred_iou_thresh", "stability_score_thresh"))
    return f"No mask passed {limits}: lower RERUN_SAM_PRED_IOU_THRESH, or take a larger model"


def _description(model: LoadedModel, recording: Recording) -> str:
    """Markdown: what this is, which model, which settings."""
    parameters = "\n".join(f"| `{name}` | {value} |" for name, value in sorted(model.parameters.items()))
    return (
        "# Segment Anything\n\n"
        "Every mask that [Segment Anything](https://segment-anything.com) found in the image, by "
        f"rerun-loader-sam {__version__}.\n\n"
        f"* **Model**: {model.chosen.description}\n"
        f"* **Device**: {model.device}\n\n"
        f"`{recording.path(contents.MASKS)}` layers the masks from largest to smallest; the class id is the number "
        f"of the mask. Select a box in `{recording.path(contents.BOXES)}` for its area, predicted IoU and stability "
        f"score. Plane *i* of `{recording.path(contents.TENSOR)}` is mask *i*.\n\n"
        f"| setting | value |\n| --- | --- |\n{parameters}\n"
    )
