"""The shipped model: a Segment Anything model of three million parameters.

Only the image encoder is our own. Prompt encoder, two-way transformer and mask decoder are Meta's classes at width
128, so `segment_anything.SamPredictor`, `SamAutomaticMaskGenerator` and our engine take the model as it is.

A checkpoint is one safetensors file in half precision. Its metadata say how to build the model (`config`, JSON of
`NanoConfig`) and which settings of the automatic mask generator suit it (`generator`, JSON).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

EMBEDDING_STRIDE = 8
FOURIER_OCTAVES = 5
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True, slots=True)
class NanoConfig:
    """Shape of a nano model; stored as JSON in the checkpoint.

    `img_size`: side in pixels of the square input, a multiple of 16 (the weights work at any such size).
    `embed_dim`: channels of the image embedding, whose side is `img_size / 8`.
    `widths`: channels of the encoder at strides 2, 4, 8 and 16.
    `folded`: batch norms are folded into their convolutions (inference only).
    """

    img_size: int = 512
    embed_dim: int = 128
    widths: tuple[int, int, int, int] = (24, 32, 80, 144)
    heads: int = 4
    decoder_mlp_dim: int = 512
    folded: bool = False


class ConvNormAct(nn.Module):
    """3x3 or 1x1 convolution, batch norm (or its folded bias), and GELU unless `act` is False."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, act: bool = True, folded: bool
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=folded)
        self.norm: nn.Module = nn.Identity() if folded else nn.BatchNorm2d(outputs)
        self.act: nn.Module = nn.GELU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        y: Tensor = self.act(self.norm(self.conv(x)))
        return y


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., 2016); starts as the identity."""

    def __init__(self, channels: int, *, folded: bool) -> None:
        super().__init__()
        self.first = ConvNormAct(channels, channels, folded=folded)
        self.second = ConvNormAct(channels, channels, act=False, folded=folded)
        if isinstance(self.second.norm, nn.BatchNorm2d):
            nn.init.zeros_(self.second.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same shape."""
        return functional.gelu(x + self.second(self.first(x)))


