"""Critically-damped Langevin diffusion: data that moves (CLD; Dockhorn, Vahdat & Kreis 2022, arXiv:2112.07068).

Every number x of the data gets a momentum v, and noise enters v alone (their eq. 5):

    dx = v / M beta dt,    dv = (-x - Gamma v / M) beta dt + sqrt(2 Gamma beta) dw,    Gamma = 2 sqrt(M)

A state u = (x, v) stacks the two along channels, (B, 2 C, *S). Given x_t the momentum is affine noised data again,
`position x_t + momentum v_t = alpha x_0 + sigma eps` with eps the noise of v, so that losses, weights, guidance and
parametrisations of affine processes hold here as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.core.estimate import Estimate, Row, Scalar, like, reciprocal
from sfumato.core.process import INSTANT, Point, Process, Times
from sfumato.core.random import Seeds

__all__ = ["CLD", "Kernel", "PhaseEstimate", "PhasePoint", "halves", "likelihood", "log_time", "mixed", "raw_time"]


def halves(u: Tensor) -> tuple[Tensor, Tensor]:
    """Position and momentum of u (B, 2 C, *S): two views of it."""
    x, v = u.chunk(2, dim=1)
    return x, v


def blend(*terms: tuple[Scalar, Tensor]) -> Tensor:
    """The weighted sum of tensors of one shape, as a new tensor; terms whose weight is exactly 0 are not touched."""
    (c, first), *rest = [(c, x) for c, x in terms if isinstance(c, Tensor) or c != 0.0] or terms[:1]
    total = first * like(c, first)
    for weight, x in rest:
        total = total + x * like(weight, x) if isinstance(weight, Tensor) else total.add_(x, alpha=weight)
    return total


class Kernel(NamedTuple):
    """p(u_t | u_0): x_t = xx x_0 + xv v_0 + l11 e_x and v_t = vx x_0 + vv v_0 + l21 e_x + l22 e_v."""

    xx: Scalar
    xv: Scalar
    vx: Scalar
    vv: Scalar
    l11: Scalar
    l21: Scalar
    l22: Scalar


class PhasePoint(Point):
    """A time with the numbers of a phase point: position x_t + momentum v_t = alpha x_0 + sigma eps."""

    __slots__ = ("kernel", "marginal", "momentum", "position")

    def __init__(self, t: Scalar, time: Scalar, kernel: Kernel, marginal: Kernel) -> None:
        """`kernel` makes u_t in training; `marginal` is the one without v_0, from which x_0 follows."""
        shear = marginal.l21 / marginal.l11
        self.momentum = (kernel.l22 / marginal.l22) ** 2  # 1 for hybrid score matching, where the two are one
        self.position = -shear * self.momentum
        super().__init__(t, (marginal.vx - shear * marginal.xx) * self.momentum, kernel.l22, time)
        self.kernel, self.marginal = kernel, marginal

    @property
    def momentum_variance(self) -> Scalar:
        """Svv, of v_t given x_0."""
        return self.marginal.l21 * self.marginal.l21 + self.marginal.l22 * self.marginal.l22

    def lift(self, row: Row) -> Row:
        """Weights of (position x_t + momentum v_t, F), the row of an affine parametrisation, as those of (x_t, v_t,
        F)."""
        return row if len(row) == 3 else (row[0] * self.position, row[0] * self.momentum, row[1])


class PhaseEstimate(Estimate):
    """One phase point u_t seen as `x0`, `eps` and `score`, each (B, C, *S), or `velocity` (B, 2 C, *S).

    eps is the noise of the momentum and score = -eps / sigma the gradient of log p with respect to v: that of x is
    never needed. x0 follows from eps, since E[e_v | u] fixes E[x_0 | u]. velocity is du/dt of the probability flow.

    It keeps u_t and what the network gave, and both rows weigh (x_t, v_t, F)."""

    __slots__ = ()
    process: CLD  # type: ignore[assignment]
    point: PhasePoint

    @classmethod
    def exact(cls, process: CLD, point: PhasePoint, x0: Tensor, eps: Tensor) -> PhaseEstimate:  # type: ignore[override]
        """The split that made u_t from the noise of `CLD.draw`."""
        k, (ex, ev, *rest) = point.kernel, eps.chunk(eps.shape[1] // x0.shape[1], dim=1)
        x, v = [(k.xx, x0), (k.l11, ex)], [(k.vx, x0), (k.l21, ex), (k.l22, ev)]
        if rest:
            v0 = rest[0] * math.sqrt(process.gamma * process.mass)
            x, v = [*x, (k.xv, v0)], [*v, (k.vv, v0)]
        u = torch.cat([blend(*x), blend(*v)], dim=1)
        self = cls.from_eps(process, point, u, ev)
        self._x0 = x0
        return self

    @classmethod
    def from_x0(cls, process: CLD, point: PhasePoint, xt: Tensor, x0: Tensor) -> PhaseEstimate:  # type: ignore[override]
        """The split of u_t when x0 is known: eps = (position x_t + momentum v_t - alpha x0) / sigma."""
        inverse = reciprocal(point.sigma)
        return cls(process, point, xt, x0, (0.0, 0.0, 1.0), point.lift((inverse, -point.alpha * inverse)), xt)  # type: ignore[arg-type]

    @classmethod
    def from_eps(cls, process: CLD, point: PhasePoint, xt: Tensor, eps: Tensor) -> PhaseEstimate:  # type: ignore[override]
        """The split of u_t when the noise of v is known: x0 = (position x_t + momentum v_t - sigma eps) / alpha."""
        inverse = reciprocal(point.alpha)
        return cls(process, point, xt, eps, point.lift((inverse, -point.sigma * inverse)), (0.0, 0.0, 1.0), xt)  # type: ignore[arg-type]

    def _view(self, row: Row) -> Tensor:
        if all(type(c) is float for c in row) and row == (0.0, 0.0, 1.0):
            return self._b
        x, v = halves(self._a)
        return blend((row[0], x), (row[1], v), (row[2], self._b))

    def mix(self, a: Scalar, b: Scalar) -> Tensor:
        """a x0 + b eps."""
        if not isinstance(a, Tensor) and a == 0.0:
            return self.eps * like(b, self.eps)
        return blend((a, self.x0), (b, self.eps))

    @property
    def position(self) -> Tensor:
        return halves(self.xt)[0]

    @property
    def momentum(self) -> Tensor:
        return halves(self.xt)[1]

    @property
    def v(self) -> Tensor:
        raise AttributeError("v = alpha eps - sigma x0 is of no use in phase space: .momentum is the other half of u_t")

    @property
    def velocity(self) -> Tensor:
        return self.process.reverse(self.xt, self.point, self.score, ode=True)


# -- what networks are told and what they answer -----------------------------------------------------------------------


def log_time(t: Tensor) -> Tensor:
    """log t, the time of the CIFAR networks."""
    return t.clamp(min=INSTANT).log()


def raw_time(t: Tensor) -> Tensor:
    """t itself, the time of the CelebA networks."""
    return t


class PhaseCoefficients(NamedTuple):
    """What a parametrisation of the phase space says: eps as weights of (x_t, v_t, F)."""

    row_eps: Row
    time: Scalar
    inp: Scalar = 1.0

    def rows(self, point: PhasePoint) -> tuple[Row, Row]:
        """Weights of (x_t, v_t, F) in x0 and in eps."""
        inverse, split = reciprocal(point.alpha), (point.position, point.momentum, 0.0)
        x0 = tuple((a - point.sigma * b) * inverse for a, b in zip(split, self.row_eps, strict=True))
        return x0, self.row_eps


def mixed(process: CLD, point: PhasePoint) -> PhaseCoefficients:
    """F is what eps has beyond sigma v_t / Svv, the exact answer for data that are one point at 0: score = -v / Svv -
    F / sigma (section 3, "mixed score"; Svv the variance of v_t given x_0)."""
    return PhaseCoefficients((0.0, point.sigma / point.momentum_variance, 1.0), point.time)


def likelihood(process: CLD, point: Point) -> Scalar:
    """Gamma beta, in x0's terms: the weight of the squared error of the score that bounds the likelihood."""
    return process.friction * process.rate(point.t) * (point.alpha / (point.sigma * point.sigma)) ** 2


