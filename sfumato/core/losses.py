"""Training compares two Estimates of one x_t in the view the paper chose. Losses are per sample, (B,)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
    "edm",
    "held",
    "likelihood",
    "min_snr",
    "prior_bits",
    "snr",
    "step_bits",
    "truncated_snr",
    "variational_bound",
    "views",
]


Weight = Callable[[Any, Point], Scalar]  # (process, point): of any process, or of the kind it was written for


class View(NamedTuple):
    """A way to look at an Estimate, and by how much its squared error exceeds that of x0 at the same x_t."""

    see: Callable[[Estimate], Tensor]
    gain: Weight

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


def snr(process: Affine, p: Point) -> Scalar:
    """alpha^2 / sigma^2: the plain eps loss (Ho et al. eq. 14) in any view."""
    return _snr(process, p)


def truncated_snr(process: Affine, p: Point) -> Scalar:
    """max(snr, 1) (Salimans & Ho 2022, section 4)."""
    return torch.as_tensor(_snr(process, p)).clamp(min=1.0)


def min_snr(gamma: float = 5.0) -> Weight:
    """min(snr, gamma) (Hang et al. 2023, arXiv:2303.09556, section 3.4)."""
    return lambda process, p: torch.as_tensor(_snr(process, p)).clamp(max=gamma)


def likelihood(process: Affine, p: Point) -> Scalar:
    """g^2 of the squared error of the score: what bounds the likelihood (Song et al. 2021, arXiv:2101.09258, theorem
    1)."""
    da, ds = process.rates(p.t)
    return 2 * (p.alpha / p.sigma) ** 2 * (ds / p.sigma - da / p.alpha)


def edm(data_std: float = 0.5) -> Weight:
    """(s^2 + data_std^2) / (s data_std)^2 with s = sigma / alpha: 1 / c_out^2 of the parametrisation `edm`, so that the
    network's own output is what counts, alike at every noise level (Karras et al. 2022, table 1)."""

    def weight(process: Affine, p: Point) -> Scalar:
        return _snr(process, p) + 1.0 / data_std**2

    return weight


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


def bound(
    truth: Estimate, guess: Estimate, s: Point | Tensor | float, *, variance: Variance = small, least: float = 0.0
) -> Tensor:
    """(B,) KL of one step t -> s between q(x_s | x_t, x0) and the model's, in bits per dimension (Ho et al. eq. 5,
    L_{t-1}).

    The model's variance is `variance(t, s, nu)` with the guess's nu. s must be noisier than clean, where the true
    variance is 0 (unless `least` stands for it): the last step is `decoder_bits`."""
    t, s = truth.point, truth.process.at(s)
    true, model = small(t, s, least=least), _tensor(variance(t, s, guess.nu, least))
    # the two means differ only through x0: mean = (alpha_s - r sigma_s^2 alpha_t / sigma_t^2) x0 + (...) x_t
    c = s.alpha - t.alpha / s.alpha * s.sigma * s.sigma * t.alpha / (t.sigma * t.sigma)
    square = (truth.x0 - guess.x0).square()
    u = (model / like(true, model)).log()
    kl = like(torch.expm1(-u) + u, square) + square * (like(c, square) ** 2 / like(model, square))
    return 0.5 / math.log(2.0) * kl.flatten(1).mean(1)


def step_bits(
    truth: Estimate,
    guess: Estimate,
    s: Point | Tensor | float,
    *,
    least: float,
    variance: Variance = small,
    levels: int = 256,
    span: tuple[float, float] = (-1.0, 1.0),
) -> Tensor:
    """(B,) bits per dimension of the step t -> s, each example's own where they are (B,): `bound`, and `decoder_bits`
    where s is clean, with the variance `least` in place of the posterior's 0.

    With `learned` and `held(guess)` it is L_vlb, which the hybrid loss of Nichol & Dhariwal 2021 adds (eq. 16)."""
    s = truth.process.at(s)
    if not isinstance(s.sigma, Tensor) and s.sigma:
        return bound(truth, guess, s, variance=variance)
    decoder = decoder_bits(truth.x0, guess.x0, variance(truth.point, s, guess.nu, least), levels=levels, span=span)
    if not isinstance(s.sigma, Tensor):
        return decoder
    inner = bound(truth, guess, s, variance=variance, least=least)
    return torch.where((s.sigma == 0.0).to(inner.device), decoder, inner)


