"""One request from its path to the last byte: reads, logs, segments, logs."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from rerun_loader_sam import __version__
from rerun_loader_sam.errors import describe
from rerun_loader_sam.images import LoadedImage, load_image
from rerun_loader_sam.masks import Mask
from rerun_loader_sam.models.background import start_fetch
from rerun_loader_sam.protocol import Request
from rerun_loader_sam.recording import contents
from rerun_loader_sam.recording.stream import Recording, printable
from rerun_loader_sam.segmenter import LoadedModel, Segmenter
from rerun_loader_sam.settings import Settings
from rerun_loader_sam.sniff import iter_images

PROGRESS_EVERY_S = 2.0


class Job:
    """Segments what a request names and logs it.

    target: called with RRD bytes as early as they exist, or the file to write.
    report: called with each line of the log and its level (INFO, WARN, ERROR), for a person at a terminal.
    """

    def __init__(
        self,
        request: Request,
        settings: Settings,
        segmenter: Segmenter,
        target: Callable[[bytes], None] | Path,
        report: Callable[[str, str], None] = lambda text, level: None,
    ) -> None:
        self._request = request
        self._settings = settings
        self._segmenter = segmenter
        self._target = target
        self._report = report
        self._recording: Recording | None = None
        self._annotated_count = -1
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
        if not request.path.is_dir():
            self._file(request.path)
            return
        paths = [path for path in iter_images(str(request.path)) if path not in left_out]
        failures = [error for error in self._folder(paths) if error]
        if failures and len(failures) == len(paths):
            raise failures[0]

    def _file(self, path: Path) -> None:
        try:
            self._image(0, path)
        except Exception as error:
            if self._recording is not None:
                # Whoever started this job is told by the exception; who looks at the viewer, by its log.
                contents.log_text(self._recording, describe(error), "ERROR")
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
        image = load_image(path, self._settings.max_megapixels)
        recording = self._open(step)
        contents.log_image(recording, image.pixels, image.color_model)
        recording.flush()
        if not self._has_description and not self._request.is_into_opened:
            contents.log_blueprint(recording)
        height, width = image.size_hw
        note = f" ({image.note})" if image.note else ""
        self._log(step, f"{printable(path.name)}: {width} x {height} pixels{note}")

        model = self._prepare(step)
        self._log(step, f"Segmenting with {model.chosen.name} on {model.device}")
        masks = self._segment(step, image, started)
        if len(masks) > self._annotated_count:
            self._annotated_count = len(masks)
            contents.log_annotations(recording, len(masks))
        tensor_limit_bytes = self._settings.tensor_mib * 2**20
        reduction = contents.log_masks(recording, masks, image.size_hw, tensor_limit_bytes)
        if reduction > 1:
            self._log(
                step,
                f"mask_tensor holds every {reduction}th row and column, to stay within "
                f"{self._settings.tensor_mib:g} MiB (RERUN_SAM_TENSOR_MIB)",
            )
        count = f"{len(masks)} masks" if len(masks) != 1 else "1 mask"
        self._log(step, f"{count} in {time.monotonic() - started:.1f} s, by {model.chosen.name}")

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

    def _prepare(self, step: int) -> LoadedModel:
        """The model, with what a person needs to know of it in the log."""
        model = self._segmenter.prepare()
        if not self._has_description:
            self._has_description = True
            contents.log_description(self._open(step), _description(model))
            if model.chosen.is_fallback:
                self._log(step, model.chosen.hint, "WARN")
            if model.chosen.to_fetch:
                self._log(step, start_fetch(model.chosen.to_fetch))
        return model

    def _segment(self, step: int, image: LoadedImage, started: float) -> list[Mask]:
        masks: list[Mask] = []
        found = 0
        reported = time.monotonic()
        for progress in self._segmenter.segment(image.rgb):
            if progress.stage == "done":
                masks = progress.masks
            else:
                found += len(progress.masks)
            now = time.monotonic()
            if progress.stage != "done" and now - reported >= PROGRESS_EVERY_S:
                reported = now
                text = f"{progress.stage}: {100 * progress.done // max(1, progress.total)} %"
                if found:
                    text += f", {found} candidate masks"
                self._log(step, f"{text}, {now - started:.0f} s")
        return masks


def _description(model: LoadedModel) -> str:
    """Markdown: what this is, which model, which settings."""
    parameters = "\n".join(f"| `{name}` | {value} |" for name, value in sorted(model.parameters.items()))
    return (
        "# Segment Anything\n\n"
        "Every mask that [Segment Anything](https://segment-anything.com) found in the image, by "
        f"rerun-loader-sam {__version__}.\n\n"
        f"* **Model**: {model.chosen.description}\n"
        f"* **Device**: {model.device}\n\n"
        "`image/masks` layers the masks from largest to smallest; the class id is the number of the mask. "
        "Select a box in `image/boxes` for its area, predicted IoU and stability score. Plane *i* of "
        "`mask_tensor` is mask *i*.\n\n"
        f"| setting | value |\n| --- | --- |\n{parameters}\n"
    )
