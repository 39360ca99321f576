"""How consistency models are trained: levels that get closer, targets that lag less, a step along the flow (Song et al.
2023, arXiv:2303.01469; the improvements of Song & Dhariwal 2023, arXiv:2310.14189, iCT)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sfumato.core import times
from sfumato.core.denoiser import Denoiser
from sfumato.core.estimate import Estimate, like
from sfumato.core.process import Affine, Point
from sfumato.core.random import Seeds

__all__ = [
    "Distance",
    "Draw",
    "Growth",
    "adaptive",
    "exponential",
    "fixed",
    "heun",
    "levels",
    "log_normal",
    "pseudo_huber",
    "replayed",
    "root",
    "squared",
    "uniform",
]

# -- levels ------------------------------------------------------------------------------------------------------------

Growth = Callable[[int, int, int, int], int]
"""(step, steps of the run, fewest, most) -> the number of levels N in this step."""


def fixed(step: int, total: int, fewest: int, most: int) -> int:
    return most


def root(step: int, total: int, fewest: int, most: int) -> int:
    """ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1, from s0 = `fewest` to s1 + 1 = `most` + 1 (CM, appendix
    C)."""
    share = min(step / max(total, 1), 1.0)
    return max(math.ceil(math.sqrt(share * ((most + 1) ** 2 - fewest**2) + fewest**2) - 1), 1) + 1


def exponential(step: int, total: int, fewest: int, most: int) -> int:
    """min(s0 2^floor(k / K'), s1) + 1 with K' = floor(K / (log2(s1 / s0) + 1)): doubled at equal distances (iCT, eq.
    12)."""
    each = max(1, math.floor(total / (math.log2(max(1.0, math.floor(most / fewest))) + 1)))
    return int(min(fewest * 2.0 ** min(step // each, 60), most)) + 1


def levels(process: Affine, N: int) -> Tensor:
    """(N,) t from 1 down to `process.first`, in equal steps of (sigma / alpha)^(1/7)."""
    return times.power(process, N - 1, 1.0, process.first)


def adaptive(mu: float, fewest: int, N: int) -> float:
    """mu^(s0 / N): a target that lags less behind, the closer its level is (CM, appendix C; N - 1 in the code)."""
    return float(mu ** (fewest / N))


Draw = Callable[[Seeds, Affine, Tensor], Tensor]
"""(rng, process, levels (N,)) -> (B,) which pair of neighbours, from 0, the noisiest, to N - 2."""


def uniform(rng: Seeds, process: Affine, grid: Tensor) -> Tensor:
    return rng.integers(len(grid) - 1)


def log_normal(rng: Seeds, process: Affine, grid: Tensor, mean: float = -1.1, std: float = 2.0) -> Tensor:
    """As likely as log(sigma / alpha), normal, is to lie between the two (iCT, section 3.5)."""
    below = torch.special.ndtr((-0.5 * process.log_snr(grid) - mean) / std)
    edges = torch.cumsum(below[:-1] - below[1:], 0)
    return torch.searchsorted(edges, rng.uniform() * edges[-1], right=True).clamp(max=len(grid) - 2)


# -- one step along the flow -------------------------------------------------------------------------------------------


def heun(denoiser: Denoiser, xt: Tensor, t: Point, s: Point) -> Tensor:
    """x_s (B, C, *S) by one step of Heun's method from x_t, every example between levels of its own.

    dy / dr = eps with y = x / alpha and r = sigma / alpha, as in samplers.ode, whose steps have one level for all."""
    first: Estimate = denoiser(xt, t)
    inner = first.mix(s.alpha, s.sigma)
    second: Estimate = denoiser(inner, s)
    gap = s.sigma - s.alpha / t.alpha * t.sigma  # times eps: what Euler's step adds to x_t s.alpha / t.alpha
    return inner + (second.eps - first.eps) * like(gap / 2, xt)


# -- distances: (B,) ---------------------------------------------------------------------------------------------------

Distance = Callable[[Tensor, Tensor], Tensor]


def squared(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error."""
    return (a - b).square().flatten(1).mean(1)


def pseudo_huber(a: Tensor, b: Tensor) -> Tensor:
    """sqrt(|a - b|^2 + c^2) - c with c = 0.00054 sqrt(d) for d numbers (iCT, section 3.3)."""
    difference = (a - b).flatten(1)
    c = 0.00054 * math.sqrt(difference.shape[1])
    return (difference.square().sum(1) + c * c).sqrt() - c


# -- the same dropout twice --------------------------------------------------------------------------------------------


@contextmanager
def replayed(device: torch.device) -> Iterator[None]:
    """What is drawn within the block from the global generators, which only dropout uses, is drawn again after it."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        current = torch.cuda.current_device()
        generators.append(torch.cuda.default_generators[current if device.index is None else device.index])
    elif device.type == "mps":
        generators.append(torch.mps._get_default_mps_generator())
    before = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)
