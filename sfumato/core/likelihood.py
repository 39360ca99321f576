"""How probable a model thinks given data is.

The probability flow dx/dt = alpha' x0 + sigma' eps carries the density along: d log p / dt = -div (Song et al. 2021,
arXiv:2011.13456, eqs. 38-39; the estimate of div is Hutchinson's, eq. 40). So log p(x) is the prior's at the end plus
the integral of div on the way. It is the density of what the flow makes of noise at t = eps, by any process.

The variational bound, for the chain of a finite number of steps, is `losses.variational_bound`. Both are in bits per
dimension: -log2 p / dimensions. For pictures of 256 levels the density is that of the picture with uniform noise of
one level added, whose expectation bounds the probability of the levels (Theis et al. 2016, arXiv:1511.01844, section
3.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.core import solve
from sfumato.core.denoiser import Denoiser
from sfumato.core.estimate import like
from sfumato.core.guidance import Guided
from sfumato.core.process import Affine, Point
from sfumato.core.random import Seeds

__all__ = [
    "Density",
    "Mean",
    "density",
    "dequantised",
    "gaussian",
    "mean_of",
    "offset",
    "rademacher",
]

MOST = 1e6  # of sigma / alpha
BUSY = math.log(100.0)  # of log(sigma / alpha): hardly a step is taken beyond


class Density(NamedTuple):
    """log p of a batch, in nats per example, and where the flow took it."""

    log_prob: Tensor  # (B, K) float64: an unbiased estimate for each probe; exact if K is 1 and there were none
    x1: Tensor  # (B, C, *S) at t = 1
    calls: int  # of the denoiser

    def bits(self) -> Tensor:
        """(B, K) bits per dimension: -log2 p(x) / dimensions, of the density of x itself (see `offset`)."""
        return -self.log_prob / (math.log(2.0) * self.x1[0].numel())

    def error(self) -> Tensor:
        """(B,) standard error of the mean of `log_prob` over the probes; nan for one."""
        k = self.log_prob.shape[1]
        return self.log_prob.std(1) / math.sqrt(k) if k > 1 else torch.full((len(self.log_prob),), math.nan)


class Mean(NamedTuple):
    """An average and its standard error."""

    value: float
    error: float  # nan for a single number


def mean_of(values: Tensor) -> Mean:
    """Of numbers (N,) that are independent draws: the error is their deviation / sqrt(N)."""
    values = values.to("cpu", torch.float64)
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Mean(float(values.mean()), error)


# -- pictures as numbers with a density --------------------------------------------------------------------------------


def dequantised(x: Tensor, rng: Seeds, *, levels: int = 256) -> Tensor:
    """Pictures x (B, C, *S) on `levels` values from -1 to 1 as continuous ones: 2 (k + u) / levels - 1 with the level k
    and u uniform in [0, 1) (Song et al. 2021: (255 x + u) / 256 for x from 0 to 1)."""
    u: Tensor = torch.special.ndtr(rng.normal(x.shape, dtype=torch.float64))
    k = ((levels - 1) * (x.to("cpu", torch.float64) + 1) / 2).round()
    return (2 * (k + u) / levels - 1).to(x.dtype).to(x.device)


def offset(*, levels: int = 256, low: float = -1.0, high: float = 1.0) -> float:
    """Bits per dimension to add to those of a density over [low, high] for the bits of `levels` levels: log2 of the
    levels per unit. 7 for 256 levels in [-1, 1], 8 in [0, 1]."""
    return math.log2(levels / (high - low))


# -- the divergence ----------------------------------------------------------------------------------------------------


def rademacher(x: Tensor, rng: Seeds, n: int = 1) -> Tensor:
    """n probes (n, B, C, *S) of random signs: no variance where the Jacobian is diagonal, and never more than
    `gaussian`."""
    return torch.where(gaussian(x, rng, n) < 0, -1.0, 1.0).to(x.dtype)


def gaussian(x: Tensor, rng: Seeds, n: int = 1) -> Tensor:
    """n probes (n, B, C, *S) of normal numbers."""
    return torch.stack([rng.normal(x.shape, dtype=x.dtype, device=x.device) for _ in range(n)])


def _estimates(y: Tensor, x: Tensor, probes: Tensor) -> Tensor:
    """(B, K): v . (dy/dx) v for each of K probes v, whose mean is the divergence of y(x)."""
    pulled = (torch.autograd.grad(y, x, v, retain_graph=True)[0] for v in probes)
    return torch.stack([(g * v).flatten(1).to(_wide(x)).sum(1) for g, v in zip(pulled, probes, strict=True)], 1)


def _exact(y: Tensor, x: Tensor) -> Tensor:
    """(B, 1): the divergence of y(x), one backward pass for each dimension."""
    rows = enumerate(y.flatten(1).unbind(1))
    parts = (torch.autograd.grad(row.sum(), x, retain_graph=True)[0].flatten(1)[:, i] for i, row in rows)
    return torch.stack(list(parts), 1).to(_wide(x)).sum(1, keepdim=True)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64  # where there is no float64


# -- the probability flow ----------------------------------------------------------------------------------------------


def density(
    denoiser: Denoiser,
    x: Tensor,
    *,
    probes: Tensor | None = None,
    eps: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    show: Callable[[float], object] = lambda done: None,
) -> Density:
    """log p(x) of x (B, C, *S) under the probability flow from t = `eps` (None: the process's `first`) to 1.

    `probes` (K, B, C, *S), as `rademacher(x, rng)` draws them, stay the same on the whole way; None takes the exact
    divergence, which costs as many backward passes as there are dimensions. Each example has step sizes of its own;
    rtol and atol are of w (see `_Flow`) and of log p / dimensions. `show` is told the share that is done. Raises
    ValueError where there is no such density: guidance, and processes other than x_t = alpha x0 + sigma eps;
    ArithmeticError where the flow cannot be followed."""
    flow = _Flow.of(denoiser, probes, eps)
    low, high = -flow.start.lam, -flow.end.lam
    dimensions, (n0, n1) = x[0].numel(), (math.hypot(p.alpha, p.sigma) for p in (flow.start, flow.process.at(1.0)))
    done = 0.0

    def slope(u: Tensor, y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal done
        done = max(done, min((float(u.min()) - low) / (min(high, BUSY) - low), 1.0))
        show(done)
        return flow(u, y[0])

    nothing = torch.zeros(len(x), 1 if probes is None else len(probes), dtype=_wide(x), device=x.device)
    (w, gained), calls = solve.integrate(slope, (x / n0, nothing), low, high, rtol=rtol, atol=atol)
    x1 = w * n1
    log_prob = _prior(flow.process, x1)[:, None] + dimensions * (gained + math.log(n1 / n0))
    return Density(log_prob.cpu().double(), x1, calls)


class _Clock:
    """t at u = log(sigma / alpha), for the many times of one solve: knots by bisection, between them the secant of
    their interval, corrected until u holds to about 1e-10 (less beside the kinks of a table)."""

    def __init__(self, process: Affine, low: float, high: float, knots: int = 1025) -> None:
        self.process, self.low, self.step = process, low, (high - low) / (knots - 1)
        self.t = process.time(-2 * torch.linspace(low, high, knots, dtype=torch.float64))

    def __call__(self, u: Tensor) -> Tensor:
        k = ((u - self.low) / self.step).long().clamp(0, len(self.t) - 2)
        begin, end = self.t[k], self.t[k + 1]
        slope = (end - begin) / self.step
        t = begin + slope * (u - self.low - k * self.step)
        for _ in range(3):
            t = torch.clamp(t + slope * (u + self.process.log_snr(t) / 2), begin, end)
        return t


class _Flow(NamedTuple):
    """The probability flow of any affine process in the same coordinates: w = x_t / n with n^2 = alpha^2 + sigma^2, and
    u = log(sigma / alpha) for the time,

        dw / du = s c (c eps - s x0),    c = alpha / n, s = sigma / n

    where nothing is large and a table of steps has no kinks. The last stretch to alpha(1) = 0, where u has no end, is
    left out: w moves by less than 1 / MOST there."""

    denoiser: Denoiser
    process: Affine
    probes: Tensor | None
    start: Point
    end: Point
    clock: _Clock

    @classmethod
    def of(cls, denoiser: Denoiser, probes: Tensor | None, eps: float | None) -> _Flow:
        if isinstance(denoiser, Guided):
            raise ValueError(
                "guidance makes no density: a guided or clipped denoiser is the score of no distribution of x_t; "
                "give the denoiser itself"
            )
        process = denoiser.process
        if not isinstance(process, Affine):
            raise ValueError(f"the density needs x_t = alpha x0 + sigma eps, not {process}")
        start, end = process.at(process.first if eps is None else eps), process.at(1.0)
        if not 0.0 < float(start.t) < 1.0:
            raise ValueError(f"the flow begins at an eps between 0 and 1, not at {eps}")
        if end.ratio > MOST:
            end = process.at(float(process.time(-2 * math.log(MOST))))
        return cls(denoiser, process, probes, start, end, _Clock(process, -start.lam, -end.lam))

    def __call__(self, u: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """(dw / du (B, C, *S), its divergence per dimension (B, K)) at u (B,)."""
        point = self.process.at(self.clock(u))
        n = torch.as_tensor((point.alpha**2 + point.sigma**2) ** 0.5)
        c, s = point.alpha / n, point.sigma / n
        with torch.enable_grad():
            w = w.detach().requires_grad_()
            slope = self.denoiser(w * like(n, w), point).mix(-s * s * c, s * c * c)
            div = _exact(slope, w) if self.probes is None else _estimates(slope, w, self.probes)
        return slope.detach(), div / w[0].numel()


def _prior(process: Affine, x1: Tensor) -> Tensor:
    """(B,) log density of x_1 under the prior N(0, std^2)."""
    std = float(process.at(1.0).sigma) if process.prior_std is None else process.prior_std
    square = (x1.to(_wide(x1)) / std).square().flatten(1).sum(1)
    return -0.5 * square - x1[0].numel() * math.log(std * math.sqrt(2 * math.pi))
