"""TEMPORARY, never committed: the first trial's encoder, until the first checkpoint of the real nano is here."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

FORMAT = "rerun-loader-sam nano first trial"


def _down(i: int, o: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.GELU())


class _Res(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.f = nn.Sequential(
            nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.GELU(),
            nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.f(x))


class _Attn(nn.Module):
    def __init__(self, c: int, heads: int = 4) -> None:
        super().__init__()
        self.h, self.n1, self.qkv, self.o = heads, nn.LayerNorm(c), nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.n2, self.m = nn.LayerNorm(c), nn.Sequential(nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        t = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.n1(t)).view(b, h * w, 3, self.h, c // self.h).permute(2, 0, 3, 1, 4)
        t = t + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, c))
        t = t + self.m(self.n2(t))
        return t.transpose(1, 2).reshape(b, c, h, w)


class _Encoder(nn.Module):
    def __init__(self, img_size: int, out: int, c: tuple[int, ...] = (24, 48, 96, 160)) -> None:
        super().__init__()
        self.img_size = img_size
        self.s4 = nn.Sequential(_down(3, c[0]), _down(c[0], c[1]), _Res(c[1]))
        self.s8 = nn.Sequential(_down(c[1], c[2]), _Res(c[2]), _Res(c[2]))
        self.s16 = nn.Sequential(
            _down(c[2], c[3]), _Res(c[3]), _Attn(c[3]), _Res(c[3]), _Attn(c[3]), _Res(c[3]), _Attn(c[3])
        )
        self.p4, self.p8 = nn.Conv2d(c[1], 16, 1), nn.Conv2d(c[2], 32, 1)
        self.neck = nn.Sequential(
            nn.Conv2d(16 * 16 + 32 * 4 + c[3], out, 1, bias=False), nn.BatchNorm2d(out), nn.GELU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False), LayerNorm2d(out),
        )  # fmt: skip
        self.pos, self.pos_out = nn.Conv2d(20, c[3], 1), nn.Conv2d(20, out, 1)

    def grid(self, h: int, w: int) -> Tensor:
        y, x = torch.meshgrid((torch.arange(h) + 0.5) / h * 2 - 1, (torch.arange(w) + 0.5) / w * 2 - 1, indexing="ij")
        return torch.cat(
            [f(2.0**k * math.pi / 2 * g)[None] for k in range(5) for f in (torch.sin, torch.cos) for g in (y, x)]
        )[None]

    def forward(self, x: Tensor) -> Tensor:
        a = self.s4(x)
        b = self.s8(a)
        c = self.s16[:2](b)
        p = self.grid(*c.shape[-2:]).to(x)
        c = self.s16[2:](c + self.pos(p))
        fused = torch.cat([F.pixel_unshuffle(self.p4(a), 4), F.pixel_unshuffle(self.p8(b), 2), c], 1)
        y: Tensor = self.neck[4](self.neck[:4](fused) + self.pos_out(p))
        return y


def build(img_size: int = 512) -> Sam:
    e, dim = img_size // 16, 128
    return Sam(
        image_encoder=_Encoder(img_size, dim),
        prompt_encoder=PromptEncoder(
            embed_dim=dim, image_embedding_size=(e, e), input_image_size=(img_size, img_size), mask_in_chans=16
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=dim, mlp_dim=512, num_heads=4),
            transformer_dim=dim, iou_head_depth=3, iou_head_hidden_dim=128,
        ),
        pixel_mean=[123.675, 116.28, 103.53], pixel_std=[58.395, 57.12, 57.375],
    )  # fmt: skip


def load(path: Any) -> Sam:
    from safetensors.torch import load_file

    sam = build()
    sam.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return sam.eval()
