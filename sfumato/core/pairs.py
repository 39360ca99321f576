"""Pairs of noise and data that a model's own flow joins: what reflow trains on (Liu et al. 2022, arXiv:2209.03003)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sfumato.core.random import Seeds

__all__ = ["Pair", "Pairs"]


class Pair(NamedTuple):
    """A batch of pairs."""

    noise: Tensor  # (B, C, *S), x_1
    data: Tensor  # (B, C, *S), where the flow takes it at t = 0
    numbers: Tensor  # (B,) int64, what the noise is keyed by


class Pairs(nn.Module):
    """The newest `size` pairs. Data are kept in half precision, 5e-4 off at 1; noise is made again from its number.

    Buffers, so that checkpoints carry them and a run goes on exactly."""

    ends: Tensor
    numbers: Tensor
    made: Tensor

    def __init__(self, size: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("ends", torch.zeros(size, *shape, dtype=torch.float16))
        self.register_buffer("numbers", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("made", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return min(int(self.made), len(self.ends))

    @staticmethod
    def noise(seed: int, numbers: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """x_1 (B, *shape) of the pairs with these numbers in the run with this seed."""
        return Seeds.at(seed, numbers, "pairs").normal((len(numbers), *shape), device=device)

    @torch.no_grad()
    def add(self, data: Tensor, numbers: Tensor) -> None:
        """Keep more pairs in place of the oldest: at most `size` of them, data (B, C, *S), numbers (B,)."""
        slots = (self.made + torch.arange(len(data), device=self.made.device)) % len(self.ends)
        self.ends[slots] = data.to(self.ends)
        self.numbers[slots] = numbers.to(self.numbers)
        self.made += len(data)

    def draw(self, rng: Seeds) -> Pair:
        """One pair for each generator; there must be some."""
        slots = rng.integers(len(self)).to(self.ends.device)
        numbers = self.numbers[slots]
        noise = self.noise(rng.seed, numbers.tolist(), self.ends.shape[1:], self.ends.device)
        return Pair(noise, self.ends[slots].to(noise.dtype), numbers)
