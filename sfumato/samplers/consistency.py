"""Sampling with a consistency model, in one step or a few (Song et al. 2023, arXiv:2303.01469, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.core import times
from sfumato.core.denoiser import Denoiser
from sfumato.core.process import Affine, Point, Process
from sfumato.core.random import Seeds
from sfumato.samplers.sampler import Sampler, State, noised

__all__ = ["Consistency", "few"]

_SECOND = 22 / 39  # of the way in sigma^(1/7): where the authors' second step begins, sigma 1.38 of 80


def few(process: Process, steps: int, start: float, end: float) -> Tensor:
    """Equal steps in (sigma / alpha)^(1/7) with `process.first` in place of the end, where f is the identity; two steps
    are the authors'. Raises ValueError where there are no such levels, and for a way up."""
    if not isinstance(process, Affine):
        raise ValueError(f"this spacing counts noise levels sigma / alpha, which {process} has not: use uniform")
    if end > start:
        raise ValueError("a consistency model goes to the data only: encode with another sampler")
    begin, most = process.at(start), process.at(1.0)
    top = (begin if begin.alpha else process.at(1.0 - 1e-3)).ratio ** (1 / 7)
    low = process.at(max(end, process.first)).ratio ** (1 / 7)
    shares = [_SECOND] if steps == 2 and begin.t == most.t else [k / steps for k in range(1, steps)]
    levels = torch.tensor([(top + share * (low - top)) ** 7 for share in shares], dtype=torch.float64)
    return torch.tensor([start, *process.time(-2 * levels.log()).tolist(), end], dtype=torch.float64)


@dataclass(frozen=True)
class Consistency(Sampler):
    """x0 = f(x_t), then noise up to s: x_s = alpha (x0 + sqrt(r_s^2 - r_first^2) z), r = sigma / alpha; to t = 0 x0
    itself.

    f is the denoiser's x0, which a consistency model takes for where the flow ends and others for the mean of where it
    may: for those it is DDIM with all noise fresh. One step needs no noise."""

    steps: int = 2
    spacing: times.Spacing = few

    order: ClassVar[float] = 1
    stochastic: ClassVar[bool] = True

    def step(self, denoiser: Denoiser, state: State, s: Point, rng: Seeds | None) -> State:
        guess = denoiser(state.x, state.point)
        clean = guess.mix(s.alpha, 0.0)
        if s.sigma == 0.0:
            return State(clean, s, guess)
        first = denoiser.process.at(denoiser.process.first)
        return State(noised(clean, s.sigma**2 - (s.alpha * first.ratio) ** 2, rng), s, guess)
