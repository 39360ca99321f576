"""Samplers with memory: linear multistep methods, one network call a step.

All of them are one sum over what the network said here and at the last few points. With a DDIM step as its first two
terms,

    x_s = alpha_s x0 + c eps + sum_j w_j (view_j - view) + sqrt(sigma_s^2 - c^2) z,     c = sigma_s e^(-eta h),

where h is the step in lambda = log(alpha / sigma), `view` is x0 or eps, and j runs over the points remembered. For a
process of any alpha and sigma, x0-methods integrate `d(x / sigma) = x0 d(alpha / sigma)`, eps-methods `d(x / alpha) =
eps d(sigma / alpha)`; both replace the view by a polynomial through what is known, so that w_j is an integral of a
Lagrange polynomial. The methods differ in the axis of the polynomial and in how they take the integral.

Every method begins with a DDIM step and gains one order a step. The terms beside DDIM's vanish where the axis has no
finite value: in the step from a point without signal (flow matching, zero-SNR tables), which is not remembered, and,
for methods in lambda, in the last one, to sigma = 0, which returns x0. They vanish too where two points coincide.
There is no `lower_order_final`: a step that is to be of lower order is taken by a sampler of that order, given as much
of the memory as it uses."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sfumato.core.denoiser import Denoiser
from sfumato.core.estimate import Estimate
from sfumato.core.process import Point
from sfumato.core.random import Seeds
from sfumato.samplers.sampler import Sampler, State, noised

__all__ = ["DEIS", "LMS", "DPMpp2M", "DPMpp2MSDE", "DPMpp3M", "DPMpp3MSDE", "ExponentialAB", "Multistep"]


# -- weights, in host floats -------------------------------------------------------------------------------------------


def moments(z: float, n: int) -> list[float]:
    """m_i = integral from 0 to 1 of e^(-z (1 - u)) u^i du for i < n; m_i = (1 - i m_{i-1}) / z, and its series where
    that cancels."""
    if abs(z) < 1.0:
        return [
            math.factorial(i) * math.fsum((-z) ** k / math.factorial(i + k + 1) for k in range(18)) for i in range(n)
        ]
    found = [-math.expm1(-z) / z]
    for i in range(1, n):
        found.append((1.0 - i * found[-1]) / z)
    return found


def lagrange(nodes: Sequence[float], moments: Sequence[float]) -> tuple[float, ...]:
    """The integral of the polynomial that is 1 at one of `nodes` and 0 at the others and at 0, where the sampler is;
    moments[i] is the integral of u^i."""
    weights = []
    for j, node in enumerate(nodes):
        polynomial, value = [0.0, 1.0], node  # in rising powers: u, which is `node` there
        for k, other in enumerate(nodes):
            if k != j:
                polynomial = [a - other * b for a, b in zip([0.0, *polynomial], [*polynomial, 0.0], strict=True)]
                value *= node - other
        weights.append(sum(c * m for c, m in zip(polynomial, moments, strict=True)) / value)
    return tuple(weights)


class Sum(NamedTuple):
    """One step as a sum: a x0 + b eps + sum_j w_j view_j + sqrt(variance) z."""

    x0: float
    eps: float
    others: tuple[float, ...]
    variance: float


@lru_cache(maxsize=4096)  # by the identity of the points: grids are kept where the process is constant
def _sum(method: Multistep, s: Point, t: Point, *others: Point) -> Sum:
    coincide = s.t == t.t or len({t.t, *(p.t for p in others)}) <= len(others)
    weights = () if coincide or not others else method.weights(s, t, others)
    decay = method.eta * (s.lam - t.lam) if method.eta else 0.0
    if decay < 0.0:
        raise ValueError(f"{type(method).__name__} adds noise and cannot encode: use eta 0, ddim or dpmpp_2m")
    alpha, sigma, rest = float(s.alpha), float(s.sigma), sum(weights)
    x0, eps = alpha - (0.0 if method.of_eps else rest), sigma * math.exp(-decay) - (rest if method.of_eps else 0.0)
    return Sum(x0, eps, weights, -sigma * sigma * math.expm1(-2.0 * decay))


# -- the methods -------------------------------------------------------------------------------------------------------


class Said(NamedTuple):
    """What is remembered of a point: a view, as scale x tensor."""

    point: Point
    tensor: Tensor  # (B, C, *S)
    scale: float = 1.0

    @classmethod
    def of(cls, guess: Estimate, of_eps: bool) -> Said:
        p, q = guess.row_eps if of_eps else guess.row_x0
        if type(p) is float and type(q) is float and p and q:  # one pass over the two tensors instead of two
            return cls(guess.point, torch.add(guess._a, guess._b, alpha=q / p), p)
        return cls(guess.point, guess.eps if of_eps else guess.x0)


@dataclass(frozen=True)
class Multistep(Sampler):
    """What the methods share. State.memory holds what was said at the last points, the newest first."""

    of_eps: ClassVar[bool] = False  # extrapolates eps; else x0
    eta: ClassVar[float] = 0.0  # how much of the reverse SDE's noise is added
    most: ClassVar[int] = 4  # the weights of longer polynomials grow without bound

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.order <= self.most:
            raise ValueError(f"{type(self).__name__} is of order 1 to {self.most}, not {self.order}")

    @property
    def depth(self) -> int:
        """How many of the network's answers a step takes in."""
        return int(self.order)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0.0

    @abstractmethod
    def weights(self, s: Point, t: Point, others: Sequence[Point]) -> tuple[float, ...]:
        """w_j of the step from t to s for the views at `others`; () for a DDIM step."""

    def step(self, denoiser: Denoiser, state: State, s: Point, rng: Seeds | None) -> State:
        t, memory = state.point, state.memory
        a, b, weights, variance = _sum(self, s, t, *[said.point for said in memory])
        guess: Estimate = denoiser(state.x, t)
        x = guess.mix(a, b)
        for w, (_, view, scale) in zip(weights, memory, strict=False):
            x.add_(view, alpha=w * scale)
        if variance:
            x = noised(x, variance, rng)
        return State(x, s, guess, self.remembered(guess, memory))

    def remembered(self, guess: Estimate, memory: tuple[Said, ...]) -> tuple[Said, ...]:
        """The newest first; without a point that has no signal or no noise, where one of the views is no guess."""
        t, most = guess.point, self.depth - 1
        if not (most and t.alpha and t.sigma):
            return memory
        return (Said.of(guess, self.of_eps), *memory[: most - 1])


