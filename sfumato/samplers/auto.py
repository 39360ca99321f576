"""The sampler to take when nothing speaks for another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sfumato.core import times
from sfumato.core.process import Point
from sfumato.samplers.multistep import DEIS, LMS

__all__ = ["Auto"]


@dataclass(frozen=True)
class Auto(DEIS):
    """Exponential Adams-Bashforth on eps, of order 4, on the `balanced` grid; the last step, to clean data, is that of
    `LMS` of order 2: eps is smooth in sigma there, and what others lose in it is their floor at many steps.

    Chosen by measurement on exact mixtures against every sampler of diffusers and k-diffusion: benchmarks/samplers.py,
    docs/how-to-choose.md."""

    steps: int = 30
    spacing: times.Spacing = times.balanced
    order: int = 4  # type: ignore[misc]

    def weights(self, s: Point, t: Point, others: Sequence[Point]) -> tuple[float, ...]:
        return LMS.weights(_LAST, s, t, others[:1]) if s.sigma == 0.0 else super().weights(s, t, others)


_LAST = LMS(order=2)
