"""Pictures of which something is known: what inpainting, colouring, enlarging and deblurring tell a denoiser that was
never trained for them.

`Known` are numbers of x0 along some axes of the channels: pixels (the axes are the channels themselves), or the
brightness of every pixel (the first axis of `LUMA`). `Measured` is any linear function of x0: means of cells
(`shrunk`), a blurred picture (`blurred`). Three ways to draw the rest:

- `guidance.project(denoiser, known.paste)`: the known part is put into every guess of x0. Fast, and biased.
- `samplers.held.Held` in `samplers.restart.RePaint`: the known part is noised to every level, and steps are repeated;
  of `Known` alone.
- `guidance.reconstruct(denoiser, known.residue)`: what the known part says of the rest moves every guess."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LUMA", "Known", "Measured", "blurred", "shrunk", "spread"]

LUMA = torch.tensor(
    [
        [1 / math.sqrt(3), 1 / math.sqrt(3), 1 / math.sqrt(3)],
        [1 / math.sqrt(2), -1 / math.sqrt(2), 0.0],
        [1 / math.sqrt(6), 1 / math.sqrt(6), -2 / math.sqrt(6)],
    ],
    dtype=torch.float64,
)
"""Rows are axes of colour: sqrt(3) times the mean of the channels, and two that leave it as it is. Orthonormal, so that
white noise stays white noise (Song et al. 2021, arXiv:2011.13456, on colorization; any basis with this first axis
serves)."""


@dataclass(frozen=True)
class Known:
    """`values` of x0 where `keep`, both (1 or B, C, *S), channels counted along the rows of `basis` (C, C)."""

    values: Tensor
    keep: Tensor  # bool
    basis: Tensor | None = None  # None: the channels themselves
    noise: float = 0.0  # deviation of what was added to the values

    def turn(self, x: Tensor) -> Tensor:
        """x (B, C, *S) along the axes."""
        return x if self.basis is None else _mixed(self.basis, x)

    def put(self, x: Tensor, values: Tensor) -> Tensor:
        """x with `values`, along the axes, in place of what is known."""
        mixed = torch.where(self.keep, values.to(x.dtype), self.turn(x))
        return mixed if self.basis is None else _mixed(self.basis.T, mixed)

    def paste(self, x: Tensor) -> Tensor:
        """x with the known values."""
        return self.put(x, self.values)

    def residue(self, x0: Tensor) -> Tensor:
        """By how much x0 misses them, along the axes; 0 where nothing is known."""
        return (self.values - self.turn(x0)) * self.keep


@dataclass(frozen=True)
class Measured:
    """`values` = of(x0) + noise, of x0 (1 or B, C, *S) and linear."""

    values: Tensor
    of: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor] | None = None  # of(inverse(y)) = y
    noise: float = 0.0  # deviation of what was added to the values

    def paste(self, x: Tensor) -> Tensor:
        """x, moved so that it is what was measured. Raises ValueError without an inverse."""
        if self.inverse is None:
            raise ValueError("nothing can be put in place of what was measured: it has no inverse")
        return x + self.inverse(self.residue(x))

    def residue(self, x0: Tensor) -> Tensor:
        """By how much x0 misses what was measured."""
        return self.values.to(x0.dtype) - self.of(x0)


def shrunk(x: Tensor, factor: int) -> Tensor:
    """(B, C, *S) -> (B, C, *S / factor): means of cells."""
    return F.interpolate(x, tuple(side // factor for side in x.shape[2:]), mode="area")


def spread(x: Tensor, factor: int) -> Tensor:
    """(B, C, *S) -> (B, C, *S factor): every number fills a cell; `shrunk` takes it back."""
    for axis in range(2, x.ndim):
        x = x.repeat_interleave(factor, axis)
    return x


def blurred(x: Tensor, width: float) -> Tensor:
    """(B, C, *S) under a normal bell of deviation `width` pixels, cut at 4 of them; mirrored beyond the edges, as
    scipy's `gaussian_filter` has it."""
    reach = max(1, int(4 * width + 0.5))
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    bell = (-0.5 * (at / width) ** 2).exp()
    bell = (bell / bell.sum()).to(x)
    for axis in range(2, x.ndim):
        lines = x.movedim(axis, -1)
        side = lines.shape[-1]
        mirrored = torch.arange(-reach, side + reach, device=x.device) % (2 * side)
        mirrored = torch.minimum(mirrored, 2 * side - 1 - mirrored)
        padded = lines[..., mirrored].reshape(-1, 1, side + 2 * reach)
        x = F.conv1d(padded, bell[None, None]).reshape(lines.shape).movedim(-1, axis)
    return x


def _mixed(basis: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("ij,bj...->bi...", basis.to(x), x)
