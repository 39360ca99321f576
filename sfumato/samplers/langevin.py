"""Predictor-corrector sampling (Song et al. 2021, arXiv:2011.13456, algorithms 1-5): Langevin steps that lead x back
to the law of its time, between the steps of any sampler."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sfumato.core import times
from sfumato.core.denoiser import Denoiser
from sfumato.core.estimate import Estimate, Scalar
from sfumato.core.process import Point, Process
from sfumato.core.random import Seeds
from sfumato.samplers.sampler import Sampler, State
from sfumato.samplers.sde import ReverseDiffusion, grounded, grounded_points, striding

__all__ = ["Length", "PredictorCorrector", "annealed", "langevin", "langevin_of_batch"]

Length = Callable[[Estimate, Tensor], Scalar]  # (guess, z) -> l, a float or (B, 1, ..., 1)


def langevin(guess: Estimate, z: Tensor) -> Tensor:
    """sqrt(D) / |eps| of each sample, D its dimensions: |z| / |eps| of algorithms 4 and 5 with the norm that z has.

    The official code averages both norms over the batch, so that a picture depends on those drawn beside it; with many
    dimensions all samples have the same norms, and the two are one. With few they are not: a size that depends on x
    leads to the law p(x) / size(x), on a Gaussian to a variance larger by up to 2 / D of itself (0.07% for 3 x 32 x 32;
    with |z| of the sample it would be 4 / D). Below a hundred dimensions use `annealed`."""
    return _norms(guess.eps).reciprocal_().mul_(math.sqrt(math.prod(z.shape[1:])))


def langevin_of_batch(guess: Estimate, z: Tensor) -> Tensor:
    """|z| / |eps|, both averaged over the batch, as the official code has it: seeds do not hold."""
    return _norms(z).mean(0, keepdim=True) / _norms(guess.eps).mean(0, keepdim=True)


def annealed(guess: Estimate, z: Tensor) -> float:
    """1 (annealed Langevin dynamics; Song & Ermon 2019)."""
    return 1.0


def _norms(x: Tensor) -> Tensor:
    """(B, 1, ..., 1)."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)
    return norms.clamp_(min=1e-6)


@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    """At every t `corrector_steps` times x <- x + size score + sqrt(2 size) z, then one step of `predictor`.

    size = 2 (snr sigma_t l)^2 (alpha_t / alpha_s)^2 with l = corrector(guess, z). The last factor is 1 - beta_k for VP
    and 1 for VE, as in the official code (the paper's algorithm 5 has the cumulative product), and so defined for
    sub-VP, where the code fails. As there, the corrector comes first, so that it acts on the prior and never on the
    final x (the paper's algorithms have the predictor first); the last step returns x0 without noise.

    `predictor` is any sampler of affine processes; its own `steps` and `spacing` are not used. snr: 0.16 for CIFAR-10,
    0.075 for 256 x 256, 0.15 for 1024 x 1024 (their configurations)."""

    steps: int = 1000
    spacing: times.Spacing = striding
    predictor: Sampler = field(default_factory=ReverseDiffusion)
    corrector: Length = langevin
    snr: float = 0.16
    corrector_steps: int = 1

    stochastic = True
    points = grounded_points

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.corrector_steps < 0 or not self.snr >= 0:
            raise ValueError(f"corrector_steps {self.corrector_steps} and snr {self.snr} must not be negative")

    def calls(self) -> int | None:
        predicted = replace(self.predictor, steps=self.steps).calls()
        return None if predicted is None else predicted + self.steps * self.corrector_steps

    def check(self, process: Process) -> None:
        super().check(process)
        self.predictor.check(process)

    def step(self, denoiser: Denoiser, state: State, s: Point, rng: Seeds | None) -> State:
        t, x = state.point, state.x
        grounded(denoiser.process, t, s)
        for _ in range(self.corrector_steps):
            x = self._corrected(denoiser(x, t), x, t.alpha / s.alpha, rng)
        return self.predictor.step(denoiser, state._replace(x=x), s, rng)

    def _corrected(self, guess: Estimate, x: Tensor, ratio: Scalar, rng: Seeds | None) -> Tensor:
        if rng is None:
            raise ValueError("this sampler adds noise: give it rng=Seeds(seed)")
        z, p = rng.normal(x.shape, dtype=x.dtype, device=x.device), guess.point
        std = self.corrector(guess, z) * (2 * self.snr * p.sigma * ratio)  # sqrt(2 size)
        if not isinstance(std, Tensor):
            return guess.mix(p.alpha, p.sigma - 0.5 * std * std / p.sigma).add_(z, alpha=std)
        return torch.addcmul(x, guess.eps, std * std, value=-0.5 / float(p.sigma)).addcmul_(z, std)
