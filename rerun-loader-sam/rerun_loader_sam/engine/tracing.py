"""Logits of the decoder's size into run lengths of the image's size, without the image-size logits.

Upstream interpolates every mask to the model's input size, then to the image's, and compares each pixel. Both steps
are linear, axis by axis, so a column of the image is one product of matrices. Along a column the result is piecewise
linear, with knots at the model's rows: where the image has more rows than the model, the pixel where the border of a
mask lies follows from the two knots around it, and the pixels between are never computed. Nothing is computed where
no logit comes near the threshold.

All on the CPU: torch for the products, numpy for the rest.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as nn_functional
from torch import Tensor

from rerun_loader_sam.engine.boxes import BoxBounds
from rerun_loader_sam.engine.geometry import Box, Crop, Floats, model_input_hw
from rerun_loader_sam.masks import Counts, box_xyxy_of_rle

# Columns at a time: more of them make the products larger than their band needs, fewer make too many calls.
_LEAST_COLUMNS_AT_ONCE = 128
_LOGITS_AT_ONCE = 32

# How far logits may be from themselves when they are interpolated in another order.
_ROUNDING = 1e-3

# Where in a token, of which it is one of four either way, the logit of a sketch has its centre.
_SKETCHED_AT = 2.5 / 4

# How far an edge of a sketch's box may be off, in tokens: nine of ten are not, islands between its logits apart.
_SKETCHED_EDGE_MARGIN = 0.3

# How far a sketch's stability score may be off: of 2,308 stable masks of five photographs 18 were off by more.
_SKETCHED_STABILITY_MARGIN = 0.06

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


@dataclass(frozen=True, slots=True)
class _SeenPixels:
    """Some pixels along one axis, about one for each logit, and the model's input pixels along it.

    `weights` interpolates to `pixels`, `knot_weights` to the input pixels, of which a pixel has `knots_per_pixel`.
    """

    weights: Tensor
    pixels: Ints
    knot_weights: Tensor
    knots_per_pixel: float
    size: int

    def reach(self, highest: Tensor, threshold: float) -> tuple[float, float]:
        """The first and the last pixel that can exceed the threshold, where logits are `highest` at most.

        Interpolation is linear along the axis: no pixel exceeds what comes of the highest logit of each line.
        """
        knots = (self.knot_weights[:, : len(highest)] @ highest).numpy().astype(np.float64)
        extent = _extent(knots - threshold)
        if extent is None:
            return 0.0, self.size - 1.0
        start, end = ((edge + 0.5) / self.knots_per_pixel - 0.5 for edge in extent)
        return max(np.ceil(start - _ROUNDING), 0.0), min(np.floor(end + _ROUNDING), self.size - 1.0)


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
        interpolation = partial(_interpolation, logits_per_side, long_side)
        columns, column_knots = interpolation(input_w, width), interpolation(input_w, input_w)
        rows, row_knots = interpolation(input_h, height), interpolation(input_h, input_h)
        self._columns = _axis(columns)
        pixels_per_logit = long_side / logits_per_side * width / input_w
        self._columns_at_once = max(_LEAST_COLUMNS_AT_ONCE, int(_LOGITS_AT_ONCE * pixels_per_logit))
        # With more rows in the image than in the model's input, samples are the model's rows.
        self._at_knots = height > input_h
        self._rows = _axis(row_knots if self._at_knots else rows)
        self._rows_per_pixel = input_h / height
        token = 4 * long_side / logits_per_side
        self._pixels_per_token = (token * width / input_w, token * height / input_h)
        self._columns_seen = _seen_pixels(columns, column_knots)
        self._rows_seen = _seen_pixels(rows, row_knots)

    def box_bounds(self, logits: Tensor) -> BoxBounds | None:
        """What a small part of the pixels tells of the mask's box; None if none of that part is in the mask.

        logits: see `trace`.
        """
        height, width = logits.shape
        rows, columns = self._rows_seen, self._columns_seen
        pixels = rows.weights[:, :height] @ logits @ columns.weights[:, :width].t()
        inside = (pixels > self._threshold + _ROUNDING).numpy()
        inner, outer = np.zeros(4), np.zeros(4)
        for axis, (seen, highest) in enumerate(((columns, logits.amax(0)), (rows, logits.amax(1)))):
            filled = np.flatnonzero(inside.any(axis))
            if len(filled) == 0:
                return None
            inner[axis::2] = seen.pixels[filled[[0, -1]]]
            outer[axis::2] = seen.reach(highest, self._threshold - _ROUNDING)
        offset = np.array(self._crop.box_xyxy[:2] * 2)
        return BoxBounds(inner + offset, outer + offset)

    def sketched_box(self, logits: Tensor) -> BoxBounds:
        """What one logit for each image token tells of the mask's box, to a third of a token.

        If none of them is in the mask, nothing is known: the box lies in the crop.

        logits: float32, (rows, columns), on the CPU; see `FoldedPrediction.coarse_logits`.
        """
        inner, outer = np.zeros(4), np.zeros(4)
        for axis, size in enumerate(self._crop.size_hw[::-1]):
            highest = logits.amax(axis).numpy().astype(np.float64) - self._threshold
            extent = _extent(highest)
            if extent is None:
                x0, y0, x1, y1 = self._crop.box_xyxy
                return BoxBounds(np.array([x1, y1, x0, y0]), np.array([x0, y0, x1, y1]))
            pixels = self._pixels_per_token[axis]
            margin = _SKETCHED_EDGE_MARGIN * pixels
            start, end = ((edge + _SKETCHED_AT) * pixels - 0.5 for edge in extent)
            # A mask that fills an outermost token mostly reaches the border.
            start = start if highest[0] <= 0 else 0
            end = end if highest[-1] <= 0 else size - 1
            inner[axis::2] = np.array([start + margin, end - margin]).clip(0, size - 1)
            outer[axis::2] = np.array([start - margin, end + margin]).clip(0, size - 1)
        offset = np.array(self._crop.box_xyxy[:2] * 2)
        return BoxBounds(inner + offset, outer + offset)

    def may_be_stable(self, logits: Tensor, min_stability: float) -> bool:
        """Whether a sketch's mask may reach a stability score; see `sketched_box`.

        With nano on five photographs a sketch's own score was off by 0.035 (standard deviation); small ones are off
        by more, as samples are.
        """
        larger = int((logits > self._threshold - self._offset).sum())
        smaller = int((logits > self._threshold + self._offset).sum())
        margin = max(_SKETCHED_STABILITY_MARGIN, 0.75 / max(larger, 1) ** 0.5)
        return bool(smaller >= (min_stability - margin) * larger)

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

    def _samples(self, logits: Tensor) -> "_Samples":
        """Interpolated logits wherever they can exceed the lowest threshold."""
        lowest = self._threshold - self._offset
        rows = np.flatnonzero((logits.amax(1) > lowest).numpy())
        columns = np.flatnonzero((logits.amax(0) > lowest).numpy())
        rows, columns = (
            line[line < len(axis.first)] for line, axis in ((rows, self._rows), (columns, self._columns))
        )
        if len(rows) == 0 or len(columns) == 0:
            return _Samples(0, 0, [])
        n_rows = len(self._rows.weights)
        # One more sample on either side, so that the border between it and the first is seen.
        row_start = max(int(self._rows.first[rows[0]]) - 1, 0)
        row_end = min(int(self._rows.last[rows[-1]]) + 2, n_rows)
        near_rows = self._rows.logits_behind(row_start, row_end)
        tall = self._rows.weights[row_start:row_end, near_rows] @ logits[near_rows]
        column_start, column_end = int(self._columns.first[columns[0]]), int(self._columns.last[columns[-1]]) + 1
        blocks: list[npt.NDArray[np.float32]] = []
        for start in range(column_start, column_end, self._columns_at_once):
            end = min(start + self._columns_at_once, column_end)
            band = self._columns.logits_behind(start, end)
            blocks.append((self._columns.weights[start:end, band] @ tall[:, band].t()).numpy())
        return _Samples(column_start, row_start, blocks)

    def _area(self, samples: "_Samples", threshold: float) -> int:
        if not self._at_knots:
            return sum(int(np.count_nonzero(values > threshold)) for values in samples.blocks)
        changes = self._changes(samples, threshold)
        return int(changes[1::2].sum() - changes[::2].sum())

    def _changes(self, samples: "_Samples", threshold: float) -> Ints:
        """Where the mask begins and ends, by turns, in the column-major order of the whole image."""
        found: list[_Flips] = [self._flips(values, threshold) for values in samples.blocks]
        if not found:
            return np.zeros(0, np.int64)
        starts = samples.column + self._columns_at_once * np.arange(len(found))
        column = np.concatenate([flips.column + start for start, flips in zip(starts, found, strict=True)])
        sample = np.concatenate([flips.sample for flips in found])
        if self._at_knots:
            before = np.concatenate([flips.before for flips in found]).astype(np.float64)
            after = np.concatenate([flips.after for flips in found]).astype(np.float64)
            row = self._knots_to_rows(samples, sample, before, after, threshold)
        else:
            row = sample + samples.row
        x0, y0, _, _ = self._crop.box_xyxy
        changes: Ints = (column + x0) * self._image_hw[0] + (row + y0)
        # A run without pixels, or one that goes on in the next column: changes that undo each other.
        new = np.flatnonzero(np.diff(changes, prepend=-1))
        if len(new) < len(changes):
            times = np.diff(new, append=len(changes))
            changes = changes[new[times % 2 == 1]]
        return changes

    def _flips(self, values: npt.NDArray[np.float32], threshold: float) -> "_Flips":
        """Where the samples of some columns, (columns, samples), cross the threshold."""
        n_columns, n_samples = values.shape
        inside = np.zeros((n_columns, n_samples + 2), bool)
        np.greater(values, threshold, out=inside[:, 1:-1])
        flips = np.flatnonzero(inside[:, 1:] != inside[:, :-1])
        column, sample = np.divmod(flips, n_samples + 1)
        if not self._at_knots:
            return _Flips(column, sample, values[:0], values[:0])
        after = flips - column
        return _Flips(column, sample, values.take(after - 1, mode="clip"), values.take(after, mode="clip"))

    def _knots_to_rows(
        self, samples: "_Samples", sample: Ints, before: Floats, after: Floats, threshold: float
    ) -> Ints:
        """The first pixel row after each change between the samples `sample` - 1 and `sample`."""
        height = self._crop.size_hw[0]
        last = samples.blocks[0].shape[1]
        at_end = (sample == 0) | (sample == last)
        after[at_end] = before[at_end] + 1
        knot = samples.row + np.maximum(sample - 1, 0) + np.where(at_end, 0, (threshold - before) / (after - before))
        position = (knot + 0.5) / self._rows_per_pixel - 0.5
        # Pixels exactly at the threshold are outside.
        row = np.where((after > before) & ~at_end, np.floor(position) + 1, np.ceil(position)).astype(np.int64)
        # Beyond the outermost knots the mask goes on to the edge of the image.
        if samples.row == 0:
            row[sample == 0] = 0
        if samples.row + last == len(self._rows.weights):
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
class _Samples:
    """Blocks of some columns each: values[i, k] of the first is at column `column` + i and sample row `row` + k."""

    column: int
    row: int
    blocks: list[npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class _Flips:
    """Changes between a column's samples `sample` - 1, `before`, and `sample`, `after`; see `_Samples`."""

    column: Ints
    sample: Ints
    before: npt.NDArray[np.float32]
    after: npt.NDArray[np.float32]


