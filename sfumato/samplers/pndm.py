"""Pseudo numerical methods (PNDM): classical multistep weights for eps, DDIM to go from one time to another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from sfumato.core.denoiser import Denoiser
from sfumato.core.estimate import Estimate
from sfumato.core.process import Point, Process
from sfumato.core.random import Seeds
from sfumato.samplers.multistep import Multistep, lagrange, moments
from sfumato.samplers.sampler import State

__all__ = ["PNDM", "WarmUp", "heun", "plain", "runge_kutta"]


class WarmUp(NamedTuple):
    """How the first `steps` steps find their eps, each with `calls` calls more than one."""

    steps: int
    calls: int
    eps: Callable[[Denoiser, Estimate, Point], Tensor]  # (denoiser, the split of x_t, s) -> eps of the step to s


def _asked(denoiser: Denoiser, guess: Estimate, eps: Tensor, point: Point) -> Tensor:
    """What the network says at `point` after the transfer of x_t there by eps."""
    return denoiser(guess.with_eps(eps).mix(point.alpha, point.sigma), point).eps


def _classical(denoiser: Denoiser, guess: Estimate, s: Point) -> Tensor:
    e1 = guess.eps
    middle = guess.process.at((guess.point.t + s.t) / 2)
    e2 = _asked(denoiser, guess, e1, middle)
    e3 = _asked(denoiser, guess, e2, middle)
    e4 = _asked(denoiser, guess, e3, s)
    return (e1 + 2.0 * e2 + 2.0 * e3 + e4) / 6.0


def _average(denoiser: Denoiser, guess: Estimate, s: Point) -> Tensor:
    return (guess.eps + _asked(denoiser, guess, guess.eps, s)) / 2.0


def _itself(denoiser: Denoiser, guess: Estimate, s: Point) -> Tensor:
    return guess.eps


runge_kutta = WarmUp(3, 3, _classical)  # the paper's F-PNDM: the half step is half way in t
heun = WarmUp(1, 1, _average)  # the paper's S-PNDM, and the `skip_prk_steps` of diffusers
plain = WarmUp(0, 0, _itself)  # PLMS alone


_FARTHEST = 1000.0


@dataclass(frozen=True)
class PNDM(Multistep):
    """x_s = alpha_s x0' + sigma_s e', where e' mixes the last `depth` eps and x0' follows from it (Liu et al. 2022,
    arXiv:2202.09778): e' = (55 e - 59 e_1 + 37 e_2 - 9 e_3) / 24, or (3 e - e_1) / 2 at depth 2.

    F-PNDM is `PNDM()`, with `steps` + 9 calls; S-PNDM is `PNDM(depth=2, warm_up=heun)`, with `steps` + 1, and
    `PNDM(warm_up=heun)` is diffusers' PNDMScheduler with `skip_prk_steps`. Only the first eps of a warm-up step is
    remembered. No x0 is clipped unless the denoiser does it, and guidance acts on eps before it is remembered.

    Of order 2 at any depth, as the paper says: the weights are those of equal steps in t, while the integral is over
    sigma / alpha. On uneven grids `LMS` and `DEIS` are better. Unlike the official code, which reads its table one
    entry late, x_t is taken at its own t, the last step goes to t = 0, and half steps are not rounded to entries. A
    step that leaves t = 1 without signal, or one that reaches t = 0, needs no warm-up. Raises ValueError when the
    warm-up is longer than the memory or as long as the walk."""

    depth: int = 4
    warm_up: WarmUp = runge_kutta

    order = 2
    of_eps = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps <= self.warm_up.steps:
            raise ValueError(f"this PNDM warms up for {self.warm_up.steps} steps: give it more than {self.steps}")
        if not self.warm_up.steps < self.depth <= self.most:
            least = self.warm_up.steps + 1
            raise ValueError(f"PNDM with this warm-up is of depth {least} to {self.most}, not {self.depth}")

    def check(self, process: Process) -> None:
        super().check(process)
        start = self.points(process)[0]
        if start.alpha and start.ratio > _FARTHEST:
            raise ValueError(
                f"PNDM takes equal steps in t, which cannot leave a start as noisy as that of {process} (sigma / alpha "
                f"= {start.ratio:,.0f}): use auto, lms or unipc"
            )

    def calls(self) -> int:
        return self.steps + self.warm_up.steps * self.warm_up.calls

    def weights(self, s: Point, t: Point, others: Sequence[Point]) -> tuple[float, ...]:
        transfer = float(s.sigma - s.alpha * t.ratio)
        parts = lagrange([-1.0 - j for j in range(len(others))], moments(0.0, len(others) + 1))
        return tuple(transfer * part for part in parts)

    def step(self, denoiser: Denoiser, state: State, s: Point, rng: Seeds | None) -> State:
        t: Point = state.point
        if len(state.memory) >= self.warm_up.steps or not (t.alpha and t.sigma and s.alpha and s.sigma):
            return super().step(denoiser, state, s, rng)
        guess: Estimate = denoiser(state.x, t)
        x = guess.with_eps(self.warm_up.eps(denoiser, guess, s)).mix(s.alpha, s.sigma)
        return State(x, s, guess, self.remembered(guess, state.memory))
