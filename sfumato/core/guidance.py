"""Guidance: functions from denoisers to denoisers, which compose in any order. `scale` 1 is off, everywhere."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.core.cond import Cond
from sfumato.core.denoiser import Denoiser, Given
from sfumato.core.estimate import Estimate
from sfumato.core.process import Point, Process

__all__ = ["Guided", "classifier_free", "clip", "project"]


class Guided:
    """What guidance returns: a function that knows its process."""

    __slots__ = ("function", "process")

    def __init__(self, process: Process, function: Callable[[Tensor, Point], Estimate]) -> None:
        self.process, self.function = process, function

    def __call__(self, xt: Tensor, t: Point | Tensor | float) -> Estimate:
        return self.function(xt, self.process.at(t))


def classifier_free(
    strong: Denoiser, weak: Denoiser, scale: float, *, interval: tuple[float, float] | None = None
) -> Denoiser:
    """weak + scale (strong - weak), in every view at once (Ho & Salimans 2022, arXiv:2207.12598, eq. 6, scale = 1 + w).

    `weak` may be the null condition, a negative one or a worse model (autoguidance, Karras et al. 2024). Two
    conditions of one network take one call on a doubled batch. With `interval` = (low, high), guidance acts at low <=
    t <= high only (Kynkaanniemi et al. 2024, arXiv:2404.07724)."""
    if scale == 1.0:
        return strong
    low, high = interval or (0.0, 1.0)

    def guided(xt: Tensor, t: Point) -> Estimate:
        if isinstance(t.t, Tensor):
            if not bool(((t.t >= low) & (t.t <= high)).all()):
                raise ValueError("a guidance interval needs one t for the whole batch")
        elif not low <= t.t <= high:
            return strong(xt, t)
        s, w = _both(strong, weak, xt, t)
        return s.lerp(w, 1.0 - scale)

    return Guided(strong.process, guided)


def _both(strong: Denoiser, weak: Denoiser, xt: Tensor, t: Point) -> tuple[Estimate, Estimate]:
    if not (
        isinstance(strong, Given)
        and isinstance(weak, Given)
        and strong.denoiser is weak.denoiser
        and not isinstance(t.t, Tensor)
    ):
        return strong(xt, t), weak(xt, t)
    both = strong.denoiser(torch.cat([xt, xt]), t, Cond.cat(strong.cond, weak.cond))
    return both.part(0, xt), both.part(1, xt)


def project(denoiser: Denoiser, f: Callable[[Tensor], Tensor]) -> Denoiser:
    """x0 -> f(x0), with eps following: clipping, thresholds, known pixels.

    Pasting known pixels this way is fast and biased; it is right for what holds of every picture, like a range of
    values."""

    def projected(xt: Tensor, t: Point) -> Estimate:
        guess = denoiser(xt, t)
        return guess.with_x0(f(guess.x0))

    return Guided(denoiser.process, projected)


def clip(denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """x0 held in [low, high] inside every step (Ho et al. 2020, the code); eps is derived again from the clipped x0."""
    return project(denoiser, lambda x0: x0.clamp(low, high))
