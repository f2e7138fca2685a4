"""Point prompts against one embedded image, by the rearranged transformer of `engine.folding`."""

from dataclasses import dataclass

import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.transformer import Attention, TwoWayTransformer
from torch import Tensor

from rerun_loader_sam.engine.folding import FoldedImage, FoldedWeights, by_head, fold_image
from rerun_loader_sam.engine.upscaling import FoldedUpscaling, UpscaledImage, can_fold_upscaling

# Attention weights (float32) of one layer that stay in a core's second-level cache from one operation to the next.
_CACHED_WEIGHTS = 200_000


def can_fold(sam: Sam) -> bool:
    """Whether the model's decoder is Meta's, in any size, so that the rearrangement holds."""
    decoder = sam.mask_decoder
    return type(decoder.transformer) is TwoWayTransformer and can_fold_upscaling(decoder)


class FoldedDecoder:
    """A model's decoder, prepared once."""

    def __init__(self, sam: Sam) -> None:
        self.sam = sam
        self.weights = FoldedWeights(sam.mask_decoder.transformer)
        self.upscaling = FoldedUpscaling(sam.mask_decoder)

    def with_image(self, embedding: Tensor, input_hw: tuple[int, int], *, mirrored: bool = False) -> "FoldedPrompts":
        """The decoder for one image.

        Args:
            embedding: What the encoder gave, (1, C, h, w).
            input_hw: The image's size as the model sees it, without padding: no logits are made beyond it.
            mirrored: The image is mirrored, as `views.View.of` does it; logits are turned back.
        """
        encoder = self.sam.prompt_encoder
        tokens = (embedding[0] + encoder.no_mask_embed.weight.view(-1, 1, 1)).flatten(1).t().contiguous()
        positions = encoder.get_dense_pe()[0].flatten(1).t().contiguous()
        image = fold_image(self.weights, tokens, positions)
        grid_hw = (embedding.shape[-2], embedding.shape[-1])
        upscaled = UpscaledImage(self.upscaling, image.base, grid_hw, input_hw, self.weights, mirrored=mirrored)
        return FoldedPrompts(self, image, upscaled)


@dataclass(slots=True)
class ImageState:
    """The image tokens of some prompts: x = u * base + weights.T @ R + const (see `engine.folding`).

    Attributes:
        prompts: Which prompts of the batch they are.
        factor: u, (P, N).
        weights: K, (k, P, N); its rows are filled from layer to layer, the first `rows` are in use.
        rows: How many rows of `weights` are in use.
    """

    prompts: slice
    factor: Tensor
    weights: Tensor
    rows: int = 0


@dataclass(frozen=True, slots=True)
class FoldedPrediction:
    """What a batch of P prompts gave, the masks not yet made.

    Attributes:
        predicted_iou: Of the masks of each prompt, (P, masks).
        hyper: What the last features are multiplied with for each of these masks, (P, masks, C / 8).
        states: The image's side, of as many prompts each as the first one has.
        values: The tokens' values that give R, of each layer: (P, heads, T, c).
        source: Makes logits of them.
    """

    predicted_iou: Tensor
    hyper: Tensor
    states: list[ImageState]
    values: list[Tensor]
    source: UpscaledImage

    def low_res_logits(self, prompt: int, masks: list[int]) -> Tensor:
        """Logits of chosen masks of one prompt, (len(masks), h, w), over the image without the padding."""
        return self.source.logits(*self._of(prompt), masks)

    def coarse_logits(self, prompt: int, masks: list[int]) -> Tensor:
        """Every fourth of these logits either way, from the third on, for a fifth of the cost."""
        return self.source.coarse_logits(*self._of(prompt), masks)

    def _of(self, prompt: int) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        group, within = divmod(prompt, len(self.states[0].factor))
        state = self.states[group]
        values = [values[prompt] for values in self.values]
        return state.factor[within], state.weights[:, within], values, self.hyper[prompt]


