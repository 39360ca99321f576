"""Pictures of which a part is known: what inpainting and colouring tell a denoiser that was never trained for them.

Known are numbers of x0 along some axes of the channels: pixels (the axes are the channels themselves), or the
brightness of every pixel (the first axis of `LUMA`). Three ways to draw the rest:

- `guidance.project(denoiser, known.paste)`: the known part is put into every guess of x0. Fast, and biased.
- `samplers.held.Held` in `samplers.restart.RePaint`: the known part is noised to every level, and steps are repeated.
- `guidance.reconstruct(denoiser, known.residue)`: what the known part says of the rest moves every guess."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LUMA", "Known"]

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


def _mixed(basis: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("ij,bj...->bi...", basis.to(x), x)
