"""Where crops lie: upstream's, and something to see in each."""

import pytest
from segment_anything.utils.amg import generate_crop_boxes

from rerun_loader_sam.engine.geometry import crops

OVERLAP_RATIO = 512 / 1500


@pytest.mark.parametrize("n_layers", [0, 1, 3])
@pytest.mark.parametrize("image_hw", [(64, 64), (300, 451), (1200, 37)])
def test_they_are_upstreams(image_hw: tuple[int, int], n_layers: int) -> None:
    boxes, layers = generate_crop_boxes(image_hw, n_layers, OVERLAP_RATIO)
    ours = crops(image_hw, n_layers, OVERLAP_RATIO)
    assert [(list(crop.box_xyxy), crop.layer) for crop in ours] == list(zip(boxes, layers, strict=True))


@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("image_hw", [(1, 1), (1, 2), (2, 1), (3, 5), (1, 500), (500, 3)])
def test_of_a_few_pixels_none_is_empty_or_beyond_the_edge(image_hw: tuple[int, int], n_layers: int) -> None:
    height, width = image_hw
    whole, *others = crops(image_hw, n_layers, OVERLAP_RATIO)
    assert whole.box_xyxy == (0, 0, width, height)
    seen = dict.fromkeys(range(1, n_layers + 1), 0)
    for crop in others:
        x0, y0, x1, y1 = crop.box_xyxy
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        seen[crop.layer] += 1
    assert min(seen.values()) >= 1
