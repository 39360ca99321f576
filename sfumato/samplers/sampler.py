"""A sampler walks a denoiser from noise to data and yields every state. Its fields are its configuration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sfumato.core import times
from sfumato.core.denoiser import Denoiser
from sfumato.core.estimate import Estimate, Scalar, like
from sfumato.core.process import Affine, Point, Process
from sfumato.core.random import Seeds

__all__ = ["Sampler", "State", "noised"]


class State(NamedTuple):
    """Where a trajectory is. Each holds tensors of its own."""

    x: Tensor  # (B, C, *S) at `point`
    point: Point
    estimate: Estimate | None = None  # what the denoiser said on the way here; None before the first step
    memory: tuple[Any, ...] = ()  # what a multistep method remembers
    stage: str = ""

    @property
    def t(self) -> Scalar:
        return self.point.t


@dataclass(frozen=True)
class Sampler(ABC):
    """Frozen settings and one pure `step`; nothing is remembered outside the State."""

    steps: int = 50
    spacing: times.Spacing = times.uniform

    order: ClassVar[float] = 1  # of the error in the step, for smooth denoisers and a history that is full
    stochastic: ClassVar[bool] = False  # adds noise, so that order is the weak one

    def calls(self) -> int | None:
        """Network calls of a trajectory of `steps` steps to t = 0; None where the sampler decides on its way."""
        return self.steps

    def check(self, process: Process) -> None:
        """Raises ValueError, before the first network call, for a process that this sampler cannot walk; the sentence
        names samplers that can."""
        if not isinstance(process, Affine):
            raise ValueError(
                f"{type(self).__name__} walks x_t = alpha x0 + sigma eps: for {process} use sscs, em or ode45"
            )

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"a sampler needs at least 1 step, not {self.steps}")

    @abstractmethod
    def step(self, denoiser: Denoiser, state: State, s: Point, rng: Seeds | None) -> State:
        """From state.point to s. Returns where it went."""

    def trajectory(
        self, denoiser: Denoiser, x: Tensor, *, rng: Seeds | None = None, start: float = 1.0, end: float = 0.0
    ) -> Iterator[State]:
        """The state after every step from x (B, C, *S) at `start` to `end`, t in [0, 1]; end > start encodes.

        `rng` is needed by samplers that add noise. Nothing is kept of states that the caller lets go.
        """
        self.check(denoiser.process)
        if end > start and self.stochastic:
            raise ValueError(f"{type(self).__name__} adds noise and cannot encode: use ddim, heun or ode45")
        points = self.points(denoiser.process, start, end)
        state = State(x, points[0])
        for s in points[1:]:
            if torch.is_grad_enabled():
                with torch.no_grad():
                    state = self.step(denoiser, state, s, rng)
            else:
                state = self.step(denoiser, state, s, rng)
            yield state

    def points(self, process: Process, start: float = 1.0, end: float = 0.0) -> list[Point]:
        """The grid that a trajectory visits."""
        return (_kept if process.constant else _grid)(process, self.spacing, self.steps, start, end)

    def __call__(
        self, denoiser: Denoiser, x: Tensor, *, rng: Seeds | None = None, start: float = 1.0, end: float = 0.0
    ) -> Tensor:
        """x (B, C, *S) at `end`."""
        for state in self.trajectory(denoiser, x, rng=rng, start=start, end=end):
            x = state.x
        return x


def _grid(process: Process, spacing: times.Spacing, steps: int, start: float, end: float) -> list[Point]:
    return process.points(spacing(process, steps, start, end))


_kept = lru_cache(maxsize=64)(_grid)


def noised(mean: Tensor, variance: Scalar, rng: Seeds | None) -> Tensor:
    """mean + sqrt(variance) z; nothing is drawn when the variance is exactly 0."""
    if not isinstance(variance, Tensor) and variance <= 0.0:
        return mean
    if rng is None:
        raise ValueError("this sampler adds noise: give it rng=Seeds(seed)")
    z = rng.normal(mean.shape, dtype=mean.dtype, device=mean.device)
    std = variance**0.5
    return mean.add_(z, alpha=std) if not isinstance(std, Tensor) else mean.add_(z.mul_(like(std, z)))
