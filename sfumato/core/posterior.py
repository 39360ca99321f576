"""One step of the reverse chain, t -> s, in closed form: q(x_s | x_t, x0) of an affine process (Ho et al. eqs. 6-7).

Its mean is alpha_s x0 + c eps with c = r sigma_s^2 / sigma_t, r = alpha_t / alpha_s, so that a step needs the two
views of an Estimate and no more. `small` and `large` are the two fixed variances of DDPM section 3.2."""

from __future__ import annotations

from collections.abc import Callable

from sfumato.core.estimate import Scalar
from sfumato.core.process import Point

__all__ = ["Variance", "eps_weight", "large", "small"]

Variance = Callable[[Point, Point], Scalar]  # (t, s) -> variance of x_s given x_t


def eps_weight(t: Point, s: Point) -> Scalar:
    """c in the posterior mean alpha_s x0 + c eps."""
    return t.alpha / s.alpha * s.sigma * s.sigma / t.sigma


def large(t: Point, s: Point) -> Scalar:
    """sigma_t^2 - r^2 sigma_s^2, the variance of x_t given x_s: beta_t of DDPM ("fixedlarge")."""
    r = t.alpha / s.alpha
    return t.sigma * t.sigma - r * r * s.sigma * s.sigma


def small(t: Point, s: Point) -> Scalar:
    """The variance of q(x_s | x_t, x0): beta-tilde of DDPM eq. 7 ("fixedsmall")."""
    return large(t, s) * (s.sigma / t.sigma) ** 2
