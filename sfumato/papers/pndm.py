"""Pseudo Numerical Methods for Diffusion Models on Manifolds. Liu, Ren, Lin, Zhao 2022. arXiv:2202.09778.

DDPM's model, sampled by classical methods that move along DDIM's step in place of a straight line: F-PNDM takes three
Runge-Kutta steps and then linear multistep ones on the last four answers, S-PNDM on the last two. No x0 is clipped:
what is remembered is the network's own answer.

Departs from the paper: x_t is taken at its own t, where the authors' code is one entry of the table off, and the last
step reaches clean data. The presets tiny, letters, fashion, small and base are DDPM's of that name on a cosine table,
the others DDIM's; the loss is DDPM's. The classical method without the pseudo step (FON) is not here, and the
probability flow by Runge-Kutta is `--sampler ode45`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from sfumato.core import times
from sfumato.core.random import Seeds
from sfumato.core.schedules import Discrete
from sfumato.networks.config import IMPROVED_CIFAR10
from sfumato.papers import ddim, ddpm
from sfumato.recipe import Preset
from sfumato.samplers import pndm
from sfumato.samplers.sampler import Sampler

__all__ = ["PNDM", "PRESETS", "Config"]

METHODS: dict[str, dict[str, Any]] = {
    "f_pndm": {"depth": 4, "warm_up": pndm.runge_kutta},  # steps + 9 calls
    "s_pndm": {"depth": 2, "warm_up": pndm.heun},  # steps + 1
    "plms": {"depth": 4, "warm_up": pndm.plain},  # steps: begins with a DDIM step and gains an order a step
}


@dataclass(frozen=True)
class Config(ddpm.Config):
    """DDPM's, and how to sample."""

    clip: bool = False
    steps: int = 50  # of sampling
    method: Literal["f_pndm", "s_pndm", "plms"] = "f_pndm"


class PNDM(ddpm.DDPM):
    """DDPM that samples by pseudo numerical methods."""

    config: Config

    def draw(self, rng: Seeds) -> Tensor:
        """Antithetic entries of a table, as DDIM; elsewhere as DDPM."""
        process = self.denoiser.process
        return times.antithetic(rng, len(process)) if isinstance(process, Discrete) else super().draw(rng)

    def sampler(self) -> Sampler:
        """The code's sequence, every n-th entry of a table from the first; elsewhere equal steps."""
        spacing = times.leading if isinstance(self.denoiser.process, Discrete) else times.uniform
        return pndm.PNDM(self.config.steps, spacing, **METHODS[self.config.method])


def _from(preset: Preset, **changes: Any) -> Preset:
    return ddim.derived(Config, preset, clip=False, steps=50, **changes)


def _table(preset: Preset) -> dict[str, Any]:
    """Equal steps in t need a table, whose first few entries they may leave out."""
    return {"schedule": "cosine"} if preset.config.schedule == "shifted_cosine" else {}


PRESETS: dict[str, Preset] = {
    **{name: _from(preset, **_table(preset)) for name, preset in ddim.PRESETS.items()},
    "cifar10_cosine": replace(
        _from(ddim.PRESETS["cifar10"], schedule="cosine", network=IMPROVED_CIFAR10),
        note="on the network and the table of improved_ddpm, T = 1000, as the paper's iDDPM",
    ),
}
