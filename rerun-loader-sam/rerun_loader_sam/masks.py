"""Masks as run lengths: the type that the engine hands out and the recording draws.

Numpy only, so that either side can have it without the other's libraries.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Mask:
    """One mask of an image, a few kilobytes whatever the image's size.

    Attributes:
        size_hw: Height and width of the image that the mask belongs to, in pixels.
        rle_counts: Run lengths in COCO's order (column by column, the first run outside the mask, possibly
            of length zero), as `segment_anything` has them in its uncompressed RLE; int32. They add up to H * W.
        bbox_xywh: Left, top, width and height as upstream reports them: the width is the last column minus
            the first, so a mask of one pixel has width 0. In pixels of the image.
        area: Pixels inside.
        predicted_iou: The model's own estimate of the mask's quality, about 0 to 1.
        stability_score: IoU of the mask with itself at a higher and a lower threshold, 0 to 1
            (NaN for a mask that is empty even at the lower one, as upstream has it).
        point_xy: The prompt that gave the mask, in pixels of the image.
        crop_box_xywh: The part of the image that the model saw.
    """

    size_hw: tuple[int, int]
    rle_counts: Counts
    bbox_xywh: tuple[float, float, float, float]
    area: int
    predicted_iou: float
    stability_score: float
    point_xy: tuple[float, float]
    crop_box_xywh: tuple[float, float, float, float]

    def decode(self) -> Bools:
        """The mask as pixels: bool, (H, W)."""
        return decode_rle(self.rle_counts, self.size_hw)


def box_xywh(box_xyxy: tuple[int, int, int, int]) -> tuple[float, float, float, float]:
    """A box in upstream's output convention; see `Mask.bbox_xywh`."""
    x0, y0, x1, y1 = box_xyxy
    return float(x0), float(y0), float(x1 - x0), float(y1 - y0)


def decode_rle(counts: npt.ArrayLike, size_hw: tuple[int, int]) -> Bools:
    """Pixels of a run-length code in COCO's order: bool, (H, W), C-contiguous."""
    height, width = size_hw
    lengths = np.asarray(counts, dtype=np.int64)
    inside = np.arange(len(lengths)) % 2 == 1
    return np.ascontiguousarray(np.repeat(inside, lengths).reshape(width, height).T)


def encode_rle(mask: Bools) -> Counts:
    """Run lengths of a bool (H, W) mask in COCO's order (see `Mask.rle_counts`)."""
    columns = np.ascontiguousarray(mask.T).reshape(-1)
    changes = np.flatnonzero(columns[1:] != columns[:-1]) + 1
    first = [0, 0] if columns.size and columns[0] else [0]
    return np.diff(np.concatenate((first, changes, [columns.size]))).astype(np.int32)


def runs_of_rle(counts: Counts) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where the runs inside the mask start and end (the first pixel after it), column by column: (runs,) each."""
    edges = np.cumsum(counts, dtype=np.int64)
    starts, ends = edges[:-1:2], edges[1::2]
    filled = ends > starts
    return starts[filled], ends[filled]


def box_xyxy_of_rle(counts: Counts, size_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """First column, first row, last column and last row of the mask; four zeros for an empty one."""
    height, _ = size_hw
    starts, ends = runs_of_rle(counts)
    if len(starts) == 0:
        return 0, 0, 0, 0
    last = ends - 1
    if np.any(starts // height != last // height):
        top, bottom = 0, height - 1
    else:
        top, bottom = int((starts % height).min()), int((last % height).max())
    return int(starts[0] // height), top, int(last[-1] // height), bottom


def shared_area(one: Counts, other: Counts) -> int:
    """Pixels that are inside both of two masks of the same image."""
    ends_of_one, ends_of_other = (np.cumsum(counts, dtype=np.int64) for counts in (one, other))
    ends = np.union1d(ends_of_one, ends_of_other)
    inside = [np.searchsorted(known, ends) % 2 == 1 for known in (ends_of_one, ends_of_other)]
    return int(np.diff(ends, prepend=0)[inside[0] & inside[1]].sum())
