"""Times: draws of t for training, grids of t for sampling."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.core.process import Process
from sfumato.core.random import Seeds, key

__all__ = ["Spacing", "antithetic", "entries", "leading", "low_discrepancy", "quadratic", "uniform", "uniform_draw"]

# -- draws: (B,) float64 in (0, 1], one per generator ------------------------------------------------------------------


def entries(rng: Seeds, T: int) -> Tensor:
    """Uniform over the entries of a table of T steps: t = (k + 1) / T (Ho et al. 2020, algorithm 1)."""
    return (rng.integers(T) + 1) / torch.tensor(float(T), dtype=torch.float64)


def uniform_draw(rng: Seeds) -> Tensor:
    """Uniform over (0, 1]."""
    return 1.0 - rng.uniform()


def antithetic(rng: Seeds, T: int) -> Tensor:
    """Pairs that mirror each other, k and T - 1 - k (Song et al. 2020, the DDIM code), at positions 2 j and 2 j + 1 of
    the run."""
    positions = torch.tensor(list(_positions(rng)))
    pairs = Seeds.at(rng.seed, (positions // 2).tolist(), "antithetic")
    k = pairs.integers(T)
    return (torch.where(positions % 2 == 1, T - 1 - k, k) + 1) / torch.tensor(float(T), dtype=torch.float64)


def low_discrepancy(rng: Seeds) -> Tensor:
    """Uniform over (0, 1] and nearly even in any run of consecutive examples: the golden-ratio sequence from a random
    start.

    The loss of a batch then varies less with the t it happened to get (the aim of Kingma et al. 2021, appendix I.1),
    while t remains a function of the example's position alone."""
    start = key(rng.seed, "low discrepancy") / 2**63
    golden = (math.sqrt(5.0) - 1.0) / 2.0
    n = torch.tensor([float(p % 2**24) for p in _positions(rng)], dtype=torch.float64)
    return 1.0 - (start + n * golden) % 1.0


def _positions(rng: Seeds) -> range | list[int]:
    return list(rng.positions) if rng.positions is not None else range(len(rng))


# -- grids: from `start` to `end`, monotone, float64 -------------------------------------------------------------------

Spacing = Callable[[Process, int, float, float], Tensor]  # (process, steps, start, end) -> (steps + 1,)


def uniform(process: Process, steps: int, start: float, end: float) -> Tensor:
    """Equal steps in t. On a table of T entries with S | T it visits the indices T - 1, T - 1 - T/S, ...
    ("trailing")."""
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


def leading(process: Process, steps: int, start: float, end: float) -> Tensor:
    """Every (T // S)-th entry of a table from entry 0: the "uniform" of the DDIM code, which begins short of t = 1.

    When S does not divide T there are more than S steps, as there (S = 30 of 1000: 31). Raises ValueError without a
    table."""
    T = _table(process, "leading")
    if steps > T:
        raise ValueError(f"leading spacing picks {steps} of {T} entries: ask for at most {T} steps")
    return _within([0.0, *((k + 1) / T for k in range(0, T, T // steps))], start, end)


def quadratic(process: Process, steps: int, start: float, end: float) -> Tensor:
    """Entries int((linspace(0, sqrt(0.8 T), S))^2) of a table, the "quad" of the DDIM code: dense near the data.

    It begins at t = 0.8, where x is still taken as standard normal. Without a table: the squares of equal steps, up to
    t = 1."""
    if not hasattr(process, "__len__"):
        return _within((torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** 2).tolist(), start, end)
    T = _table(process, "quadratic")
    kept = (torch.linspace(0, math.sqrt(0.8 * T), steps, dtype=torch.float64) ** 2).long().tolist()
    return _within([0.0, *((k + 1) / T for k in sorted(set(kept)))], start, end)


def _table(process: Process, name: str) -> int:
    if not hasattr(process, "__len__"):
        raise ValueError(f"{name} spacing picks entries of a table of steps, and {process} has none: use uniform")
    return len(process)


def _within(rising: list[float], start: float, end: float) -> Tensor:
    """The knots between the two ends, in the direction of travel. A grid to t = 1 may begin short of it; others
    include both."""
    low, high = min(start, end), max(start, end)
    kept = [t for t in rising if low <= t <= high]
    kept = kept if kept and kept[0] == low else [low, *kept]
    kept = kept if high == 1.0 or kept[-1] == high else [*kept, high]
    grid = torch.tensor(kept, dtype=torch.float64)
    return grid if end > start else grid.flip(0)