def held(guess: Estimate) -> Estimate:
    """The guess with its mean held: gradients reach the variance alone (Nichol & Dhariwal 2021, section 3.1)."""
    return guess.with_x0(guess.x0.detach())


def _tensor(c: Scalar) -> Tensor:
    return c if isinstance(c, Tensor) else torch.tensor(c, dtype=torch.float64)


def decoder_bits(
    x0: Tensor, mean: Tensor, variance: Scalar, *, levels: int = 256, span: tuple[float, float] = (-1.0, 1.0)
) -> Tensor:
    """(B,) -log2 p(x0 | x_1) per dimension of the discretised decoder (Ho et al. eq. 13).

    x0 on `levels` even values over `span`; a bin reaches half way to the next, the outer two are open. The normal
    distribution function is exact (the official code takes a tanh approximation, off by up to 3e-4)."""
    middle, reach = (span[0] + span[1]) / 2, (span[1] - span[0]) / 2
    half, std, centred = reach / (levels - 1), like(_tensor(variance).sqrt(), x0), x0 - mean
    upper, lower = (centred + half) / std, (centred - half) / std
    inside = torch.special.ndtr(upper) - torch.special.ndtr(lower)
    outside = torch.special.ndtr(torch.where(x0 < middle, upper, -lower))
    mass = torch.where((x0 - middle).abs() > reach - half, outside, inside)
    return -mass.clamp(min=1e-12).log2().flatten(1).mean(1)


def prior_bits(process: Affine, x0: Tensor) -> Tensor:
    """(B,) KL of q(x_1 | x0) from the prior, in bits per dimension (L_T of Ho et al. eq. 5)."""
    end = process.at(1.0)
    std = float(end.sigma) if process.prior_std is None else process.prior_std
    ratio = float(end.sigma) ** 2 / std**2
    square = x0.square().flatten(1).mean(1) * (float(end.alpha) ** 2 / std**2)
    return 0.5 * (square + (ratio - 1.0 - math.log(ratio))) / math.log(2.0)


class Bound(NamedTuple):
    """The variational bound and its terms, in bits per dimension, and how far the guesses were off at each step."""

    total: Tensor  # (B,)
    prior: Tensor  # (B,)
    steps: Tensor  # (S, B): the KL of every step, noisiest first; the last row is the decoder
    x0: Tensor  # (S, B): mean squared error of x0
    eps: Tensor  # (S, B): mean squared error of eps


@torch.no_grad()
def variational_bound(
    denoiser: Denoiser,
    x0: Tensor,
    grid: Sequence[float] | Tensor,
    *,
    rng: Seeds,
    variance: Variance = small,
    levels: int = 256,
    span: tuple[float, float] = (-1.0, 1.0),
    show: Callable[[float], object] = lambda done: None,
) -> Bound:
    """-log p(x0) is at most this (Ho et al. eq. 5), one draw of noise per step; x0 (B, C, *S) on `levels` of `span`.

    `grid` falls from 1 to 0. The last step's small variance is that of the step before it (the official code: q(x_1 |
    x_2, x0)'s). `show` is told the share that is done. Raises ValueError for another grid or kind of process."""
    process = denoiser.process
    if not isinstance(process, Affine):
        raise ValueError(f"the bound needs x_t = alpha x0 + sigma eps, not {process}")
    points = process.points(grid)
    if len(points) < 3 or points[0].t != 1.0 or points[-1].sigma != 0.0:
        raise ValueError("the bound needs a grid from 1 to 0 of two steps or more")
    least, rows = float(small(points[-3], points[-2])), []
    for i, (t, s) in enumerate(itertools.pairwise(points), 1):
        truth = process.noise(x0, t, process.draw(x0, rng))
        guess = denoiser(truth.xt, t)
        bits = step_bits(truth, guess, s, least=least, variance=variance, levels=levels, span=span)
        errors = ((view(guess) - view(truth)).square().flatten(1).mean(1) for view in (views.x0, views.eps))
        rows.append(torch.stack([bits, *errors]))
        show(i / (len(points) - 1))
    steps, errors_x0, errors_eps = torch.stack(rows, 1)
    prior = prior_bits(process, x0)
    return Bound(steps.sum(0) + prior, prior, steps, errors_x0, errors_eps)
