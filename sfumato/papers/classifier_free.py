"""Classifier-Free Diffusion Guidance. Ho, Salimans 2022. arXiv:2207.12598.

One network learns the pictures of a class and, with the label withheld now and then, all pictures (algorithm 1); the
difference of its two answers is the gradient of a classifier that nobody trained, and is added as often as one likes
(eq. 6, algorithm 2). Here `guidance` is 1 + w: 1 is off.

Departs from the paper: authors' code is not public, and its networks are OpenAI's ADM here, told 1000 t in place of the
log SNR. The presets tiny, fashion and small predict v, which small models learn faster."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.posterior import between
from sfumato.core.random import Seeds
from sfumato.core.schedules import Cosine
from sfumato.errors import UserError
from sfumato.networks.config import ADM_64, ADM_128
from sfumato.papers import ddpm
from sfumato.pixels import PixelConfig, Pixels, presets
from sfumato.recipe import Preset, Training
from sfumato.samplers.ancestral import Ancestral
from sfumato.samplers.sampler import Sampler

__all__ = ["PRESETS", "ClassifierFree", "Config"]


@dataclass(frozen=True)
class Config(PixelConfig):
    """What the model is."""

    clip: bool = True
    largest: float = 20.0  # log SNR of the least noise, and minus that of the most
    predict: Literal["eps", "v"] = "eps"
    blend: float = 0.3  # v: the share of the larger variance in the logarithm of a step's (section 2)
    steps: int = 256  # of sampling

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (1.0 <= self.largest <= 30.0 and 0.0 <= self.blend <= 1.0 and 1 <= self.steps <= 100_000):
            raise UserError("largest is from 1 to 30, blend a share from 0 to 1, steps at least 1.")


class ClassifierFree(Pixels):
    """Algorithms 1 and 2, on lambda = -2 log tan(a u + b) with u uniform (section 2)."""

    config: Config
    told_classes = True

    def __init__(self, config: Config = Config()) -> None:
        super().__init__(config)
        network = self.make_network(outputs=1)
        predict, self.view = ddpm.PREDICT[config.predict]
        self.edge = math.atan(math.exp(-config.largest / 2))  # b, the angle of the least noise
        process = Cosine(end=1.0 - self.edge / (0.5 * math.pi))
        self.least = self.edge / (0.5 * math.pi - self.edge)
        self.denoiser = NeuralDenoiser(network, process, predict)
        self.label = self.embedding(network)

    def draw(self, rng: Seeds) -> Tensor:
        """u uniform in (0, 1]; t = 0 is clean data here, and u = 0 the `least` t."""
        assert self.least is not None
        return self.least + (1.0 - self.least) * (1.0 - rng.uniform())

    def sampler(self) -> Sampler:
        """Algorithm 2, whose steps have the variance small^(1 - v) large^v."""
        return Ancestral(self.config.steps, variance=between(self.config.blend))


_COMMON = presets(Config(predict="v", steps=100))
_PAPER = Training(steps=400_000, batch=2048, lr=3e-4, warmup=0)

PRESETS: dict[str, Preset] = {
    **{name: _COMMON[name] for name in ("tiny", "fashion", "small")},
    "imagenet64": Preset(
        Config((3, 64, 64), network=replace(ADM_64, out=3), drop=0.1),
        _PAPER,
        "the architecture, the withholding of labels and v are the paper's; steps, batch and rate are ours",
    ),
    "imagenet128": Preset(
        Config((3, 128, 128), network=replace(ADM_128, out=3), drop=0.1, blend=0.2),
        replace(_PAPER, batch=256, lr=1e-4),
        "the architecture, the withholding of labels and v are the paper's; steps, batch and rate are ours",
    ),
}
