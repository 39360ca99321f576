"""Denoising Diffusion Implicit Models. Song, Meng, Ermon 2021. arXiv:2010.02502.

DDPM's model and training, sampled by a shorter and by default deterministic path (eq. 12), which also encodes a
picture into the noise that makes it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sfumato.core import times
from sfumato.papers import ddpm
from sfumato.papers.ddpm import Config
from sfumato.recipe import Ask, Preset
from sfumato.samplers.ancestral import DDIM as Implicit
from sfumato.samplers.sampler import Sampler

__all__ = ["DDIM", "PRESETS", "Config"]

PRESETS: dict[str, Preset] = {
    **ddpm.PRESETS,
    "celeba": Preset(
        replace(
            Config((3, 64, 64)), network=replace(Config().network, widths=(128, 256, 256, 256, 512), attention=(2,))
        ),
        replace(ddpm.PRESETS["cifar10"].training, steps=500_000, warmup=0, ema_rule="constant"),
        "the authors' CelebA 64 configuration; the number of steps is ours",
    ),
}


class DDIM(ddpm.DDPM):
    """DDPM that samples in 50 deterministic steps and encodes pictures."""

    def sampler(self) -> Sampler:
        return Implicit(50)

    @torch.no_grad()
    def encode(self, x0: Tensor, ask: Ask = Ask(), *, steps: int = 200) -> Tensor:
        """The noise x_1 (B, C, *S) that eta 0 turns back into x0 in [-1, 1], up to O(1 / steps)."""
        quiet = replace(ask, n=len(x0), guidance=1.0)
        denoiser = self.guided(quiet, 0)
        return Implicit(steps, times.uniform)(denoiser, x0, start=0.0, end=1.0)
