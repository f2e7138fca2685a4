"""Borders of masks moved onto the edges of the image.

A small model knows which of its cells a thing covers better than where in a cell the thing ends. The guided filter
(He, Sun and Tang 2013, Guided Image Filtering) fits, in a window around each pixel, the mask as a linear function of
the colours there: it ends where the colours change, if they do, and has a smooth border where they do not.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as nn_functional
from torch import Tensor

from rerun_loader_sam.engine.geometry import Crop, resized_crop
from rerun_loader_sam.engine.tracing import Tracer
from rerun_loader_sam.masks import Counts, Mask, box_xywh

# Pixels of the model's input for one of the filter: masks of a small model have no finer detail.
_STEP_PX = 2

# Colours, from 0 to 1, that vary by less than the root of this are one surface.
_EPSILON = 3e-4

# Below a half, since smoothing takes from round things: borders without an edge would move inwards.
_THRESHOLD = 0.45


class EdgeFinder:
    """Moves borders in one crop of an image.

    Args:
        image: The whole image: RGB, uint8, (H, W, 3).
        crop: The part that the model saw.
        long_side: The model's input size.
        radius_px: How far a border may move, about, in pixels of the model's input.
    """

    def __init__(self, image: npt.NDArray[np.uint8], crop: Crop, long_side: int, radius_px: int) -> None:
        side = long_side // _STEP_PX
        small = resized_crop(image, crop, side)
        self._radius = max(radius_px // _STEP_PX, 1)
        self._colours = torch.from_numpy(small).permute(2, 0, 1).float() / 255
        self._mean_colours = _mean(self._colours, self._radius)
        products = self._colours[:, None] * self._colours[None]
        covariance = torch.unflatten(_mean(products.flatten(0, 1), self._radius), 0, (3, 3))
        covariance = covariance - self._mean_colours[:, None] * self._mean_colours[None]
        regular = covariance.permute(2, 3, 0, 1) + _EPSILON * torch.eye(3)
        self._inverse = torch.linalg.inv(regular).permute(2, 3, 0, 1).contiguous()
        self._positions = _sample_positions(crop, small.shape[:2], image.shape[0])
        image_hw = (image.shape[0], image.shape[1])
        self._tracer = Tracer(crop, image_hw, long_side=side, logits_per_side=side, threshold=_THRESHOLD, offset=0.0)

    def moved(self, mask: Mask) -> Mask:
        """The mask with its border on the edges nearby; one of which nothing would be left stays as it is.

        Its scores are still those that the model's own mask had.
        """
        _, outline = self._tracer.trace(self._filtered(self._coverage(mask.rle_counts)), 0.0)
        if outline is None or outline.area == 0:
            return mask
        bbox_xywh = box_xywh(outline.box_xyxy)
        return replace(mask, rle_counts=outline.rle_counts, bbox_xywh=bbox_xywh, area=outline.area)

    def _coverage(self, counts: Counts) -> Tensor:
        """Which share of each of the filter's pixels a mask covers, by four samples: (h, w), 0 to 1."""
        _, height, width = self._colours.shape
        inside = np.searchsorted(np.cumsum(counts, dtype=np.int64), self._positions, side="right") % 2
        samples = inside.reshape(width, 2, height, 2).mean((1, 3), dtype=np.float32)
        return torch.from_numpy(np.ascontiguousarray(samples.T))

    def _filtered(self, coverage: Tensor) -> Tensor:
        means = _mean(torch.cat((coverage[None], self._colours * coverage)), self._radius)
        covariance = means[1:] - self._mean_colours * means[0]
        slopes = (self._inverse * covariance).sum(1)
        offset = means[0] - (slopes * self._mean_colours).sum(0)
        smooth = _mean(torch.cat((slopes, offset[None])), self._radius)
        return (smooth[:3] * self._colours).sum(0) + smooth[3]


def _mean(values: Tensor, radius: int) -> Tensor:
    """Over the square window around each pixel, as far as the image goes: (C, h, w)."""
    size = 2 * radius + 1
    rows = nn_functional.avg_pool2d(values, (size, 1), 1, (radius, 0), count_include_pad=False)
    return nn_functional.avg_pool2d(rows, (1, size), 1, (0, radius), count_include_pad=False)


def _sample_positions(crop: Crop, size_hw: tuple[int, int], image_height: int) -> npt.NDArray[np.int64]:
    """Where, column by column of the whole image, four samples of each of h x w cells of the crop lie: (4 h w,)."""
    x0, y0, _, _ = crop.box_xyxy
    rows, columns = (
        start + ((np.arange(2 * cells) + 0.5) * pixels / (2 * cells)).astype(np.int64)
        for start, cells, pixels in zip((y0, x0), size_hw, crop.size_hw, strict=True)
    )
    positions: npt.NDArray[np.int64] = (columns[:, None] * image_height + rows).reshape(-1)
    return positions
