"""Meta's two-way transformer, rearranged so that image tokens are never written out for each prompt.

Prompts of one image differ by seven tokens, while the image has thousands. Upstream computes the image side anew
for every prompt. Here a prompt's image tokens x (N, C) stay in the form in which the algebra leaves them:

    x = u * base + K.T @ R + const

`base` (N, C) is the same for all prompts. `u` (N) is one factor a token. K (k, N) holds the prompt's attention
weights, 56 rows (heads x tokens) for each layer, and R (k, C) what its tokens add where they are attended to.
Each step of the transformer keeps that form:

- The image-to-token attention adds softmax(...) @ (V W_out): 56 rows to K and R.
- Layer norm is linear but for its denominator. Centring acts on `base` and R by itself, and the variance of a
  token is a quadratic form in u and K, so that the denominator is a factor a token: it multiplies u and K.
- A projection x @ W, for the token-to-image attention and for the upscaling, is u * (base @ W) + K.T @ (R @ W);
  base @ W is computed once per image, and R has few rows.

All of this is exact algebra: results differ from upstream's by rounding only. An image token then costs 56 numbers a
layer and not 256, no product has more than 56 + 57 rows, and a prompt's state stays in a core's cache.

What depends on the weights alone is in `FoldedWeights`, what depends on the image in `FoldedImage`.
"""

from dataclasses import dataclass, field

import torch
from segment_anything.modeling.transformer import Attention, TwoWayTransformer
from torch import Tensor


def by_head(projected: Tensor, heads: int) -> Tensor:
    """(..., n, heads * c) as (..., heads, n, c)."""
    return torch.unflatten(projected, -1, (heads, -1)).transpose(-2, -3)


def centred(rows: Tensor) -> Tensor:
    """Rows minus their mean over the channels (last axis): what layer norm does first."""
    return rows - rows.mean(-1, keepdim=True)


@dataclass(frozen=True, slots=True)
class UpdateWeights:
    """What a layer's image-to-token attention and layer norm do, by the weights alone.

    Attributes:
        spread: For this layer and each before it, how a token's value (heads, c) ends up in the channels of the
            image token before this norm's denominator: (heads, c, C) each, newest last.
        constants: The same for additive constants, (n, C): one from each layer but the first.
        scale: The norm's weight, (C,).
        eps: The norm's epsilon.
    """

    spread: tuple[Tensor, ...]
    constants: Tensor
    scale: Tensor
    eps: float


