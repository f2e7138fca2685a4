"""Mask logits from the transformer's output, only where a mask is wanted and the image is.

Upstream's chain (Sam's mask decoder): a transposed convolution, layer norm, activation, another transposed
convolution, activation, then a product with a vector made of the mask's token. Both convolutions have a kernel and a
stride of 2, so each is one product of matrices; the first acts on image tokens in their folded form
(`engine.folding`). Channels come first throughout, so that all products run along the image's tokens.
"""

import math

import torch
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

from rerun_loader_sam.engine.folding import FoldedWeights, centred

# Tokens that a CPU upscales together: the widest intermediate, 16 * C / 8 floats a token, then stays near 1 MB.
_TOKENS_AT_ONCE = 512


def can_fold_upscaling(decoder: MaskDecoder) -> bool:
    """Whether the decoder's upscaling is Meta's chain, in any width."""
    chain = list(decoder.output_upscaling)
    if len(chain) != 5 or not isinstance(chain[1], LayerNorm2d):
        return False
    convolutions = (chain[0], chain[3])
    return all(
        isinstance(layer, nn.ConvTranspose2d)
        and layer.kernel_size == layer.stride == (2, 2)
        and layer.padding == layer.output_padding == (0, 0)
        and layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.bias is not None
        for layer in convolutions
    )


class FoldedUpscaling:
    """The weights of the upscaling as matrices, prepared once per model."""

    def __init__(self, decoder: MaskDecoder) -> None:
        first, norm, self.first_activation, second, self.second_activation = decoder.output_upscaling
        self.decoder = decoder
        # (C, 4, C/4): the layer norm's centring is in it.
        self.first_weight = centred(first.weight.flatten(2).transpose(1, 2))
        self.first_bias = centred(first.bias).expand(4, -1)
        self.norm_weight: Tensor = norm.weight[:, None]
        self.norm_bias: Tensor = norm.bias[:, None]
        self.eps: float = norm.eps
        # (4 * C/8, C/4)
        self.second_weight = second.weight.flatten(2).permute(2, 1, 0).flatten(0, 1).contiguous()
        self.second_bias = second.bias.repeat(4)[:, None]


