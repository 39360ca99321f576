"""How data becomes noise. Time t runs from 0 (data) to 1 (noise) in float64.

An affine process is two functions, `x_t = alpha(t) x_0 + sigma(t) eps`; drift, diffusion, rates, signal-to-noise and
their inverses follow (Song et al. 2021, arXiv:2011.13456, eq. 29; Karras et al. 2022, arXiv:2206.00364, appendix B).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato.core.estimate import Estimate, Scalar, combine, like
from sfumato.core.random import Seeds

__all__ = ["Affine", "Point", "Process"]


class Point:
    """A time with what samplers ask of it: `t`, `alpha`, `sigma` and the network's `time`.

    Host floats where the whole batch shares t; (B,) float64 tensors where it does not. `plan` belongs to the denoiser
    that is called at this point: grids are reused, and what it derived from the four numbers with them."""

    __slots__ = ("alpha", "plan", "sigma", "t", "time")

    def __init__(self, t: Scalar, alpha: Scalar, sigma: Scalar, time: Scalar) -> None:
        self.t, self.alpha, self.sigma, self.time = t, alpha, sigma, time
        self.plan: Any = None

    @property
    def ratio(self) -> float:
        """sigma / alpha, the noise level of x_t / alpha; inf without signal. For a t that the batch shares."""
        return float(self.sigma / self.alpha) if self.alpha else math.inf

    @property
    def lam(self) -> float:
        """log(alpha / sigma), half the log signal-to-noise ratio; inf at t = 0. For a t that the batch shares."""
        return -math.log(self.ratio) if self.ratio else math.inf

    def __repr__(self) -> str:
        return f"Point(t={self.t}, alpha={self.alpha}, sigma={self.sigma}, time={self.time})"


Times = float | Tensor | Point
INSTANT = 1e-9  # after t = 0, where sigma often has no derivative: rates and diffusion are limits from above


class Process(ABC):
    """dx = drift dt + diffusion dw, whose noised points can be split exactly."""

    constant: bool = False  # its numbers never change: samplers may keep the points of a grid
    first: float = 1e-3  # the least t > 0 that networks are trained at and samplers stop at before t = 0

    @abstractmethod
    def at(self, t: Times) -> Point:
        """The point at t: a float, () or (B,). A Point passes through."""

    @abstractmethod
    def points(self, grid: Sequence[float] | Tensor) -> list[Point]:
        """One Point with host floats for every time of a sampling grid."""

    @abstractmethod
    def noise(self, x0: Tensor, t: Times, eps: Tensor) -> Estimate:
        """The exact split of x_t for x0 (B, C, *S) and the noise of `draw`."""

    @abstractmethod
    def prior(
        self,
        shape: Sequence[int],
        rng: Seeds,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """x_1, where sampling begins."""

    @abstractmethod
    def drift(self, x: Tensor, t: Times) -> Tensor:
        """f(x, t), (B, C, *S): the deterministic part of dx per unit of t."""

    @abstractmethod
    def diffusion(self, x: Tensor, t: Times) -> Scalar:
        """g(t), () or (B,): dx has variance g^2 dt. At t = 0 the limit from above."""

    def draw(self, x0: Tensor, rng: Seeds) -> Tensor:
        """Standard normal noise, one number per noise dimension of x0."""
        return rng.normal(x0.shape, dtype=x0.dtype, device=x0.device)

    def reverse(self, x: Tensor, t: Times, score: Tensor, *, ode: bool = False) -> Tensor:
        """Drift of the reverse SDE, f - g^2 score, or of the probability flow, f - g^2 score / 2 (Song eqs. 6, 13)."""
        g = self.diffusion(x, t)
        return combine(1.0, self.drift(x, t), -(0.5 if ode else 1.0) * g * g, score)

    def project(self, x: Tensor) -> Tensor:
        """From the space of the trajectory to the data's: the identity unless the process has more dimensions."""
        return x


