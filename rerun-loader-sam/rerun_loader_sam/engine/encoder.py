"""Images into embeddings: Sam's ViT in pieces that fit a core's cache.

Upstream runs block after block over the whole image. But between two global attentions nothing leaves a window: its
tokens can go through all windowed blocks in one piece of work. A global block falls into two: keys and values of all
tokens first, then everything else, some rows of tokens at a time. Pieces are shared among the cores, nothing of the
size of the whole attention matrix is ever made, and the work can be dropped after any piece.

The relative positions are added to the scores before the product (as the `beta` term of one call), and windows at the
edge do without the padding that upstream computes there: padding is zero after the norm, so its keys and values are
the projection's bias.
"""

from collections.abc import Callable, Generator
from functools import partial
from itertools import pairwise

import torch
from segment_anything.modeling import ImageEncoderViT, Sam
from segment_anything.modeling.image_encoder import Attention, Block, get_rel_pos
from torch import Tensor

from rerun_loader_sam.engine.parallel import Cores

# Rows of tokens whose global attention a CPU computes at once: their scores for one head, 4 x 64 x 4096 floats for a
# 64 x 64 grid, are 4 MB.
_ROWS_AT_ONCE = 4

Step = Callable[[], None]


def encode(sam: Sam, pixels: Tensor, cores: Cores) -> Generator[None, None, Tensor]:
    """The image's embedding, (1, C, h, w); yields after each piece of work.

    Args:
        sam: The model; an encoder that is not Sam's ViT is run as it is, in one piece.
        pixels: Resized RGB of 0 to 255, (1, 3, H, W), on the model's device.
        cores: Who works.
    """
    with torch.no_grad():
        x = sam.preprocess(pixels)
        encoder = sam.image_encoder
        if type(encoder) is not ImageEncoderViT:
            yield
            return encoder(x)  # type: ignore[no-any-return]
        tokens = encoder.patch_embed(x)
        if encoder.pos_embed is not None:
            tokens = tokens + encoder.pos_embed
        tokens = tokens[0].contiguous()
    yield
    for steps in _stages(encoder, tokens):
        for _ in cores.in_order(_run, steps):
            yield
    with torch.no_grad():
        return encoder.neck(tokens[None].permute(0, 3, 1, 2))  # type: ignore[no-any-return]


@torch.no_grad()
def _run(step: Step) -> None:
    step()


def _stages(encoder: ImageEncoderViT, tokens: Tensor) -> Generator[list[Step], None, None]:
    """Pieces of work that change `tokens` (h, w, C) in place; those of a stage are independent."""
    on_cpu = tokens.device.type == "cpu"
    windowed: list[Block] = []
    for block in encoder.blocks:
        if windowed and block.window_size != windowed[0].window_size:
            yield _window_steps(windowed, tokens, on_cpu)
            windowed = []
        if block.window_size > 0:
            windowed.append(block)
            continue
        yield from _global_stages(block, tokens, on_cpu)
    if windowed:
        yield _window_steps(windowed, tokens, on_cpu)


def _window_steps(blocks: list[Block], tokens: Tensor, on_cpu: bool) -> list[Step]:
    """A step for each window or, where operations are dear to start, for each kind of window."""
    size = blocks[0].window_size
    rows, columns = (range(0, length, size) for length in tokens.shape[:2])
    windows = [tokens[top : top + size, left : left + size] for top in rows for left in columns]
    if on_cpu:
        return [partial(_run_windows, blocks, [window]) for window in windows]
    kinds: dict[torch.Size, list[Tensor]] = {}
    for window in windows:
        kinds.setdefault(window.shape, []).append(window)
    return [partial(_run_windows, blocks, alike) for alike in kinds.values()]


