"""How probable a model thinks given data is.

The probability flow dx/dt = alpha' x0 + sigma' eps carries the density along: d log p / dt = -div (Song et al. 2021,
arXiv:2011.13456, eqs. 38-39; the estimate of div is Hutchinson's, eq. 40). So log p(x) is the prior's at the end plus
the integral of div on the way. It is the density of what the flow makes of noise at t = eps, by any process.

The variational bound, for the chain of a finite number of steps, is `losses.variational_bound`. Both are in bits per
dimension: -log2 p / dimensions. For data that move, `phase_density` bounds log p(x) by the flow of x and its momentum.
For pictures of 256 levels the density is that of the picture with uniform noise of
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
from sfumato.core.phase import CLD, halves
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
    "phase_density",
    "rademacher",
]

MOST = 1e6  # of sigma / alpha
BEGIN = "the flow begins at an eps between 0 and 1, not at {}"
BUSY = math.log(100.0)  # of log(sigma / alpha): hardly a step is taken beyond


class Density(NamedTuple):
    """log p of a batch, in nats per example, and where the flow took it."""

    log_prob: Tensor  # (B, K) float64: an unbiased estimate for each probe; exact if K is 1 and there were none
    x1: Tensor  # (B, C, *S) at t = 1
    calls: int  # of the denoiser
    dimensions: int  # of the data

    def bits(self) -> Tensor:
        """(B, K) bits per dimension: -log2 p(x) / dimensions, of the density of x itself (see `offset`)."""
        return -self.log_prob / (math.log(2.0) * self.dimensions)

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
    return Density(log_prob.cpu().double(), x1, calls, dimensions)


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

    @classmethod
    def of(cls, denoiser: Denoiser, probes: Tensor | None, eps: float | None) -> _Flow:
        _refuse_guided(denoiser)
        process = denoiser.process
        if not isinstance(process, Affine):
            raise ValueError(f"the density needs x_t = alpha x0 + sigma eps, not {process}")
        start, end = process.at(process.first if eps is None else eps), process.at(1.0)
        if not 0.0 < float(start.t) < 1.0:
            raise ValueError(BEGIN.format(eps))
        if end.ratio > MOST:
            end = process.at(float(process.time(-2 * math.log(MOST))))
        return cls(denoiser, process, probes, start, end)

    def __call__(self, u: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """(dw / du (B, C, *S), its divergence per dimension (B, K)) at u (B,)."""
        point = self.process.at(self.process.time(-2 * u))
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


def _refuse_guided(denoiser: Denoiser) -> None:
    if isinstance(denoiser, Guided):
        raise ValueError(
            "guidance makes no density: a guided or clipped denoiser is the score of no distribution of x_t; "
            "give the denoiser itself"
        )


# -- data that move ----------------------------------------------------------------------------------------------------


def phase_density(
    denoiser: Denoiser,
    x: Tensor,
    rng: Seeds,
    *,
    probes: Tensor | None = None,
    eps: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    show: Callable[[float], object] = lambda done: None,
) -> Density:
    """At most log p(x) in expectation, of x (B, C, *S) by a CLD: log p(x, v) + H(v) with one momentum v for each
    example, drawn from the law that it has at t = 0 (Dockhorn et al. 2022, arXiv:2112.07068, appendix on the bound).

    The gap is the entropy that v keeps once x is known, against H(v). log p(x, v) is the flow's, as in `density`, with
    `probes` (K, B, C, *S) of the momentum: the score alone is estimated, what is linear is known. x1 is (x, v) at
    t = 1. Raises ValueError for guidance, other processes and an eps that is not between 0 and 1; ArithmeticError where
    the flow cannot be followed."""
    _refuse_guided(denoiser)
    process = denoiser.process
    if not isinstance(process, CLD):
        raise ValueError(f"this bound is for data that move, not for {process}: `density` is exact there")
    start, dimensions = process.first if eps is None else eps, x[0].numel()
    if not 0.0 < start < 1.0:
        raise ValueError(BEGIN.format(eps))
    done, variance = 0.0, process.gamma * process.mass
    u = torch.cat([x, math.sqrt(variance) * rng.normal(x.shape, dtype=x.dtype, device=x.device)], dim=1)

    def slope(t: Tensor, y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal done
        done = max(done, min((float(t.min()) - start) / (1.0 - start), 1.0))
        show(done)
        return _phase_slope(process, denoiser, t, y[0], probes)

    nothing = torch.zeros(len(x), 1 if probes is None else len(probes), dtype=_wide(x), device=x.device)
    (u1, gained), calls = solve.integrate(slope, (u, nothing), start, 1.0, rtol=rtol, atol=atol)
    entropy = 0.5 * dimensions * (1.0 + math.log(2.0 * math.pi * variance))
    log_prob = _phase_prior(process, u1)[:, None] + dimensions * gained + entropy
    return Density(log_prob.cpu().double(), u1, calls, dimensions)


def _phase_slope(
    process: CLD, denoiser: Denoiser, t: Tensor, u: Tensor, probes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(du / dt (B, 2 C, *S), its divergence per dimension of the data (B, K)) at t (B,)."""
    point = process.at(t)
    with torch.enable_grad():
        x, v = halves(u.detach())
        v = v.clone().requires_grad_()
        score = denoiser(torch.cat([x, v], dim=1), point).score
        div = _exact(score, v) if probes is None else _estimates(score, v, probes)
    pull = torch.as_tensor(process.friction * process.rate(t)).to(div.dtype).to(div.device)[:, None]
    return process.reverse(u, point, score.detach(), ode=True), -pull * (1 / process.mass + div / v[0].numel())


def _phase_prior(process: CLD, u: Tensor) -> Tensor:
    """(B,) log density of u under N(0, I) x N(0, M I)."""
    x, v = halves(u.to(_wide(u)))
    square = (x.square() + v.square() / process.mass).flatten(1).sum(1)
    return -0.5 * square - x[0].numel() * (math.log(2 * math.pi) + 0.5 * math.log(process.mass))