class FoldedPrompts:
    """An embedded image that answers point prompts."""

    def __init__(self, decoder: FoldedDecoder, image: FoldedImage, upscaled: UpscaledImage) -> None:
        self._sam = decoder.sam
        self._weights = decoder.weights
        self._image = image
        self._upscaled = upscaled

    @property
    def sketch_hw(self) -> tuple[int, int]:
        """Rows and columns of what `FoldedPrediction.coarse_logits` gives."""
        return self._upscaled.tokens_hw

    def predict(self, points_xy: Tensor) -> FoldedPrediction:
        """Several masks for each foreground point.

        Args:
            points_xy: In pixels of the model's input, (P, 2).
        """
        tokens = self._prompt_tokens(points_xy)
        transformer, image = self._weights.transformer, self._image
        n_prompts, n_tokens, _ = tokens.shape
        n_image = image.base.shape[0]
        heads = transformer.layers[0].cross_attn_image_to_token.num_heads
        rows = sum(heads * n_tokens + (depth > 0) for depth in range(transformer.depth))
        # The image's side is computed for as many prompts at once as a core's cache holds.
        together = n_prompts
        if tokens.device.type == "cpu":
            together = max(_CACHED_WEIGHTS // (heads * n_tokens * n_image), 1)
        groups = [slice(start, min(start + together, n_prompts)) for start in range(0, n_prompts, together)]
        states: list[ImageState] = []
        for group in groups:
            n = group.stop - group.start
            states.append(ImageState(group, tokens.new_ones(n, n_image), tokens.new_empty(rows, n, n_image)))
        values: list[Tensor] = []

        queries = self._attend_to_tokens(0, tokens, tokens)
        wanted = self._read_queries(0, queries + tokens)
        attended = torch.cat([self._read(0, wanted[group], None, None, None) for group in groups])
        for depth, layer in enumerate(transformer.layers):
            read: Attention = layer.cross_attn_token_to_image
            queries = layer.norm2(queries + read.out_proj(attended.transpose(1, 2).flatten(2)))
            queries = layer.norm3(queries + layer.mlp(queries))
            write: Attention = layer.cross_attn_image_to_token
            keys = by_head(write.k_proj(queries + tokens), heads) * (write.internal_dim // heads) ** -0.5
            values.append(by_head(write.v_proj(queries), heads))
            # The update of the image leaves the tokens alone, so that the next question is known before it:
            # each prompt's image tokens are then updated and read in one go.
            last = depth + 1 == transformer.depth
            queries_next = queries if last else self._attend_to_tokens(depth + 1, queries, tokens)
            wanted = self._read_queries(depth + 1, queries_next + tokens)
            attended = self._write_and_read(depth, keys, wanted, values, states)
            queries = queries_next
        final: Attention = transformer.final_attn_token_to_image
        out = transformer.norm_final_attn(queries + final.out_proj(attended.transpose(1, 2).flatten(2)))
        decoder = self._sam.mask_decoder
        # The first mask answers single-mask requests: upstream drops it when it is asked for several.
        predicted_iou = decoder.iou_prediction_head(out[:, 0])[:, 1:]
        heads_of_masks = list(decoder.output_hypernetworks_mlps)[1:]
        hyper = torch.stack([head(out[:, 2 + mask]) for mask, head in enumerate(heads_of_masks)], 1)
        return FoldedPrediction(predicted_iou, hyper, states, values, self._upscaled)

    def _prompt_tokens(self, points_xy: Tensor) -> Tensor:
        labels = torch.ones(len(points_xy), 1, dtype=torch.int, device=points_xy.device)
        sparse, _ = self._sam.prompt_encoder(points=(points_xy[:, None], labels), boxes=None, masks=None)
        decoder = self._sam.mask_decoder
        output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        return torch.cat([output.expand(len(sparse), -1, -1), sparse], dim=1)

    def _attend_to_tokens(self, depth: int, queries: Tensor, tokens: Tensor) -> Tensor:
        layer = self._weights.transformer.layers[depth]
        if layer.skip_first_layer_pe:
            return layer.norm1(layer.self_attn(q=queries, k=queries, v=queries))  # type: ignore[no-any-return]
        placed = queries + tokens
        return layer.norm1(queries + layer.self_attn(q=placed, k=placed, v=queries))  # type: ignore[no-any-return]

    def _read_attention(self, depth: int) -> Attention:
        transformer = self._weights.transformer
        if depth == transformer.depth:
            final: Attention = transformer.final_attn_token_to_image
            return final
        attention: Attention = transformer.layers[depth].cross_attn_token_to_image
        return attention

    def _read_queries(self, depth: int, placed: Tensor) -> Tensor:
        attention = self._read_attention(depth)
        scale = (attention.internal_dim // attention.num_heads) ** -0.5
        queries: Tensor = attention.q_proj(placed) * scale
        return by_head(queries, attention.num_heads)

    def _added_rows(self, values: list[Tensor], depth: int) -> Tensor:
        """R of the image tokens that enter layer `depth`, as far as `values` go: (P, k, C)."""
        return _stack_rows(values, *self._weights.spread_before(depth))

    def _write_and_read(
        self, depth: int, keys: Tensor, wanted: Tensor, values: list[Tensor], states: list[ImageState]
    ) -> Tensor:
        """Image-to-token update of layer `depth` and the next token-to-image attention: (P, heads, T, c)."""
        update = self._weights.updates[depth]
        heads = keys.shape[1]
        # Products that belong to the tokens' side are small; they are made for all prompts at once.
        scores_of_rows: Tensor | None = None
        if depth:
            write = self._weights.transformer.layers[depth].cross_attn_image_to_token
            added = self._added_rows(values[:-1], depth) @ write.q_proj.weight.t()
            scores_of_rows = (keys @ by_head(added, heads).mT).flatten(1, 2)
        before_norm = _stack_rows(values, update.spread, update.constants)
        gram = before_norm @ before_norm.mT
        attention = self._read_attention(depth + 1)
        added = self._added_rows(values, depth + 1)
        added_keys = by_head(added @ attention.k_proj.weight.t(), attention.num_heads)
        added_values = by_head(added @ attention.v_proj.weight.t(), attention.num_heads)
        read_scores = (wanted @ added_keys.mT).flatten(1, 2)

        attended: list[Tensor] = []
        for state in states:
            group = state.prompts
            self._write(
                depth,
                keys[group],
                None if scores_of_rows is None else scores_of_rows[group],
                values=[value[group] for value in values],
                gram=gram[group],
                state=state,
            )
            attended.append(self._read(depth + 1, wanted[group], read_scores[group], state, added_values[group]))
        return torch.cat(attended)

    def _read(
        self,
        depth: int,
        wanted: Tensor,
        scores_of_rows: Tensor | None,
        state: ImageState | None,
        added_values: Tensor | None,
    ) -> Tensor:
        """Token-to-image attention of a group of prompts: (P, heads, T, c).

        Before the first update (`state` is None) the image tokens are the same for all prompts.
        """
        read = self._image.reads[depth]
        scores = _product(wanted, read.keys)
        if state is None or scores_of_rows is None or added_values is None or read.keys_pe is None:
            return _attended(torch.softmax(scores, -1, out=scores), read.values) + read.value_shift
        weights = state.weights[: state.rows].transpose(0, 1)
        scores *= state.factor
        by_prompt = scores.flatten(0, 1).transpose(0, 1)
        _product(wanted, read.keys_pe, add_to=scores)
        torch.baddbmm(by_prompt, scores_of_rows, weights, out=by_prompt)
        torch.softmax(scores, -1, out=scores)
        from_rows = torch.unflatten(by_prompt @ weights.mT, 1, scores.shape[:2]) @ added_values
        scores *= state.factor
        return _attended(scores, read.values) + from_rows + read.value_shift

    def _write(
        self,
        depth: int,
        keys: Tensor,
        scores_of_rows: Tensor | None,
        *,
        values: list[Tensor],
        gram: Tensor,
        state: ImageState,
    ) -> None:
        """Image-to-token attention and layer norm of a group of prompts, in place in `state`."""
        write, update = self._image.writes[depth], self._weights.updates[depth]
        rows, factor = state.rows, state.factor
        scores = _product(keys, write.queries)
        heads, n_tokens = scores.shape[:2]
        if scores_of_rows is not None and write.queries_pe is not None:
            scores *= factor
            _product(keys, write.queries_pe, add_to=scores)
            by_prompt = scores.flatten(0, 1).transpose(0, 1)
            torch.baddbmm(by_prompt, scores_of_rows, state.weights[:rows].transpose(0, 1), out=by_prompt)
        new = state.weights[rows : rows + heads * n_tokens]
        torch.softmax(scores, 1, out=torch.unflatten(new, 0, (heads, n_tokens)))
        state.rows = gram.shape[-1]
        used = state.weights[: state.rows]
        if depth:
            used[-1] = 1
        # |u * base + K.T R|^2 = u^2 |base|^2 + K . (2 u * (R base.T) + (R R.T) K), token by token
        form = torch.empty_like(used)
        row = 0
        for layer, (value, overlap) in enumerate(zip(values, write.overlaps, strict=True)):
            _product(value, overlap, out=form[row : row + heads * n_tokens])
            row += heads * n_tokens
            if layer:
                form[row] = write.constant_overlaps[layer - 1]
                row += 1
        form *= 2 * factor
        by_prompt = form.transpose(0, 1)
        torch.baddbmm(by_prompt, gram, used.transpose(0, 1), out=by_prompt)
        form *= used
        square = torch.addcmul(form.sum(0), factor.square(), write.square_norms)
        denominator = (square.clamp_(min=0) / update.scale.numel() + update.eps).rsqrt_()
        used *= denominator
        factor *= denominator


def _stack_rows(values: list[Tensor], spread: tuple[Tensor, ...], constants: Tensor) -> Tensor:
    """R from the tokens' values: layer by layer heads * T rows, then the layer's constant: (P, k, C)."""
    rows: list[Tensor] = []
    for layer, (value, spreading) in enumerate(zip(values, spread, strict=True)):
        rows.append((value @ spreading).flatten(1, 2))
        if layer:
            rows.append(constants[layer - 1].expand(len(value), 1, -1))
    return torch.cat(rows, 1)


def _product(left: Tensor, shared: Tensor, *, out: Tensor | None = None, add_to: Tensor | None = None) -> Tensor:
    """left @ shared, where left is (P, heads, T, c) and shared, (heads, c, N), is the same for all prompts.

    Torch's own broadcasting would copy `shared` for each prompt.

    Returns:
        (heads, T, P, N): what a product makes without moving anything afterwards. Where it is added to something,
        or lies in `out`, that has as many numbers in that order.
    """
    n_prompts, heads, n_tokens, _ = left.shape
    rows = left.permute(1, 2, 0, 3).flatten(1, 2)
    if add_to is not None:
        flat = add_to.view(heads, n_tokens * n_prompts, -1)
        torch.baddbmm(flat, rows, shared, out=flat)
        return add_to
    into = None if out is None else out.view(heads, n_tokens * n_prompts, -1)
    return torch.bmm(rows, shared, out=into).view(heads, n_tokens, n_prompts, -1)


def _attended(weights: Tensor, values: Tensor) -> Tensor:
    """weights @ values, where weights is (heads, T, P, N) and values (heads, N, c): (P, heads, T, c)."""
    out = weights.flatten(1, 2) @ values
    return torch.unflatten(out, 1, weights.shape[1:3]).permute(2, 0, 1, 3)
