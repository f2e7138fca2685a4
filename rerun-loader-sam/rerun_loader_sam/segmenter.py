"""The model of these settings, loaded on first use and kept. Knows the engine, never Rerun."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from rerun_loader_sam.models.choose import ChosenModel, choose_model
from rerun_loader_sam.settings import Settings

if TYPE_CHECKING:
    from rerun_loader_sam.engine.generator import AutomaticMaskGenerator, Progress
    from rerun_loader_sam.masks import Mask


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """What made the masks, for the person."""

    chosen: ChosenModel
    device: str
    parameters: dict[str, int | float | str]


class Segmenter:
    """Segments images with the model that the settings ask for.

    The choice is made anew for each image: a checkpoint that has arrived meanwhile is used from then on.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loaded: LoadedModel | None = None
        self._generator: AutomaticMaskGenerator | None = None

    def prepare(self) -> LoadedModel:
        """Choose and load the model, unless it is loaded. Raises UserError where that is not possible."""
        # torch takes seconds to import: only here, when the image is on its way to the viewer already.
        from rerun_loader_sam.engine.checkpoint import load_model
        from rerun_loader_sam.engine.device import choose_device
        from rerun_loader_sam.engine.generator import AutomaticMaskGenerator

        device = choose_device(self._settings.device)
        chosen = choose_model(self._settings, device)
        if self._loaded is None or self._loaded.chosen.path != chosen.path:
            parameters = chosen.generator_parameters | self._settings.generator_overrides()
            strategy: Literal["exhaustive", "adaptive"] = (
                "adaptive" if self._settings.strategy == "adaptive" else "exhaustive"
            )
            self._generator = AutomaticMaskGenerator(
                load_model(chosen.path, device),
                strategy=strategy,
                **parameters,  # type: ignore[arg-type]  # the names and types of GeneratorParameters
            )
            self._loaded = LoadedModel(chosen, device, parameters | {"strategy": strategy})
        else:
            self._loaded = dataclasses.replace(self._loaded, chosen=chosen)
        return self._loaded

    def segment(self, rgb: NDArray[np.uint8]) -> Iterator[Progress]:
        """Segment an image (H, W, 3), uint8; see `AutomaticMaskGenerator.iterate`. After `prepare` only."""
        if self._generator is None:
            raise RuntimeError("segment() before prepare()")
        return self._generator.iterate(rgb)


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
