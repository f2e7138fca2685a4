"""Small holes and islands of a mask, found and removed in its run lengths.

Upstream decodes each mask and needs OpenCV. Runs of neighbouring columns touch or they do not, so that regions are
connected components of a small graph.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rerun_loader_sam.masks import Counts

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Runs:
    """Vertical runs of pixels, in column-major order: column, first row, and the row after the last."""

    column: Ints
    start: Ints
    end: Ints


def without_small_regions(counts: Counts, size_hw: tuple[int, int], min_area: float) -> tuple[Counts, bool]:
    """The mask with holes below `min_area` pixels filled, then islands below it removed; and whether there
    were any (upstream counts a mask as changed that is itself below `min_area`).

    Regions are 8-connected. Of a mask that has only small islands the largest one stays.

    Args:
        counts: Run lengths (see `rerun_loader_sam.masks.Mask`).
        size_hw: Of the image.
        min_area: In pixels.
    """
    height, width = size_hw
    changes = np.cumsum(counts, dtype=np.int64)[:-1]
    edges = np.arange(width + 1, dtype=np.int64) * height
    outside = _split(np.concatenate(([0], changes, [height * width])), edges, height)
    areas, region = _regions(outside)
    holes = areas[region] < min_area
    filled = _flipped(changes, outside, holes, height)
    inside = _split(filled, edges, height)
    areas, region = _regions(inside)
    keep = areas >= min_area
    changed = bool(holes.any() or not keep.all())
    if not keep.any() and len(areas):
        keep[np.argmax(areas)] = True
    if not changed:
        return counts, False
    cleaned = _flipped(filled, inside, ~keep[region], height)
    ends = [] if len(cleaned) and cleaned[-1] == height * width else [height * width]
    return np.diff(np.concatenate(([0], cleaned, ends))).astype(np.int32), True


def _split(changes: Ints, column_edges: Ints, height: int) -> _Runs:
    """The runs between every first and second change, cut at the columns' ends."""
    starts, ends = changes[: len(changes) // 2 * 2 : 2], changes[1::2]
    if len(changes) % 2:
        starts, ends = changes[::2], np.concatenate((ends, column_edges[-1:]))
    cuts = column_edges[1:-1]
    owner = np.searchsorted(starts, cuts, side="left") - 1
    cut = (owner >= 0) & (ends[np.maximum(owner, 0)] > cuts) if len(starts) else np.zeros(len(cuts), bool)
    starts = np.sort(np.concatenate((starts, cuts[cut])))
    ends = np.sort(np.concatenate((ends, cuts[cut])))
    used = ends > starts
    starts, ends = starts[used], ends[used]
    column = starts // height
    return _Runs(column, starts - column * height, ends - column * height)


def _regions(runs: _Runs) -> tuple[Ints, Ints]:
    """Areas of the regions, and the region of each run."""
    # Positions of different columns are kept apart by more than a diagonal neighbour can reach.
    stride = int(runs.end.max(initial=0)) + 2
    first, last = runs.column * stride + runs.start, runs.column * stride + runs.end
    low = np.searchsorted(last, first + stride, side="left")
    high = np.searchsorted(first, last + stride, side="right")
    times = np.maximum(high - low, 0)
    left = np.repeat(np.arange(len(first)), times)
    right = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times) + np.repeat(low, times)
    label = np.arange(len(first))
    while True:
        lowest = np.minimum(label[left], label[right])
        new = label.copy()
        # The roots of both ends move, and with them every run that points at them.
        np.minimum.at(new, label[left], lowest)
        np.minimum.at(new, label[right], lowest)
        while True:
            jumped = new[new]
            if np.array_equal(jumped, new):
                break
            new = jumped
        if np.array_equal(new, label):
            break
        label = new
    roots, region = np.unique(label, return_inverse=True)
    areas = np.bincount(region, weights=runs.end - runs.start, minlength=len(roots)).astype(np.int64)
    return areas, region.astype(np.int64).reshape(-1)


def _flipped(changes: Ints, runs: _Runs, which: npt.NDArray[np.bool_], height: int) -> Ints:
    """Changes of the mask after chosen runs were inverted."""
    base = runs.column[which] * height
    positions, times = np.unique(
        np.concatenate((changes, base + runs.start[which], base + runs.end[which])), return_counts=True
    )
    flipped: Ints = positions[times % 2 == 1].astype(np.int64)
    return flipped
