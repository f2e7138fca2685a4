"""Sams of all shapes with random weights, small enough to compare with upstream in moments."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer


def small_sam(
    seed: int = 1, *, size: int = 128, dim: int = 64, depth: int = 2, heads: int = 8, window: int = 3
) -> Sam:
    """A Sam whose masks are blobs of all sizes, with predicted IoUs on both sides of 0.8."""
    torch.manual_seed(seed)
    sam = Sam(
        ImageEncoderViT(
            img_size=size,
            embed_dim=32,
            depth=4,
            num_heads=2,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=window,
            global_attn_indexes=(1, 3),
            out_chans=dim,
        ),
        PromptEncoder(dim, (size // 16, size // 16), (size, size), 16),
        MaskDecoder(transformer_dim=dim, transformer=TwoWayTransformer(depth, dim, heads, 128)),
    )
    with torch.no_grad():
        for parameter in sam.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        sam.mask_decoder.iou_prediction_head.layers[-1].bias += 0.8
        for head in sam.mask_decoder.output_hypernetworks_mlps:
            head.layers[-1].weight *= 10
    return sam.eval()


def smooth_image(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """An image of soft colour patches: uint8, (height, width, 3)."""
    patches = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC))


def upstream_masks(
    sam: Sam, image: npt.NDArray[np.uint8], parameters: Mapping[str, object]
) -> list[dict[str, object]]:
    """Upstream's, with one thread: at this size two would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return SamAutomaticMaskGenerator(sam, **parameters).generate(image)  # type: ignore[no-any-return]
    finally:
        torch.set_num_threads(threads)
