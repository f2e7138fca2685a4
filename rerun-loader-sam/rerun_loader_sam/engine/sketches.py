"""Where in the image the logits of sketches lie: what is seen of it in different crops becomes comparable."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rerun_loader_sam.engine.geometry import Box


@dataclass(frozen=True, slots=True)
class SketchGrid:
    """The cells of sketches, one for each logit.

    Attributes:
        box_xyxy: What is seen of the image, in its pixels; cells begin in the upper left corner of it.
        cell_wh: Width and height of a cell in pixels of the image.
        size_hw: Cells down and across; some may lie beyond the box.
    """

    box_xyxy: Box
    cell_wh: tuple[float, float]
    size_hw: tuple[int, int]

    @property
    def cell_area(self) -> float:
        """In pixels of the image."""
        return self.cell_wh[0] * self.cell_wh[1]

    def of_cells(self, cell_wh: tuple[float, float]) -> "SketchGrid":
        """A grid over the same box with cells of that size."""
        if cell_wh == self.cell_wh:
            return self
        (x0, y0, x1, y1), (width, height) = self.box_xyxy, cell_wh
        size_hw = max(round((y1 - y0) / height), 1), max(round((x1 - x0) / width), 1)
        return SketchGrid(self.box_xyxy, cell_wh, size_hw)

    def resampled(self, masks: Tensor, grid: "SketchGrid") -> Tensor:
        """Masks on this grid, bool, (M, rows, columns), on another one: what is not seen here is in none of them."""
        if grid == self:
            return masks
        rows, columns = (self._cells_at(centres, axis) for axis, centres in enumerate(grid._centres()))
        here = (rows >= 0) & (rows < self.size_hw[0]), (columns >= 0) & (columns < self.size_hw[1])
        seen = masks[:, rows.clamp(0, self.size_hw[0] - 1)][:, :, columns.clamp(0, self.size_hw[1] - 1)]
        return seen & here[0][:, None] & here[1]

    def share_inside(self, masks: Tensor, box_xyxy: Box) -> Tensor:
        """Which share of masks on this grid, bool, (M, rows, columns), lies in a box: float32, (M,), 1 of nothing."""
        y, x = self._centres()
        x0, y0, x1, y1 = box_xyxy
        inside = ((y >= y0) & (y < y1))[:, None] & (x >= x0) & (x < x1)
        area = masks.flatten(1).sum(1)
        outside = (masks & ~inside).flatten(1).sum(1)
        return 1 - outside / area.clamp(min=1)

    def _centres(self) -> tuple[Tensor, Tensor]:
        """Rows' and columns' centres in pixels of the image."""
        (x0, y0, _, _), (width, height), (rows, columns) = self.box_xyxy, self.cell_wh, self.size_hw
        return y0 + (torch.arange(rows) + 0.5) * height, x0 + (torch.arange(columns) + 0.5) * width

    def _cells_at(self, positions: Tensor, axis: int) -> Tensor:
        """In which row (axis 0) or column (axis 1) pixels of the image lie; it may be none of the grid's."""
        start, size = self.box_xyxy[1 - axis], self.cell_wh[1 - axis]
        return ((positions - start) / size).floor().long()
