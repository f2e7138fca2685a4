"""Views of an image: points lie on the same pixels in each, and masks come back where they are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rerun_loader_sam import load_model
from rerun_loader_sam.engine.agreement import VIEWS
from rerun_loader_sam.engine.geometry import Crop
from rerun_loader_sam.engine.prompting import EmbeddedCrop, Filters
from rerun_loader_sam.engine.views import AS_IT_IS, View
from rerun_loader_sam.masks import Mask
from rerun_loader_sam.models.registry import NANO, SHIPPED_FOLDER

EXAMPLE = Path(__file__).parents[2] / "examples" / "coffee.jpg"
TOKEN_PX = 8


def test_no_view_is_there_twice() -> None:
    assert VIEWS[0] == AS_IT_IS
    assert len(set(VIEWS)) == len(VIEWS)


@pytest.mark.parametrize("width", [1, 7, 8, 9, 384])
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_points_lie_on_the_same_pixels(view: View, width: int) -> None:
    rng = np.random.default_rng(width)
    pixels = torch.from_numpy(rng.integers(0, 256, (1, 3, 20, width), dtype=np.uint8))
    points_xy = np.stack([rng.integers(0, width, 30), rng.integers(0, 20, 30)], 1).astype(np.float64)
    seen = view.of(pixels, TOKEN_PX)
    assert seen.shape[-1] == (-(-width // TOKEN_PX) * TOKEN_PX if view.mirrored else width)
    x, y = points_xy.astype(int).T
    seen_x, seen_y = view.points(points_xy, width, TOKEN_PX).astype(int).T
    expected = pixels[0, :, y, x][list(view.channels)]
    assert torch.equal(seen[0, :, seen_y, seen_x].to(torch.uint8), expected)


@torch.no_grad()
def test_masks_of_a_mirrored_view_are_those_of_the_mirrored_image_turned_back() -> None:
    # As large as the model's input, and whole tokens wide: both are the same pixels to the model.
    image = np.asarray(Image.open(EXAMPLE).convert("RGB").resize((288, 384)))
    points_xy = np.random.default_rng(1).integers(0, (288, 384), (12, 2)).astype(np.float64)
    sam = load_model(SHIPPED_FOLDER / NANO.file)
    found: list[list[Mask]] = []
    for shown, asked_xy, view in (
        (image, points_xy, View(mirrored=True)),
        (image[:, ::-1], points_xy * (-1, 1) + (287, 0), AS_IT_IS),
    ):
        pixels = torch.from_numpy(shown.copy()).permute(2, 0, 1)[None]
        embedding = sam.image_encoder(sam.preprocess(view.of(pixels, TOKEN_PX)))
        crop, filters = Crop((0, 0, 288, 384), 0), Filters(0.0, 0.0, 1.0)
        embedded = EmbeddedCrop(sam, embedding, crop, (384, 288), filters, view=view)
        found.append([mask for mask in embedded.answer(asked_xy, None) if isinstance(mask, Mask)])
    turned, plain = found
    assert len(turned) == len(plain) == 36
    for one, other in zip(turned, plain, strict=True):
        differing = one.decode() != other.decode()[:, ::-1]
        # interpolation ends at the left edge of one, and looks at a logit more at the right edge of the other
        assert not differing[:, 1:-1].any()
