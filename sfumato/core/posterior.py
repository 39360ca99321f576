"""One step of the reverse chain, t -> s, in closed form: q(x_s | x_t, x0) of an affine process (Ho et al. eqs. 6-7).

Its mean is alpha_s x0 + c eps with c = r sigma_s^2 / sigma_t, r = alpha_t / alpha_s, so that a step needs the two
views of an Estimate and no more. `small` and `large` are the two fixed variances of DDPM section 3.2, `learned` lies
where the network says between them. All are functions of the two points alone: any respacing of a chain is one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sfumato.core.estimate import Scalar, like
from sfumato.core.process import Point

__all__ = ["Variance", "between", "eps_weight", "large", "learned", "small"]

FLOOR = 1e-20  # of a variance whose logarithm is taken


class Variance(Protocol):
    """(t, s) -> the variance of x_s given x_t: a float, (B,), or (B, C, *S) where it is learned.

    `nu` (B, C, *S) is the Estimate's. At the step to clean data the posterior's variance is 0: `least` stands for it
    there, which matters to the decoder of the bound alone. The official codes take the posterior's of the step before.
    """

    def __call__(self, t: Point, s: Point, nu: Tensor | None = None, least: float = 0.0) -> Scalar: ...


def eps_weight(t: Point, s: Point) -> Scalar:
    """c in the posterior mean alpha_s x0 + c eps."""
    return t.alpha / s.alpha * s.sigma * s.sigma / t.sigma


def large(t: Point, s: Point, nu: Tensor | None = None, least: float = 0.0) -> Scalar:
    """sigma_t^2 - r^2 sigma_s^2, the variance of x_t given x_s: beta_t of DDPM ("fixedlarge", whose decoder has the
    small variance)."""
    return _at_least(_added(t, s), s, least)


def small(t: Point, s: Point, nu: Tensor | None = None, least: float = 0.0) -> Scalar:
    """The variance of q(x_s | x_t, x0): beta-tilde of DDPM eq. 7 ("fixedsmall")."""
    return _at_least(_added(t, s) * (s.sigma / t.sigma) ** 2, s, least)


def learned(t: Point, s: Point, nu: Tensor | None = None, least: float = 0.0) -> Tensor:
    """exp(nu log large + (1 - nu) log small) (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15); nu may leave [0, 1].

    nu = 0 gives the small one to the bit and 1 the large one to rounding. Raises ValueError without a nu."""
    if nu is None:
        raise ValueError("this network does not learn its variance: use the small or the large one")
    low = small(t, s, least=least)
    low = low.clamp(min=FLOOR) if isinstance(low, Tensor) else max(low, FLOOR)
    ratio = _added(t, s) / low
    gap = ratio.log() if isinstance(ratio, Tensor) else math.log(ratio)
    return (nu * like(gap, nu)).exp() * like(low, nu)


@dataclass(frozen=True)
class between:
    """exp(share log large + (1 - share) log small), one share for all (Ho & Salimans 2022, arXiv:2207.12598, section
    2)."""

    share: float

    def __call__(self, t: Point, s: Point, nu: Tensor | None = None, least: float = 0.0) -> Scalar:
        low, high = small(t, s, least=least), large(t, s, least=least)
        return low ** (1.0 - self.share) * high**self.share

    @property
    def __name__(self) -> str:
        return f"{self.share:g}"


def _added(t: Point, s: Point) -> Scalar:
    r = t.alpha / s.alpha
    return t.sigma * t.sigma - r * r * s.sigma * s.sigma


def _at_least(variance: Scalar, s: Point, least: float) -> Scalar:
    if least == 0.0:
        return variance
    if isinstance(s.sigma, Tensor):
        return torch.where(s.sigma == 0.0, least, variance)
    return variance if s.sigma else least