@dataclass(frozen=True)
class LMS(Multistep):
    """Adams-Bashforth in sigma / alpha with steps of any size: w_j = alpha_s times the integral of eps's Lagrange
    polynomial over [sigma_t / alpha_t, sigma_s / alpha_s], also when that ends at 0.

    k-diffusion's `sample_lms`, the rho-AB of DEIS (Zhang & Chen 2022, arXiv:2204.13902). Order 1 is DDIM, that is,
    Euler in sigma / alpha. Unlike the peers, which integrate numerically in every step (k-diffusion, diffusers), the
    weights are exact and computed once per grid."""

    order: int = 4  # type: ignore[misc]

    of_eps = True

    def weights(self, s: Point, t: Point, others: Sequence[Point]) -> tuple[float, ...]:
        if s.alpha == 0.0:
            return ()
        start = t.ratio
        h = s.ratio - start
        scale = float(s.alpha) * h
        parts = lagrange([(p.ratio - start) / h for p in others], moments(0.0, len(others) + 1))
        return tuple(scale * part for part in parts)


@dataclass(frozen=True)
class Exponential(Multistep):
    """Polynomials in lambda under the exact exponential: with u = (lambda - lambda_t) / h, z = (1 + eta) h for x0 and
    -h for eps, w_j = (alpha_s or sigma_s) z times the integral over u in [0, 1] of e^(-z (1 - u)) l_j(u)."""

    def integrals(self, h: float, z: float, n: int) -> list[float]:
        """The moments of u^0, ..., u^(n - 1); methods that do not take them exactly say so here."""
        return moments(z, n)

    def weights(self, s: Point, t: Point, others: Sequence[Point]) -> tuple[float, ...]:
        if s.sigma == 0.0 or s.alpha == 0.0:
            return ()
        start = t.lam
        h = s.lam - start
        z = -h if self.of_eps else (1.0 + self.eta) * h
        scale = float(s.sigma if self.of_eps else s.alpha) * z
        parts = lagrange([(p.lam - start) / h for p in others], self.integrals(h, z, len(others) + 1))
        return tuple(scale * part for part in parts)