class Affine(Process):
    """x_t = alpha(t) x_0 + sigma(t) eps. A new process writes `alpha` and `sigma`; the rest follows from the two."""

    prior_std: float | None = None  # None: sigma(1)

    def __init_subclass__(cls) -> None:
        """A closed inverse belongs to the very functions that it inverts."""
        super().__init_subclass__()
        owner = next(kind for kind in cls.__mro__ if "time" in vars(kind))
        if owner is not cls and {"alpha", "sigma"} & vars(cls).keys() and {"alpha", "sigma"} & vars(owner).keys():
            cls.time = Affine.time  # type: ignore[method-assign]

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale at t, float64, any shape."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale at t, float64, any shape."""

    def network_time(self, t: Tensor) -> Tensor:
        """What a network is told of t."""
        return t

    def at(self, t: Times) -> Point:
        if isinstance(t, Point):
            return t
        if not isinstance(t, Tensor) or t.ndim == 0:
            return self.points([float(t)])[0]
        t = t.to(torch.float64)
        return Point(t, self.alpha(t), self.sigma(t), self.network_time(t))

    def points(self, grid: Sequence[float] | Tensor) -> list[Point]:
        t = torch.as_tensor(grid, dtype=torch.float64, device="cpu")
        columns = (t, self.alpha(t), self.sigma(t), self.network_time(t))
        return [Point(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def noise(self, x0: Tensor, t: Times, eps: Tensor) -> Estimate:
        return Estimate.exact(self, self.at(t), x0, eps)

    def prior(
        self,
        shape: Sequence[int],
        rng: Seeds,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        std = float(self.at(1.0).sigma) if self.prior_std is None else self.prior_std
        x = rng.normal(shape, dtype=dtype, device=device)
        return x if std == 1.0 else x * std

    def rates(self, t: Scalar) -> tuple[Scalar, Scalar]:
        """(d alpha / dt, d sigma / dt) at t, by differentiating the two functions."""
        moment = torch.as_tensor(t, dtype=torch.float64).clamp(min=INSTANT)
        da, ds = _derivative(self.alpha, moment), _derivative(self.sigma, moment)
        return (da, ds) if moment.ndim else (float(da), float(ds))

    def drift(self, x: Tensor, t: Times) -> Tensor:
        """(alpha' / alpha) x."""
        p = self.at(t)
        return x * like(self.rates(p.t)[0] / p.alpha, x)

    def diffusion(self, x: Tensor, t: Times) -> Scalar:
        """g with g^2 = 2 sigma sigma' - 2 (alpha' / alpha) sigma^2 (Karras et al. eq. 20 solved for g)."""
        t = self.at(t).t
        p = self.at(t.clamp(min=INSTANT) if isinstance(t, Tensor) else max(t, INSTANT))
        da, ds = self.rates(p.t)
        square = 2 * p.sigma * (ds - da / p.alpha * p.sigma)
        return square.sqrt() if isinstance(square, Tensor) else math.sqrt(max(square, 0.0))

    def log_snr(self, t: Tensor | float) -> Tensor:
        """log(alpha^2 / sigma^2) at t."""
        t = torch.as_tensor(t, dtype=torch.float64)
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def time(self, log_snr: Tensor | float) -> Tensor:
        """The t at which `log_snr` holds: its inverse, by bisection (log_snr falls with t)."""
        goal = torch.as_tensor(log_snr, dtype=torch.float64)
        low, high = torch.zeros_like(goal), torch.ones_like(goal)
        for _ in range(60):
            middle = (low + high) / 2
            noisier = self.log_snr(middle) < goal
            low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
        return (low + high) / 2


def _derivative(f: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    with torch.enable_grad():
        t = t.detach().requires_grad_()
        value = f(t)
        return torch.autograd.grad(value.sum(), t)[0] if value.requires_grad else torch.zeros_like(t)
