"""The rearranged decoder and encoder against Sam's own modules, number by number."""

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT, Sam
from small_sams import small_sam

from rerun_loader_sam.engine.decoder import FoldedDecoder, can_fold
from rerun_loader_sam.engine.encoder import encode
from rerun_loader_sam.engine.parallel import Cores
from rerun_loader_sam.engine.reference import ReferenceImage

CPU = torch.device("cpu")


def embedding_of(sam: Sam, pixels: torch.Tensor) -> torch.Tensor:
    with Cores(CPU) as cores:
        pieces = encode(sam, pixels, cores)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                assert isinstance(end.value, torch.Tensor)
                return end.value


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(("dim", "heads"), [(64, 8), (96, 2)])
@torch.no_grad()
def test_logits_and_scores(depth: int, dim: int, heads: int) -> None:
    sam = small_sam(depth, depth=depth, dim=dim, heads=heads)
    embedding, points = torch.randn(1, dim, 8, 8), torch.rand(5, 2) * 128
    assert can_fold(sam)
    folded = FoldedDecoder(sam).with_image(embedding, (128, 128)).predict(points)
    plain = ReferenceImage(sam, embedding).predict(points)
    torch.testing.assert_close(folded.predicted_iou, plain.predicted_iou, atol=1e-5, rtol=1e-5)
    scale = plain.logits.abs().max().item()
    for prompt in range(5):
        for masks in ([0, 1, 2], [2], [2, 0]):
            expected = plain.low_res_logits(prompt, masks)
            torch.testing.assert_close(folded.low_res_logits(prompt, masks), expected, atol=1e-5 * scale, rtol=1e-4)
            expected = plain.low_res_logits(prompt, masks)[:, 2::4, 2::4]
            torch.testing.assert_close(folded.coarse_logits(prompt, masks), expected, atol=1e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("input_hw", [(128, 40), (40, 128), (1, 128), (128, 97)])
@torch.no_grad()
def test_logits_reach_one_beyond_the_image(input_hw: tuple[int, int]) -> None:
    sam, embedding, points = small_sam(), torch.randn(1, 64, 8, 8), torch.rand(1, 2) * 40
    expected = ReferenceImage(sam, embedding).predict(points).low_res_logits(0, [1])
    logits = FoldedDecoder(sam).with_image(embedding, input_hw).predict(points).low_res_logits(0, [1])
    height, width = logits.shape[1:]
    # Bilinear interpolation of the last pixel, (size - 0.5) / 4 - 0.5, looks at the logit after it.
    assert height >= min(32, int((input_hw[0] - 0.5) / 4 - 0.5) + 2)
    assert width >= min(32, int((input_hw[1] - 0.5) / 4 - 0.5) + 2)
    torch.testing.assert_close(logits, expected[:, :height, :width], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("width", [128, 97, 96, 40, 1])
@torch.no_grad()
def test_logits_of_a_mirrored_image_are_turned_back(width: int) -> None:
    sam, embedding, points = small_sam(), torch.randn(1, 64, 8, 8), torch.rand(1, 2) * 40
    expected = ReferenceImage(sam, embedding).predict(points).low_res_logits(0, [2, 0])
    mirrored = FoldedDecoder(sam).with_image(embedding, (128, width), mirrored=True).predict(points)
    plain = FoldedDecoder(sam).with_image(embedding, (128, width)).predict(points)
    torch.testing.assert_close(mirrored.predicted_iou, plain.predicted_iou)
    columns = 4 * -(-width // 16)  # of the tokens that show something
    logits, coarse = mirrored.low_res_logits(0, [2, 0]), mirrored.coarse_logits(0, [2, 0])
    assert logits.shape == plain.low_res_logits(0, [2, 0]).shape
    assert coarse.shape == plain.coarse_logits(0, [2, 0]).shape
    turned = expected[:, :, :columns].flip(2)
    torch.testing.assert_close(logits[:, :, :columns], turned, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(coarse[:, :, : columns // 4], turned[:, 2::4, 2::4], atol=1e-4, rtol=1e-4)
    assert bool((logits[:, :, columns:] == logits[:, :, columns - 1 : columns]).all())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"window_size": 8},
        {"window_size": 0},
        {"window_size": 14},
        {"qkv_bias": False},
        {"use_rel_pos": False},
        {"use_abs_pos": False},
        {"global_attn_indexes": ()},
        {"global_attn_indexes": (0, 1, 2)},
    ],
    ids=str,
)
@torch.no_grad()
def test_embeddings(changes: dict[str, object]) -> None:
    torch.manual_seed(3)
    sam = small_sam()
    arguments: dict[str, object] = {
        "img_size": 160,
        "embed_dim": 48,
        "depth": 3,
        "num_heads": 3,
        "use_rel_pos": True,
        "window_size": 4,
        "global_attn_indexes": (1,),
        "out_chans": 64,
    }
    sam.image_encoder = ImageEncoderViT(**{**arguments, **changes}).eval()  # type: ignore[arg-type]
    for parameter in sam.image_encoder.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    pixels = torch.randint(0, 256, (1, 3, 107, 160), dtype=torch.uint8)
    expected = sam.image_encoder(sam.preprocess(pixels))
    torch.testing.assert_close(embedding_of(sam, pixels), expected, atol=1e-5, rtol=1e-4)
