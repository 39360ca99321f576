"""Exact denoisers: the data distributions whose posterior mean is known in closed form. For tests, docs and
benchmarks."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.core.estimate import Estimate, Scalar, like
from sfumato.core.phase import CLD, Kernel, PhaseEstimate, halves
from sfumato.core.process import Affine, Point

__all__ = ["Empirical", "Gaussian", "Mixture", "PhaseGaussian", "PhaseMixture"]


def _known(process: Affine, point: Point, xt: Tensor, x0: Tensor, eps: Tensor) -> Estimate:
    return Estimate(process, point, x0, eps, (1.0, 0.0), (0.0, 1.0), xt)


def _column(c: Scalar, x: Tensor) -> Tensor:
    """c, shape () or (B,), as (1 or B, 1) in the dtype and on the device of x."""
    return torch.as_tensor(c, dtype=x.dtype).to(x.device).reshape(-1, 1)


class Gaussian:
    """Data N(mean, std^2), independent in every dimension; mean and std broadcast against x (B, C, *S)."""

    def __init__(self, process: Affine, mean: float | Tensor = 0.0, std: float | Tensor = 1.0) -> None:
        self.process, self.mean, self.std = process, mean, std

    def __call__(self, xt: Tensor, t: Point | Tensor | float) -> Estimate:
        point = self.process.at(t)
        alpha, sigma = like(point.alpha, xt), like(point.sigma, xt)
        residue = (xt - alpha * self.mean) / (alpha * alpha * self.std * self.std + sigma * sigma)
        return _known(self.process, point, xt, self.mean + alpha * self.std * self.std * residue, sigma * residue)

    def log_prob(self, xt: Tensor, t: Point | Tensor | float = 0.0) -> Tensor:
        """(B,) log p(x_t) in nats."""
        point = self.process.at(t)
        alpha, sigma = like(point.alpha, xt), like(point.sigma, xt)
        variance = torch.as_tensor(alpha * alpha * self.std * self.std + sigma * sigma, dtype=xt.dtype)
        square = (xt - alpha * self.mean).square() / variance
        return -0.5 * (square + (2 * math.pi * variance).log()).flatten(1).sum(1)

    def flow(self, xt: Tensor, t: Point | Tensor | float) -> Tensor:
        """Where the probability flow takes x_t at t = 0: mean + std (x_t - alpha mean) / sqrt(alpha^2 std^2 +
        sigma^2)."""
        point = self.process.at(t)
        alpha, sigma = like(point.alpha, xt), like(point.sigma, xt)
        return (
            self.mean
            + self.std * (xt - alpha * self.mean) / (alpha * alpha * self.std * self.std + sigma * sigma) ** 0.5
        )


def _weights(weights: Tensor | None, means: Tensor) -> Tensor:
    return torch.full((len(means),), 1 / len(means), dtype=means.dtype) if weights is None else weights


class Mixture:
    """A mixture of K isotropic normals: means (K, C, *S), stds (K,), weights (K,) that sum to 1."""

    def __init__(self, process: Affine, means: Tensor, stds: Tensor, weights: Tensor | None = None) -> None:
        self.process, self.means, self.stds, self.weights = process, means, stds, _weights(weights, means)

    def _residues(self, xt: Tensor, point: Point) -> tuple[Tensor, Tensor, Tensor]:
        """x_t - alpha mean (B, K, D), its variance (1 or B, K), and the log of weight times density (B, K)."""
        alpha, sigma = _column(point.alpha, xt), _column(point.sigma, xt)
        variance = alpha**2 * self.stds.to(xt.dtype) ** 2 + sigma**2
        residue = xt.flatten(1)[:, None] - alpha[..., None] * self.means.flatten(1).to(xt.dtype)
        normal = residue.square().sum(-1) / variance + residue.shape[-1] * (2 * math.pi * variance).log()
        return residue, variance, self.weights.to(xt.dtype).log() - 0.5 * normal

    def responsibilities(self, xt: Tensor, t: Point | Tensor | float) -> Tensor:
        """(B, K) probability that each component made x_t."""
        return self._residues(xt, self.process.at(t))[2].softmax(-1)

    def log_prob(self, xt: Tensor, t: Point | Tensor | float = 0.0) -> Tensor:
        """(B,) log p(x_t) in nats."""
        return self._residues(xt, self.process.at(t))[2].logsumexp(-1)

    def __call__(self, xt: Tensor, t: Point | Tensor | float) -> Estimate:
        point = self.process.at(t)
        residue, variance, log = self._residues(xt, point)
        weights, alpha, sigma = log.softmax(-1), _column(point.alpha, xt), _column(point.sigma, xt)
        pull = torch.einsum("bk,bkd->bd", weights * alpha * self.stds.to(xt.dtype) ** 2 / variance, residue)
        x0 = weights @ self.means.flatten(1).to(xt.dtype) + pull
        eps = torch.einsum("bk,bkd->bd", weights * sigma / variance, residue)
        return _known(self.process, point, xt, x0.reshape(xt.shape), eps.reshape(xt.shape))


class Empirical:
    """The data set itself, (N, C, *S): what a network with no error and no restraint would learn. It samples only
    copies."""

    def __init__(self, process: Affine, data: Tensor) -> None:
        self.process, self.data = process, data

    def __call__(self, xt: Tensor, t: Point | Tensor | float) -> Estimate:
        point = self.process.at(t)
        alpha, sigma = _column(point.alpha, xt), _column(point.sigma, xt)
        data = self.data.flatten(1).to(xt.dtype)
        x = xt.flatten(1)
        distance = x.square().sum(1, keepdim=True) - 2 * alpha * (x @ data.T) + alpha**2 * data.square().sum(1)
        nearest = distance.min(1, keepdim=True).values
        weights = (-(distance - nearest) / (2 * sigma**2).clamp(min=torch.finfo(xt.dtype).tiny)).softmax(1)
        x0 = (weights @ data).reshape(xt.shape)
        return Estimate.from_x0(self.process, point, xt, x0)


# -- phase space -------------------------------------------------------------------------------------------------------


class _Joint(NamedTuple):
    """The covariance of (x_t, v_t) for data of deviation std; its determinant is a sum of squares."""

    sxx: Scalar
    sxv: Scalar
    svv: Scalar
    det: Scalar

    @classmethod
    def of(cls, k: Kernel, std: Scalar) -> _Joint:
        square = std * std
        return cls(
            k.l11 * k.l11 + square * (k.xx * k.xx),
            k.l11 * k.l21 + square * (k.xx * k.vx),
            k.l21 * k.l21 + k.l22 * k.l22 + square * (k.vx * k.vx),
            (k.l11 * k.l22) ** 2 + square * ((k.xx * k.l22) ** 2 + (k.l11 * k.vx - k.l21 * k.xx) ** 2),
        )

    def pull(self, x: Tensor, v: Tensor) -> Tensor:
        """Minus the score in v: the second row of the inverse covariance, times (x, v)."""
        return (self.sxx * v - self.sxv * x) / self.det

    def distance(self, x: Tensor, v: Tensor) -> Tensor:
        """-2 log density, without the 2 log 2 pi."""
        square = (self.svv * x * x - 2 * self.sxv * x * v + self.sxx * v * v) / self.det
        return square + torch.as_tensor(self.det, dtype=x.dtype).log()


class PhaseGaussian:
    """`Gaussian` in the phase space of a CLD: data N(mean, std^2), momentum N(0, gamma M)."""

    def __init__(self, process: CLD, mean: float | Tensor = 0.0, std: float | Tensor = 1.0) -> None:
        self.process, self.mean, self.std = process, mean, std

    def covariance(self, t: float) -> Tensor:
        """(2, 2) float64, of (x_t, v_t); for one std."""
        joint = _Joint.of(self.process.at(t).marginal, self.std)
        return torch.tensor([[joint.sxx, joint.sxv], [joint.sxv, joint.svv]], dtype=torch.float64)

    def _residues(self, ut: Tensor, t: Point | Tensor | float) -> tuple[_Joint, Tensor, Tensor]:
        k = Kernel(*(like(c, ut) for c in self.process.at(t).marginal))
        x, v = halves(ut)
        return _Joint.of(k, self.std), x - k.xx * self.mean, v - k.vx * self.mean

    def __call__(self, ut: Tensor, t: Point | Tensor | float) -> PhaseEstimate:
        point = self.process.at(t)
        joint, x, v = self._residues(ut, point)
        return PhaseEstimate.from_eps(self.process, point, ut, joint.pull(x, v) * like(point.sigma, x))

    def log_prob(self, ut: Tensor, t: Point | Tensor | float) -> Tensor:
        """(B,) log p(u_t) in nats."""
        joint, x, v = self._residues(ut, t)
        return -0.5 * (joint.distance(x, v) + 2 * math.log(2 * math.pi)).flatten(1).sum(1)


class PhaseMixture:
    """`Mixture` in the phase space of a CLD: data a mixture of K isotropic normals, momentum N(0, gamma M)."""

    def __init__(self, process: CLD, means: Tensor, stds: Tensor, weights: Tensor | None = None) -> None:
        self.process, self.means, self.stds, self.weights = process, means, stds, _weights(weights, means)

    def _residues(self, ut: Tensor, t: Point | Tensor | float) -> tuple[_Joint, Tensor, Tensor]:
        """Covariances (1 or B, K, 1) and residues (B, K, D) of the components."""
        k = Kernel(*(_column(c, ut)[..., None] for c in self.process.at(t).marginal))
        (x, v), means = halves(ut), self.means.flatten(1).to(ut.dtype)
        joint = _Joint.of(k, self.stds.to(ut.dtype)[:, None])
        return joint, x.flatten(1)[:, None] - k.xx * means, v.flatten(1)[:, None] - k.vx * means

    def _log(self, joint: _Joint, x: Tensor, v: Tensor) -> Tensor:
        """(B, K) log of weight times density."""
        normal = (joint.distance(x, v) + 2 * math.log(2 * math.pi)).sum(-1)
        return self.weights.to(x.dtype).log() - 0.5 * normal

    def __call__(self, ut: Tensor, t: Point | Tensor | float) -> PhaseEstimate:
        point = self.process.at(t)
        joint, x, v = self._residues(ut, point)
        pull = torch.einsum("bk,bkd->bd", self._log(joint, x, v).softmax(-1), joint.pull(x, v))
        eps = pull.reshape(halves(ut)[0].shape)
        return PhaseEstimate.from_eps(self.process, point, ut, eps * like(point.sigma, eps))

    def log_prob(self, ut: Tensor, t: Point | Tensor | float) -> Tensor:
        """(B,) log p(u_t) in nats."""
        return self._log(*self._residues(ut, t)).logsumexp(-1)
