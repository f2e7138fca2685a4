"""Meta's mask decoder for many prompts on many images at once, with the folded algebra that a CPU can afford.

Same weights and results as `MaskDecoder.predict_masks`: 7 prompt tokens meet thousands of image tokens, so the key,
value and query projections of the image side are multiplied into the token side, and what the first layer computes
from the image alone is computed once per image.
"""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder, Sam
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn
from torch.nn import functional


def _heads(x: Tensor, attention: Attention) -> Tensor:
    """(N, T, D) to (N, heads, T, D / heads)."""
    return x.view(*x.shape[:2], attention.num_heads, -1).transpose(1, 2)


def _head_rows(weight: Tensor, attention: Attention) -> Tensor:
    """Projection weight (D, C) to (heads, D / heads, C)."""
    return weight.view(attention.num_heads, -1, weight.shape[1])


def tokens_to_image(attention: Attention, q: Tensor, image: Tensor, image_pe: Tensor, *, share: int) -> Tensor:
    """Attention of tokens over image positions.

    `q` (N, T, C); `image` and `image_pe` (N / share, L, C): values, and what is added to them for keys; `share`
    prompts in a row look at the same image. Returns (N, T, C).
    """
    prompts, tokens, _ = q.shape
    queries = _heads(attention.q_proj(q), attention)
    queries = queries @ _head_rows(attention.k_proj.weight, attention)
    scale = (attention.internal_dim // attention.num_heads) ** -0.5
    queries = queries.reshape(prompts // share, -1, q.shape[2]) * scale
    scores = queries.to(image.dtype) @ (image + image_pe).transpose(1, 2)
    mixed = (scores.softmax(2) @ image).float().view(prompts, attention.num_heads, tokens, -1)
    values = mixed @ _head_rows(attention.v_proj.weight, attention).transpose(1, 2)
    values = values.transpose(1, 2).flatten(2) + attention.v_proj.bias
    out: Tensor = attention.out_proj(values)
    return out


def image_to_tokens(
    attention: Attention, image: Tensor, image_pe: Tensor, k: Tensor, v: Tensor, *, share: int
) -> Tensor:
    """Attention of image positions over tokens: `k`, `v` (N, T, C), `image` (N / share, L, C) to (N, L, C)."""
    prompts, tokens, channels = k.shape
    heads = attention.num_heads
    keys = _heads(attention.k_proj(k), attention)
    scale = (attention.internal_dim // heads) ** -0.5
    constant = (keys * attention.q_proj.bias.view(1, heads, 1, -1)).sum(3) * scale
    keys = keys @ _head_rows(attention.q_proj.weight, attention) * scale
    keys = keys.reshape(prompts // share, -1, channels).to(image.dtype)
    scores = (image + image_pe) @ keys.transpose(1, 2)
    scores = scores.view(prompts // share, -1, share, heads, tokens)
    scores = scores + constant.view(prompts // share, 1, share, heads, tokens).to(image.dtype)
    weights = scores.softmax(4)
    weights = weights.transpose(1, 2).reshape(prompts, -1, heads * tokens)
    values = _heads(attention.v_proj(v), attention)
    out_rows = attention.out_proj.weight.t().unflatten(0, (heads, -1))
    values = (values @ out_rows).reshape(prompts, heads * tokens, -1)
    # each head's weights sum to one, so a head's share of the output bias may ride on its values
    values = values + attention.out_proj.bias / heads
    update: Tensor = weights @ values.to(image.dtype)
    return update


def decode_prompts(
    sam: Sam, embeddings: Tensor, points: Tensor | None, boxes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """All four masks for prompts on several images.

    `embeddings` (B, C, h, w); either `points` (B, P, 2), one foreground point a prompt, or `boxes` (B, P, 4), XYXY,
    both in input pixels. Returns mask logits (B * P, 4, 4h, 4w) and predicted IoU (B * P, 4); index 0 is the mask for
    unambiguous prompts.
    """
    decoder, transformer = sam.mask_decoder, sam.mask_decoder.transformer
    images, _, height, width = embeddings.shape
    prompt = points if points is not None else boxes
    assert prompt is not None
    per_image = prompt.shape[1]
    count = images * per_image
    labelled = None
    if points is not None:
        labelled = (points.reshape(count, 1, 2), torch.ones(count, 1, dtype=torch.int, device=points.device))
    sparse, _ = sam.prompt_encoder(labelled, None if boxes is None else boxes.reshape(count, 4), None)
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own[None].expand(count, -1, -1), sparse], 1)
    no_mask = sam.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
    image = (embeddings + no_mask.to(embeddings.dtype)).flatten(2).transpose(1, 2).contiguous()
    dense = sam.prompt_encoder.pe_layer((height, width))
    image_pe = dense.flatten(1).t()[None].to(image.dtype)

    queries, share = tokens, per_image
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = layer.self_attn(queries, queries, queries)
        else:
            q = queries + tokens
            queries = queries + layer.self_attn(q, q, queries)
        queries = layer.norm1(queries)
        q = queries + tokens
        queries = layer.norm2(
            queries + tokens_to_image(layer.cross_attn_token_to_image, q, image, image_pe, share=share)
        )
        queries = layer.norm3(queries + layer.mlp(queries))
        q = queries + tokens
        update = image_to_tokens(layer.cross_attn_image_to_token, image, image_pe, q, queries, share=share)
        if share > 1:
            update = update.view(images, share, *image.shape[1:]) + image[:, None]
            image = _layer_norm(update.flatten(0, 1), layer.norm4)
        else:
            image = _layer_norm(image + update, layer.norm4)
        share = 1
    q = queries + tokens
    queries = queries + tokens_to_image(transformer.final_attn_token_to_image, q, image, image_pe, share=share)
    queries = transformer.norm_final_attn(queries)

    masks_of = decoder.num_mask_tokens
    weights = torch.stack([decoder.output_hypernetworks_mlps[i](queries[:, 1 + i]) for i in range(masks_of)], 1)
    x = _upscale(decoder, image, height, width).view(count, -1, weights.shape[2])
    logits = x @ weights.transpose(1, 2).to(x.dtype)
    # axes: prompt, row, column, row in 2, column in 2, row in 4, column in 4, mask
    logits = logits.view(count, height, width, 2, 2, 2, 2, -1).permute(0, 7, 1, 3, 5, 2, 4, 6)
    logits = logits.reshape(count, -1, 4 * height, 4 * width)
    return logits.float(), decoder.iou_prediction_head(queries[:, 0])


def _layer_norm(x: Tensor, norm: nn.LayerNorm | LayerNorm2d) -> Tensor:
    """Over the last axis, in the precision of `x`."""
    return functional.layer_norm(x, x.shape[-1:], norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


def _upscale(decoder: MaskDecoder, image: Tensor, height: int, width: int) -> Tensor:
    """`decoder.output_upscaling` on (N, L, C), as products: (N, height, width, 2, 2, 2, 2, C / 8)."""
    first, norm, _, second, _ = decoder.output_upscaling
    x = image @ first.weight.permute(0, 2, 3, 1).flatten(1).to(image.dtype)
    x = x.view(image.shape[0], height, width, 2, 2, -1) + first.bias.to(x.dtype)
    x = functional.gelu(_layer_norm(x, norm))
    x = x @ second.weight.permute(0, 2, 3, 1).flatten(1).to(x.dtype)
    return functional.gelu(x.unflatten(-1, (2, 2, -1)) + second.bias.to(x.dtype))
