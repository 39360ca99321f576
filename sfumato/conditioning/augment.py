"""Augmentation that does not leak into the samples: the network is told what was done to each picture, and nothing when
it samples (Karras et al. 2022, arXiv:2206.00364, appendix F.2; Karras et al. 2020, arXiv:2006.06676)."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.random import Seeds

__all__ = ["NUMBERS", "Augment", "warp"]

NUMBERS = 9  # of what was done: flips 2, scale 1, rotation 2, anisotropy 2, translation 2
TAPS = 12  # of the low-pass filter
EDGE = TAPS // 4  # pixels that it reaches beyond a picture


class Augment(nn.Module):
    """Flips, scales, rotates, stretches and shifts pictures, each with its own chance, and tells what it did.

    A picture is mirrored with probability 1/2 and turned upside down with p / 2; with probability p each it is scaled
    by 2^(0.2 n), rotated by any angle, stretched by 2^(0.2 n) along an axis that in half of the cases is any, and
    shifted by n / 8 of its sides, n standard normal. All numbers come from the example's own generator. Unlike the
    official code, a root-raised cosine stands for its wavelet, the edges are reflected without a limit, and a picture
    that is only flipped is not filtered.

    forward(numbers (B, 9)) -> (B, width), for the vector condition; no bias: zeros, nothing done, add nothing."""

    def __init__(self, p: float, width: int) -> None:
        super().__init__()
        self.p = p
        self.linear = nn.Linear(NUMBERS, width, bias=False)

    def forward(self, numbers: Tensor) -> Tensor:
        vector: Tensor = self.linear(numbers)
        return vector

    @torch.no_grad()
    def pictures(self, x: Tensor, rng: Seeds) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) augmented, and what was done (B, 9). Nothing is written into x."""
        z = rng.normal((len(x), 14), dtype=torch.float64)
        u, n = torch.special.ndtr(z[:, :10]).T, z[:, 10:].T  # uniform and normal numbers
        often = (u[:5] < self.p).double()
        across, down = (u[5] < 0.5).double(), (u[6] < 0.5).double() * often[0]
        scale, angle = n[0] * often[1], (2 * u[7] - 1) * math.pi * often[2]
        stretch, axis = n[1] * often[3], (2 * u[8] - 1) * math.pi * (u[9] < 0.5)
        shift = n[2:] * often[4]
        parts = (across, down, scale, angle.cos() - 1, angle.sin(), stretch * axis.cos(), stretch * axis.sin(), *shift)
        numbers = torch.stack(parts, 1)
        x = _flipped(_flipped(x, across.bool(), -1), down.bool(), -2)
        moved = (numbers[:, 2:] != 0).any(1)
        if moved.any():
            linear = _linear(scale[moved], angle[moved], stretch[moved], axis[moved])
            x[moved.to(x.device)] = warp(x[moved.to(x.device)], linear, shift.T[moved] / 8)
        return x, numbers.to(x.device, torch.float32)


def _flipped(x: Tensor, which: Tensor, dim: int) -> Tensor:
    x, which = x.clone(), which.to(x.device)
    x[which] = x[which].flip(dim)
    return x


def _turn(angle: Tensor) -> Tensor:
    """(B, 2, 2) rotations."""
    c, s = angle.cos(), angle.sin()
    return torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)


def _linear(scale: Tensor, angle: Tensor, stretch: Tensor, axis: Tensor) -> Tensor:
    """(B, 2, 2): from where in the picture a place (x, y) of the result comes, seen from the centre."""
    both = torch.stack([-stretch - scale, stretch - scale], -1).mul(0.2).exp2()
    return _turn(angle) @ _turn(-axis) @ torch.diag_embed(both) @ _turn(axis)


@torch.no_grad()
def warp(x: Tensor, linear: Tensor, shift: Tensor) -> Tensor:
    """y(p) = x(linear (p - shift)) with p from the centre: x (B, C, H, W), linear (B, 2, 2) in pixels, (x, y), and
    shift (B, 2) as shares of the sides.

    At twice the resolution, between two low-pass filters, so that little aliases; beyond its edges x is reflected."""
    with torch.autocast(x.device.type, enabled=False):
        size = torch.tensor([x.shape[-1], x.shape[-2]], dtype=torch.float64)
        centre = (size - 1) / 2
        sides = [torch.arange(-EDGE, n + EDGE, 0.5, dtype=torch.float64) - 0.25 for n in x.shape[2:]]
        place = torch.stack(torch.meshgrid(*sides, indexing="ij")[::-1], -1)  # (2 (H + 6), 2 (W + 6), 2) of (x, y)
        place = place - centre - (shift.cpu() * size)[:, None, None]
        place = (linear.cpu()[:, None, None] @ place[..., None])[..., 0] + centre
        most = (size - 1).clamp(min=1e-6)
        folded = most - ((place % (2 * most)) - most).abs()
        grid = ((2 * folded + 1) / size - 1).to(x.device, torch.float32)
        fine = F.grid_sample(_doubled(x.float()), grid, mode="bilinear", padding_mode="border", align_corners=False)
        return _halved(fine[..., 1:-1, 1:-1]).to(x.dtype)


@lru_cache(maxsize=1)
def _lowpass(rolloff: float = 0.4) -> Tensor:
    """(12,) a root-raised cosine that passes half of the frequencies, under a slight Kaiser window; its sum is 2.

    Doubling and halving with it give a picture back within 1 %, which a plain sinc does not."""
    k = (torch.arange(TAPS, dtype=torch.float64) - (TAPS - 1) / 2) / 2
    lobes = torch.sin(math.pi * k * (1 - rolloff)) + 4 * rolloff * k * torch.cos(math.pi * k * (1 + rolloff))
    taps = lobes / (math.pi * k * (1 - (4 * rolloff * k) ** 2))
    taps = taps * torch.kaiser_window(TAPS, periodic=False, beta=1.0, dtype=torch.float64)
    return taps * (2 / taps.sum())


def _filters(x: Tensor) -> tuple[Tensor, Tensor]:
    """Along W and along H, for every channel by itself."""
    taps = _lowpass().to(x).repeat(x.shape[1], 1, 1)
    return taps[:, :, None], taps[..., None]


def _doubled(x: Tensor) -> Tensor:
    """(B, C, H, W) at twice the resolution; pixels stay where they are."""
    across, down = _filters(x)
    x, crop = _mirrored(x), 2 * EDGE
    x = F.conv_transpose2d(x, across, stride=(1, 2), padding=(0, TAPS // 2 - 1), groups=x.shape[1])
    x = F.conv_transpose2d(x, down, stride=(2, 1), padding=(TAPS // 2 - 1, 0), groups=x.shape[1])
    return x[..., crop:-crop, crop:-crop]


def _mirrored(x: Tensor) -> Tensor:
    """EDGE more pixels on every side, by reflection, however small x is."""
    for dim in (-2, -1):
        most = x.shape[dim] - 1
        index = torch.arange(-EDGE, x.shape[dim] + EDGE, device=x.device)
        index = most - (index % (2 * most) - most).abs() if most else index * 0
        x = x.index_select(dim, index)
    return x


def _halved(x: Tensor) -> Tensor:
    """(B, C, 2 n + 10, 2 m + 10) to (B, C, n, m), after the low-pass."""
    across, down = (taps / 2 for taps in _filters(x))
    x = F.conv2d(x, across, stride=(1, 2), groups=x.shape[1])
    return F.conv2d(x, down, stride=(2, 1), groups=x.shape[1])
