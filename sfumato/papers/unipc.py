"""UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models. \
Zhao, Bai, Rao, Zhou, Lu 2023. arXiv:2302.04867.

DDPM's model, sampled by a multistep method on x0 whose every step is corrected by the answer that the next one asks for
anyway: an order of accuracy for no call. The default asks the network 10 times.

Departs from the paper: x0 of the last call is the result, where the authors stop at the least noise, and steps are
equal in lambda for pictures of any size. The presets are DDIM's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sfumato.core import times
from sfumato.papers import ddim, ddpm
from sfumato.recipe import Preset
from sfumato.samplers import unipc
from sfumato.samplers.sampler import Sampler

__all__ = ["PRESETS", "Config", "UniPC"]

BENDS = {"bh1": unipc.bh1, "bh2": unipc.bh2}


@dataclass(frozen=True)
class Config(ddpm.Config):
    """DDPM's, and how to sample."""

    steps: int = 10  # of sampling, each of one call
    order: Literal[0, 1, 2, 3] = 0  # 0: 3, and 2 for a model with classes, whose guidance is less smooth
    bend: Literal["bh1", "bh2"] = "bh2"  # the paper's B(h)


class UniPC(ddpm.DDPM):
    """DDPM that samples by UniPC."""

    config: Config

    def sampler(self) -> Sampler:
        """Equal steps in lambda."""
        order = self.config.order or (3 if self.label is None else 2)
        return unipc.UniPC(self.config.steps, times.log_snr, order=order, bh=BENDS[self.config.bend])


PRESETS: dict[str, Preset] = {name: ddim.derived(Config, preset, steps=10) for name, preset in ddim.PRESETS.items()}
