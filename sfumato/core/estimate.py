"""One x_t in every notation of the literature.

A noised point splits as `x_t = alpha x0 + sigma eps`. An `Estimate` is that split: exact when a process made it, a
guess when a network did. It keeps the two tensors it was given and the 2 x 2 matrix that turns them into (x0, eps),
with coefficients in float64, so that any mixture of the views costs one multiplication and one addition."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sfumato.core.process import Affine, Point

__all__ = ["Estimate", "Scalar", "like", "scaled"]

Scalar = float | Tensor  # a host float where the batch shares t, else (B,) float64
Row = tuple[Scalar, ...]  # weights of the tensors an Estimate keeps: two, and three in the phase space


def like(c: Scalar, x: Tensor) -> Scalar:
    """Coefficient c, shape () or (B,), ready to multiply x (B, C, *S). Host floats pass through."""
    if not isinstance(c, Tensor):
        return c
    c = c.to(x.dtype).to(x.device)  # in this order: not every device knows float64
    return c.reshape(c.shape + (1,) * (x.ndim - c.ndim)) if c.ndim else c


@lru_cache(maxsize=8192)
def _number(value: float, dtype: torch.dtype) -> Tensor:
    return torch.tensor(value, dtype=dtype, device="cpu")


def scaled(x: Tensor, c: float) -> Tensor:
    """c x. A Python float is wrapped anew in every product: a kept tensor () takes half the time, and gives the same
    bits where its type holds c as a product would."""
    return x * (_number(c, x.dtype) if x.dtype in (torch.float32, torch.float64) else c)


def combine(a: Scalar, p: Tensor, b: Scalar, q: Tensor) -> Tensor:
    """a p + b q as a new tensor, without touching a term whose coefficient is exactly 0."""
    if not isinstance(a, Tensor) and a == 0.0:
        return q * like(b, q)
    if not isinstance(b, Tensor):
        scaled = p * like(a, p)
        return scaled if b == 0.0 else scaled.add_(q, alpha=b)
    return p * like(a, p) + q * like(b, q)


class Estimate:
    """The split of x_t, seen as `x0`, `eps`, `score`, `v` or `velocity`, each (B, C, *S) in the dtype of x_t.

    score = -eps / sigma;  v = alpha eps - sigma x0 (Salimans & Ho 2022);  velocity = alpha' x0 + sigma' eps, dx/dt of
    the probability flow. `nu` is the interpolation weight of a learned variance (iDDPM eq. 15), if the network gave
    one. `pull` is the score that `tilt` added to `bare`, in x0 and eps already."""

    __slots__ = ("_a", "_b", "_bare", "_eps", "_x0", "_xt", "nu", "point", "process", "pull", "row_eps", "row_x0")

    def __init__(
        self,
        process: Affine,
        point: Point,
        a: Tensor,
        b: Tensor,
        row_x0: Row,
        row_eps: Row,
        xt: Tensor | None = None,
        nu: Tensor | None = None,
    ) -> None:
        self.process, self.point = process, point
        self._a, self._b, self.row_x0, self.row_eps = a, b, row_x0, row_eps
        self._xt, self.nu = xt, nu
        self._x0: Tensor | None = None
        self._eps: Tensor | None = None
        self._bare: Estimate | None = None
        self.pull: Tensor | None = None

    @classmethod
    def exact(cls, process: Affine, point: Point, x0: Tensor, eps: Tensor) -> Estimate:
        """The split that made x_t: both parts are known."""
        return cls(process, point, x0, eps, (1.0, 0.0), (0.0, 1.0))

    @classmethod
    def from_x0(cls, process: Affine, point: Point, xt: Tensor, x0: Tensor) -> Estimate:
        """The split of x_t when x0 is known: eps = (x_t - alpha x0) / sigma. At sigma = 0 eps is taken as 0."""
        inverse = reciprocal(point.sigma)
        return cls(process, point, xt, x0, (0.0, 1.0), (inverse, -point.alpha * inverse), xt)

    @classmethod
    def from_eps(cls, process: Affine, point: Point, xt: Tensor, eps: Tensor) -> Estimate:
        """The split of x_t when eps is known: x0 = (x_t - sigma eps) / alpha, which needs alpha > 0."""
        inverse = reciprocal(point.alpha)
        return cls(process, point, xt, eps, (inverse, -point.sigma * inverse), (0.0, 1.0), xt)

    def mix(self, a: Scalar, b: Scalar) -> Tensor:
        """a x0 + b eps, in one pass over the two kept tensors."""
        (p, q), (r, u) = self.row_x0, self.row_eps
        c, d = a * p + b * r, a * q + b * u
        if type(c) is float and type(d) is float and c != 0.0:  # what every step of every sampler does
            return scaled(self._a, c).add_(self._b, alpha=d)
        return combine(c, self._a, d, self._b)

    def _view(self, row: Row) -> Tensor:
        if not isinstance(row[0], Tensor) and not isinstance(row[1], Tensor):
            if row == (0.0, 1.0):
                return self._b
            if row == (1.0, 0.0):
                return self._a
        return combine(row[0], self._a, row[1], self._b)

    @property
    def t(self) -> Scalar:
        return self.point.t

    @property
    def xt(self) -> Tensor:
        if self._xt is None:
            self._xt = self.mix(self.point.alpha, self.point.sigma)
        return self._xt

    @property
    def x0(self) -> Tensor:
        if self._x0 is None:
            self._x0 = self._view(self.row_x0)
        return self._x0

    @property
    def eps(self) -> Tensor:
        if self._eps is None:
            self._eps = self._view(self.row_eps)
        return self._eps

    @property
    def score(self) -> Tensor:
        return self.mix(0.0, -reciprocal(self.point.sigma))

    @property
    def v(self) -> Tensor:
        return self.mix(-self.point.sigma, self.point.alpha)

    @property
    def velocity(self) -> Tensor:
        return self.mix(*self.process.rates(self.point.t))

    def with_x0(self, x0: Tensor) -> Estimate:
        """The same x_t explained by another x0; eps follows, so that the split stays consistent."""
        other = self.from_x0(self.process, self.point, self.xt, x0)
        other.nu = self.nu
        return other

    def with_eps(self, eps: Tensor) -> Estimate:
        """The same x_t explained by another eps; x0 follows."""
        other = self.from_eps(self.process, self.point, self.xt, eps)
        other.nu = self.nu
        return other

    def tilt(self, pull: Tensor) -> Estimate:
        """The same x_t with `pull` (B, C, *S) added to the score: eps falls by sigma times it, x0 rises by sigma^2 /
        alpha times it."""
        sigma = like(self.point.sigma, pull)
        other = self.with_eps(self.eps - sigma * pull)
        other._bare, other.pull = self.bare, pull if self.pull is None else self.pull + pull
        return other

    @property
    def bare(self) -> Estimate:
        """The estimate before every `tilt`."""
        return self._bare or self

    def part(self, k: int, xt: Tensor) -> Estimate:
        """The k-th share of a batch of several copies of x_t at one t. All shares keep the very x_t they are given."""
        n = len(xt)
        rows = slice(k * n, (k + 1) * n)
        nu = None if self.nu is None else self.nu[rows]
        return type(self)(self.process, self.point, xt, self._b[rows], self.row_x0, self.row_eps, xt, nu)

    def lerp(self, other: Estimate, w: float | Tensor) -> Estimate:
        """(1 - w) self + w other, exact in every view at once. Both must explain the same x_t at the same t. A share
        w may differ from channel to channel, (C, 1...).

        `nu` stays this estimate's own: guidance extrapolates the mean, never the variance.
        """
        if self.row_x0 is other.row_x0 and self._a is other._a:  # two answers of one network: mix those
            mixed = torch.lerp(self._b, other._b, w)
            return type(self)(self.process, self.point, self._a, mixed, self.row_x0, self.row_eps, self._xt, self.nu)
        return self.with_x0(torch.lerp(self.x0, other.x0, w))

    def toned(self, like_this: Estimate, share: float) -> Estimate:
        """The same x_t with the network's answer multiplied, for each example, by 1 + share (std of the other's answer
        / its own std - 1). Where they are not answers of one network, x0 stands for them."""
        one = self.row_x0 is like_this.row_x0 and self._a is like_this._a
        ours, theirs = (self._b, like_this._b) if one else (self.x0, like_this.x0)
        ratio = theirs.flatten(1).std(1) / ours.flatten(1).std(1)
        answer = ours * like(1.0 + share * (ratio - 1.0), ours)
        if not one:
            return self.with_x0(answer)
        return type(self)(self.process, self.point, self._a, answer, self.row_x0, self.row_eps, self._xt, self.nu)


def reciprocal(c: Scalar) -> Scalar:
    """1 / c, and 0 where c is 0."""
    if isinstance(c, Tensor):
        return torch.where(c == 0, 0.0, 1.0 / torch.where(c == 0, 1.0, c))
    return 1.0 / c if c else 0.0
