"""Logits of the decoder's size into run lengths of the image's size, without the image-size logits.

Upstream interpolates every mask to the model's input size, then to the image's, and compares each pixel. Both steps
are linear, axis by axis, so a column of the image is one product of matrices. Along a column the result is piecewise
linear, with knots at the model's rows: where the image has more rows than the model, the pixel where the border of a
mask lies follows from the two knots around it, and the pixels between are never computed. Nothing is computed where
no logit comes near the threshold.

All on the CPU: torch for the products, numpy for the rest.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as nn_functional
from torch import Tensor

from rerun_loader_sam.engine.geometry import Box, Crop, Floats, model_input_hw
from rerun_loader_sam.masks import Counts, box_xyxy_of_rle

# Columns at a time: more of them make the products larger than their band needs, fewer make too many calls.
_COLUMNS_AT_ONCE = 128

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Outline:
    """The pixels of one mask in the whole image; see `rerun_loader_sam.masks.Mask`."""

    rle_counts: Counts
    area: int
    box_xyxy: Box


@dataclass(frozen=True, slots=True)
class _Axis:
    """Interpolation from logits to samples along one axis.

    `first` and `last` give, for each logit, the samples that it reaches.
    """

    weights: Tensor
    first: Ints
    last: Ints

    def logits_behind(self, start: int, end: int) -> slice:
        """The logits that the samples from `start` to before `end` are made of."""
        behind = np.flatnonzero((self.last >= start) & (self.first < end))
        return slice(int(behind[0]), int(behind[-1]) + 1)


class Tracer:
    """Traces masks of one crop of an image.

    Args:
        crop: Where the logits lie.
        image_hw: Size of the whole image.
        long_side: The model's input size.
        logits_per_side: Logits along a side of the model's (square, padded) input.
        threshold: Pixels above it are in the mask.
        offset: How far the threshold is moved up and down for the stability score.
    """

    def __init__(
        self,
        crop: Crop,
        image_hw: tuple[int, int],
        *,
        long_side: int,
        logits_per_side: int,
        threshold: float,
        offset: float,
    ) -> None:
        self._crop = crop
        self._image_hw = image_hw
        self._threshold = threshold
        self._offset = offset
        input_h, input_w = model_input_hw(crop.size_hw, long_side)
        height, width = crop.size_hw
        self._columns = _axis(logits_per_side, long_side, input_w, width)
        # With more rows in the image than in the model's input, samples are the model's rows.
        self._at_knots = height > input_h
        self._rows = _axis(logits_per_side, long_side, input_h, input_h if self._at_knots else height)
        self._rows_per_pixel = input_h / height
        half = long_side / logits_per_side / 2
        self._pixels_per_half_logit = (half * width / input_w, half * height / input_h)

    def rough_box(self, logits: Tensor) -> Floats:
        """The mask's box in pixels of the image to about half a logit, (1, 4), XYXY; zeros for an empty mask."""
        # A single logit above the threshold may be no pixel above it: only interpolation shows that.
        between = nn_functional.interpolate(logits[None, None], scale_factor=2, mode="bilinear", align_corners=False)
        inside = (between[0, 0] > self._threshold).numpy()
        sides = np.zeros((2, 2))
        for axis, pixels in enumerate(self._pixels_per_half_logit):
            filled = np.flatnonzero(inside.any(axis))
            if len(filled) == 0:
                return np.zeros((1, 4))
            sides[:, axis] = (filled[[0, -1]] + 0.5) * pixels - 0.5 + self._crop.box_xyxy[axis]
        return sides.reshape(1, 4)

    def trace(self, logits: Tensor, min_stability: float) -> tuple[float, Outline | None]:
        """The mask's stability score and, where that suffices, its pixels.

        Args:
            logits: float32, (h, w), on the CPU; rows and columns that lie in the padding may be missing.
            min_stability: Masks of a lower score are not traced; 0 lets all pass.
        """
        samples = self._samples(logits)
        higher = self._area(samples, self._threshold + self._offset)
        lower = self._area(samples, self._threshold - self._offset)
        stability = higher / lower if lower else float("nan")
        if min_stability > 0 and not stability >= min_stability:
            return stability, None
        return stability, self._outline(self._changes(samples, self._threshold))

    def _samples(self, logits: Tensor) -> list["_Block"]:
        """Interpolated logits wherever they can exceed the lowest threshold, some columns at a time."""
        lowest = self._threshold - self._offset
        rows = np.flatnonzero((logits.amax(1) > lowest).numpy())
        columns = np.flatnonzero((logits.amax(0) > lowest).numpy())
        if len(rows) == 0:
            return []
        rows, columns = (
            line[line < len(axis.first)] for line, axis in ((rows, self._rows), (columns, self._columns))
        )
        if len(rows) == 0 or len(columns) == 0:
            return []
        n_rows = len(self._rows.weights)
        # One more sample on either side, so that the border between it and the first is seen.
        row_start = max(int(self._rows.first[rows[0]]) - 1, 0)
        row_end = min(int(self._rows.last[rows[-1]]) + 2, n_rows)
        near_rows = self._rows.logits_behind(row_start, row_end)
        tall = self._rows.weights[row_start:row_end, near_rows] @ logits[near_rows]
        blocks: list[_Block] = []
        column_end = int(self._columns.last[columns[-1]]) + 1
        for start in range(int(self._columns.first[columns[0]]), column_end, _COLUMNS_AT_ONCE):
            end = min(start + _COLUMNS_AT_ONCE, column_end)
            band = self._columns.logits_behind(start, end)
            values = (self._columns.weights[start:end, band] @ tall[:, band].t()).numpy()
            blocks.append(_Block(start, row_start, values))
        return blocks

    def _area(self, blocks: list["_Block"], threshold: float) -> int:
        if not self._at_knots:
            return sum(int(np.count_nonzero(block.values > threshold)) for block in blocks)
        changes = self._changes(blocks, threshold)
        return int(changes[1::2].sum() - changes[::2].sum())

    def _changes(self, blocks: list["_Block"], threshold: float) -> Ints:
        """Where the mask begins and ends, by turns, in the column-major order of the whole image."""
        found: list[Ints] = []
        x0, y0, _, _ = self._crop.box_xyxy
        for block in blocks:
            n_columns, n_samples = block.values.shape
            inside = np.zeros((n_columns, n_samples + 2), bool)
            np.greater(block.values, threshold, out=inside[:, 1:-1])
            flips = np.flatnonzero(inside[:, 1:] != inside[:, :-1])
            column, sample = np.divmod(flips, n_samples + 1)
            row = self._knots_to_rows(block, column, sample, threshold) if self._at_knots else sample + block.row
            found.append((column + (block.column + x0)) * self._image_hw[0] + (row + y0))
        if not found:
            return np.zeros(0, np.int64)
        changes = np.concatenate(found)
        twice = changes[1:] == changes[:-1]
        if twice.any():
            # A run without pixels, or one that goes on in the next column: two changes that undo each other.
            positions, times = np.unique(changes, return_counts=True)
            changes = positions[times % 2 == 1]
        return changes

    def _knots_to_rows(self, block: "_Block", column: Ints, sample: Ints, threshold: float) -> Ints:
        """The first pixel row after each change between the samples `sample` - 1 and `sample` of a block."""
        height = self._crop.size_hw[0]
        last = block.values.shape[1]
        before = block.values[column, np.maximum(sample - 1, 0)].astype(np.float64)
        after = block.values[column, np.minimum(sample, last - 1)].astype(np.float64)
        at_end = (sample == 0) | (sample == last)
        after[at_end] = before[at_end] + 1
        knot = block.row + np.maximum(sample - 1, 0) + np.where(at_end, 0, (threshold - before) / (after - before))
        position = (knot + 0.5) / self._rows_per_pixel - 0.5
        # Pixels exactly at the threshold are outside.
        row = np.where((after > before) & ~at_end, np.floor(position) + 1, np.ceil(position)).astype(np.int64)
        # Beyond the outermost knots the mask goes on to the edge of the image.
        if block.row == 0:
            row[sample == 0] = 0
        if block.row + last == len(self._rows.weights):
            row[sample == last] = height
        return row.clip(0, height)

    def _outline(self, changes: Ints) -> Outline:
        n_pixels = self._image_hw[0] * self._image_hw[1]
        ends = [] if len(changes) and changes[-1] == n_pixels else [n_pixels]
        edges = np.concatenate(([0], changes, ends)).astype(np.int32)
        counts: Counts = edges[1:] - edges[:-1]
        area = int(counts[1::2].sum())
        if area == 0:
            x0, y0, _, _ = self._crop.box_xyxy
            return Outline(counts, 0, (x0, y0, x0, y0))
        return Outline(counts, area, box_xyxy_of_rle(counts, self._image_hw))


@dataclass(frozen=True, slots=True)
class _Block:
    """Samples of some columns: values[i, k] is at column `column` + i and sample row `row` + k."""

    column: int
    row: int
    values: npt.NDArray[np.float32]


def _axis(logits_per_side: int, long_side: int, input_size: int, size: int) -> _Axis:
    """Upstream's two interpolations as one matrix, (size, logits), made by the same function that upstream calls."""
    unit = torch.eye(logits_per_side)[None]
    at_input = nn_functional.interpolate(unit, long_side, mode="linear", align_corners=False)[..., :input_size]
    if size != input_size:
        at_input = nn_functional.interpolate(at_input, size, mode="linear", align_corners=False)
    weights = at_input[0].t().contiguous()
    used = (weights != 0).numpy()
    reached = np.flatnonzero(used.any(0))
    first = used.argmax(0)
    last = size - 1 - used[::-1].argmax(0)
    return _Axis(weights, first[: reached[-1] + 1], last[: reached[-1] + 1])
