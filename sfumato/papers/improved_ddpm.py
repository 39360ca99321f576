"""Improved Denoising Diffusion Probabilistic Models. Nichol, Dhariwal 2021. arXiv:2102.09672.

DDPM on a cosine table (eq. 17), whose network also says how much noise a step back needs (eq. 15). It learns that from
a little of the variational bound beside L_simple (L_hybrid, eq. 16), or everything from the bound alone, with t drawn
where its terms are large (L_vlb, eq. 18). A variance that was learned fits steps of any length, so that few will do.

Departs from the paper: the presets tiny, small and fashion predict v on 1000 entries, which small models learn faster,
and sample in 100 steps; the paper's own sample in 250, the code unless told in all T. The t of neighbouring examples
are spread evenly, each as likely as any. The decoder of the bound uses the exact normal distribution. The upsampler
from 64 to 256 is not here yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sfumato.core import losses, times
from sfumato.core.cond import Cond
from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.posterior import learned, small
from sfumato.core.random import Seeds
from sfumato.core.schedules import Discrete, betas
from sfumato.errors import UserError
from sfumato.networks import UNetConfig
from sfumato.networks.config import IMPROVED_64, IMPROVED_64_CLASSES, IMPROVED_CIFAR10, IMPROVED_LSUN
from sfumato.papers import ddpm
from sfumato.pixels import PixelConfig, Pixels
from sfumato.recipe import At, Loss, Preset, Published, Training, reported
from sfumato.samplers.ancestral import Ancestral
from sfumato.samplers.sampler import Sampler

__all__ = ["PRESETS", "Config", "ImprovedDDPM"]

TABLES: dict[str, Callable[[int], Tensor]] = {
    "cosine": betas.cosine,
    "linear": lambda T: betas.linear(T, 0.1 / T, 20.0 / T),  # DDPM's at 1000, and as noisy at the end of any T
}


@dataclass(frozen=True)
class Config(PixelConfig):
    """What the model is."""

    network: UNetConfig = IMPROVED_CIFAR10
    clip: bool = True
    schedule: Literal["cosine", "linear"] = "cosine"
    T: int = 4000  # entries of the table
    loss: Literal["hybrid", "vlb", "simple"] = "hybrid"  # only the first two learn the variance
    resample: bool = False  # t by the second moment of its losses
    rescale_bound: bool = True  # L_hybrid weighs a term of the bound with T / 1000 instead of 1
    rescale_time: bool = True  # the network is told the entry times 1000 / T instead of the entry
    predict: Literal["eps", "x0", "v"] = "eps"
    variance: Literal["small", "large"] = "large"  # of sampling, where it is not learned
    steps: int = 250  # of sampling

    def __post_init__(self) -> None:
        super().__post_init__()
        least = 21 if self.schedule == "linear" else 2
        if not least <= self.T <= 100_000:
            raise UserError(f"T is {self.T}: the schedule {self.schedule} has {least} to 100,000 entries.")
        if not 1 <= self.steps <= self.T:
            raise UserError(f"steps is {self.steps}: sampling takes at least 1 and at most T = {self.T:,} steps.")


class ImprovedDDPM(Pixels):
    """L_hybrid or L_vlb; strided ancestral sampling with the learned variance."""

    config: Config
    scaffold = ("resampler",)

    def __init__(self, config: Config = Config()) -> None:
        super().__init__(config)
        T, learns = config.T, config.loss != "simple"
        network = self.make_network(outputs=1 + learns)
        self.table = Discrete(TABLES[config.schedule](T), 1000.0 / T if config.rescale_time else 1.0)
        predict, self.view = ddpm.PREDICT[config.predict]
        self.denoiser = NeuralDenoiser(network, self.table, predict, learn_variance=learns)
        self.label = self.embedding(network)
        self.resampler = times.SecondMoment(T) if config.resample else None
        second, first = self.table.points([2.0 / T, 1.0 / T])
        self.last_variance = float(small(second, first))  # for the step to t = 0, whose posterior has none

    # -- training ------------------------------------------------------------------------------------------------------

    def draw(self, rng: Seeds) -> Tensor:
        return torch.ceil(times.low_discrepancy(rng) * self.config.T) / self.config.T

    @property
    def scale(self) -> float:
        """Of a term of the bound in bits, in the loss."""
        if self.config.loss == "vlb":
            return float(self.config.T)
        return self.config.T / 1000.0 if self.config.rescale_bound else 1.0

    def terms(self, x0: Tensor, t: Tensor, cond: Cond | None, rng: Seeds) -> dict[str, Tensor]:
        """What the loss is the sum of, each (B,): `mse` in the view that is predicted, and `vb` of the step before t,
        in which L_hybrid holds the mean."""
        point = self.table.at(t)
        truth = self.table.noise(x0, point, self.table.draw(x0, rng))
        guess = self.denoiser(truth.xt, point, cond)
        found: dict[str, Tensor] = {}
        if self.config.loss != "vlb":
            found["mse"] = (self.view(guess) - self.view(truth)).square().flatten(1).mean(1)
        if self.config.loss != "simple":
            guess = losses.held(guess) if found else guess
            before = self.table.index(t).clamp(min=0) / self.config.T
            bits = losses.step_bits(truth, guess, before, least=self.last_variance, variance=learned)
            found["vb"] = self.scale * bits
        return found

    def errors(self, x0: Tensor, t: Tensor, cond: Cond | None, rng: Seeds) -> Tensor:
        return _summed(self.terms(x0, t, cond, rng))

    def loss(self, batch: Mapping[str, Any], at: At) -> Loss:
        if self.resampler is None:
            t = self.draw(at.rng)
            weight = torch.ones_like(t)
        else:
            t, weight = self.resampler.draw(at.rng)
        cond = self.told(batch, at.rng)
        terms = self.terms(self.values(batch["image"]), t, cond, at.rng)
        errors = _summed(terms)
        weight = weight.to(errors.dtype).to(errors.device)
        scalars = {name: (term.detach() * weight).mean() for name, term in terms.items()} if len(terms) > 1 else {}
        return Loss((errors * weight).mean(), scalars, errors.detach(), t)

    def after(self, at: At, seen: Loss) -> None:
        """The history of every t, which all processes keep in the same order."""
        if self.resampler is not None and seen.t is not None and seen.per_sample is not None:
            self.resampler.remember(at.gather(seen.t), at.gather(seen.per_sample))

    # -- sampling ------------------------------------------------------------------------------------------------------

    def sampler(self) -> Sampler:
        """The code's strided steps, with the learned variance if there is one."""
        variance = learned if self.denoiser.learn_variance else ddpm.VARIANCES[self.config.variance]
        return Ancestral(self.config.steps, times.strided, variance=variance)


