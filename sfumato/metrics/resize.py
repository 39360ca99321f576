"""Resizing as the field's figures were made, each mode one matrix per axis: exact, in any number of dimensions, on any
device.

clean       clean-fid: Pillow's bicubic in floating point, antialiased (Parmar et al. 2022, arXiv:2104.11222)
tf1         torch-fidelity, ADM, StyleGAN: TensorFlow 1's bilinear, pixel i at i (no half pixels), no antialiasing
bilinear    pytorch-fid: torch's bilinear, pixel i at i + 1/2, no antialiasing
antialias   torchmetrics: torch's bilinear with antialiasing

Two modes differ by several points of FID, so every figure carries the name of its mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from sfumato.errors import UserError

__all__ = ["MODES", "antialias", "bilinear", "clean", "mode", "resize", "tf1"]

Mode = Callable[[int, int], Tensor]  # (pixels there, pixels wanted) -> (wanted, there) float64, rows sum to 1


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2, as in Pillow."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _filtered(kernel: Callable[[Tensor], Tensor], there: int, wanted: int, dtype: torch.dtype) -> Tensor:
    """A kernel about the centre of each wanted pixel, as wide as that pixel where the picture shrinks. The centres are
    rounded to `dtype` as in the original."""
    scale = torch.tensor(there / wanted, dtype=dtype)
    centres = (scale * (torch.arange(wanted, dtype=dtype) + 0.5)).double()
    pixels = torch.arange(there, dtype=torch.float64) + 0.5
    weights = kernel((pixels - centres[:, None]) / max(there / wanted, 1.0))
    return weights / weights.sum(1, keepdim=True)


def _between(places: Tensor, there: int) -> Tensor:
    """Linear interpolation at `places`, which are float32 as in the originals."""
    low = places.floor().long()
    share = (places - low).double()
    weights = torch.zeros(len(places), there, dtype=torch.float64)
    rows = torch.arange(len(places))
    weights[rows, low] = 1 - share
    weights[rows, (low + 1).clamp(max=there - 1)] += share
    return weights


@lru_cache(64)
def clean(there: int, wanted: int) -> Tensor:
    return _filtered(_cubic, there, wanted, torch.float64)


@lru_cache(64)
def antialias(there: int, wanted: int) -> Tensor:
    return _filtered(_triangle, there, wanted, torch.float32)


@lru_cache(64)
def tf1(there: int, wanted: int) -> Tensor:
    return _between(torch.arange(wanted) * torch.tensor(there / wanted), there)


@lru_cache(64)
def bilinear(there: int, wanted: int) -> Tensor:
    places = torch.tensor(there / wanted).double() * (torch.arange(wanted) + 0.5) - 0.5  # rounded once, as fused
    return _between(places.float().clamp(min=0), there)


MODES: dict[str, Mode] = {"clean": clean, "tf1": tf1, "bilinear": bilinear, "antialias": antialias}


def mode(name: str) -> Mode:
    """The mode of that name. Raises UserError."""
    if name not in MODES:
        raise UserError(f"There is no resize mode '{name}': choose {', '.join(MODES)}.")
    return MODES[name]


def resize(pictures: Tensor, size: int | Sequence[int], how: Mode) -> Tensor:
    """uint8 or floating (B, C, *S) in 0..255 to float32 (or the floating type given) (B, C, *size), in 0..255, never
    rounded to levels again."""
    x = pictures if pictures.is_floating_point() else pictures.float()
    dims = x.ndim - 2
    sizes = [size] * dims if isinstance(size, int) else list(size)
    if tuple(sizes) == tuple(x.shape[2:]):
        return x
    for axis in reversed(range(dims)):  # the last axis first, as Pillow
        weights = how(x.shape[axis + 2], sizes[axis]).to(x)
        x = (x.transpose(axis + 2, -1) @ weights.T).transpose(axis + 2, -1)
    return x.clamp(0, 255)