class FoldedWeights:
    """The products of a two-way transformer's weights that no image and no prompt changes.

    Args:
        transformer: Upstream's module, of any depth and width.
    """

    def __init__(self, transformer: TwoWayTransformer) -> None:
        self.transformer = transformer
        self.updates: list[UpdateWeights] = []
        self.shifts: list[Tensor] = []
        spread: list[Tensor] = []
        constants = transformer.layers[0].norm4.weight.new_zeros(0, transformer.embedding_dim)
        for depth, layer in enumerate(transformer.layers):
            attention: Attention = layer.cross_attn_image_to_token
            out = torch.unflatten(attention.out_proj.weight.t(), 0, (attention.num_heads, -1))
            spread = [centred(rows) for rows in (*spread, out)]
            if depth > 0:
                constant = self.shifts[-1] + attention.out_proj.bias
                constants = torch.cat([constants, constant[None]])
            constants = centred(constants)
            scale: Tensor = layer.norm4.weight
            self.updates.append(UpdateWeights(tuple(spread), constants, scale, layer.norm4.eps))
            spread = [rows * scale for rows in spread]
            constants = constants * scale
            self.shifts.append(layer.norm4.bias)
        self.final_spread = tuple(spread)
        self.final_constants = constants

    def spread_before(self, depth: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """Spread and constants of the image tokens that enter layer `depth` (or the final attention)."""
        if depth == len(self.updates):
            return self.final_spread, self.final_constants
        update = self.updates[depth - 1]
        return tuple(rows * update.scale for rows in update.spread), update.constants * update.scale


@dataclass(frozen=True, slots=True)
class Read:
    """The image's side of a token-to-image attention, by heads.

    Attributes:
        keys: base @ W_k, (heads, c, N).
        keys_pe: Positions @ W_k, (heads, c, N), to be added without the factor u; None if it is in `keys`.
        values: base @ W_v, (heads, N, c).
        value_shift: What every value has in addition, (heads, 1, c).
    """

    keys: Tensor
    keys_pe: Tensor | None
    values: Tensor
    value_shift: Tensor


@dataclass(frozen=True, slots=True)
class Write:
    """The image's side of an image-to-token attention and of the layer norm after it.

    Attributes:
        queries: base @ W_q, (heads, c, N).
        queries_pe: The rest of the queries, (heads, c, N), without the factor u; None if it is in `queries`.
        overlaps: Centred base times `UpdateWeights.spread`: (heads, c, N) each.
        constant_overlaps: Centred base times `UpdateWeights.constants`: (n, N).
        square_norms: Of the centred base, (N,).
    """

    queries: Tensor
    queries_pe: Tensor | None
    overlaps: tuple[Tensor, ...]
    constant_overlaps: Tensor
    square_norms: Tensor


@dataclass(slots=True)
class FoldedImage:
    """All that prompts of one image share.

    Attributes:
        reads: Of each layer and of the final attention.
        writes: Of each layer.
        base: Of the image tokens that leave the transformer, (N, C).
    """

    reads: list[Read] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    base: Tensor = field(default_factory=lambda: torch.empty(0))


def fold_image(weights: FoldedWeights, tokens: Tensor, positions: Tensor) -> FoldedImage:
    """The shared products of one image.

    Args:
        weights: Of the transformer.
        tokens: The image embedding with the dense prompt added, (N, C).
        positions: Their positional encoding, (N, C).
    """
    folded = FoldedImage()
    base = tokens
    for depth, (layer, update) in enumerate(zip(weights.transformer.layers, weights.updates, strict=True)):
        shift = weights.shifts[depth - 1] if depth else None
        folded.reads.append(_fold_read(layer.cross_attn_token_to_image, base, positions, shift))
        write: Attention = layer.cross_attn_image_to_token
        heads = write.num_heads
        query_weight = write.q_proj.weight.t()
        rest = positions @ query_weight + write.q_proj.bias
        queries = base @ query_weight
        if shift is None:
            # u is still 1 everywhere, so both parts are one, and the attention's bias belongs to the base.
            queries, queries_pe = queries + rest, None
            base = base + write.out_proj.bias
        else:
            queries_pe = by_head(rest + shift @ query_weight, heads).mT.contiguous()
        middle = centred(base)
        folded.writes.append(
            Write(
                queries=by_head(queries, heads).mT.contiguous(),
                queries_pe=queries_pe,
                overlaps=tuple(rows @ middle.t() for rows in update.spread),
                constant_overlaps=update.constants @ middle.t(),
                square_norms=middle.square().sum(-1),
            )
        )
        base = middle * update.scale
    final = weights.transformer.final_attn_token_to_image
    folded.reads.append(_fold_read(final, base, positions, weights.shifts[-1]))
    folded.base = base
    return folded


def _fold_read(attention: Attention, base: Tensor, positions: Tensor, shift: Tensor | None) -> Read:
    # The bias of the keys adds the same to every score of a token: softmax does not see it.
    heads = attention.num_heads
    keys = base @ attention.k_proj.weight.t()
    keys_pe = positions @ attention.k_proj.weight.t()
    value_shift = attention.v_proj.bias
    if shift is not None:
        value_shift = value_shift + attention.v_proj.weight @ shift
    return Read(
        keys=by_head(keys + keys_pe if shift is None else keys, heads).mT.contiguous(),
        keys_pe=None if shift is None else by_head(keys_pe, heads).mT.contiguous(),
        values=by_head(base @ attention.v_proj.weight.t(), heads).contiguous(),
        value_shift=by_head(value_shift[None], heads),
    )