class AttentionBlock(nn.Module):
    """Pre-norm transformer block over all positions of a (B, C, H, W) map."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.norm_mlp = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same shape."""
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(self.norm_attention(tokens)).view(batch, -1, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + self.out(mixed)
        tokens = tokens + self.mlp(self.norm_mlp(tokens))
        y: Tensor = tokens.transpose(1, 2).reshape(batch, channels, height, width)
        return y


class NanoEncoder(nn.Module):
    """Image (B, 3, S, S), normalised, to embedding (B, embed_dim, S/8, S/8).

    Most of the parameters and all attention work at stride 16, where positions are few. The embedding is put together
    at stride 8 from that map (upsampled by depth-to-space) and from the maps of strides 2, 4 and 8 (folded in by
    space-to-depth), so what a border needs below 8 px reaches the mask decoder, which answers at stride 2.
    """

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.img_size = config.img_size
        stride2, stride4, stride8, stride16 = config.widths
        folded = config.folded
        self.stage2 = ConvNormAct(3, stride2, stride=2, folded=folded)
        self.stage4 = nn.Sequential(
            ConvNormAct(stride2, stride4, stride=2, folded=folded), ResidualBlock(stride4, folded=folded)
        )
        self.stage8 = nn.Sequential(
            ConvNormAct(stride4, stride8, stride=2, folded=folded),
            ResidualBlock(stride8, folded=folded),
            ResidualBlock(stride8, folded=folded),
        )
        self.enter16 = ConvNormAct(stride8, stride16, stride=2, folded=folded)
        self.stage16 = nn.Sequential(
            ResidualBlock(stride16, folded=folded),
            AttentionBlock(stride16, config.heads),
            AttentionBlock(stride16, config.heads),
            ResidualBlock(stride16, folded=folded),
            AttentionBlock(stride16, config.heads),
            AttentionBlock(stride16, config.heads),
        )
        self.position16 = nn.Conv2d(4 * FOURIER_OCTAVES, stride16, 1)
        self.lateral2 = nn.Conv2d(stride2, 8, 1)
        self.lateral4 = nn.Conv2d(stride4, 32, 1)
        self.upsample16 = nn.Conv2d(stride16, 4 * 64, 1)
        self.fuse = nn.Sequential(
            ConvNormAct(8 * 16 + 32 * 4 + stride8 + 64, config.embed_dim, kernel=1, folded=folded),
            ConvNormAct(config.embed_dim, config.embed_dim, folded=folded),
            nn.Conv2d(config.embed_dim, config.embed_dim, 1),
        )
        self.position_out = nn.Conv2d(4 * FOURIER_OCTAVES, config.embed_dim, 1)
        self.norm_out = LayerNorm2d(config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised image (B, 3, S, S) to embedding (B, embed_dim, S/8, S/8), float."""
        at2 = self.stage2(x.contiguous(memory_format=torch.channels_last))
        at4 = self.stage4(at2)
        at8 = self.stage8(at4)
        at16 = self.enter16(at8)
        at16 = self.stage16(at16 + self.position16(fourier_positions(at16)))
        fused = self.fuse(
            torch.cat(
                [
                    functional.pixel_unshuffle(self.lateral2(at2), 4),
                    functional.pixel_unshuffle(self.lateral4(at4), 2),
                    at8,
                    functional.pixel_shuffle(self.upsample16(at16), 2),
                ],
                1,
            )
        )
        embedding: Tensor = self.norm_out(fused + self.position_out(fourier_positions(fused)))
        return embedding


def fourier_positions(like: Tensor) -> Tensor:
    """Sines and cosines of the cell centres over the whole image: (1, 4 * octaves, H, W) for a (B, C, H, W) map."""
    height, width = like.shape[-2:]
    y = (torch.arange(height, device=like.device) + 0.5) / height * 2 - 1
    x = (torch.arange(width, device=like.device) + 0.5) / width * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij"))
    angles = torch.cat([grid * (2.0**octave * math.pi / 2) for octave in range(FOURIER_OCTAVES)])
    return torch.cat([angles.sin(), angles.cos()])[None].to(like.dtype)


def build_nano(config: NanoConfig | None = None) -> Sam:
    """A nano model with fresh weights, in training mode."""
    config = config or NanoConfig()
    side = config.img_size // EMBEDDING_STRIDE
    return Sam(
        image_encoder=NanoEncoder(config),
        prompt_encoder=PromptEncoder(
            embed_dim=config.embed_dim,
            image_embedding_size=(side, side),
            input_image_size=(config.img_size, config.img_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=config.embed_dim, mlp_dim=config.decoder_mlp_dim, num_heads=config.heads
            ),
            transformer_dim=config.embed_dim,
            iou_head_depth=3,
            iou_head_hidden_dim=config.embed_dim,
        ),
        pixel_mean=list(PIXEL_MEAN),
        pixel_std=list(PIXEL_STD),
    )


def fold_batch_norms(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a training model as that of the same model with `folded=True`.

    Each `X.norm.*` beside an `X.conv.weight` becomes part of that convolution: same result in eval mode.
    """
    folded = {name: value for name, value in state.items() if ".norm." not in name}
    for name in state:
        if not name.endswith(".norm.running_var"):
            continue
        block = name.removesuffix(".norm.running_var")
        scale = state[f"{block}.norm.weight"] / torch.sqrt(state[name] + nn.BatchNorm2d(1).eps)
        folded[f"{block}.conv.weight"] = state[f"{block}.conv.weight"] * scale[:, None, None, None]
        folded[f"{block}.conv.bias"] = state[f"{block}.norm.bias"] - state[f"{block}.norm.running_mean"] * scale
    return folded


def save_nano(
    path: Path, state: Mapping[str, Tensor], config: NanoConfig, generator: Mapping[str, float | int]
) -> None:
    """Write a checkpoint: weights in half precision; configuration and generator settings as metadata.

    `generator`: keyword arguments for the automatic mask generator that suit this model.
    """
    save_file(
        {name: value.detach().half().contiguous() for name, value in state.items()},
        path,
        metadata={"config": json.dumps(asdict(config)), "generator": json.dumps(dict(generator))},
    )
