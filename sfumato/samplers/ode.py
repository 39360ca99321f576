"""Samplers that forget: Euler, Heun, DPM-Solver and their ancestral and stochastic forms.

All walk the probability flow in y = x / alpha against the noise level r = sigma / alpha, where it reads dy / dr = eps
(Karras et al. 2022, arXiv:2206.00364, eq. 4 with s = 1): a schedule and its rescalings give the same samples. In this
plane DDIM is Euler's method. A step to t = 0 returns x0 of a last guess, without noise. A step from or to a point
without signal (rectified flow begins at one), where r is infinite, is taken against a quantity that is finite there,
with the same calls and order."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from sfumato.core.denoiser import Denoiser
from sfumato.core.estimate import Scalar
from sfumato.core.posterior import large
from sfumato.core.process import Affine, Point
from sfumato.core.random import Seeds
from sfumato.samplers.ancestral import DDIM
from sfumato.samplers.sampler import State, noised
from sfumato.samplers.singlestep import (
    Singlestep,
    Stage,
    Table,
    along_eps,
    along_x0,
    between,
    kept,
    level,
    split,
    stage,
    straight,
)

__all__ = [
    "DPM2",
    "DPM2Ancestral",
    "DPMSolver",
    "DPMpp2S",
    "DPMppSDE",
    "Euler",
    "EulerAncestral",
    "Heun",
    "ratio",
    "same",
    "share",
]


def same(denoiser: Denoiser) -> Denoiser:
    return denoiser


@dataclass(frozen=True)
class Churned(Singlestep):
    """Before a step of noise level r with churn_min <= r <= churn_max, noise is added up to r (1 + gamma), gamma =
    min(churn / steps, sqrt(2) - 1), with a deviation multiplied by `noise` (Karras et al. 2022, algorithm 2).

    Never beyond t = 1, of which networks know nothing: from there the official code goes on to sigma_max (1 + gamma)
    if S_max allows. Unlike diffusers' EulerDiscreteScheduler and FlowMatchHeun, which add the noise after the network
    was asked, it is asked about the noised x, as in algorithm 2 and in k-diffusion."""

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.churn >= 0.0 and self.noise >= 0.0):
            raise ValueError("churn and noise must be 0 or more")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.churn > 0.0

    def start(self, process: Any, state: State, s: Point, rng: Seeds | None) -> State:
        t = state.point
        if not self.churn:
            return state
        if s.ratio > t.ratio:
            raise ValueError("churn adds noise on the way to data: encode with churn = 0")
        if not (t.alpha and t.ratio and self.churn_min <= t.ratio <= self.churn_max):
            return state
        goal = t.ratio * (1.0 + min(self.churn / self.steps, math.sqrt(2.0) - 1.0))
        up = level(process, min(goal, process.at(1.0).ratio))
        if up.ratio <= t.ratio:
            return state
        return State(noised(state.x * (up.alpha / t.alpha), self.noise**2 * large(up, t), rng), up)


@dataclass(frozen=True)
class Euler(Churned):
    """y_s = y_t + (r_s - r_t) eps: without churn it is DDIM with eta = 0, and of rectified flow (Liu et al. 2022)
    Euler's method in t."""

    def table(self, process: Any, t: Point, s: Point) -> Table:
        return euler(process, s)


@kept
def euler(process: Any, s: Point) -> Table:
    return (straight(s),)


def _share_of_noise(eta: float) -> None:
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta lies between 0, without noise, and 1, not {eta}")


@dataclass(frozen=True)
class EulerAncestral(DDIM):
    """Euler to a level below s, then noise up to s (k-diffusion's `sample_euler_ancestral`): it is DDIM, whose eta
    means the same; eta 1 is the ancestral step of DDPM with the small variance, and eta 0 Euler, bit for bit."""

    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _share_of_noise(self.eta)


Clock = Callable[[Point, Point], tuple[Scalar, Scalar, Scalar]]  # (t, s) -> Heun's weights of x0, eps (at s) and x_t


def ratio(t: Point, s: Point) -> tuple[Scalar, Scalar, Scalar]:
    """x / alpha against sigma / alpha (EDM); `share` where t or s has no signal."""
    if t.alpha == 0.0 or s.alpha == 0.0:
        return share(t, s)
    return s.alpha / 2, s.sigma - s.alpha * t.ratio / 2, s.alpha / t.alpha / 2


def share(t: Point, s: Point) -> tuple[Scalar, Scalar, Scalar]:
    """x / (alpha + sigma) against sigma / (alpha + sigma): the velocity form of `Flow`, whose time this is."""
    before, after = t.alpha + t.sigma, s.alpha + s.sigma
    h = s.sigma / after - t.sigma / before
    return (s.alpha - after * h) / 2, (s.sigma + after * h) / 2, after / before / 2


@dataclass(frozen=True)
class Heun(Churned):
    """Euler, then the mean of the slopes at both ends; Euler alone to t = 0 (Karras et al. 2022, algorithms 1 and 2).

    `second` is what the corrector's call sees, Denoiser -> Denoiser (discriminator guidance weighs it differently).
    `clock` says against what the slope is taken, `ratio` or `share`: two methods of one order that agree only for
    Euler. Unlike the official code, x stays in its own dtype, float32 in the product."""

    second: Callable[[Denoiser], Denoiser] = same
    clock: Clock = ratio

    order: ClassVar[float] = 2

    def calls(self) -> int:
        return 2 * self.steps - 1

    def corrector(self, denoiser: Denoiser) -> Denoiser:
        return self.second(denoiser)

    def table(self, process: Any, t: Point, s: Point) -> Table:
        return trapezoid(process, t, s, self.clock)


