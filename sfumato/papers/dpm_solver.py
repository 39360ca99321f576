"""DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps. \
Lu, Zhou, Bao, Chen, Li, Zhu 2022. arXiv:2206.00927.

DDPM's model, whose probability flow is solved in lambda = log(alpha / sigma): its linear part exactly, the network's
eps by steps of order 1, 2 or 3, each of as many calls. The default, six steps of order 3 and a last one to clean data,
asks the network 19 times.

Departs from the paper: x0 of the last call is the result, where the authors stop at the least noise. The budget of
calls is not spent on steps of mixed orders ("fast"), except that the last is of order 1, and steps are equal in lambda
for pictures of any size. DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095) is `--sampler dpmpp` and its kin. The presets
are DDIM's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sfumato.core import times
from sfumato.papers import ddim, ddpm
from sfumato.recipe import Preset
from sfumato.samplers import ode
from sfumato.samplers.sampler import Sampler

__all__ = ["PRESETS", "Config", "DPMSolver"]


@dataclass(frozen=True)
class Config(ddpm.Config):
    """DDPM's, and how to sample."""

    steps: int = 7  # of sampling, each of `order` calls but the last, of one
    order: Literal[1, 2, 3] = 3


class DPMSolver(ddpm.DDPM):
    """DDPM that samples by DPM-Solver-1, 2 or 3."""

    config: Config

    def sampler(self) -> Sampler:
        """Equal steps in lambda."""
        return ode.DPMSolver(self.config.steps, times.log_snr, order=self.config.order)


PRESETS: dict[str, Preset] = {name: ddim.derived(Config, preset, steps=7) for name, preset in ddim.PRESETS.items()}