def _run_windows(blocks: list[Block], windows: list[Tensor]) -> None:
    """Takes windows of one shape, (h, w, C) each, through consecutive windowed blocks, in place."""
    height, width, channels = windows[0].shape
    x = torch.stack(windows).flatten(1, 2)
    for block in blocks:
        attention: Attention = block.attn
        heads, size = attention.num_heads, block.window_size
        qkv = torch.unflatten(attention.qkv(block.norm1(x)), -1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = qkv[0].contiguous(), qkv[1], qkv[2]
        if (height, width) != (size, size):
            keys, values = (
                _padded(part, i, attention, (height, width), size) for i, part in ((1, keys), (2, values))
            )
        bias = _relative_positions(attention, queries, (height, width), (size, size))
        attended = _attend(attention, queries, keys, values, bias)
        x = x + attention.proj(attended.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    for window, new in zip(windows, x.view(-1, height, width, channels), strict=True):
        window.copy_(new)


def _padded(part: Tensor, index: int, attention: Attention, size_hw: tuple[int, int], size: int) -> Tensor:
    """Keys (index 1) or values (2) of windows at the edge, (B, heads, h * w, c), filled up to size * size tokens."""
    bias = attention.qkv.bias
    filling = part.new_zeros(part.shape[1], part.shape[3])
    if bias is not None:
        filling = torch.unflatten(bias, 0, (3, part.shape[1], -1))[index]
    whole = filling[None, :, None, None].repeat(len(part), 1, size, size, 1)
    whole[:, :, : size_hw[0], : size_hw[1]] = torch.unflatten(part, 2, size_hw)
    return whole.flatten(2, 3)


def _global_stages(block: Block, tokens: Tensor, on_cpu: bool) -> Generator[list[Step], None, None]:
    height, width, channels = tokens.shape
    attention: Attention = block.attn
    qkv = tokens.new_empty(3, attention.num_heads, height * width, channels // attention.num_heads)
    rows_at_once = _ROWS_AT_ONCE if on_cpu else 4 * _ROWS_AT_ONCE
    spans = [slice(*span) for span in pairwise([*range(0, height, rows_at_once), height])]

    def project(rows: slice) -> None:
        part = attention.qkv(block.norm1(tokens[rows].flatten(0, 1)))
        flat = slice(rows.start * width, rows.stop * width)
        qkv[:, :, flat] = torch.unflatten(part, -1, (3, attention.num_heads, -1)).permute(1, 2, 0, 3)

    def attend(rows: slice) -> None:
        queries = qkv[0, :, rows.start * width : rows.stop * width]
        attended = torch.empty_like(queries)
        rel_h, rel_w = _rel_pos_tables(attention, (height, width), (height, width)) or (None, None)
        # One head at a time: its scores stay in the cache from the product to the softmax to the next product.
        for head in range(attention.num_heads) if on_cpu else [slice(None)]:
            one = slice(head, head + 1) if isinstance(head, int) else head
            bias = None
            if rel_h is not None and rel_w is not None:
                bias = _bias(queries[one][None], rel_h[rows], rel_w)
            attended[one] = _attend(attention, queries[one][None], qkv[1, one][None], qkv[2, one][None], bias)[0]
        x = tokens[rows].flatten(0, 1) + attention.proj(attended.transpose(0, 1).flatten(1))
        x = x + block.mlp(block.norm2(x))
        tokens[rows] = x.view(-1, width, channels)

    yield [partial(project, rows) for rows in spans]
    yield [partial(attend, rows) for rows in spans]


def _rel_pos_tables(
    attention: Attention, queries_hw: tuple[int, int], keys_hw: tuple[int, int]
) -> tuple[Tensor, Tensor] | None:
    """(query rows, key rows, c) and (query columns, key columns, c), if the model has them."""
    if not attention.use_rel_pos:
        return None
    return (
        get_rel_pos(keys_hw[0], keys_hw[0], attention.rel_pos_h)[: queries_hw[0]],
        get_rel_pos(keys_hw[1], keys_hw[1], attention.rel_pos_w)[: queries_hw[1]],
    )


def _relative_positions(
    attention: Attention, queries: Tensor, queries_hw: tuple[int, int], keys_hw: tuple[int, int]
) -> Tensor | None:
    tables = _rel_pos_tables(attention, queries_hw, keys_hw)
    return None if tables is None else _bias(queries, *tables)


def _bias(queries: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """What relative positions add to the scores (the decomposed form of MViTv2): (B, heads, queries, keys).

    Args:
        queries: (B, heads, h * w, c).
        rel_h: (h, key rows, c).
        rel_w: (w, key columns, c).
    """
    grid = torch.unflatten(queries, 2, (len(rel_h), len(rel_w)))
    by_row = torch.einsum("bnhwc,hkc->bnhwk", grid, rel_h)
    by_column = torch.einsum("bnhwc,wkc->bnhwk", grid, rel_w)
    return (by_row[..., :, None] + by_column[..., None, :]).flatten(4).flatten(2, 3)


def _attend(attention: Attention, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(scale * queries @ keys.T + bias) @ values, all (B, heads, n, c); `bias` is overwritten."""
    scale: float = attention.scale
    if bias is None:
        scores = (queries * scale) @ keys.mT
    else:
        scores = bias
        flat = scores.flatten(0, 1)
        torch.baddbmm(flat, queries.flatten(0, 1), keys.flatten(0, 1).mT, alpha=scale, out=flat)
    return torch.softmax(scores, -1, out=scores) @ values