class UpscaledImage:
    """Makes logits for prompts of one image.

    Args:
        upscaling: The model's weights.
        base: The image tokens' shared part, (N, C).
        grid_hw: Tokens down and across, N = h * w.
        input_hw: The image's size in the model's input, without padding.
        weights: Of the transformer.
        mirrored: The tokens show the image as `views.View.of` mirrors it; logits are turned back.
    """

    def __init__(
        self,
        upscaling: FoldedUpscaling,
        base: Tensor,
        grid_hw: tuple[int, int],
        input_hw: tuple[int, int],
        weights: FoldedWeights,
        *,
        mirrored: bool,
    ) -> None:
        self._upscaling = upscaling
        # A token has four logits along a side. Interpolation looks one beyond the image's last one.
        tokens_per_pixel = max(grid_hw) / max(input_hw)
        self._grid_hw = grid_hw
        self._rows, self._columns = (
            min(tokens, math.ceil((math.ceil(4 * size * tokens_per_pixel) + 1) / 4))
            for tokens, size in zip(grid_hw, input_hw, strict=True)
        )
        # Mirrored, the last token that shows something comes first, and there is nothing beyond it.
        self._beyond = 0
        self._mirrored = mirrored
        if mirrored:
            shown = math.ceil(input_hw[1] * tokens_per_pixel)
            self._beyond, self._columns = self._columns - shown, shown
        self._rows_at_once = self._rows
        if base.device.type == "cpu":
            self._rows_at_once = max(_TOKENS_AT_ONCE // self._columns, 1)
        first = upscaling.first_weight.flatten(1)
        self._base = self._within_image((base @ first).t()).contiguous()
        constant = weights.shifts[-1] @ first + upscaling.first_bias.flatten()
        self._constant = constant[:, None]
        self._spread = tuple(rows @ first for rows in weights.final_spread)
        self._constants = weights.final_constants @ first

    @property
    def tokens_hw(self) -> tuple[int, int]:
        """Tokens down and across of which there are logits."""
        return self._rows, self._columns + self._beyond

    def logits(
        self, factor: Tensor, weights: Tensor, values: list[Tensor], hyper: Tensor, masks: list[int]
    ) -> Tensor:
        """Logits of some masks of one prompt.

        Args:
            factor: u, (N,).
            weights: K, (k, N).
            values: The tokens' values of each layer, (heads, T, c).
            hyper: What the last features are multiplied with for each multi-mask output, (masks, C / 8).
            masks: Which of them are wanted.

        Returns:
            float32, (len(masks), 4 * rows, 4 * columns): tokens that lie in the padding are left out.
        """
        upscaling = self._upscaling
        wanted = hyper[masks]
        added = self._added(values).t().contiguous()
        height, width = self._rows, self._columns
        weights, factor = self._within_image(weights), self._within_image(factor)
        out = added.new_empty(4, 4, len(masks), height, width)
        for start in range(0, height, self._rows_at_once):
            rows_here = slice(start, start + self._rows_at_once)
            part = weights[:, rows_here].flatten(1)
            hidden = torch.addcmul(self._constant, self._base[:, rows_here].flatten(1), factor[rows_here].flatten())
            hidden = torch.unflatten(torch.addmm(hidden, added, part), 0, (4, -1))
            hidden = self._normalised(hidden)
            hidden = (upscaling.second_weight @ hidden).add_(upscaling.second_bias)
            hidden = torch.unflatten(upscaling.second_activation(hidden), 1, (4, -1))
            out[:, :, :, rows_here] = torch.unflatten(wanted @ hidden, -1, (-1, width))
        # (dy dx, ey ex, mask, y, x) to (mask, y dy ey, x dx ex)
        fine = out.view(2, 2, 2, 2, len(masks), height, width)
        fine = fine.permute(4, 5, 0, 2, 6, 1, 3).reshape(len(masks), 4 * height, 4 * width)
        return self._turned_back(fine, 4 * self._beyond)

    def coarse_logits(
        self, factor: Tensor, weights: Tensor, values: list[Tensor], hyper: Tensor, masks: list[int]
    ) -> Tensor:
        """One of each token's 16 logits, the one beside its centre: (len(masks), rows, columns); see `logits`."""
        upscaling = self._upscaling
        # The third of four logits down and across; mirrored, the third from the right: of the pairs (dy, dx) and
        # (ey, ex) of the two convolutions (1, 1) and (0, 0), or (1, 0) and (0, 1).
        quarter = _quarter(len(self._constant), 2 if self._mirrored else 3)
        weights = self._within_image(weights).flatten(1)
        factor = self._within_image(factor).flatten()
        hidden = torch.addcmul(self._constant[quarter], self._base[quarter].flatten(1), factor)
        hidden = torch.addmm(hidden, self._added(values)[:, quarter].t(), weights)
        hidden = self._normalised(hidden[None])[0]
        second = _quarter(len(upscaling.second_weight), 1 if self._mirrored else 0)
        hidden = torch.addmm(upscaling.second_bias[second], upscaling.second_weight[second], hidden)
        logits = hyper[masks] @ upscaling.second_activation(hidden)
        coarse: Tensor = logits.view(len(masks), self._rows, self._columns)
        return self._turned_back(coarse, self._beyond)

    def _turned_back(self, logits: Tensor, beyond: int) -> Tensor:
        """Logits (masks, rows, columns) as the image lies; those of `beyond` more columns are as the last ones."""
        if not self._mirrored:
            return logits
        return functional.pad(logits.flip(-1), (0, beyond), mode="replicate")

    def _added(self, values: list[Tensor]) -> Tensor:
        """R after the first convolution: (k, 4 * C / 4)."""
        rows: list[Tensor] = []
        for layer, (value, spread) in enumerate(zip(values, self._spread, strict=True)):
            rows.append((value @ spread).flatten(0, 1))
            if layer:
                rows.append(self._constants[layer - 1][None])
        return torch.cat(rows)

    def _normalised(self, hidden: Tensor) -> Tensor:
        """Layer norm and activation over axis 1 of (n, C / 4, tokens), which are centred already; overwrites them."""
        upscaling = self._upscaling
        scale = (hidden.square().mean(1, keepdim=True) + upscaling.eps).rsqrt_()
        normal = torch.addcmul(upscaling.norm_bias, hidden.mul_(scale), upscaling.norm_weight)
        activated: Tensor = upscaling.first_activation(normal)
        return activated

    def _within_image(self, by_token: Tensor) -> Tensor:
        """(..., N) as (..., rows, columns) without the tokens that lie in the padding."""
        return torch.unflatten(by_token, -1, self._grid_hw)[..., : self._rows, : self._columns]


def _quarter(size: int, number: int) -> slice:
    return slice(number * size // 4, (number + 1) * size // 4)