def _summed(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum(0)


# -- presets -----------------------------------------------------------------------------------------------------------


def _ours(name: str) -> Preset:
    """DDPM's preset of that name: its network and training, on the cosine table with L_hybrid."""
    preset = ddpm.PRESETS[name]
    config = Config(preset.config.shape, network=preset.config.network, T=1000, predict="v", steps=100)
    return Preset(config, preset.training, preset.note.partition(":")[0])


_PAPER = Training(steps=500_000, batch=128, lr=1e-4, warmup=0, clip=0.0, ema=0.9999, ema_rule="constant")
_LONG = replace(_PAPER, steps=1_500_000)
_COARSE: dict[str, Any] = {"rescale_bound": False, "rescale_time": False}


def _table(number: int, data: str, fid: float, bits: float) -> tuple[Published, ...]:
    """A row of the paper's ablations: the likelihood and the distance of one and the same model."""
    return reported({"fid": fid, "bits": bits}, data, None, f"Nichol and Dhariwal 2021, table {number}")


PRESETS: dict[str, Preset] = {
    **{name: _ours(name) for name in ("tiny", "fashion", "small")},
    "cifar10": Preset(Config(), _PAPER, "the paper's, L_hybrid: 52.5 M parameters", _table(2, "CIFAR-10", 3.19, 3.17)),
    "cifar10_vlb": Preset(
        Config(loss="vlb", resample=True),
        _PAPER,
        "the paper's, L_vlb: the best likelihood",
        _table(2, "CIFAR-10", 11.47, 2.94),
    ),
    "imagenet64": Preset(
        Config((3, 64, 64), network=IMPROVED_64),
        _LONG,
        "the paper's, L_hybrid: 121 M parameters",
        _table(1, "ImageNet at 64 x 64", 19.2, 3.57),
    ),
    "imagenet64_vlb": Preset(
        Config((3, 64, 64), network=IMPROVED_64, loss="vlb", resample=True),
        _LONG,
        "the paper's, L_vlb",
        _table(1, "ImageNet at 64 x 64", 40.1, 3.53),
    ),
    "imagenet64_cond": Preset(
        Config((3, 64, 64), network=IMPROVED_64_CLASSES, drop=0.0, **_COARSE),
        replace(_PAPER, steps=250_000, batch=2048, lr=3e-4),
        "the paper's with classes, which are never withheld: 273 M parameters",
        reported(
            {"fid": 2.92, "pr.precision": 0.82, "pr.recall": 0.71},
            "ImageNet at 64 x 64, with classes",
            None,
            "Nichol and Dhariwal 2021, comparison with BigGAN-deep",
            sampler="250 steps",
        ),
    ),
    "lsun": Preset(
        Config((3, 256, 256), network=IMPROVED_LSUN, schedule="linear", T=1000, **_COARSE),
        replace(_PAPER, steps=1_200_000),
        "the code's bedrooms: 114 M parameters",
    ),
}
