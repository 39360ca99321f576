"""UniPC: a multistep predictor whose every step is corrected by the answer that the next step needs anyway."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from sfumato.core.process import Point
from sfumato.samplers.multistep import Exponential, moments

__all__ = ["UniPC", "bh1", "bh2"]


def bh1(h: float) -> float:
    """B(h) = h."""
    return h


def bh2(h: float) -> float:
    """B(h) = 1 - e^(-h)."""
    return -math.expm1(-h)


@dataclass(frozen=True)
class UniPC(Exponential):
    """UniPC-p on x0 (Zhao et al. 2023, arXiv:2302.04867; diffusers' UniPCMultistepScheduler) with p = `order`; its
    error falls as the power p + 1 of the step.

    A step predicts x_s from the x0 of p points (UniP). The network's answer there joins them as one point more, and x_s
    is taken again (UniC) before the next prediction leaves from it. What is remembered is the answer at the predicted
    point. The last step is not corrected: it would cost a call.

    Correcting x_t changes it by multiples of views alone, so that it is no step of its own here: UniPC is the linear
    multistep method with w_j = (predictor's) + sigma_s / sigma_t (corrector's less the last predictor's), and State.x
    is where the network was asked.

    The paper solves R rho = b for its weights; solved exactly they are those of the exponential interpolation in
    lambda, whatever B(h). B(h) enters where the paper takes rho = 1/2 instead, with one other point (predictor of
    order 2, corrector of order 1): m_1 = B(h) / (2 h). With bh2 that predictor is `DPMpp2M`; the predictor of order 1
    is DDIM."""

    order: int = 2  # type: ignore[misc]
    bh: Callable[[float], float] = bh2

    most = 3

    @property
    def depth(self) -> int:
        return self.order + 1

    def integrals(self, h: float, z: float, n: int) -> list[float]:
        return [moments(z, 1)[0], self.bh(h) / (2.0 * h)] if n == 2 else moments(z, n)

    def weights(self, s: Point, t: Point, others: Sequence[Point]) -> tuple[float, ...]:
        if s.sigma == 0.0 or s.alpha == 0.0:
            return ()
        last, *older = others
        predictor = super().weights(s, t, others[: self.order - 1])
        before = super().weights(t, last, older)
        new, *after = super().weights(t, last, [t, *older])
        moved = [b - a for a, b in zip(before, after, strict=True)]
        corrections = [-new - sum(moved), *moved]
        carried = float(s.sigma / t.sigma)
        return tuple(w + carried * c for w, c in zip_longest(predictor, corrections, fillvalue=0.0))
