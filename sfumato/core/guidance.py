"""Guidance: functions from denoisers to denoisers, which compose in any order. `scale` 1 is off, everywhere."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.core.cond import Cond
from sfumato.core.denoiser import Denoiser, Given
from sfumato.core.estimate import Estimate, Scalar, like
from sfumato.core.phase import PhasePoint, halves
from sfumato.core.process import Point, Process

__all__ = ["Guided", "classifier_free", "clip", "project", "reconstruct", "threshold", "tilt"]

LogProb = Callable[[Tensor, Point], Tensor]  # (x_t (B, C, *S), t) -> (B,) nats, differentiable


class Guided:
    """What guidance returns: a function that knows its process."""

    __slots__ = ("function", "process")

    def __init__(self, process: Process, function: Callable[[Tensor, Point], Estimate]) -> None:
        self.process, self.function = process, function

    def __call__(self, xt: Tensor, t: Point | Tensor | float) -> Estimate:
        return self.function(xt, self.process.at(t))


def classifier_free(
    strong: Denoiser,
    weak: Denoiser,
    scale: float,
    *,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
    channels: int = 0,
) -> Denoiser:
    """weak + scale (strong - weak), in every view at once (Ho & Salimans 2022, arXiv:2207.12598, eq. 6, scale = 1 + w).

    `weak` may be the null condition, a negative one or a worse model (autoguidance, Karras et al. 2024,
    arXiv:2406.02507). Two conditions of one network take one call on a doubled batch. With `interval` = (low, high),
    guidance acts at low <= t <= high only (Kynkaanniemi et al. 2024, arXiv:2404.07724). `rescale` brings the answer's
    deviation, of each example, by that share back to the strong one's (Lin et al. 2023, arXiv:2305.08891, eqs. 15-16,
    of what the network gives). With `channels` n, only the first n are guided (as in the release of DiT: 3 of 4)."""
    if scale == 1.0:
        return strong
    low, high = interval or (0.0, 1.0)

    def guided(xt: Tensor, t: Point) -> Estimate:
        if not _within(t, low, high):
            return strong(xt, t)
        s, w = _both(strong, weak, xt, t)
        guess = s.lerp(w, _led(1.0 - scale, channels, xt) if channels else 1.0 - scale)
        return guess.toned(s, rescale) if rescale else guess

    return Guided(strong.process, guided)


def _led(share: float, channels: int, x: Tensor) -> Tensor:
    """The share of the weak answer: 0 but for the first channels of x (B, C, *S)."""
    row = x.new_zeros(x.shape[1], *(1,) * (x.ndim - 2))
    row[:channels] = share
    return row


def _blind(t: Point) -> bool:
    """Whether x_t is data itself, whose score is not asked for, or says nothing of it."""
    return any(not isinstance(c, Tensor) and c == 0.0 for c in (t.alpha, t.sigma))


def _within(t: Point, low: float, high: float) -> bool:
    """Whether guidance acts at t."""
    if not isinstance(t.t, Tensor):
        return low <= t.t <= high
    if not bool(((t.t >= low) & (t.t <= high)).all()):
        raise ValueError("a guidance interval needs one t for the whole batch")
    return True


def _both(strong: Denoiser, weak: Denoiser, xt: Tensor, t: Point) -> tuple[Estimate, Estimate]:
    if not (
        isinstance(strong, Given)
        and isinstance(weak, Given)
        and strong.denoiser is weak.denoiser
        and not isinstance(t.t, Tensor)
    ):
        return strong(xt, t), weak(xt, t)
    both = strong.denoiser(torch.cat([xt, xt]), t, Cond.cat(strong.cond, weak.cond))
    return both.part(0, xt), both.part(1, xt)


def tilt(
    denoiser: Denoiser, log_prob: LogProb, scale: float = 1.0, *, interval: tuple[float, float] | None = None
) -> Denoiser:
    """score + scale grad log p(y | x_t): what a classifier of noised pictures knows (Dhariwal & Nichol 2021,
    arXiv:2105.05233, algorithm 2 for every view and sampler; Song et al. 2021, arXiv:2011.13456, eq. 14), or the log
    ratio of a discriminator (Kim et al. 2022, arXiv:2211.17091, eq. 6).

    With the true p(y | x_t) and scale 1 samples are of the posterior. The denoiser is called as before, and costs
    nothing more; `log_prob` is differentiated at x_t, once a call. A clipped denoiser stays clipped within, and what is
    added is not clipped again: that is the official code's order. In phase space the momentum is pulled."""
    if scale == 0.0:
        return denoiser
    low, high = interval or (0.0, 1.0)

    def tilted(xt: Tensor, t: Point) -> Estimate:
        guess = denoiser(xt, t)
        if _blind(t) or not _within(t, low, high):
            return guess
        with torch.enable_grad():
            x = xt.detach().requires_grad_()
            (pull,) = torch.autograd.grad(log_prob(x, t).sum(), x)
        pull = halves(pull)[1] if isinstance(t, PhasePoint) else pull
        return guess.tilt(pull if scale == 1.0 else pull * scale)

    return Guided(denoiser.process, tilted)


def project(denoiser: Denoiser, f: Callable[[Tensor], Tensor]) -> Denoiser:
    """x0 -> f(x0), with eps following: clipping, thresholds, known pixels.

    Pasting known pixels this way is fast and biased; it is right for what holds of every picture, like a range of
    values."""

    def projected(xt: Tensor, t: Point) -> Estimate:
        guess = denoiser(xt, t)
        return guess.with_x0(f(guess.x0))

    return Guided(denoiser.process, projected)


