"""Elucidating the Design Space of Diffusion-Based Generative Models. Karras, Aittala, Aila, Laine 2022. arXiv:2206.00364.

Noise levels themselves are the time, the network sees inputs and targets of unit variance at all of them
(preconditioning, table 1), training looks where it pays (log-normal noise levels) and Heun's method walks the
probability flow in few calls (algorithms 1 and 2). Augmented pictures train networks that are told about it.

Departs from the paper: the loss is a mean over pixels where the code sums them, which Adam does not notice; an update
with a gradient that is not finite is skipped, where the code sets it to 0 or 1e5; noise levels above sigma_max, one
draw in a million, are trained as sigma_max. The presets tiny, fashion and small are ours."""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from sfumato.conditioning.augment import Augment
from sfumato.core import losses, parametrisation, schedules, times
from sfumato.core.cond import Cond
from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.random import Seeds
from sfumato.errors import UserError
from sfumato.networks.config import EDM_ADM_64, EDM_DDPMPP, EDM_DDPMPP_64
from sfumato.pixels import PixelConfig, Pixels, presets
from sfumato.recipe import At, Loss, Preset, Published, Training
from sfumato.samplers.ode import Heun
from sfumato.samplers.sampler import Sampler

__all__ = ["EDM", "PRESETS", "Config"]


@dataclass(frozen=True)
class Config(PixelConfig):
    """What the model is."""

    data_std: float = 0.5  # of the pixels: the one value of preconditioning and loss
    low: float = 0.002  # sigma_min of sampling
    high: float = 80.0  # sigma_max
    P_mean: float = -1.2  # of log sigma in training
    P_std: float = 1.2
    augment: float = 0.0  # chance of each augmentation; 0: none
    steps: int = 18  # of sampling
    churn: float = 0.0  # S_churn, S_min, S_max, S_noise of algorithm 2
    churn_min: float = 0.0
    churn_max: float = 1e9
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (1e-6 < self.data_std < 1e6 and 0 < self.low < self.high < 1e6 and 0 < self.P_std < 100):
            raise UserError("data_std and P_std must be greater than 0, and so must low, which is less than high.")
        if not (abs(self.P_mean) < 100 and 0.0 <= self.augment <= 1.0 and 1 <= self.steps <= 100_000):
            raise UserError("augment is a probability from 0 to 1, P_mean the log of a noise level, steps at least 1.")
        if not (0 <= self.churn < 1e9 and 0 <= self.churn_noise < 1e9 and 0 <= self.churn_min <= self.churn_max):
            raise UserError(
                "churn and churn_noise must be ordinary numbers, churn_min at most churn_max, none negative."
            )
        if self.augment and len(self.shape) != 3:
            raise UserError(f"augment is for pictures with two sides, and shape is {self.shape}: set augment to 0.")


class EDM(Pixels):
    """The denoising loss of table 1, `weight` E |D(x + sigma eps) - x|^2; algorithms 1 and 2."""

    config: Config
    view = losses.views.x0

    def __init__(self, config: Config = Config()) -> None:
        super().__init__(config)
        network = self.make_network()
        self.process = schedules.EDM(config.low, config.high)
        self.weight = losses.edm(config.data_std)
        self.denoiser = NeuralDenoiser(network, self.process, parametrisation.edm(config.data_std))
        self.label = self.embedding(network)
        self.augment = Augment(config.augment, network.config.told) if config.augment else None

    def draw(self, rng: Seeds) -> Tensor:
        return times.log_normal(self.process, rng, self.config.P_mean, self.config.P_std)

    def level(self, t: Tensor) -> Tensor:
        return self.process.share(t)

    def loss(self, batch: Mapping[str, Any], at: At) -> Loss:
        if self.augment is not None and self.training:  # held-out pictures are seen as they are
            image, done = self.augment.pictures(batch["image"], at.rng)
            batch = {**batch, "image": image, "done": done}
        return super().loss(batch, at)

    def told(self, batch: Mapping[str, Any], rng: Seeds) -> Cond | None:
        """The labels, and what augmentation did."""
        cond = super().told(batch, rng)
        if self.augment is None or "done" not in batch:
            return cond
        done: Tensor = self.augment(batch["done"])
        return Cond(vector=done if cond is None or cond.vector is None else cond.vector + done)

    def sampler(self) -> Sampler:
        """Heun's method on the grid of eq. 5, rho 7, with churn if the config has any."""
        c = self.config
        return Heun(
            c.steps, times.power, churn=c.churn, churn_min=c.churn_min, churn_max=c.churn_max, noise=c.churn_noise
        )


def _official(images: float, batch: int, lr: float, half_life: float) -> Training:
    """The paper's training, counted in images there: the learning rate rises over 10 million."""
    return Training(
        steps=round(images / batch),
        batch=batch,
        lr=lr,
        warmup=round(10e6 / batch),
        clip=0.0,
        ema=half_life,
        ema_rule="images",
    )


def _fid(value: float, data: str, note: str, source: str = "table 2, config F, VP") -> Published:
    told = f"{note}; the least of three sets of samples"
    return Published("fid", value, data, 50_000, f"Karras et al. 2022, {source}", note=told)


PRESETS: dict[str, Preset] = {
    **presets(Config()),
    "cifar10": Preset(
        Config(network=EDM_DDPMPP, augment=0.12, drop=0.0),
        _official(200e6, 512, 1e-3, 500_000),
        "the paper's DDPM++, with or without labels",
        (_fid(1.97, "CIFAR-10", "35 calls, without labels"), _fid(1.79, "CIFAR-10", "35 calls, with labels")),
    ),
    "ffhq64": Preset(
        Config((3, 64, 64), network=EDM_DDPMPP_64, augment=0.15, drop=0.0, steps=40),
        _official(200e6, 256, 2e-4, 500_000),
        "the paper's DDPM++ for FFHQ at 64 x 64",
        (_fid(2.39, "FFHQ at 64 x 64", "79 calls"),),
    ),
    "afhqv2": Preset(
        Config((3, 64, 64), network=replace(EDM_DDPMPP_64, dropout=0.25), augment=0.15, drop=0.0, steps=40),
        _official(200e6, 256, 2e-4, 500_000),
        "the paper's DDPM++ for AFHQv2 at 64 x 64",
        (_fid(1.96, "AFHQv2 at 64 x 64", "79 calls"),),
    ),
    "imagenet64": Preset(
        Config(
            (3, 64, 64),
            network=EDM_ADM_64,
            drop=0.0,
            steps=256,
            churn=40.0,
            churn_min=0.05,
            churn_max=50.0,
            churn_noise=1.003,
        ),
        _official(2500e6, 4096, 1e-4, 50e6),
        "the paper's ADM, told labels",
        (_fid(1.36, "ImageNet at 64 x 64", "511 calls with churn, with labels", "abstract"),),
    ),
}
