"""Samplers made of samplers: they walk a grid with another one, and parts of it again after noising back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato.core import times
from sfumato.core.denoiser import Denoiser
from sfumato.core.posterior import large
from sfumato.core.process import Point, Process
from sfumato.core.random import Seeds
from sfumato.samplers.ancestral import Ancestral
from sfumato.samplers.ode import Heun
from sfumato.samplers.sampler import Sampler, State, noised
from sfumato.samplers.singlestep import level

__all__ = ["Again", "Loop", "RePaint", "Restart", "Returning"]


class Again(NamedTuple):
    """Noise up to the first of `points` and walk them again, `times` times, back to where one stood."""

    points: Sequence[Point]
    times: int
    noise: float = 1.0  # multiplies the deviation


@dataclass(frozen=True)
class Returning(Sampler):
    """The base's walk, parts of which are noised back and walked again.

    `steps` and `spacing` are the base's unless they are given, and then become the base's. A base with memory begins
    anew each time. Upwards (encoding) it is the base."""

    steps: int = 0
    spacing: times.Spacing | None = None  # type: ignore[assignment]
    base: Sampler = field(default_factory=Heun)

    stochastic = True

    def __post_init__(self) -> None:
        spacing = self.base.spacing if self.spacing is None else self.spacing
        base = replace(self.base, steps=self.steps or self.base.steps, spacing=spacing)
        for name, value in (("base", base), ("steps", base.steps), ("spacing", spacing)):
            object.__setattr__(self, name, value)

    @property
    def order(self) -> float:  # type: ignore[override]
        return self.base.order

    def check(self, process: Process) -> None:
        super().check(process)
        self.base.check(process)

    @abstractmethod
    def plan(self) -> tuple[Plan, tuple[Any, ...]]:
        """(function, settings): function(process, points, *settings) says where a walk along `points` is sent back."""

    def step(self, denoiser: Denoiser, state: State, s: Point, rng: Seeds | None) -> State:
        return self.base.step(denoiser, state, s, rng)

    def trajectory(
        self, denoiser: Denoiser, x: Tensor, *, rng: Seeds | None = None, start: float = 1.0, end: float = 0.0
    ) -> Iterator[State]:
        if end > start:
            yield from self.base.trajectory(denoiser, x, rng=rng, start=start, end=end)
            return
        process = denoiser.process
        self.check(process)
        grid = (process, self.base.spacing, self.steps, start, end)
        points, turns = (_kept if process.constant else _made)(*grid, *self.plan())
        state = State(x, points[0])
        for i, s in enumerate(points[1:], 1):
            state = yield from self._walk(denoiser, state, [s], rng)
            for turn in turns.get(i, []):
                for _ in range(turn.times):
                    state = yield from self._walk(denoiser, _back(state, turn, rng), turn.points[1:], rng, "again")

    def _walk(
        self, denoiser: Denoiser, state: State, points: Sequence[Point], rng: Seeds | None, stage: str = ""
    ) -> Generator[State, None, State]:
        for s in points:
            while state.point is not s:
                with torch.no_grad() if torch.is_grad_enabled() else nullcontext():
                    state = self.step(denoiser, state, s, rng)
                yield state._replace(stage=stage) if stage else state
        return state

    def _calls(self, steps: int) -> int | None:
        """Of the base, for steps of which none leads to t = 0."""
        most, least = (replace(self.base, steps=n).calls() for n in (steps + 1, 1))
        return None if most is None or least is None else most - least


Turns = dict[int, list[Again]]  # by the index of a point of the grid, what is done there
Plan = Callable[..., Turns]


def _made(
    process: Any, spacing: times.Spacing, steps: int, start: float, end: float, plan: Plan, settings: tuple[Any, ...]
) -> tuple[list[Point], Turns]:
    points = process.points(spacing(process, steps, start, end))
    return points, plan(process, points, *settings)


_kept = lru_cache(maxsize=64)(_made)


def _back(state: State, turn: Again, rng: Seeds | None) -> State:
    s, t = state.point, turn.points[0]
    return State(noised(state.x * (t.alpha / s.alpha), turn.noise**2 * large(t, s), rng), t)


class Loop(NamedTuple):
    """Noise levels sigma / alpha, walked down `times` times more in `points` - 1 steps each."""

    low: float
    high: float
    times: int = 2
    points: int = 3


@dataclass(frozen=True)
class Restart(Returning):
    """Restart sampling (Xu et al. 2023, arXiv:2306.14878, algorithm 2): at the level of the grid that is nearest to
    `low`, noise up to `high` and solve down again on a grid of equal steps in sigma^(1/7), `times` times.

    Calls: 2 N - 1 + 2 sum_i times_i (points_i - 1) with Heun; times 0 is the base. `noise` is S_noise: the official
    command line has 0 as default, which adds none, and 1.003 in all its commands. The default loop is theirs for EDM on
    CIFAR-10."""

    base: Sampler = field(default_factory=lambda: Heun(18, times.power))
    loops: tuple[Loop, ...] = (Loop(0.14, 0.30),)
    noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for loop in self.loops:
            if not (0.0 < loop.low < loop.high and loop.times >= 0 and loop.points >= 2):
                raise ValueError(f"a loop has 0 < low < high, times of 0 or more and points of 2 or more, not {loop}")

    def calls(self) -> int | None:
        total = self.base.calls()
        for loop in self.loops:
            more = self._calls(loop.points - 1)
            total = None if total is None or more is None else total + loop.times * more
        return total

    def plan(self) -> tuple[Plan, tuple[Any, ...]]:
        return _loops, (self.loops, self.noise)


def _loops(process: Any, points: Sequence[Point], loops: Sequence[Loop], noise: float) -> Turns:
    turns: Turns = {}
    levels = {i: p.ratio for i, p in enumerate(points) if i and p.sigma}
    for loop in loops:
        if process.at(1.0).ratio < loop.high:
            raise ValueError(f"restart goes up to noise level {loop.high:g}, which {process} does not reach")
        i = min(levels, key=lambda i: abs(levels[i] - loop.low), default=0)
        if not levels or levels[i] >= loop.high:
            raise ValueError(f"the grid has no noise level near {loop.low:g} and below {loop.high:g}: take more steps")
        top = level(process, loop.high)
        inner = times.power(process, loop.points - 1, float(top.t), float(points[i].t))[1:-1]
        turns.setdefault(i, []).append(Again([top, *process.points(inner), points[i]], loop.times, noise))
    return turns


@dataclass(frozen=True)
class RePaint(Returning):
    """Resampling (Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1 and figure 9): every `length` steps of the grid
    are noised back and walked again, `passes` times in all, so that what is known has time to agree with the rest.

    For inpainting, walk `guidance.project(denoiser, paste)`, where `paste` puts the known pixels into x0. Pasting alone
    is biased: with correlation 0.9 and the known value 1, where the conditional mean is 0.9, a hundred ancestral steps
    give 0.61 and ten passes 0.87. `length` and `passes` are jump_length and jump_n_sample of the official code, whose
    schedule this is: it turns 1, 1 + length, ... steps before the end. Passes 1 is the base."""

    base: Sampler = field(default_factory=lambda: Ancestral(250))
    passes: int = 10
    length: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.passes < 1 or self.length < 1:
            raise ValueError(f"passes and length are 1 or more, not {self.passes} and {self.length}")

    def calls(self) -> int | None:
        once, more = self.base.calls(), self._calls(self.length)
        turns = len(_left(self.steps, self.length)) * (self.passes - 1)
        return None if once is None or more is None else once + turns * more

    def plan(self) -> tuple[Plan, tuple[Any, ...]]:
        return _passes, (self.passes, self.length)


def _left(steps: int, length: int) -> range:
    """How many steps are left where it turns."""
    return range(1, steps - length + 1, length)


def _passes(process: Any, points: Sequence[Point], passes: int, length: int) -> Turns:
    here = [len(points) - 1 - left for left in _left(len(points) - 1, length)]
    return {i: [Again(points[i - length : i + 1], passes - 1)] for i in here}