# -- the process -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CLD(Process):
    """dx = v / M beta dt, dv = (-x - Gamma v / M) beta dt + sqrt(2 Gamma beta) dw with beta(t) = beta + slope t.

    v_0 is N(0, gamma M I) and u_1 nearly N(0, I) x N(0, M I). `hybrid`: training integrates v_0 out (hybrid score
    matching) instead of drawing it (denoising score matching); the score that is learned is the same.

    Everything follows from tau = B(t) / sqrt(M), B the integral of beta. With v in units of sqrt(M) and P(3, .) the
    distribution function of the gamma law, the noise of the kernel is

        Sxx = P(3, 2 tau),    Sxv = 2 tau^2 exp(-2 tau),    Svv = Sxx + 4 tau exp(-2 tau)

    sums of positive terms, exact down to Sxx ~ 4 tau^3 / 3 (the usual form, 1 - exp(-2 tau) (1 + 2 tau + 2 tau^2),
    loses all digits there). `numerical_eps` is added to Sxx and Svv: a hyper-parameter that tempers 1 / sigma at small
    t, not a guard against rounding. t below `INSTANT` is read as that.

    Raises ValueError where these cannot diffuse anything."""

    beta: float = 4.0
    slope: float = 0.0
    mass: float = 0.25
    gamma: float = 0.04
    numerical_eps: float = 1e-9
    hybrid: bool = True
    clock: Callable[[Tensor], Tensor] = field(default=log_time, repr=False)  # what a network is told of t
    constant = True
    first = 1e-3  # the least t > 0 that samplers stop at before t = 0

    def __post_init__(self) -> None:
        if not (self.beta >= 0 and self.beta + self.slope > 0 and self.mass > 0 and self.gamma > 0):
            raise ValueError(f"{self}: beta(t) must be positive between t = 0 and 1, and so must mass and gamma")
        if not (self.numerical_eps >= 0 and math.isfinite(self.beta + self.slope + self.mass + self.gamma)):
            raise ValueError(f"{self}: numerical_eps must not be negative, and all must be finite")

    @property
    def friction(self) -> float:
        """Gamma = 2 sqrt(M): the least friction at which nothing oscillates."""
        return 2.0 * math.sqrt(self.mass)

    def rate(self, t: Scalar) -> Scalar:
        """beta(t)."""
        return self.beta + self.slope * t

    def tau(self, t: Tensor) -> Tensor:
        """The integral of beta from 0 to t, over sqrt(M)."""
        return t * (self.beta + 0.5 * self.slope * t) / math.sqrt(self.mass)

    def kernel(self, tau: Tensor, variance: float = 0.0, jitter: float = 0.0) -> Kernel:
        """The kernel over tau > 0 of `tau`: v_0 drawn from N(0, `variance`) and summed into the noise, `jitter` added
        to Sxx and Svv. Its determinant is likewise a sum that cancels no more than a digit."""
        m, g, k = self.mass, variance / self.mass, torch.exp(-2 * tau)
        sxx, sxv = torch.special.gammainc(torch.full_like(tau, 3.0), 2 * tau), 2 * k * tau * tau
        svv, rest = sxx + 4 * tau * k, 1 - tau
        det = sxx * svv - sxv * sxv + g * k * (rest * rest * sxx - 2 * tau * rest * sxv + tau * tau * svv)
        sxx, sxv = sxx + g * k * tau * tau, math.sqrt(m) * (sxv + g * k * tau * rest)
        svv = m * (svv + g * k * rest * rest)
        det = m * det + jitter * (sxx + svv) + jitter * jitter
        l11, e, unit = torch.sqrt(sxx + jitter), torch.exp(-tau), math.sqrt(m)
        mean = e * (1 + tau), e * tau / unit, -e * tau * unit, e * rest
        return Kernel(*mean, l11, sxv / l11, torch.sqrt(det) / l11)

    def _at(self, t: Tensor) -> tuple[Tensor, Kernel, Kernel]:
        tau = self.tau(t.clamp(min=INSTANT))
        marginal = self.kernel(tau, self.gamma * self.mass, self.numerical_eps)
        kernel = marginal if self.hybrid else self.kernel(tau, 0.0, self.numerical_eps)
        return self.clock(t), kernel, marginal

    def at(self, t: Times) -> PhasePoint:
        if isinstance(t, Point):
            assert isinstance(t, PhasePoint), f"{t} is not a point of {self}"
            return t
        if not isinstance(t, Tensor) or t.ndim == 0:
            return self.points([float(t)])[0]
        t = t.to(torch.float64)
        return PhasePoint(t, *self._at(t))

    def points(self, grid: Sequence[float] | Tensor) -> list[PhasePoint]:  # type: ignore[override]
        t = torch.as_tensor(grid, dtype=torch.float64, device="cpu")
        time, *kernels = self._at(t)
        rows = (zip(*(torch.as_tensor(c, device="cpu").tolist() for c in kernel), strict=True) for kernel in kernels)
        return [
            PhasePoint(t, time, Kernel(*kernel), Kernel(*marginal))
            for t, time, kernel, marginal in zip(t.tolist(), time.tolist(), *rows, strict=True)
        ]

    def draw(self, x0: Tensor, rng: Seeds) -> Tensor:
        """e_x and e_v, and with denoising score matching v_0, along channels: (B, 2 C, *S) or (B, 3 C, *S)."""
        shape = (len(x0), (2 if self.hybrid else 3) * x0.shape[1], *x0.shape[2:])
        return rng.normal(shape, dtype=x0.dtype, device=x0.device)

    def noise(self, x0: Tensor, t: Times, eps: Tensor) -> PhaseEstimate:
        return PhaseEstimate.exact(self, self.at(t), x0, eps)

    def prior(
        self,
        shape: Sequence[int],
        rng: Seeds,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """u_1 (B, 2 C, *S) for data of `shape` (B, C, *S): N(0, I) x N(0, M I), the law that the process keeps."""
        u = rng.normal((shape[0], 2 * shape[1], *shape[2:]), dtype=dtype, device=device)
        halves(u)[1].mul_(math.sqrt(self.mass))
        return u

    def drift(self, x: Tensor, t: Times) -> Tensor:
        rate = like(self.rate(self.at(t).t), x)
        position, momentum = halves(x)
        speed = momentum * (rate / self.mass)
        return torch.cat([speed, (position * -rate).sub_(speed, alpha=self.friction)], dim=1)

    def diffusion(self, x: Tensor, t: Times) -> Scalar:
        """g of the momentum, sqrt(2 Gamma beta); the position has no noise of its own."""
        square: Scalar = 2 * self.friction * self.rate(self.at(t).t)
        return square**0.5

    def reverse(self, x: Tensor, t: Times, score: Tensor, *, ode: bool = False) -> Tensor:
        """Drift of the reverse SDE or the probability flow; `score` (B, C, *S) is that of the momentum."""
        drift, g = self.drift(x, t), self.diffusion(x, t)
        halves(drift)[1].sub_(score * like((0.5 if ode else 1.0) * g * g, score))
        return drift

    def project(self, x: Tensor) -> Tensor:
        """The position: (B, 2 C, *S) -> (B, C, *S)."""
        return halves(x)[0]