def threshold(denoiser: Denoiser, share: float = 0.995) -> Denoiser:
    """x0 of each example held in [-c, c] and divided by c, c the `share`-quantile of its absolute values but at least 1
    (dynamic thresholding, Saharia et al. 2022, arXiv:2205.11487, section 2.3). For pixels in [-1, 1]."""

    def held(x0: Tensor) -> Tensor:
        level = x0.flatten(1).float().abs().quantile(share, 1).clamp(min=1.0).to(x0.dtype)
        level = level.reshape(-1, *(1,) * (x0.ndim - 1))
        return x0.clamp(-level, level) / level

    return project(denoiser, held)


def clip(denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """x0 held in [low, high] inside every step (Ho et al. 2020, the code); eps is derived again from the clipped x0."""
    return project(denoiser, lambda x0: x0.clamp(low, high))


def reconstruct(
    denoiser: Denoiser,
    residue: Callable[[Tensor], Tensor],
    *,
    noise: float = 0.0,
    rounds: int = 1,
    floor: float = 0.01,
) -> Denoiser:
    """The denoiser of data of which y = H x0 + noise is known: score + grad log p(y | x_t). `residue` is y - H x0 of x0
    (B, C, *S), (B, *M), affine in x0; `noise` is the deviation of white noise in y.

    Given x_t, x0 is taken as normal about the guess, with the covariance that the model itself has there, C = sigma^2 /
    alpha dx0 / dx_t (exact for the posterior mean of any data). Then what is known moves x0 by

        C H^T (H C H^T + noise^2)^-1 (y - H x0)

    and eps follows: for normal data that is the truth (Boys et al. 2023, arXiv:2310.06721). The matrix is inverted in
    `rounds`: the first divides by d, the sums of its rows, those that follow are conjugate gradients from there (Rozet
    et al. 2024, arXiv:2405.13712), as many as there are known numbers at most. One round is exact for one known number,
    for independent ones and where the residue varies slowly against C, and never goes too far where C has no negative
    numbers; one variance for all, such as sigma^2 / (alpha^2 + sigma^2), goes too far by as many times as pixels move
    together. `floor` is the least d, as a share of that variance.

    A call costs one of the network and 1 + rounds backward passes. In the phase space of CLD C follows from the
    momentum. At noise levels from 10,000 on the guess stays: nothing can be seen through them."""

    def guided(xt: Tensor, t: Point) -> Estimate:
        with torch.enable_grad():
            x = xt.detach().requires_grad_()
            guess = denoiser(x, t)
            x0 = guess.x0
            step = _Sight(x, x0, residue, t, noise).towards(rounds, floor)
        moved = type(guess).from_x0(guess.process, guess.point, xt, x0.detach() + step)
        moved.nu = None if guess.nu is None else guess.nu.detach()
        return moved

    return Guided(denoiser.process, guided)


class _Sight:
    """What is seen of x0 in x_t, linearised there."""

    def __init__(self, x: Tensor, x0: Tensor, residue: Callable[[Tensor], Tensor], t: Point, noise: float) -> None:
        self.x, self.t, self.residue, self.noise = x, t, residue, noise
        self.miss = residue(x0)  # with its graph
        self.nothing = residue(torch.zeros_like(x0))
        self.rise = like(_rise(t), x0)

    def step(self, w: Tensor) -> Tensor:
        """C H^T w."""
        pulled = torch.autograd.grad(self.miss, self.x, -w, retain_graph=True)[0]
        return (halves(pulled)[1] if isinstance(self.t, PhasePoint) else pulled) * self.rise

    def seen(self, step: Tensor) -> Tensor:
        """H step."""
        return self.nothing - self.residue(step)

    @torch.no_grad()
    def towards(self, rounds: int, floor: float) -> Tensor:
        """C H^T w with (H C H^T + noise^2) w = miss, nearly."""
        t, miss, blur = self.t, self.miss.detach(), self.noise * self.noise
        least = like(floor * t.sigma * t.sigma / (t.alpha * t.alpha + t.sigma * t.sigma), miss)
        sums = self.seen(self.step(torch.ones_like(miss)))
        d = torch.maximum(sums, torch.as_tensor(least).to(miss)) + blur
        w = miss / d
        moved = self.step(w)
        if rounds == 1:
            return moved
        rest = miss - self.seen(moved) - blur * w
        way, before = rest / d, _dot(rest, rest / d)
        for _ in range(rounds - 1):
            step = self.step(way)
            pressed = self.seen(step) + blur * way
            bend = _dot(way, pressed)
            far = torch.where((bend > 0) & (before > 0), before / bend, 0.0)  # 0: solved, or no matrix of a covariance
            moved, rest = moved + like(far, step) * step, rest - like(far, rest) * pressed
            now = _dot(rest, rest / d)
            way = rest / d + like(torch.where(before > 0, now / before, 0.0), way) * way
            before = now
        return moved


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(B,)"""
    return (a * b).flatten(1).sum(1)


def _rise(t: Point) -> Scalar:
    """sigma^2 / alpha; 0 where nothing can be seen."""
    if isinstance(t.alpha, Tensor):
        near = t.sigma < _FAR * t.alpha.abs()
        return torch.where(near, t.sigma * t.sigma / torch.where(near, t.alpha, 1.0), 0.0)
    return t.sigma * t.sigma / t.alpha if t.sigma < _FAR * abs(t.alpha) else 0.0


_FAR = 1e4  # of sigma / alpha
