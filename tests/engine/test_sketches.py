"""Sketches of different crops on one grid, against a look at each cell's centre."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rerun_loader_sam.engine.sketches import SketchGrid

WHOLE = SketchGrid((0, 0, 120, 90), (15.0, 15.0), (7, 8))  # its last row lies beyond the image
CROP = SketchGrid((40, 30, 120, 90), (10.0, 10.0), (6, 8))
FINE = SketchGrid((0, 0, 120, 90), (10.0, 10.0), (9, 12))


def masks_on(grid: SketchGrid) -> NDArray[np.bool_]:
    return np.random.default_rng(7).random((5, *grid.size_hw)) < 0.4


def centre_xy(grid: SketchGrid, row: int, column: int) -> tuple[float, float]:
    x0, y0, _, _ = grid.box_xyxy
    width, height = grid.cell_wh
    return x0 + (column + 0.5) * width, y0 + (row + 0.5) * height


@pytest.mark.parametrize("seen", [WHOLE, CROP, FINE])
@pytest.mark.parametrize("wanted", [WHOLE, CROP, FINE])
def test_each_cell_has_what_lies_at_its_centre(seen: SketchGrid, wanted: SketchGrid) -> None:
    masks = masks_on(seen)
    expected = np.zeros((len(masks), *wanted.size_hw), bool)
    for row, column in np.ndindex(*wanted.size_hw):
        x, y = centre_xy(wanted, row, column)
        own_row = int((y - seen.box_xyxy[1]) // seen.cell_wh[1])
        own_column = int((x - seen.box_xyxy[0]) // seen.cell_wh[0])
        if 0 <= own_row < seen.size_hw[0] and 0 <= own_column < seen.size_hw[1]:
            expected[:, row, column] = masks[:, own_row, own_column]
    found = seen.resampled(torch.from_numpy(masks), wanted).numpy()
    assert 0 < expected.mean() < 0.5
    np.testing.assert_array_equal(found, expected)


def test_the_share_inside_a_box_is_that_of_the_cells_whose_centre_is() -> None:
    masks = masks_on(WHOLE)
    masks[0] = False
    x0, y0, x1, y1 = CROP.box_xyxy
    inside = np.zeros(WHOLE.size_hw, bool)
    for row, column in np.ndindex(*WHOLE.size_hw):
        x, y = centre_xy(WHOLE, row, column)
        inside[row, column] = x0 <= x < x1 and y0 <= y < y1
    found = WHOLE.share_inside(torch.from_numpy(masks), CROP.box_xyxy).numpy()
    expected = [1.0, *((mask & inside).sum() / mask.sum() for mask in masks[1:])]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_grid_of_other_cells_covers_the_same_box() -> None:
    assert WHOLE.of_cells(CROP.cell_wh) == FINE
    assert WHOLE.of_cells(WHOLE.cell_wh) is WHOLE
    assert WHOLE.of_cells((500.0, 500.0)).size_hw == (1, 1)