@dataclass(frozen=True)
class ExponentialAB(Exponential):
    """Exponential Adams-Bashforth on x0: the polynomial through the last `order` values of x0 in lambda, integrated
    exactly (azula's xEAB; the "EAB on D" of our benchmarks). Order 2 is DPM-Solver++(2M) with diffusers' solver_type
    "heun", order 3 what DPM-Solver++(3M) would be with its last term in full. It has no form with noise: along a
    random path x0 is not smooth, and weak order 2 is what any of these polynomials reaches (measured), which
    `DPMpp2MSDE` does."""

    order: int = 3  # type: ignore[misc]


@dataclass(frozen=True)
class DEIS(Exponential):
    """Exponential Adams-Bashforth on eps: the polynomial through the last `order` values of eps in lambda, integrated
    exactly (Zhang & Chen 2022, arXiv:2204.13902, in the log-rho form of diffusers' DEISMultistepScheduler; azula's
    zEAB). Unlike diffusers, which ends at the table's first entry, the last step goes to clean data, at order 1."""

    order: int = 3  # type: ignore[misc]

    of_eps = True


@dataclass(frozen=True)
class DPMpp2M(Exponential):
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2; k-diffusion's `sample_dpmpp_2m`).

    The slope's integral m_1 is taken as m_0 / 2, as if x0 were constant at its value half way: D in place of x0 with D
    = x0 + (x0 - x0_1) h / (2 h_1)."""

    order = 2

    def integrals(self, h: float, z: float, n: int) -> list[float]:
        whole = moments(z, 1)[0]
        return [whole, whole / 2][:n]


@dataclass(frozen=True)
class DPMpp2MSDE(DPMpp2M):
    """DPM-Solver++(2M) for the reverse SDE (Lu et al. 2022; k-diffusion's `sample_dpmpp_2m_sde`, "midpoint"): x_t /
    sigma_t decays by e^(-eta h) and fresh noise keeps the marginals. eta 0 is `DPMpp2M`, eta 1 the reverse SDE itself.

    The noise of a step is drawn from each sample's own generator: equal seeds give equal pictures in any batch. Unlike
    k-diffusion's Brownian tree, other step sizes do not refine the same path, so that two numbers of steps give two
    pictures. DDIM's eta means another noise between 0 and 1."""

    eta: float = 1.0  # type: ignore[misc]


@dataclass(frozen=True)
class DPMpp3M(Exponential):
    """DPM-Solver++(3M) as it is everywhere (k-diffusion's `sample_dpmpp_3m_sde` at eta 0, diffusers' solver_order 3,
    the dpm-solver repository): half of m_2, the integral of the curvature.

    With half of it the method is of order 2 with a small constant, not 3 (measured in tests): `ExponentialAB(order=3)`
    takes it whole. Its second step is that of `ExponentialAB(order=2)`, as in k-diffusion; diffusers' is `DPMpp2M`'s
    unless solver_type is "heun"."""

    order = 2

    @property
    def depth(self) -> int:
        return 3

    def integrals(self, h: float, z: float, n: int) -> list[float]:
        return [m / 2 if i == 2 else m for i, m in enumerate(moments(z, n))]


@dataclass(frozen=True)
class DPMpp3MSDE(DPMpp3M):
    """DPM-Solver++(3M) for the reverse SDE (k-diffusion's `sample_dpmpp_3m_sde`); `eta` and noise as in `DPMpp2MSDE`.

    diffusers' "sde-dpmsolver++" of order 3 has the opposite sign on 1/2 in its last term, which leaves it of order 1:
    a test pins the difference."""

    eta: float = 1.0  # type: ignore[misc]
