"""Times: draws of t for training, grids of t for sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.core.process import Affine, Process
from sfumato.core.random import Seeds, key

__all__ = [
    "Respacing",
    "SecondMoment",
    "Spacing",
    "antithetic",
    "balanced",
    "entries",
    "leading",
    "log_normal",
    "log_snr",
    "logit_normal",
    "low_discrepancy",
    "normal_draw",
    "power",
    "quadratic",
    "strided",
    "trailing",
    "uniform",
    "uniform_draw",
    "weighted",
]

# -- draws: (B,) float64 in (0, 1], one per generator ------------------------------------------------------------------


def entries(rng: Seeds, T: int) -> Tensor:
    """Uniform over the entries of a table of T steps: t = (k + 1) / T (Ho et al. 2020, algorithm 1)."""
    return (rng.integers(T) + 1) / torch.tensor(float(T), dtype=torch.float64)


def uniform_draw(rng: Seeds) -> Tensor:
    """Uniform over (0, 1]."""
    return 1.0 - rng.uniform()


def normal_draw(rng: Seeds) -> Tensor:
    """(B,) float64 standard normal."""
    return rng.normal((len(rng),), dtype=torch.float64)


def log_normal(process: Affine, rng: Seeds, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """The t at which log(sigma / alpha) is normal (Karras et al. 2022, table 1), at most 1."""
    return process.time(-2.0 * (mean + std * normal_draw(rng)))


def logit_normal(rng: Seeds, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """The t whose logit is normal (Esser et al. 2024, arXiv:2403.03206, eq. 19): the middle more often than the
    ends."""
    return torch.sigmoid(mean + std * normal_draw(rng))


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


def weighted(rng: Seeds, shares: Tensor) -> Tensor:
    """Entries of a table, each as often as its share (T,), which sum to 1."""
    T = len(shares)
    k = torch.searchsorted(shares.cumsum(0), rng.uniform(), right=True).clamp(max=T - 1)
    return (k + 1) / torch.tensor(float(T), dtype=torch.float64)


class SecondMoment(nn.Module):
    """Draws the entry k of a table with probability p_k ~ sqrt(E[L_k^2]) over its last `keep` losses, and divides its
    loss by T p_k, so that the mean stays and varies less (Nichol & Dhariwal 2021, eq. 18).

    `floor` of the probability is shared evenly. Draws are even until every entry has its losses, and in evaluation. Of
    one entry the oldest loss is forgotten first."""

    history: Tensor  # (T, keep)
    count: Tensor  # (T,) losses seen

    def __init__(self, T: int, keep: int = 10, floor: float = 0.001) -> None:
        super().__init__()
        self.floor = floor
        self.register_buffer("history", torch.zeros(T, keep))
        self.register_buffer("count", torch.zeros(T, dtype=torch.int64))

    def shares(self) -> Tensor:
        """(T,) p_k in float64, on the CPU."""
        T, keep = self.history.shape
        even = torch.full((T,), 1.0 / T, dtype=torch.float64, device="cpu")
        if not self.training or bool((self.count < keep).any()):
            return even
        size = self.history.cpu().double().square().mean(1).sqrt()
        return torch.lerp(size / size.sum(), even, self.floor) if float(size.sum()) > 0.0 else even

    def draw(self, rng: Seeds) -> tuple[Tensor, Tensor]:
        """(B,) t, and (B,) what its loss is multiplied by."""
        shares = self.shares()
        t = weighted(rng, shares)
        return t, 1.0 / (len(shares) * shares[self._entries(t)])

    def _entries(self, t: Tensor) -> Tensor:
        return (t * len(self.count)).round().long() - 1

    @torch.no_grad()
    def remember(self, t: Tensor, losses: Tensor) -> None:
        """The losses (B,) at t (B,), before any weight, in the order of the batch."""
        k, by_entry = self._entries(t.to(self.count.device)).sort(stable=True)
        T, keep = self.history.shape
        rank = torch.arange(len(k), device=k.device) - torch.searchsorted(k, k)  # among the losses of its entry
        number = torch.bincount(k, minlength=T)
        last = rank >= number[k] - keep
        slot = (self.count[k] + rank) % keep
        self.history[k[last], slot[last]] = losses.to(k.device)[by_entry][last].to(self.history.dtype)
        self.count += number


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


def trailing(process: Process, steps: int, start: float, end: float) -> Tensor:
    """Equal steps in t, each rounded to an entry of a table: begins at t = 1 exactly (Lin et al. 2023,
    arXiv:2305.08891, table 2). Without a table: `uniform`."""
    grid = uniform(process, steps, start, end)
    if not hasattr(process, "__len__"):
        return grid
    T = _table(process, "trailing")
    if steps > T:
        raise ValueError(f"trailing spacing picks {steps} of {T} entries: ask for at most {T} steps")
    inner = (grid[1:-1] * T).round() / T
    return torch.cat([grid[:1], inner, grid[-1:]])


def strided(process: Process, steps: int, start: float, end: float) -> Tensor:
    """`Respacing(str(steps))`: entries of a table as evenly as they can be, the first and the last among them, and then
    t = 0. One step leads from t = 1 to 0."""
    return Respacing(str(steps))(process, steps, start, end) if steps > 1 else uniform(process, 1, start, end)


@dataclass(frozen=True)
class Respacing:
    """The entries of a table that the improved- and guided-diffusion codes' `timestep_respacing` names.

    "250": so many, evenly, both ends included; "10,20": so many of each of two equal parts; "ddim25": every n-th from
    entry 0, with the least n that gives as many. A grid begins at the last of them, which may be short of t = 1. Raises
    ValueError for a text that says nothing, for more entries than there are, and for a number of steps that is
    another."""

    text: str

    def __post_init__(self) -> None:
        if not self._counts or min(self._counts) < 0 or sum(self._counts) < 1:
            raise ValueError(f"'{self.text}' is no respacing: write such as 250, or 10,20,30, or ddim25")

    @property
    def __name__(self) -> str:
        return self.text

    @property
    def _counts(self) -> list[int]:
        parts = self.text.removeprefix("ddim").split(",")
        whole = all(part.strip().isdecimal() for part in parts) and not (self._stride and len(parts) > 1)
        return [int(part) for part in parts] if whole else []

    @property
    def _stride(self) -> bool:
        return self.text.startswith("ddim")

    @property
    def steps(self) -> int:
        return sum(self._counts)

    def entries(self, T: int) -> list[int]:
        """Indices of the entries, rising, of a table of T."""
        if self._stride:
            found = [n for n in range(1, T) if len(range(0, T, n)) == self.steps]
            if not found:
                raise ValueError(f"spacing {self.text}: no stride picks exactly {self.steps} of {T} entries")
            return list(range(0, T, found[0]))
        parts, kept, first = len(self._counts), list[int](), 0
        for i, count in enumerate(self._counts):
            size = T // parts + (i < T % parts)
            if count > size:
                raise ValueError(f"spacing {self.text} picks {count} of {size} entries: ask for fewer steps")
            at, stride = 0.0, (size - 1) / (count - 1) if count > 1 else 1.0
            for _ in range(count):  # a running sum, as there: its rounding decides ties
                kept.append(first + round(at))
                at += stride
            first += size
        return kept

    def __call__(self, process: Process, steps: int, start: float, end: float) -> Tensor:
        T = _table(process, f"{self.text}")
        if steps != self.steps:
            raise ValueError(f"spacing {self.text} takes {self.steps} steps, not {steps}")
        return _within([0.0, *((k + 1) / T for k in self.entries(T))], start, end)


def log_snr(process: Process, steps: int, start: float, end: float) -> Tensor:
    """Equal steps in log(alpha / sigma) down to `process.first`, then one to t = 0 (Lu et al. 2022, section 3.2)."""
    return _levels(process, steps, start, end, math.log, math.exp)


def power(process: Process, steps: int, start: float, end: float, *, rho: float = 7.0) -> Tensor:
    """Equal steps in (sigma / alpha)^(1 / rho) down to `process.first`, then one to t = 0 (Karras et al. 2022,
    eq. 5)."""
    return _levels(process, steps, start, end, lambda level: level ** (1 / rho), lambda u: u**rho)


def balanced(process: Process, steps: int, start: float, end: float) -> Tensor:
    """Equal steps in w log r + (1 - w) 3 sqrt(log(1 + r^2)) of r = sigma / alpha, then one to t = 0.

    The second term is t itself for a linear table of betas: steps there decide which mode a sample reaches, steps in
    log r how exactly it is reached. w falls from 1 at 15 steps to 0.4, as measured (docs/how-to-choose.md); 3 makes the
    two terms as long as each other from noise to data."""
    w = min(1.0, max(0.4, 15 / steps))

    def bend(level: float) -> float:
        return w * math.log(level) + (1 - w) * 3.0 * math.sqrt(math.log1p(level * level))

    return _levels(process, steps, start, end, bend, lambda u: _inverse(bend, u))


def _inverse(rising: Callable[[float], float], value: float) -> float:
    """Where a rising function of a noise level has a value, by bisection in its logarithm."""
    low, high = -40.0, 40.0
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(math.exp(middle)) < value else (low, middle)
    return math.exp((low + high) / 2)


_FAR = 160.0
"""The noise level, of data in [-1, 1], from which a single step leads to any higher one; the end of DDPM's table."""


def _levels(
    process: Process,
    steps: int,
    start: float,
    end: float,
    bend: Callable[[float], float],
    back: Callable[[float], float],
) -> Tensor:
    """Equal steps in bend(sigma / alpha), which must be increasing."""
    if not isinstance(process, Affine):
        raise ValueError(f"this spacing counts noise levels sigma / alpha, which {process} has not: use uniform")
    if end > start:
        return _levels(process, steps, end, start, bend, back).flip(0)
    low = max(end, process.first)
    inner = steps - (end < low)  # the last step goes below the first level
    if inner < 1:
        return torch.tensor([start, end], dtype=torch.float64)
    top = min(process.at(start).ratio, _FAR)
    u = torch.linspace(bend(top), bend(process.at(low).ratio), inner + 1, dtype=torch.float64)
    levels = torch.tensor([back(x) for x in u.tolist()[1:-1]], dtype=torch.float64)
    last = [low, end] if end < low else [end]
    return torch.tensor([start, *process.time(-2 * levels.log()).tolist(), *last], dtype=torch.float64)


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
