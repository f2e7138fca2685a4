"""The model of these settings, loaded on first use and kept. Knows the engine, never Rerun."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.modeling import import_modeling
from rerun_loader_sam.models.choose import ChosenModel, choose_model, choose_preview_model
from rerun_loader_sam.settings import Settings
from rerun_loader_sam.stamp import FileStamp, file_stamp

if TYPE_CHECKING:
    from rerun_loader_sam.engine.generator import AutomaticMaskGenerator, Progress
    from rerun_loader_sam.masks import Mask

# Fewer than nano's own: the preview shall be there in two seconds.
_PREVIEW_POINTS_PER_SIDE = 16

ReadImage = Callable[[], NDArray[np.uint8]]
"""Gives an image (H, W, 3), uint8, when it is needed: images that wait need no memory."""


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """What made the masks, for the person."""

    chosen: ChosenModel
    device: str
    parameters: dict[str, int | float | str]
    stamp: FileStamp
    """Of the checkpoint."""


@dataclasses.dataclass(frozen=True)
class Preview:
    """Masks of a small model, to look at until the one that was asked for has some."""

    model_name: str
    masks: list[Mask]


class Stream(Protocol):
    """What a job needs of a segmenter, wherever that is."""

    @property
    def is_free(self) -> bool:
        """Whether an image that is asked for now is segmented at once."""

    def stream(self, read_rgb: ReadImage, *, with_preview: bool) -> Generator[LoadedModel | Preview | Progress]:
        """Segment an image when its turn comes: first the model that does it, then how far it is.

        With a large model on a CPU a preview comes between them, if it is wanted. Closing the iterator ends the
        work. Raises what `read_rgb` does, and UserError where there is no model.
        """


class Segmenter:
    """Segments images with the model that the settings ask for.

    The choice is made anew for each image: a checkpoint that has arrived meanwhile, or was replaced, is used
    from then on.

    turn: held from the choice of the model until the image is segmented.
    """

    is_free = True

    def __init__(self, settings: Settings, turn: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._settings = settings
        self._turn = turn
        self.loaded: LoadedModel | None = None
        self._generator: AutomaticMaskGenerator | None = None

    def stream(self, read_rgb: ReadImage, *, with_preview: bool) -> Generator[LoadedModel | Preview | Progress]:
        """See `Stream`."""
        with self._turn():
            model = self.prepare()
            yield model
            rgb = read_rgb()
            if with_preview and (preview := self._preview(model, rgb)):
                yield preview
            yield from self.segment(rgb)

    def prepare(self) -> LoadedModel:
        """Choose and load the model, unless it is loaded. Raises UserError where that is not possible."""
        # torch takes seconds to import: only here, when the image is on its way to the viewer already.
        import_modeling()
        from rerun_loader_sam.engine.device import choose_device

        device = choose_device(self._settings.device)
        chosen = choose_model(self._settings, device)
        try:
            stamp = file_stamp(chosen.path)
        except OSError as error:
            raise UserError(f"the checkpoint {chosen.path} cannot be read: {error.strerror or error}") from error
        if self.loaded is None or (self.loaded.chosen.path, self.loaded.stamp) != (chosen.path, stamp):
            self.loaded = self._generator = None  # never two in memory
            parameters = chosen.generator_parameters | self._settings.generator_overrides()
            strategy: Literal["exhaustive", "adaptive"] = (
                "exhaustive" if self._settings.strategy == "exhaustive" else "adaptive"
            )
            self._generator = _load_generator(chosen.path, device, strategy, parameters)
            self.loaded = LoadedModel(chosen, device, parameters | {"strategy": strategy}, stamp)
        else:
            self.loaded = dataclasses.replace(self.loaded, chosen=chosen)
        return self.loaded

    def _preview(self, model: LoadedModel, rgb: NDArray[np.uint8]) -> Preview | None:
        small = choose_preview_model(model.device, model.stamp.size_bytes)
        if small is None:
            return None
        # Loaded each time: that takes some hundredths of a second, for something that is rarely asked for.
        parameters = small.generator_parameters | {"points_per_side": _PREVIEW_POINTS_PER_SIDE, "crop_n_layers": 0}
        generator = _load_generator(small.path, model.device, "adaptive", parameters)
        masks: list[Mask] = []
        for progress in generator.iterate(rgb):  # one after the other: together they would keep every candidate
            masks = progress.masks
        return Preview(small.name, masks)

    def segment(self, rgb: NDArray[np.uint8]) -> Iterator[Progress]:
        """Segment an image (H, W, 3), uint8; see `AutomaticMaskGenerator.iterate`. After `prepare` only."""
        if self._generator is None:
            raise RuntimeError("segment() before prepare()")
        return self._generator.iterate(rgb)


def _load_generator(
    path: Path, device: str, strategy: Literal["exhaustive", "adaptive"], parameters: dict[str, int | float]
) -> AutomaticMaskGenerator:
    from rerun_loader_sam.engine.checkpoint import load_model
    from rerun_loader_sam.engine.generator import AutomaticMaskGenerator

    return AutomaticMaskGenerator(
        load_model(path, device),
        strategy=strategy,
        **parameters,  # type: ignore[arg-type]  # the names and types of GeneratorParameters
    )


class RememberingSegmenter(Segmenter):
    """Keeps the last image (H, W, 3), uint8, and its masks for who wants to draw them."""

    rgb: NDArray[np.uint8] | None = None
    masks: list[Mask]

    def segment(self, rgb: NDArray[np.uint8]) -> Iterator[Progress]:
        """See `Segmenter.segment`."""
        self.rgb, self.masks = rgb, []
        for progress in super().segment(rgb):
            if progress.stage == "done":
                self.masks = progress.masks
            yield progress
