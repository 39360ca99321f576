"""Training compares two Estimates of one x_t in the view the paper chose. Losses are per sample, (B,)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.core.cond import Cond
from sfumato.core.denoiser import Denoiser, NeuralDenoiser
from sfumato.core.estimate import Estimate, Scalar, like
from sfumato.core.posterior import Variance, small
from sfumato.core.process import Affine, Point
from sfumato.core.random import Seeds

__all__ = [
    "Bound",
    "View",
    "Weight",
    "bound",
    "decoder_bits",
    "denoising",
    "min_snr",
    "prior_bits",
    "snr",
    "truncated_snr",
    "variational_bound",
    "views",
]


class View(NamedTuple):
    """A way to look at an Estimate, and by how much its squared error exceeds that of x0 at the same x_t."""

    see: Callable[[Estimate], Tensor]
    gain: Callable[[Affine, Point], Scalar]

    def __call__(self, estimate: Estimate) -> Tensor:
        return self.see(estimate)


def _snr(process: Affine, p: Point) -> Scalar:
    return (p.alpha / p.sigma) ** 2


def _velocity_gain(process: Affine, p: Point) -> Scalar:
    da, ds = process.rates(p.t)
    return (da - ds * p.alpha / p.sigma) ** 2


class views:
    """The views of the literature."""

    x0 = View(lambda e: e.x0, lambda process, p: 1.0)
    eps = View(lambda e: e.eps, _snr)
    v = View(lambda e: e.v, lambda process, p: (p.sigma + p.alpha * p.alpha / p.sigma) ** 2)
    score = View(lambda e: e.score, lambda process, p: (p.alpha / (p.sigma * p.sigma)) ** 2)
    velocity = View(lambda e: e.velocity, _velocity_gain)


# -- weights: of the squared error in x0, whatever the view ------------------------------------------------------------

Weight = Callable[[Affine, Point], Scalar]


def snr(process: Affine, p: Point) -> Scalar:
    """alpha^2 / sigma^2: the plain eps loss (Ho et al. eq. 14) in any view."""
    return _snr(process, p)


def truncated_snr(process: Affine, p: Point) -> Scalar:
    """max(snr, 1) (Salimans & Ho 2022, section 4)."""
    return torch.as_tensor(_snr(process, p)).clamp(min=1.0)


def min_snr(gamma: float = 5.0) -> Weight:
    """min(snr, gamma) (Hang et al. 2023, arXiv:2303.09556, section 3.4)."""
    return lambda process, p: torch.as_tensor(_snr(process, p)).clamp(max=gamma)


# -- losses ------------------------------------------------------------------------------------------------------------


def denoising(
    denoiser: Denoiser | NeuralDenoiser,
    x0: Tensor,
    t: Tensor | float,
    *,
    rng: Seeds,
    eps: Tensor | None = None,
    view: View = views.eps,
    weight: Weight | None = None,
    cond: Cond | None = None,
) -> Tensor:
    """(B,) mean squared error between the guess and the truth of x_t in one view (L_simple, Ho et al. eq. 14, with
    views.eps).

    x0 (B, C, *S); t (B,) in (0, 1]; `weight` is in x0's terms: a weight gives the same loss in every view, None gives
    1 in this one."""
    process = denoiser.process
    point = process.at(t)
    truth = process.noise(x0, point, process.draw(x0, rng) if eps is None else eps)
    guess = denoiser(truth.xt, point) if cond is None else denoiser(truth.xt, point, cond)  # type: ignore[call-arg]
    error = (view(guess) - view(truth)).square().flatten(1).mean(1)
    return error if weight is None else error * like(weight(process, point) / view.gain(process, point), error)


# -- the variational bound ---------------------------------------------------------------------------------------------


def bound(truth: Estimate, guess: Estimate, s: Point | Tensor | float, *, variance: Variance = small) -> Tensor:
    """(B,) KL of one step t -> s between q(x_s | x_t, x0) and the model's, in bits per dimension (Ho et al. eq. 5,
    L_{t-1}).

    Both have fixed means; the model's variance is `variance(t, s)`. s must be noisier than clean: the last step is
    `decoder_bits`."""
    t, s = truth.point, truth.process.at(s)
    true, model = small(t, s), variance(t, s)
    ratio = torch.as_tensor(true / model, dtype=torch.float64)
    # the two means differ only through x0: mean = (alpha_s - r sigma_s^2 alpha_t / sigma_t^2) x0 + (...) x_t
    c = s.alpha - t.alpha / s.alpha * s.sigma * s.sigma * t.alpha / (t.sigma * t.sigma)
    square = (truth.x0 - guess.x0).square().flatten(1).mean(1)
    kl = 0.5 * (like(ratio - 1.0 - ratio.log(), square) + square * like(c * c / model, square))
    return kl / math.log(2.0)


def decoder_bits(x0: Tensor, mean: Tensor, variance: Scalar) -> Tensor:
    """(B,) -log2 p(x0 | x_1) per dimension of the discretised decoder (Ho et al. eq. 13).

    x0 in [-1, 1] on 256 levels; bins have half-width 1/255, the outer two are open. The normal distribution function
    is exact (the official code takes a tanh approximation, off by up to 3e-4)."""
    std = like(torch.as_tensor(variance, dtype=torch.float64).sqrt(), x0)
    centred = x0 - mean
    upper, lower = (centred + 1 / 255) / std, (centred - 1 / 255) / std
    inside = torch.special.ndtr(upper) - torch.special.ndtr(lower)
    mass = torch.where(
        x0 < -0.999, torch.special.ndtr(upper), torch.where(x0 > 0.999, torch.special.ndtr(-lower), inside)
    )
    return -mass.clamp(min=1e-12).log2().flatten(1).mean(1)


def prior_bits(process: Affine, x0: Tensor) -> Tensor:
    """(B,) KL of q(x_1 | x0) from the prior, in bits per dimension (L_T of Ho et al. eq. 5)."""
    end = process.at(1.0)
    std = float(end.sigma) if process.prior_std is None else process.prior_std
    ratio = float(end.sigma) ** 2 / std**2
    square = x0.square().flatten(1).mean(1) * (float(end.alpha) ** 2 / std**2)
    return 0.5 * (square + (ratio - 1.0 - math.log(ratio))) / math.log(2.0)


class Bound(NamedTuple):
    """The variational bound and its terms, in bits per dimension."""

    total: Tensor  # (B,)
    prior: Tensor  # (B,)
    steps: Tensor  # (S, B): the KL of every step, noisiest first; the last row is the decoder


@torch.no_grad()
def variational_bound(
    denoiser: Denoiser, x0: Tensor, grid: Sequence[float] | Tensor, *, rng: Seeds, variance: Variance = small
) -> Bound:
    """-log p(x0) is at most this (Ho et al. eq. 5), one draw of noise per step; x0 (B, C, *S) on 256 levels of [-1, 1].

    `grid` falls from 1 to 0. The last step's variance is that of the step before it (the official code: q(x_1 | x_2,
    x0)'s)."""
    points = denoiser.process.points(grid)
    if len(points) < 3:
        raise ValueError("the bound needs two steps or more: the decoder takes the variance of the step before")
    rows = []
    for t, s in itertools.pairwise(points):
        truth = denoiser.process.noise(x0, t, denoiser.process.draw(x0, rng))
        guess = denoiser(truth.xt, t)
        rows.append(
            decoder_bits(x0, guess.x0, small(points[-3], points[-2]))
            if s.sigma == 0.0
            else bound(truth, guess, s, variance=variance)
        )
    steps, prior = torch.stack(rows), prior_bits(denoiser.process, x0)
    return Bound(steps.sum(0) + prior, prior, steps)
