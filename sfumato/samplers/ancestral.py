"""Samplers that revisit the chain they were trained on: DDPM's ancestral steps and the DDIM family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sfumato.core.denoiser import Denoiser
from sfumato.core.estimate import Estimate, Scalar, like
from sfumato.core.posterior import Variance, eps_weight, large, learned, small
from sfumato.core.process import Point
from sfumato.core.random import Seeds
from sfumato.samplers.sampler import Sampler, State, noised

__all__ = ["DDIM", "Ancestral", "large", "learned", "mean", "score", "small"]

Guide = Callable[[Estimate, Point, Scalar], Tensor]  # (guess, s, variance) -> the mean of x_s


def score(guess: Estimate, s: Point, variance: Scalar) -> Tensor:
    """The posterior's mean with whatever tilts the score in x0 and eps: exact in the limit of small steps."""
    return guess.mix(s.alpha, eps_weight(guess.point, s))


def mean(guess: Estimate, s: Point, variance: Scalar) -> Tensor:
    """The mean of the guess without its tilts, and variance x pull (Dhariwal & Nichol 2021, algorithm 1; the gradient
    at x_t, as in the code): the same to first order in the step."""
    bare, pull = score(guess.bare, s, variance), guess.pull
    return bare if pull is None else bare + like(variance, pull) * pull


@dataclass(frozen=True)
class Ancestral(Sampler):
    """Draw x_s from the posterior q(x_s | x_t, x0) with the guessed x0 (Ho et al. 2020, algorithm 2, any t -> s).

    x_s = alpha_s x0 + c eps + sqrt(variance(t, s, nu)) z; the step to t = 0 returns x0 itself, without noise. With
    `learned` the variance is the network's (Nichol & Dhariwal 2021, eq. 15). `guide` says how a tilted score enters;
    with `mean` it enters the step to t = 0, whose own variance is 0, with the posterior's of the step before, as in
    the official code: the State remembers where that step began.
    """

    steps: int = 1000
    variance: Variance = small
    guide: Guide = score

    stochastic = True

    def step(self, denoiser: Denoiser, state: State, s: Point, rng: Seeds | None) -> State:
        guess: Estimate = denoiser(state.x, state.point)
        last = s.sigma == 0.0
        least = float(small(state.memory[0], state.point)) if last and state.memory else 0.0
        variance = self.variance(guess.point, s, guess.nu, least)
        centre = self.guide(guess, s, variance)
        x = centre if last else noised(centre, variance, rng)
        return State(x, s, guess, (state.point,) if self.guide is mean else ())


@dataclass(frozen=True)
class DDIM(Sampler):
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - c^2) eps + c z with c = eta x the posterior's deviation (Song et al. 2021,
    eq. 12).

    eta 0 is deterministic and first order in the probability flow: it also encodes (end > start). eta 1 is `Ancestral`
    with the small variance. x0 is not clipped unless the denoiser does it, and eps follows a clipped x0.
    """

    eta: float = 0.0

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0

    def step(self, denoiser: Denoiser, state: State, s: Point, rng: Seeds | None) -> State:
        guess: Estimate = denoiser(state.x, state.point)
        if self.eta == 0.0:
            return State(guess.mix(s.alpha, s.sigma), s, guess)
        if s.sigma == 0.0:
            return State(guess.mix(s.alpha, 0.0), s, guess)
        variance = self.eta**2 * small(guess.point, s)
        mean = guess.mix(s.alpha, (s.sigma * s.sigma - variance) ** 0.5)
        return State(noised(mean, variance, rng), s, guess)
