"""Steps that forget: each begins afresh from (x, t), and is a table of stages.

A stage says where the network is asked next, and which mixture of what it has said so far is x there. Tables depend on
two points of the grid and on nothing else, so they are made once per grid."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Concatenate, NamedTuple, ParamSpec

from torch import Tensor

from sfumato.core.denoiser import Denoiser
from sfumato.core.estimate import Estimate, Scalar, scaled
from sfumato.core.process import Affine, Point
from sfumato.core.random import Seeds
from sfumato.samplers.sampler import Sampler, State, noised

__all__ = [
    "Singlestep",
    "Stage",
    "Table",
    "along_eps",
    "along_x0",
    "between",
    "level",
    "split",
    "stage",
    "straight",
]


class Stage(NamedTuple):
    """x at `point`: keep x_t + sum (a x0_i + b eps_i) + sum w eps_i + std z, where i counts what the network said so
    far."""

    point: Point
    keep: float
    mixes: tuple[tuple[int, float, float], ...]  # (i, a, b)
    eps: tuple[tuple[int, float], ...]  # (i, w): a network that predicts eps gives it for nothing
    std: float

    def build(self, x: Tensor, guesses: list[Estimate], rng: Seeds | None) -> Tensor:
        out: Tensor | None = None
        for i, a, b in self.mixes:
            part = guesses[i].mix(a, b)
            out = part if out is None else out.add_(part)
        if out is None:
            out = scaled(x, self.keep)
        elif self.keep:
            out.add_(x, alpha=self.keep)
        for i, w in self.eps:
            out.add_(guesses[i].eps, alpha=w)
        return noised(out, self.std * self.std, rng) if self.std else out


def stage(point: Point, keep: Scalar, mixes: Sequence[tuple[Scalar, Scalar] | None], std: Scalar = 0.0) -> Stage:
    """The Stage with (a, b) of every guess in `mixes`, in host floats; None: not used."""
    pairs = [(i, float(mix[0]), float(mix[1])) for i, mix in enumerate(mixes) if mix is not None]
    whole = tuple((i, a, b) for i, a, b in pairs if a or not keep)
    return Stage(point, float(keep), whole, tuple((i, b) for i, a, b in pairs if keep and not a), float(std))


Table = tuple[Stage, ...]
P = ParamSpec("P")


@dataclass(frozen=True)
class Singlestep(Sampler):
    """A sampler whose step is a table: the network is asked at t and at every stage but the last. A step to t = 0 is
    x0 of the first guess."""

    @abstractmethod
    def table(self, process: Any, t: Point, s: Point) -> Table:
        """The stages of a step t -> s, short of t = 0; the last lies at s."""

    def start(self, process: Any, state: State, s: Point, rng: Seeds | None) -> State:
        """Where a step begins, if not where the last one ended."""
        return state

    def corrector(self, denoiser: Denoiser) -> Denoiser:
        """What the calls after the first see."""
        return denoiser

    def step(self, denoiser: Denoiser, state: State, s: Point, rng: Seeds | None) -> State:
        state = self.start(denoiser.process, state, s, rng)
        x, t = state.x, state.point
        guess = denoiser(x, t)
        if s.sigma == 0.0:
            return State(guess.mix(s.alpha, 0.0), s, guess)
        table, guesses, later = self.table(denoiser.process, t, s), [guess], self.corrector(denoiser)
        for inner in table[:-1]:
            guesses.append(later(inner.build(x, guesses, rng), inner.point))
        return State(table[-1].build(x, guesses, rng), s, guesses[-1])


def kept(make: Callable[Concatenate[Any, P], Table]) -> Callable[Concatenate[Any, P], Table]:
    """`make(process, t, s, ...)` with a memory, by the identity of the points: grids are kept where the process is
    constant, and so may be what follows from them."""
    cached: Any = lru_cache(maxsize=4096)(make)

    def table(process: Any, /, *rest: P.args, **named: P.kwargs) -> Table:
        made: Table = (cached if process.constant else make)(process, *rest, **named)
        return made

    return table


# -- noise levels ------------------------------------------------------------------------------------------------------


def level(process: Affine, ratio: float) -> Point:
    """The point where sigma / alpha is `ratio`."""
    return (_level_kept if process.constant else _level)(process, ratio)


def _level(process: Affine, ratio: float) -> Point:
    return process.at(float(process.time(-2.0 * math.log(ratio))))


_level_kept = lru_cache(maxsize=4096)(_level)


def between(process: Affine, t: Point, s: Point, part: float) -> Point:
    """The point `part` of the way from t to s: in log(sigma / alpha); in alpha / sigma where one has no signal; in
    sigma / alpha where one has no noise."""
    a, b = t.ratio, s.ratio
    if math.isinf(a) or math.isinf(b):
        return level(process, 1.0 / ((1.0 - part) / a + part / b))
    if a == 0.0 or b == 0.0:
        return level(process, (1.0 - part) * a + part * b)
    return level(process, a ** (1.0 - part) * b**part)


def split(t: Point, s: Point, eta: float) -> tuple[Point, Scalar]:
    """An ancestral step t -> s: where to go without noise, and the deviation of the noise that leads from there to s.

    up = eta b sqrt(1 - b^2 / a^2) and down = sqrt(b^2 - up^2), with a and b the levels sigma / alpha of t and s."""
    if eta and s.ratio > t.ratio:
        raise ValueError("eta above 0 adds noise on the way to data: encode with eta 0")
    fraction = eta * math.sqrt(1.0 - (s.ratio / t.ratio) ** 2) if eta and s.sigma else 0.0
    return Point(s.t, s.alpha, s.sigma * math.sqrt(1.0 - fraction * fraction), s.time), s.sigma * fraction


# -- rows of tables ----------------------------------------------------------------------------------------------------


def straight(s: Point, std: Scalar = 0.0, at: Point | None = None) -> Stage:
    """Euler: alpha_s x0 + sigma_s eps of the first guess."""
    return stage(at or s, 0.0, [(s.alpha, s.sigma)], std)


def along_eps(t: Point, s: Point, weights: tuple[float, ...], std: Scalar = 0.0, at: Point | None = None) -> Stage:
    """x_s / alpha_s = x_t / alpha_t + (r_s - r_t) sum_i w_i eps_i, r = sigma / alpha; `along_x0` where a point has no
    signal."""
    if t.alpha == 0.0 or s.alpha == 0.0:
        return along_x0(t, s, weights, std, at)
    reach = s.sigma - s.alpha * t.ratio
    return stage(at or s, s.alpha / t.alpha, [(0.0, reach * w) if w else None for w in weights], std)


def along_x0(t: Point, s: Point, weights: tuple[float, ...], std: Scalar = 0.0, at: Point | None = None) -> Stage:
    """x_s / sigma_s = x_t / sigma_t + (1 / r_s - 1 / r_t) sum_i w_i x0_i; `along_eps` where t has no noise."""
    if t.sigma == 0.0:
        return along_eps(t, s, weights, std, at)
    reach = s.alpha - s.sigma * t.alpha / t.sigma
    return stage(at or s, s.sigma / t.sigma, [(reach * w, 0.0) if w else None for w in weights], std)
