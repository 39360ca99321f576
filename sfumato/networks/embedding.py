"""The network's clock: a time becomes features, features become an embedding.

A time is whatever number the parametrisation hands over (an index 0..T-1, log sigma, 999 t); nothing here rescales it.
Sinusoidal features have frequencies `period^(-k / (half - shift))`, k = 0..half-1, half = width // 2:
- shift 1, sines first: Ho et al. 2020 (`nn.get_timestep_embedding`), DDIM, Score-SDE, EDM's SongUNet;
- shift 0, cosines first: improved- and guided-diffusion (`nn.timestep_embedding`), EDM's DhariwalUNet.
Fourier features have frequencies `2 pi w`, w ~ scale N(0, 1), drawn once and never trained (Tancik et al. 2020; NCSN++
with scale 16).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.networks.blocks import linear


def sinusoidal(
    time: Tensor, width: int, *, shift: float = 1.0, cosine_first: bool = False, period: float = 1e4
) -> Tensor:
    """Features (B, width) of `time` (B,); an odd width ends in a zero, as in every official code."""
    half = width // 2
    k = torch.arange(half, device=time.device, dtype=torch.float32)
    angle = time.float().unsqueeze(1) * torch.exp(-math.log(period) / (half - shift) * k)
    return _pair(angle, width, cosine_first)


def _pair(angle: Tensor, width: int, cosine_first: bool) -> Tensor:
    waves = (angle.cos(), angle.sin()) if cosine_first else (angle.sin(), angle.cos())
    return F.pad(torch.cat(waves, 1), (0, width - 2 * angle.shape[1]))


class Sinusoidal(nn.Module):
    """`sinusoidal` with its values fixed; no parameters."""

    def __init__(self, width: int, *, shift: float = 1.0, cosine_first: bool = False) -> None:
        super().__init__()
        self.width, self.shift, self.cosine_first = width, shift, cosine_first

    def forward(self, time: Tensor) -> Tensor:
        return sinusoidal(time, self.width, shift=self.shift, cosine_first=self.cosine_first)


class Fourier(nn.Module):
    """Random features; `frequencies` (width // 2,) is a buffer, so checkpoints carry it."""

    frequencies: Tensor

    def __init__(self, width: int, *, scale: float = 16.0, cosine_first: bool = False) -> None:
        super().__init__()
        self.width, self.cosine_first = width, cosine_first
        self.register_buffer("frequencies", scale * torch.randn(width // 2))

    def forward(self, time: Tensor) -> Tensor:
        angle = time.float().unsqueeze(1) * (2 * math.pi * self.frequencies.float())
        return _pair(angle, self.width, self.cosine_first)


class TimeEmbedding(nn.Module):
    """Features -> Linear -> SiLU -> Linear, plus the vector condition: (B,) -> (B, width).

    `vector` 0: the condition already has `width` numbers (a class embedding) and is added as it is;
    `vector` D: it has D numbers and goes through a linear layer first.
    `early`: it is added to the features, of which there are `inp`, instead.
    """

    def __init__(self, features: nn.Module, inp: int, width: int, *, vector: int = 0, early: bool = False) -> None:
        super().__init__()
        self.features, self.early = features, early
        self.first, self.second = linear(inp, width), linear(width, width)
        self.vector = linear(vector, inp if early else width) if vector else nn.Identity()

    def forward(self, time: Tensor, vector: Tensor | None = None) -> Tensor:
        h: Tensor = self.features(time).to(self.first.weight.dtype)
        if vector is not None and self.early:
            h, vector = h + self.vector(vector), None
        h = self.second(F.silu(self.first(h)))
        return h if vector is None else h + self.vector(vector)
