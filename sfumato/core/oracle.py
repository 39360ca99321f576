"""Exact denoisers: the data distributions whose posterior mean is known in closed form. For tests, docs and
benchmarks."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.core.estimate import Estimate, like
from sfumato.core.process import Affine, Point

__all__ = ["Empirical", "Gaussian", "Mixture"]


def _known(process: Affine, point: Point, xt: Tensor, x0: Tensor, eps: Tensor) -> Estimate:
    return Estimate(process, point, x0, eps, (1.0, 0.0), (0.0, 1.0), xt)


class Gaussian:
    """Data N(mean, std^2), independent in every dimension; mean and std broadcast against x (B, C, *S)."""

    def __init__(self, process: Affine, mean: float | Tensor = 0.0, std: float | Tensor = 1.0) -> None:
        self.process, self.mean, self.std = process, mean, std

    def __call__(self, xt: Tensor, t: Point | Tensor | float) -> Estimate:
        point = self.process.at(t)
        alpha, sigma = like(point.alpha, xt), like(point.sigma, xt)
        residue = (xt - alpha * self.mean) / (alpha * alpha * self.std * self.std + sigma * sigma)
        return _known(self.process, point, xt, self.mean + alpha * self.std * self.std * residue, sigma * residue)

    def flow(self, xt: Tensor, t: Point | Tensor | float) -> Tensor:
        """Where the probability flow takes x_t at t = 0: mean + std (x_t - alpha mean) / sqrt(alpha^2 std^2 +
        sigma^2)."""
        point = self.process.at(t)
        alpha, sigma = like(point.alpha, xt), like(point.sigma, xt)
        return (
            self.mean
            + self.std * (xt - alpha * self.mean) / (alpha * alpha * self.std * self.std + sigma * sigma) ** 0.5
        )


class Mixture:
    """A mixture of K isotropic normals: means (K, C, *S), stds (K,), weights (K,) that sum to 1."""

    def __init__(self, process: Affine, means: Tensor, stds: Tensor, weights: Tensor | None = None) -> None:
        self.process, self.means, self.stds = process, means, stds
        self.weights = torch.full((len(means),), 1 / len(means), dtype=means.dtype) if weights is None else weights

    def responsibilities(self, xt: Tensor, t: Point | Tensor | float) -> Tensor:
        """(B, K) probability that each component made x_t."""
        point = self.process.at(t)
        dimensions = self.means[0].numel()
        alpha, sigma = (torch.as_tensor(c, dtype=xt.dtype).reshape(-1, 1) for c in (point.alpha, point.sigma))
        variance = alpha**2 * self.stds.to(xt.dtype) ** 2 + sigma**2  # (1 or B, K)
        centre = alpha[..., None] * self.means.flatten(1).to(xt.dtype)  # (1 or B, K, D)
        distance = (xt.flatten(1)[:, None] - centre).square().sum(-1)  # (B, K)
        return (
            self.weights.to(xt.dtype).log() - 0.5 * distance / variance - 0.5 * dimensions * variance.log()
        ).softmax(-1)

    def __call__(self, xt: Tensor, t: Point | Tensor | float) -> Estimate:
        point = self.process.at(t)
        weights = self.responsibilities(xt, point)
        parts = [
            Gaussian(self.process, mean.to(xt.dtype), std.to(xt.dtype))(xt, point)
            for mean, std in zip(self.means, self.stds, strict=True)
        ]
        x0 = sum(like(w, xt) * part.x0 for w, part in zip(weights.unbind(1), parts, strict=True))
        eps = sum(like(w, xt) * part.eps for w, part in zip(weights.unbind(1), parts, strict=True))
        return _known(self.process, point, xt, x0, eps)  # type: ignore[arg-type]


class Empirical:
    """The data set itself, (N, C, *S): what a network with no error and no restraint would learn. It samples only
    copies."""

    def __init__(self, process: Affine, data: Tensor) -> None:
        self.process, self.data = process, data

    def __call__(self, xt: Tensor, t: Point | Tensor | float) -> Estimate:
        point = self.process.at(t)
        alpha, sigma = (torch.as_tensor(c, dtype=xt.dtype).reshape(-1, 1) for c in (point.alpha, point.sigma))
        data = self.data.flatten(1).to(xt.dtype)
        x = xt.flatten(1)
        distance = x.square().sum(1, keepdim=True) - 2 * alpha * (x @ data.T) + alpha**2 * data.square().sum(1)
        nearest = distance.min(1, keepdim=True).values
        weights = (-(distance - nearest) / (2 * sigma**2).clamp(min=torch.finfo(xt.dtype).tiny)).softmax(1)
        x0 = (weights @ data).reshape(xt.shape)
        return Estimate.from_x0(self.process, point, xt, x0)
