"""The half U-Net that reads a noised picture (Dhariwal & Nichol 2021, arXiv:2105.05233, section 4).

    encoder and middle of a U-Net -> norm -> pool -> K numbers: logits of classes, or the one of a discriminator

`attention` pooling fixes the size of the pictures by its positional embedding; `average` reads any."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sfumato.networks.attention import attend
from sfumato.networks.blocks import LAST, linear
from sfumato.networks.config import UNetConfig
from sfumato.networks.unet import UNetEncoder

__all__ = ["AttentionPool", "AveragePool", "ClassifierConfig", "EncoderClassifier"]

Pool = Literal["attention", "average"]


@dataclass(frozen=True)
class ClassifierConfig:
    """`encoder.out` and whatever concerns a decoder alone is not used. Raises ValueError for what cannot be."""

    encoder: UNetConfig
    size: tuple[int, ...]  # of the pictures; one number for each of encoder.dims
    classes: int
    pool: Pool = "attention"

    def __post_init__(self) -> None:
        if len(self.size) != self.encoder.dims or min(self.size) < 1:
            raise ValueError(f"size is {self.size}: the encoder reads pictures with {self.encoder.dims} sides")
        if self.classes < 1 or self.pool not in ("attention", "average"):
            raise ValueError(f"{self.classes} classes and the pool {self.pool!r}: at least 1, attention or average")

    @property
    def coarse(self) -> tuple[int, ...]:
        """The size of the feature map that is pooled."""
        shrink = self.encoder.patch * 2 ** (len(self.encoder.widths) - 1)
        return tuple(-(-side // shrink) for side in self.size)


class AttentionPool(nn.Module):
    """(B, C, *S) of one size -> (B, K): the mean over positions looks at it and at all of them, once (CLIP's pooling).

    `position` (1 + N, C) is added, the mean's first; queries, keys and values are packed as in `SelfAttention`."""

    def __init__(self, channels: int, positions: int, classes: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.position = nn.Parameter(torch.randn(1 + positions, channels) / math.sqrt(channels))
        self.qkv = linear(channels, 3 * channels, parts=(channels,) * 3)
        self.project = linear(channels, classes)

    def forward(self, h: Tensor) -> Tensor:
        tokens = h.flatten(2).transpose(1, 2)
        if tokens.shape[1] + 1 != len(self.position):
            raise ValueError(
                f"attention pooling was made for {len(self.position) - 1} positions and got {tokens.shape[1]}: "
                "these pictures are of another size"
            )
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
        packed = self.qkv(tokens + self.position.to(tokens.dtype))
        q, k, v = packed.reshape(*packed.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        out: Tensor = self.project(attend(q[:, :, :1], k, v).flatten(1))
        return out


class AveragePool(nn.Module):
    """(B, C, *S) -> (B, K): the mean over positions, and a linear layer that begins near zero."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.project = linear(channels, classes, scale=LAST)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.project(h.flatten(2).mean(2))
        return out


class EncoderClassifier(nn.Module):
    """forward(x (B, channels, *size), time (B,) or (1,), vector (B, D)) -> (B, classes).

    `features` are the middle of the encoder, (B, widths[-1], *coarse), before the norm: what a discriminator that is
    trained upon a classifier reads."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config, c = config, config.encoder
        width = c.widths[-1]
        self.encoder = UNetEncoder(c)
        self.norm = c.norm(width)
        self.pool: AttentionPool | AveragePool = (
            AttentionPool(width, math.prod(config.coarse), config.classes, c.heads_of(width))
            if config.pool == "attention"
            else AveragePool(width, config.classes)
        )

    @property
    def checkpointing(self) -> bool:
        """Whether activations inside stages are computed a second time in place of being kept."""
        return self.encoder.checkpointing

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self.encoder.checkpointing = on

    def features(self, x: Tensor, time: Tensor, vector: Tensor | None = None) -> Tensor:
        middle: Tensor = self.encoder(x, time, vector).middle
        return middle

    def forward(self, x: Tensor, time: Tensor, vector: Tensor | None = None) -> Tensor:
        out: Tensor = self.pool(self.norm(self.features(x, time, vector)))
        return out
