"""Randomness as an argument: one generator per example.

A picture depends on its own seed and on nothing else: not on the batch it was drawn in, the rank that drew it or
what was drawn before it. Noise is drawn on the CPU, so that a seed means the same picture on every device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Seeds", "key"]


def key(*parts: int | str) -> int:
    """A 63-bit seed from any integers and names; the only place where seeds are derived."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


class Seeds:
    """A row of generators, one per example of a batch.

    `Seeds(8)` is for sampling: picture i has the seed 8 + i, so picture 3 of `Seeds(5)` is picture 0 of `Seeds(8)`.
    `Seeds.at(seed, positions, stream)` is for training: the generator of an example is a function of the run's seed,
    of its global position in the run and of the name of the stream, and of nothing else.
    """

    __slots__ = ("_generators", "_seed", "positions", "seed")

    def __init__(self, seed: int = 0) -> None:
        self.seed = int(seed)
        self.positions: Sequence[int] | None = None  # None: grows to the batch that asks
        self._seed: Sequence[int] = ()
        self._generators: list[torch.Generator] = []

    @classmethod
    def pictures(cls, seeds: Sequence[int]) -> Seeds:
        """One picture seed per sample; equal seeds give equal noise."""
        self = cls(seeds[0] if seeds else 0)
        self.positions = seeds
        self._seed = [key("picture", int(seed)) for seed in seeds]
        return self

    @classmethod
    def at(cls, seed: int, positions: Sequence[int], stream: str = "") -> Seeds:
        """The generators of the training examples at `positions` of the run with this seed."""
        self = cls(seed)
        self.positions = positions
        self._seed = [key(seed, "train", int(position), stream) for position in positions]
        return self

    def pictures_of(self, n: int) -> list[int]:
        """The picture seeds of the first n samples."""
        return [self.seed + i for i in range(n)] if self.positions is None else [int(p) for p in self.positions[:n]]

    def __len__(self) -> int:
        return len(self._generators) if self.positions is None else len(self.positions)

    def __getitem__(self, part: slice) -> Seeds:
        """The same generators (shared, not copied) for a part of the batch."""
        if self.positions is None:
            raise TypeError("only Seeds.at(...) has a length to slice; Seeds(seed + k) begins k pictures later")
        other = Seeds(self.seed)
        self._grow(len(self.positions))
        other.positions, other._seed = self.positions[part], self._seed[part]
        other._generators = self._generators[part]
        return other

    def _grow(self, n: int) -> list[torch.Generator]:
        if self.positions is not None and n > len(self.positions):
            raise ValueError(f"asked for randomness of {n} examples, but these Seeds hold {len(self.positions)}")
        for i in range(len(self._generators), n):
            seed = key("picture", self.seed + i) if self.positions is None else self._seed[i]
            self._generators.append(torch.Generator().manual_seed(seed))
        return self._generators

    def normal(
        self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Standard normal numbers of `shape` (B, ...), row i from generator i."""
        out = torch.empty(tuple(shape), dtype=dtype)
        for row, generator in zip(out, self._grow(len(out)), strict=False):
            row.normal_(generator=generator)
        return out.to(device, non_blocking=True)

    def uniform(self, n: int | None = None) -> Tensor:
        """(n,) float64 numbers in [0, 1) on the CPU, one per generator."""
        n = len(self) if n is None else n
        return (
            torch.cat([torch.rand(1, dtype=torch.float64, generator=g) for g in self._grow(n)[:n]])
            if n
            else torch.empty(0, dtype=torch.float64)
        )

    def integers(self, high: int, n: int | None = None) -> Tensor:
        """(n,) integers in [0, high) on the CPU, one per generator."""
        n = len(self) if n is None else n
        return (
            torch.cat([torch.randint(high, (1,), generator=g) for g in self._grow(n)[:n]])
            if n
            else torch.empty(0, dtype=torch.int64)
        )
