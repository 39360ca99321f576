"""Denoising Diffusion Implicit Models. Song, Meng, Ermon 2021. arXiv:2010.02502.

DDPM's model and training, sampled by a shorter and by default deterministic path (eq. 12), which walked backwards
encodes a picture into the noise that makes it (`sfumato.encode`).

Departs from the paper: the presets tiny, letters, fashion, small and base are DDPM's of that name, clipped and in equal
steps of t; the others follow the authors' code.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from sfumato.core import times
from sfumato.core.random import Seeds
from sfumato.core.schedules import Discrete
from sfumato.networks.config import HO_CELEBA
from sfumato.papers import ddpm
from sfumato.papers.ddpm import Config
from sfumato.recipe import Preset, Published
from sfumato.samplers.ancestral import DDIM as Implicit
from sfumato.samplers.sampler import Sampler

__all__ = ["DDIM", "PRESETS", "Config", "derived"]


def _official(name: str, ema: float = 0.9999) -> Preset:
    """A DDPM preset with what the DDIM code changes: no clipping, an average that starts as a copy, no warm-up."""
    preset = ddpm.PRESETS[name]
    training = replace(preset.training, warmup=0, ema=ema, ema_rule="constant")
    return Preset(replace(preset.config, clip=False), training, "the authors' configuration")


def derived(kind: type[Config], preset: Preset, **changes: Any) -> Preset:
    """A preset of a paper that samples the same model in another way: its config as that paper's `kind`."""
    return replace(preset, config=kind(**{**vars(preset.config), **changes}), published=())


def _table_1(data: str, fids: tuple[float, ...]) -> tuple[Published, ...]:
    """FID of the deterministic walk by its number of steps."""
    source = "Song, Meng, Ermon 2021, table 1 (eta 0)"
    return tuple(
        Published("fid", fid, data, None, source, f"DDIM, {steps} steps")
        for steps, fid in zip((10, 20, 50, 100, 1000), fids, strict=True)
    )


PRESETS: dict[str, Preset] = {
    **{name: preset for name, preset in ddpm.PRESETS.items() if preset.config.schedule == "shifted_cosine"},
    "cifar10": replace(_official("cifar10"), published=_table_1("CIFAR-10", (13.36, 6.84, 4.67, 4.16, 4.04))),
    "lsun": _official("lsun", ema=0.999),
    "celeba": Preset(
        Config((3, 64, 64), network=HO_CELEBA, clip=False),
        replace(_official("cifar10").training, steps=500_000),
        "the authors' CelebA 64 configuration; the number of steps is ours",
        _table_1("CelebA at 64 x 64", (17.33, 13.73, 9.17, 6.53, 3.51)),
    ),
}


class DDIM(ddpm.DDPM):
    """DDPM that samples in 50 deterministic steps."""

    def draw(self, rng: Seeds) -> Tensor:
        """Antithetic entries of a table (the DDIM code); elsewhere as DDPM."""
        process = self.denoiser.process
        return times.antithetic(rng, len(process)) if isinstance(process, Discrete) else super().draw(rng)

    def sampler(self) -> Sampler:
        """Eta 0 on the code's "uniform" subsequence of a table; elsewhere in equal steps."""
        return Implicit(50, times.leading if isinstance(self.denoiser.process, Discrete) else times.uniform)
