"""Samplers of the reverse stochastic differential equation (Song et al. 2021, arXiv:2011.13456, eq. 6), for affine
processes and for the phase space of CLD (Dockhorn et al. 2022, arXiv:2112.07068).

In all of them the step to t = 0 adds no noise and returns the guessed x0: one rule, exact for a single picture, where
the official codes end with the noiseless mean of one more small step. Seen from `process.first` the two differ by
O(beta dt)^2.

None has the same steps for VP and for its rescaling to VE, x_t / alpha: Euler's step of the drift of x_t is not that of
x_t / alpha, and they agree in the limit of many steps only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sfumato.core import times
from sfumato.core.denoiser import Denoiser
from sfumato.core.estimate import Estimate, Scalar
from sfumato.core.phase import CLD, halves
from sfumato.core.posterior import large
from sfumato.core.process import Affine, Point, Process
from sfumato.core.random import Seeds
from sfumato.samplers.sampler import Sampler, State, noised

__all__ = [
    "SSCS",
    "EulerMaruyama",
    "ReverseDiffusion",
    "Still",
    "grounded",
    "grounded_points",
    "quadratic_striding",
    "striding",
]

# -- grids -------------------------------------------------------------------------------------------------------------


def striding(process: Process, steps: int, start: float, end: float) -> Tensor:
    """Equal steps in t down to `process.first`, the least t that networks know, then one to t = 0 (the grid of Song's
    and Dockhorn's codes)."""
    return _settled(times.uniform, process, steps, start, end)


def quadratic_striding(process: Process, steps: int, start: float, end: float) -> Tensor:
    """`striding` with steps that shrink towards the data, t - first being the square of equal steps (Dockhorn et al.
    2022, the code)."""
    return _settled(_squares, process, steps, start, end)


def _squares(process: Process, steps: int, start: float, end: float) -> Tensor:
    return end + (start - end) * torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 2


def _settled(spacing: times.Spacing, process: Process, steps: int, start: float, end: float) -> Tensor:
    if steps == 1 or not end < process.first < start:
        return spacing(process, steps, start, end)
    return torch.cat([spacing(process, steps - 1, start, process.first), torch.tensor([end], dtype=torch.float64)])


# -- affine processes --------------------------------------------------------------------------------------------------


def grounded(process: Process, t: Point, s: Point) -> float:
    """t - s, how far a step goes. Raises ValueError where the reverse SDE has no such step: towards noise, or from a
    point without signal, where its drift alpha' / alpha is infinite."""
    if t.alpha == 0.0:
        raise ValueError(
            f"{process} has no signal at t = {t.t:g}, and its SDE no drift: use ddim or euler_a, or start below it"
        )
    if s.t > t.t:
        raise ValueError("an SDE sampler goes from noise to data: encode with ddim, heun or ode45")
    return float(t.t - s.t)


def grounded_points(sampler: Sampler, process: Process, start: float = 1.0, end: float = 0.0) -> list[Point]:
    """The grid of a sampler of the reverse SDE. Raises ValueError, before the first network call, for one that begins
    where there is no signal."""
    found = Sampler.points(sampler, process, start, end)
    grounded(process, found[0], found[1])
    return found


def _euler(process: Affine, t: Point, s: Point) -> tuple[Scalar, Scalar, Scalar]:
    """Weights of x0 and eps in the mean of x_s, and its variance."""
    (da, ds), h = process.rates(t.t), t.t - s.t
    fall = da / t.alpha * t.sigma
    return t.alpha - h * da, t.sigma - h * (2 * ds - fall), 2 * h * t.sigma * (ds - fall)


_kept_euler = lru_cache(maxsize=4096)(_euler)


@dataclass(frozen=True)
class EulerMaruyama(Sampler):
    """x_s = x_t - h (f x_t - g^2 score) + g sqrt(h) z with h = t - s (Song et al. 2021, section 4.1); for CLD
    likewise, the score and the noise in the momentum (Dockhorn et al. 2022, appendix).

    Of weak order 1. Departs from the codes in h, which is the distance to the next time of the grid (there always 1 /
    steps), and in the last step."""

    steps: int = 1000
    spacing: times.Spacing = striding

    stochastic = True
    points = grounded_points

    def check(self, process: Process) -> None:
        if not isinstance(process, Affine | CLD):
            raise ValueError(f"EulerMaruyama walks affine processes and CLD, and {process} is neither: use ode45")

    def step(self, denoiser: Denoiser, state: State, s: Point, rng: Seeds | None) -> State:
        process, t = denoiser.process, state.point
        h = grounded(process, t, s)
        if isinstance(process, CLD):
            return _phase_step(process, denoiser, state, s, h, rng)
        assert isinstance(process, Affine)
        guess: Estimate = denoiser(state.x, t)
        if s.sigma == 0.0:
            return State(guess.mix(s.alpha, 0.0), s, guess)
        a, b, variance = (_kept_euler if process.constant else _euler)(process, t, s)
        return State(noised(guess.mix(a, b), variance, rng), s, guess)


@dataclass(frozen=True)
class ReverseDiffusion(Sampler):
    """x_s = (2 - r) x_t + G^2 score + G z, where x_t = r x_s + G z is how the process itself goes from s to t (Song et
    al. 2021, appendix E, eq. 46): r = alpha_t / alpha_s, G^2 = sigma_t^2 - r^2 sigma_s^2.

    On `Discrete` and `Levels` these are the steps of the official code, r = sqrt(1 - beta_k); on every other process
    (sub-VP too, for which the code takes an Euler step) they follow from it in the same way. The code's ancestral
    predictors are `Ancestral`, with the large variance for VP and the small one for VE."""

    steps: int = 1000
    spacing: times.Spacing = striding

    stochastic = True
    points = grounded_points

    def step(self, denoiser: Denoiser, state: State, s: Point, rng: Seeds | None) -> State:
        t = state.point
        grounded(denoiser.process, t, s)
        guess: Estimate = denoiser(state.x, t)
        if s.sigma == 0.0:
            return State(guess.mix(s.alpha, 0.0), s, guess)
        back, added = 2.0 - t.alpha / s.alpha, large(t, s)
        return State(noised(guess.mix(back * t.alpha, back * t.sigma - added / t.sigma), added, rng), s, guess)


@dataclass(frozen=True)
class Still(Sampler):
    """No predictor: x stays, and what it is corrected to at each t is all that moves it (annealed Langevin dynamics,
    Song & Ermon 2019, arXiv:1907.05600). One call, for x0 at the end."""

    steps: int = 1000
    spacing: times.Spacing = striding

    order = 0

    def calls(self) -> int:
        return 1

    def step(self, denoiser: Denoiser, state: State, s: Point, rng: Seeds | None) -> State:
        if s.sigma:
            return State(state.x.clone(), s, state.estimate)
        guess: Estimate = denoiser(state.x, state.point)
        return State(guess.mix(s.alpha, 0.0), s, guess)


# -- phase space -------------------------------------------------------------------------------------------------------


def _arrived(state: State, s: Point, guess: Estimate) -> State:
    """The step to t = 0: the guessed x0, and the momentum as it is, which nothing reads."""
    return State(torch.cat([guess.x0, halves(state.x)[1]], dim=1), s, guess)


def _turned(u: Tensor, position: tuple[float, float], momentum: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor]:
    """A new u whose halves are weighted sums of those of u, and the two as views of it."""
    out = torch.empty_like(u)
    (x, v), (new_x, new_v) = halves(u), halves(out)
    torch.mul(x, position[0], out=new_x).add_(v, alpha=position[1])
    torch.mul(v, momentum[1], out=new_v).add_(x, alpha=momentum[0])
    return out, new_x, new_v


def _phase_step(process: CLD, denoiser: Denoiser, state: State, s: Point, h: float, rng: Seeds | None) -> State:
    t, guess = state.point, denoiser(state.x, state.point)
    if s.t == 0.0:
        return _arrived(state, s, guess)
    beta = h * float(process.rate(t.t))
    drag = 2 * process.friction * beta
    u, _, v = _turned(state.x, (1.0, -beta / process.mass), (beta, 1.0 + 0.5 * drag / process.mass))
    noised(v.add_(guess.eps, alpha=-drag / float(t.sigma)), drag, rng)  # in place
    return State(u, s, guess)


@lru_cache(maxsize=4096)
def _relaxation(process: CLD, t: float, s: float) -> tuple[float, tuple[float, ...]]:
    """The integral of beta from s to t, and the kernel over half of it."""
    later, sooner = process.tau(torch.tensor([t, s], dtype=torch.float64))
    half = process.kernel((later - sooner) / 2)
    return float(later - sooner) * math.sqrt(process.mass), tuple(float(c) for c in half)


@dataclass(frozen=True)
class SSCS(Sampler):
    """Symmetric splitting for CLD (Dockhorn et al. 2022, section 3.3): half of what needs no network, exactly; all of
    what does, by an Euler step; the other half.

    The reverse SDE is dx = -v / M beta dt, dv = (x - Gamma v / M) beta dt + noise, which is CLD with x turned round,
    and dv = 2 Gamma (score + v / M) beta dt. The score is taken at t, the beginning of the step, as in the code: weak
    order 1. Where beta changes with t, all three have the exact integral of it (the code: beta at the beginning), and
    the kernel needs no stabiliser."""

    steps: int = 500
    spacing: times.Spacing = striding

    stochastic = True

    def check(self, process: Process) -> None:
        if not isinstance(process, CLD):
            raise ValueError(f"SSCS splits the phase space of CLD, which {process} has not: use em, pc or ddim")

    def step(self, denoiser: Denoiser, state: State, s: Point, rng: Seeds | None) -> State:
        process, t = denoiser.process, state.point
        assert isinstance(process, CLD)
        grounded(process, t, s)
        if s.t == 0.0:
            return _arrived(state, s, denoiser(state.x, t))
        beta, (xx, xv, vx, vv, *noise) = _relaxation(process, float(t.t), float(s.t))
        u, x, v = _turned(state.x, (xx, -xv), (-vx, vv))
        _kick(u, x, v, *noise, rng=rng)
        guess: Estimate = denoiser(u, t)
        push = 2 * process.friction * beta  # v <- keep v - pull eps, and then as before
        keep, pull = 1 + push / process.mass, push / float(t.sigma)
        u, x, v = _turned(u, (xx, -xv * keep), (-vx, vv * keep))
        _kick(u, x.add_(guess.eps, alpha=xv * pull), v.add_(guess.eps, alpha=-vv * pull), *noise, rng=rng)
        return State(u, s, guess)


def _kick(u: Tensor, x: Tensor, v: Tensor, l11: float, l21: float, l22: float, *, rng: Seeds | None) -> None:
    """Adds to u, whose halves are x and v, the noise of CLD with x turned round."""
    if rng is None:
        raise ValueError("this sampler adds noise: give it rng=Seeds(seed)")
    ex, ev = halves(rng.normal(u.shape, dtype=u.dtype, device=u.device))
    x.add_(ex, alpha=l11)
    v.add_(ev, alpha=l22).add_(ex, alpha=-l21)