def _extent(values: Floats) -> tuple[float, float] | None:
    """Where a line of samples, with linear interpolation between them, first and last crosses zero.

    Beyond an outermost sample that is positive it ends after half a sample. None if no sample is positive.
    """
    above = np.flatnonzero(values > 0)
    if len(above) == 0:
        return None
    first, last = int(above[0]), int(above[-1])
    start, end = first - 0.5, last + 0.5
    if first > 0:
        start = first - values[first] / (values[first] - values[first - 1])
    if last < len(values) - 1:
        end = last + values[last] / (values[last] - values[last + 1])
    return start, end


def _seen_pixels(at_pixels: Tensor, at_knots: Tensor) -> _SeenPixels:
    size, n_knots = len(at_pixels), len(at_knots)
    n_logits = int((at_knots != 0).any(0).sum())
    pixels = np.linspace(0, size - 1, min(size, n_logits + 1)).round().astype(np.int64)
    weights = at_pixels[torch.from_numpy(pixels)].contiguous()
    return _SeenPixels(weights, pixels, at_knots, n_knots / size, size)


def _axis(weights: Tensor) -> _Axis:
    used = (weights != 0).numpy()
    reached = np.flatnonzero(used.any(0))
    first = used.argmax(0)
    last = len(weights) - 1 - used[::-1].argmax(0)
    return _Axis(weights, first[: reached[-1] + 1], last[: reached[-1] + 1])


def _interpolation(logits_per_side: int, long_side: int, input_size: int, size: int) -> Tensor:
    """Upstream's two interpolations as one matrix, (size, logits), made by the same function that upstream calls."""
    unit = torch.eye(logits_per_side)[None]
    at_input = nn_functional.interpolate(unit, long_side, mode="linear", align_corners=False)[..., :input_size]
    if size != input_size:
        at_input = nn_functional.interpolate(at_input, size, mode="linear", align_corners=False)
    return at_input[0].t().contiguous()
