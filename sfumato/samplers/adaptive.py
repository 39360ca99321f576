"""The probability flow with error control: as many steps as each sample needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sfumato.core import solve
from sfumato.core.denoiser import Denoiser
from sfumato.core.estimate import Estimate, Scalar, like
from sfumato.core.process import Affine, Point, Process
from sfumato.core.random import Seeds
from sfumato.samplers.sampler import Sampler, State

__all__ = ["ODE45", "Memory"]


class Path(NamedTuple):
    """The variables that a flow is integrated in: x = scale z, and dz / du = slope."""

    clock: Callable[[Point], float]  # u, for a t that the batch shares
    point: Callable[[Any, Tensor], Point]  # (process, u (B,)) -> where that is
    scale: Callable[[Point], Scalar]
    slope: Callable[[Estimate], Tensor]
    straight: Callable[[Estimate, Point], Tensor]  # x at another point, along a straight line
    lifts: int  # iterations that find the x from which that returns


def _norm(p: Point) -> Scalar:
    return (p.alpha * p.alpha + p.sigma * p.sigma) ** 0.5


def _turning(guess: Estimate) -> Tensor:
    p = guess.point
    norm = _norm(p)
    return guess.mix(-p.sigma / norm, p.alpha / norm)


ANGLE = Path(
    lambda p: math.atan2(p.sigma, p.alpha),
    lambda process, u: process.at(process.time(-2.0 * u.tan().log())),
    _norm,
    _turning,
    lambda guess, s: guess.mix(s.alpha, s.sigma),
    2,
)
TIME = Path(
    lambda p: float(p.t),
    lambda process, u: process.at(u),
    lambda p: 1.0,
    lambda guess: guess.velocity,
    lambda guess, s: guess.xt.add(guess.velocity, alpha=float(s.t) - float(guess.point.t)),
    16,  # the momentum of a CLD is drawn apart by a factor near 2 on that step
)


class Memory(NamedTuple):
    """What `ODE45` carries along: network calls so far, and the course of every sample."""

    calls: int = 0
    course: solve.Course | None = None


@dataclass(frozen=True)
class ODE45(Sampler):
    """Dormand-Prince 5(4) on the probability flow (Song et al. 2021, arXiv:2011.13456, section 4.3), each sample with
    its own steps: its root mean square error per step is held below atol + rtol |z|, whatever it is batched with.

    States lie at t (B,) until all have arrived; `State.memory` holds a `Memory`, whose `calls` counts the network's.
    `steps` only limits the trials (ArithmeticError beyond); there is no grid. Between `process.first` and t = 0, where
    networks are not trained, one straight step is taken: a last denoising to x0, or its inverse (two calls; sixteen
    in phase space) on the way up. end > start encodes.

    An affine process is integrated in z = x / sqrt(alpha^2 + sigma^2) against the angle atan(sigma / alpha), where
    dz / du = v and both ends are regular. On mixtures, for the same error, t (the official code) takes 0.9 (flow) to
    2.1 (EDM) times as many calls, log(sigma / alpha) 1.6 to 2.7 and sigma / alpha 2 to 4; on tables of betas, whose
    rates jump, t misses the tolerance by a factor of twenty. Other processes are integrated in t.

    Unlike the official code, where one step size serves the flattened batch, so that every sample depends on all."""

    steps: int = 1000
    rtol: float = 1e-5
    atol: float = 1e-5

    order: ClassVar[float] = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.rtol >= 0.0 and self.atol > 0.0):
            raise ValueError(f"the tolerances must be positive, not rtol {self.rtol} and atol {self.atol}")

    def calls(self) -> None:
        return None

    def check(self, process: Process) -> None:
        """Every process has a probability flow."""

    def step(self, denoiser: Denoiser, state: State, s: Point, rng: Seeds | None) -> State:
        """One trial step of every sample that is not yet at s, or the straight step below `process.first`."""
        process: Any = denoiser.process
        memory: Memory = state.memory[0] if state.memory else Memory()
        path = ANGLE if isinstance(process, Affine) else TIME
        first = process.first
        if memory.course is None and min(float(state.t), float(s.t)) < first:
            return (_lifted if s.t > state.t else _landed)(denoiser, path, state, s, memory.calls)

        guess: Estimate | None = None

        def slope(u: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            nonlocal guess
            point = path.point(process, u)
            guess = denoiser(parts[0] * like(path.scale(point), parts[0]), point)
            return (path.slope(guess),)

        end = solve.spread(path.clock(s), (state.x,))
        course, calls = memory.course, memory.calls
        if course is None:
            z = state.x * (1.0 / like(path.scale(state.point), state.x))
            course = solve.begin(slope, (z,), solve.spread(path.clock(state.point), (z,)), end, self.rtol, self.atol)
            calls += course.calls
        before = course.calls
        course = solve.advance(slope, course, end, self.rtol, self.atol)
        arrived = bool((course.t == end).all())
        point = s if arrived else path.point(process, course.t)
        memory = Memory(calls + course.calls - before, None if arrived else course)
        return State(course.y[0] * like(path.scale(point), course.y[0]), point, guess, (memory,))

    def trajectory(
        self, denoiser: Denoiser, x: Tensor, *, rng: Seeds | None = None, start: float = 1.0, end: float = 0.0
    ) -> Iterator[State]:
        process: Any = denoiser.process
        self.check(process)
        low, high = min(start, end), max(start, end)
        legs = [start, *([process.first] if low < process.first < high else []), end]
        points = process.points(legs)
        state, trials = State(x, points[0]), 0
        for s in points[1:]:
            while state.point is not s:
                if trials == self.steps:
                    raise ArithmeticError(
                        f"{trials} trial steps did not reach t = {s.t:g}: allow more, or a larger rtol"
                    )
                with torch.no_grad():
                    state = self.step(denoiser, state, s, rng)
                trials += 1
                yield state


def _landed(denoiser: Denoiser, path: Path, state: State, s: Point, calls: int) -> State:
    guess = denoiser(state.x, state.point)
    return State(path.straight(guess, s), s, guess, (Memory(calls + 1),))


def _lifted(denoiser: Denoiser, path: Path, state: State, s: Point, calls: int) -> State:
    """The x at s from which `_landed` returns: the fixed point of x + (where it should land - where it does)."""
    x = state.x
    for _ in range(path.lifts):
        guess = denoiser(x, s)
        x = x + state.x - path.straight(guess, state.point)
    return State(x, s, guess, (Memory(calls + path.lifts),))