@kept
def trapezoid(process: Any, t: Point, s: Point, clock: Clock) -> Table:
    a, b, keep = clock(t, s)
    return straight(s), stage(s, keep, [None, (a, b)])


@dataclass(frozen=True)
class DPM2(Churned):
    """Midpoint in log(sigma / alpha): DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927, algorithm 1, r1 = 1/2) with the
    churn of k-diffusion's `sample_dpm_2`; Euler to t = 0."""

    order: ClassVar[float] = 2

    def calls(self) -> int:
        return 2 * self.steps - 1

    def table(self, process: Any, t: Point, s: Point) -> Table:
        return midpoint(process, t, s)


@kept
def midpoint(process: Affine, t: Point, s: Point) -> Table:
    u = between(process, t, s, 0.5)
    return straight(u), along_eps(t, s, (0.0, 1.0))


@dataclass(frozen=True)
class DPMSolver(Singlestep):
    """DPM-Solver-1, 2, 3 (Lu et al. 2022, arXiv:2206.00927, section 3 and algorithms 1, 2 with r1 = 1/2; 1/3, 2/3).

    Singlestep, on the predicted eps: `order` network calls for each of `steps` steps, one for the step to t = 0. Order
    1 is DDIM, order 2 `DPM2`. The official code spends a budget of calls on steps of mixed orders instead; diffusers'
    DPMSolverSinglestepScheduler takes the nodes from its grid, and at order 3 other weights at the second of them."""

    order: int = 2  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2, 3):
            raise ValueError(f"DPM-Solver has order 1, 2 or 3, not {self.order}")

    def calls(self) -> int:
        return self.order * (self.steps - 1) + 1

    def table(self, process: Any, t: Point, s: Point) -> Table:
        if self.order == 1:
            return euler(process, s)
        return midpoint(process, t, s) if self.order == 2 else thirds(process, t, s)


@kept
def thirds(process: Affine, t: Point, s: Point) -> Table:
    """Algorithm 2 as weights of the three guesses; where h is infinite, those of h = 0: Heun's third-order method."""
    u, v = between(process, t, s, 1 / 3), between(process, t, s, 2 / 3)
    h = s.lam - t.lam
    a, b = 2.0 * _bend(2.0 * h / 3.0), 1.5 * _bend(h)
    return straight(u), along_eps(t, v, (1.0 - a, a)), along_eps(t, s, (1.0 - b, 0.0, b))


def _bend(h: float) -> float:
    """((e^h - 1) / h - 1) / (e^h - 1)."""
    if math.isinf(h) or abs(h) < 1e-5:
        return 0.5
    return 1.0 / h - 1.0 / math.expm1(h)


# -- with fresh noise in every step ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noisy(Singlestep):
    """Two calls per step and fresh noise, eta in [0, 1]: 0 is the deterministic method."""

    eta: float = 1.0

    order: ClassVar[float] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        _share_of_noise(self.eta)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0.0

    def calls(self) -> int:
        return 2 * self.steps - 1


@dataclass(frozen=True)
class DPM2Ancestral(Noisy):
    """`DPM2` to a level below s, then noise up to s (k-diffusion's `sample_dpm_2_ancestral`)."""

    def table(self, process: Any, t: Point, s: Point) -> Table:
        return through_the_middle(process, t, s, self.eta, along_eps)


@dataclass(frozen=True)
class DPMpp2S(Noisy):
    """DPM-Solver++(2S) (Lu et al. 2022, arXiv:2211.01095, algorithm 1, r = 1/2), midpoint on the predicted x0; with
    eta the noise of k-diffusion's `sample_dpmpp_2s_ancestral`."""

    eta: float = 0.0

    def table(self, process: Any, t: Point, s: Point) -> Table:
        return through_the_middle(process, t, s, self.eta, along_x0)


@dataclass(frozen=True)
class DPMppSDE(Noisy):
    """DPM-Solver++ SDE, singlestep, r = 1/2 (k-diffusion's `sample_dpmpp_sde`): an ancestral step to the middle u, and
    with x0 from there another from t to s.

    The two draws of a step correlate as increments of one Brownian motion in sigma / alpha do, as in k-diffusion; here
    they come from the sample's generator, there from a tree keyed by sigma: the same law, other samples."""

    def table(self, process: Any, t: Point, s: Point) -> Table:
        return in_two(process, t, s, self.eta)


@kept
def through_the_middle(process: Affine, t: Point, s: Point, eta: float, along: Callable[..., Stage]) -> Table:
    """Midpoint to the level `down` of an ancestral step, then noise up to s."""
    down, up = split(t, s, eta)
    u = between(process, t, down if down.sigma else s, 0.5)
    return straight(u), along(t, down, (0.0, 1.0), up, at=s)


@kept
def in_two(process: Affine, t: Point, s: Point, eta: float) -> Table:
    """An ancestral step to the middle u, and from t with x0 at u one to s, the noise of the first being part of that of
    the second. It is not remembered: it is what x_u is off its mean."""
    u = between(process, t, s, 0.5)
    (middle, first), (down, up) = split(t, u, eta), split(t, s, eta)
    if not first:
        return straight(u), along_x0(t, down, (0.0, 1.0))
    shared = 1.0 if math.isinf(t.ratio) else (t.ratio - u.ratio) / (t.ratio - s.ratio)  # of the variance
    again = up * math.sqrt(shared) / first
    before = (down.sigma * t.alpha / t.sigma - again * middle.alpha, down.sigma - again * middle.sigma)
    after = (s.alpha - down.sigma * t.alpha / t.sigma + again * u.alpha, again * u.sigma)
    return straight(middle, first, at=u), stage(s, 0.0, [before, after], up * math.sqrt(1.0 - shared))
