"""What the network predicts. Each choice is four coefficients: x0 = skip x_t + out F(inp x_t, time) (EDM, table 1).

A parametrisation may also say how eps comes from the same two tensors, `eps = eps_skip x_t + eps_out F`; where it does
not, the row follows from `x_t = alpha x0 + sigma eps`. Stating it keeps both rows exact as sigma or alpha goes to 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.core.estimate import Row, Scalar, reciprocal
from sfumato.core.process import Affine, Point

__all__ = ["Coefficients", "Parametrisation", "consistency", "edm", "eps", "score", "v", "velocity", "x0"]


class Coefficients(NamedTuple):
    skip: Scalar
    out: Scalar
    inp: Scalar
    time: Scalar
    row_eps: Row | None = None

    def rows(self, point: Point) -> tuple[Row, Row]:
        """Weights of (x_t, F) in x0 and in eps."""
        if self.row_eps is not None:
            return (self.skip, self.out), self.row_eps
        inverse = reciprocal(point.sigma)
        return (self.skip, self.out), ((1.0 - point.alpha * self.skip) * inverse, -point.alpha * self.out * inverse)


Parametrisation = Callable[[Affine, Point], Coefficients]


def eps(process: Affine, point: Point) -> Coefficients:
    """F is the noise: x0 = (x_t - sigma F) / alpha (Ho et al. 2020). Needs alpha > 0."""
    inverse = reciprocal(point.alpha)
    return Coefficients(inverse, -point.sigma * inverse, 1.0, point.time, (0.0, 1.0))


def x0(process: Affine, point: Point) -> Coefficients:
    """F is the data. Needs sigma > 0 where eps is asked for."""
    return Coefficients(0.0, 1.0, 1.0, point.time)


def v(process: Affine, point: Point) -> Coefficients:
    """F is v = alpha eps - sigma x0 (Salimans & Ho 2022, arXiv:2202.00512, appendix D)."""
    a, s = point.alpha, point.sigma
    inverse = 1.0 / (a * a + s * s)
    return Coefficients(a * inverse, -s * inverse, 1.0, point.time, (s * inverse, a * inverse))


def score(process: Affine, point: Point) -> Coefficients:
    """F is the score, grad log p(x_t) (Song et al. 2021; what their VE networks give). Needs alpha > 0."""
    inverse, s = reciprocal(point.alpha), point.sigma
    return Coefficients(inverse, s * s * inverse, 1.0, point.time, (0.0, -s))


def velocity(process: Affine, point: Point) -> Coefficients:
    """F is dx/dt = alpha' x0 + sigma' eps of the probability flow (flow matching)."""
    (da, ds), a, s = process.rates(point.t), point.alpha, point.sigma
    inverse = 1.0 / (a * ds - s * da)
    return Coefficients(ds * inverse, -s * inverse, 1.0, point.time, (-da * inverse, a * inverse))


def edm(data_std: float = 0.5) -> Parametrisation:
    """x0 = c_skip x + c_out F(c_in x, log(s) / 4) with x = x_t / alpha, s = sigma / alpha (Karras et al. 2022, table
    1): input and target have unit variance when the data's deviation is `data_std`. Needs alpha > 0."""

    def coefficients(process: Affine, point: Point) -> Coefficients:
        scale = reciprocal(point.alpha)
        s = point.sigma * scale
        inverse = 1.0 / (s * s + data_std * data_std)
        root = inverse**0.5
        log = s.clamp(min=1e-12).log() if isinstance(s, Tensor) else math.log(max(s, 1e-12))
        return Coefficients(
            data_std * data_std * inverse * scale,
            s * data_std * root,
            root * scale,
            log / 4,
            (s * inverse * scale, -data_std * root),
        )

    return coefficients


def consistency(data_std: float = 0.5, low: float = 0.002, *, pace: float = 0.25) -> Parametrisation:
    """f(x, s) = c_skip x + c_out F(c_in x, pace log s): `edm` with c_skip = data_std^2 / ((s - low)^2 + data_std^2) and
    c_out = (s - low) data_std / sqrt(s^2 + data_std^2), so that f(x, low) is x itself, to the last bit (Song et al.
    2023, arXiv:2303.01469, appendix C). Below `low` it is x, too.

    `pace` 1/4 is EDM's clock, so that its networks can go on; the authors' networks have 250. Needs alpha > 0."""
    same = edm(data_std)

    def coefficients(process: Affine, point: Point) -> Coefficients:
        c, scale = same(process, point), reciprocal(point.alpha)
        s = point.sigma * scale
        gap = _beyond(s, low)
        skip = data_std * data_std / (gap * gap + data_std * data_std)
        out = gap * data_std / (s * s + data_std * data_std) ** 0.5
        inverse = reciprocal(s)
        row_eps = ((1.0 - skip) * inverse * scale, -out * inverse)
        return Coefficients(skip * scale, out, c.inp, c.time * (4.0 * pace), row_eps)

    return coefficients


def _beyond(s: Scalar, low: float) -> Scalar:
    """s - low, and exactly 0 where s is below, or above by a rounding."""
    if isinstance(s, Tensor):
        return torch.where(s <= low * (1 + 1e-9), 0.0, s - low)
    return 0.0 if s <= low * (1 + 1e-9) else s - low
