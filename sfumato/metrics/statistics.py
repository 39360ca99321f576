"""What is kept of features: their mean and covariance, and the rows themselves; built in shards, merged exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.errors import UserError

__all__ = ["Gaussian", "Moments", "Statistics"]


class Gaussian(NamedTuple):
    """mean (D,), cov (D, D) float64, and of how many samples (None: unknown)."""

    mean: Tensor
    cov: Tensor
    n: int | None = None


class Moments:
    """Mean and scatter of the rows seen so far, in float64 on the CPU.

    Two of them merge by Chan, Golub and LeVeque (1983): S = S_a + S_b + d d^T n_a n_b / n with d = m_b - m_a, so that
    shards give the single pass up to rounding (1e-12 and less), whatever the offset of the features.
    """

    __slots__ = ("mean", "n", "scatter")

    def __init__(self, width: int) -> None:
        self.n = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.scatter = torch.zeros(width, width, dtype=torch.float64)

    @classmethod
    def of(cls, rows: Tensor) -> Moments:
        """Of rows (N, D)."""
        self = cls(rows.shape[1])
        self.add(rows)
        return self

    def add(self, rows: Tensor) -> None:
        """Take in rows (B, D)."""
        if not len(rows):
            return
        rows = rows.detach().to("cpu", torch.float64)
        mean = rows.mean(0)
        rows = rows - mean
        self._join(len(rows), mean, rows.T @ rows)

    def merge(self, other: Moments) -> None:
        """Take in what another saw."""
        if other.n:
            self._join(other.n, other.mean, other.scatter)

    def _join(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        total, difference = self.n + n, mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(difference, difference) * (self.n * n / total)
        self.mean = self.mean + difference * (n / total)
        self.n = total

    @property
    def cov(self) -> Tensor:
        """(D, D), divided by n - 1."""
        if self.n < 2:
            raise UserError(f"A covariance needs two samples or more, here {self.n}.")
        return self.scatter / (self.n - 1)

    def gaussian(self) -> Gaussian:
        return Gaussian(self.mean, self.cov, self.n)

    def state(self) -> dict[str, Tensor]:
        return {"n": torch.tensor(self.n), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Moments:
        self = cls(len(state["mean"]))
        self.n, self.mean, self.scatter = int(state["n"]), state["mean"], state["scatter"]
        return self


class Statistics:
    """The features of a set, each row known by its position in the set.

    `identity` says what made them (network, weights, resize mode): rows of different identities are never compared.
    A position that was seen is not counted again, so that a resumed evaluation repeats nothing. `keep` holds the rows
    (float32), which all distances but the plain Frechet distance need.
    """

    def __init__(self, identity: str, width: int, *, keep: bool = True) -> None:
        self.identity, self.width, self.keep = identity, width, keep
        self.moments = Moments(width)
        self._seen: set[int] = set()
        self._rows: list[Tensor] = []
        self._positions: list[Tensor] = []

    def __len__(self) -> int:
        return self.moments.n

    def __contains__(self, position: int) -> bool:
        return position in self._seen

    def add(self, rows: Tensor, positions: Tensor) -> int:
        """Take in rows (B, D) of int64 positions (B,). Returns how many were new. Raises UserError for rows that are
        of another width or not finite."""
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise UserError(f"{self.identity}: features are {tuple(rows.shape)}, not (B, {self.width}).")
        fresh = [i for i, p in enumerate(positions.tolist()) if self._new(p)]
        rows = rows.detach().to("cpu")[fresh]
        if not rows.isfinite().all():
            raise UserError(f"{self.identity}: some features are not finite numbers: look at the pictures first.")
        self.moments.add(rows)
        if self.keep:
            self._rows.append(rows.float())
        self._positions.append(positions.cpu()[fresh])
        return len(fresh)

    def _new(self, position: int) -> bool:
        if position in self._seen:
            return False
        self._seen.add(position)
        return True

    def merge(self, other: Statistics) -> None:
        """Take in another shard. Raises UserError if it is of other features, ValueError if the shards overlap."""
        self.check(other)
        if self._seen & other._seen:
            raise ValueError(f"{len(self._seen & other._seen)} positions are in both shards")
        if self.keep != other.keep:
            raise ValueError("one shard keeps its rows, the other does not")
        self._seen |= other._seen
        self.moments.merge(other.moments)
        self._rows += other._rows
        self._positions += other._positions

    def check(self, other: Statistics) -> None:
        """Raises UserError unless both are of the same features."""
        if (self.identity, self.width) != (other.identity, other.width):
            raise UserError(
                f"Features of {self.identity} ({self.width} numbers) cannot be compared with features of "
                f"{other.identity} ({other.width}): compute both with the same --features."
            )

    @property
    def positions(self) -> Tensor:
        """(N,), sorted."""
        return torch.cat(self._positions).sort().values if self._positions else torch.empty(0, dtype=torch.int64)

    @property
    def rows(self) -> Tensor:
        """(N, D) float32, in the order of their positions, however they came in."""
        if not self.keep:
            raise ValueError("these statistics did not keep their rows")
        if not self._rows:
            return torch.empty(0, self.width)
        return torch.cat(self._rows)[torch.cat(self._positions).argsort()]

    def state(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint, a shard sent to another process, or a file."""
        state = {f"moments.{name}": tensor for name, tensor in self.moments.state().items()}
        state["positions"] = self.positions
        return state | ({"rows": self.rows} if self.keep else {})

    @classmethod
    def from_state(cls, identity: str, state: Mapping[str, Tensor]) -> Statistics:
        moments = Moments.from_state({name: state[f"moments.{name}"] for name in ("n", "mean", "scatter")})
        self = cls(identity, len(moments.mean), keep="rows" in state)
        self.moments, self._positions = moments, [state["positions"]]
        self._rows = [state["rows"]] if self.keep else []
        self._seen = set(state["positions"].tolist())
        return self
