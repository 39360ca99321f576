"""Refining Generative Process with Discriminator Guidance in Score-based Diffusion Models. Kim, Kim, Kwon, Kang, Moon 2022. arXiv:2211.17091.

A discriminator tells noised pictures of the data from noised pictures that a trained run makes. Where it is right its
logit is log p(x_t) / q(x_t), whose gradient is what the run's score lacks (eq. 6): `train discriminator_guidance DATA
--from RUN`, then `sample RUN --discriminator THIS`. The run makes its pictures while the discriminator trains; they
lie in the checkpoints, not in final/.

Departs from the paper: the discriminator has an encoder of its own, where the authors' reads features of a frozen
ImageNet classifier; it is trained on the run's own process, so that no time is converted; AdamW with their tiny decay
for Adam; it is not asked where noise hides the whole picture. Samples are not boosted (their appendix). The presets tiny, fashion and small are ours."""  # noqa: E501

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.conditioning.label import Label
from sfumato.core.guidance import LogProb
from sfumato.core.process import Affine, Point
from sfumato.core.random import Seeds
from sfumato.errors import UserError
from sfumato.networks import UNetConfig
from sfumato.networks.classifier import ClassifierConfig, EncoderClassifier, Pool
from sfumato.noised import Noised, bases, rebuilt, remembered
from sfumato.pixels import FAST, PixelConfig, Pixels
from sfumato.recipe import Ask, At, Loss, Preset, Recipe
from sfumato.samplers.sampler import State

__all__ = ["PRESETS", "Config", "DiscriminatorGuidance"]

READER = UNetConfig(widths=(32, 64, 96), blocks=1, attention=(2,), head_width=32, groups=0, patch=2)
SURE = math.log((1 - 1e-5) / 1e-5)  # the logit at which the code clips d
CLEAR = 0.044688  # sigma / alpha from which on it acts: t = 0.01 of the authors' VP
FAR = 160.0  # sigma / alpha above which nothing is learnt
QUARTERS = 4


@dataclass(frozen=True)
class Config:
    """What the model is. `shape` and `classes` follow the data."""

    shape: tuple[int, ...] = (3, 32, 32)
    classes: tuple[str, ...] = ()
    reader: UNetConfig = READER  # the encoder
    pool: Pool = "attention"
    fakes: int = 5_000  # pictures that the run makes
    each: int = 64  # of them at first, and in every step until all are made
    steps: int = 0  # of the run's sampler; 0: its own
    base: str = ""  # the run, in JSON

    def __post_init__(self) -> None:
        if not (1 <= self.each <= self.fakes <= 10_000_000 and 0 <= self.steps <= 100_000):
            raise UserError(
                "fakes counts pictures, from 1 on; each is at most as many; steps is 0 or a number of steps."
            )


class Made(nn.Module):
    """The run, and the pictures that it made: uint8 (fakes, C, *S), of which the first `count` are there."""

    pictures: Tensor
    count: Tensor

    def __init__(self, run: Pixels, config: Config) -> None:
        super().__init__()
        self.run, self.steps = run.requires_grad_(False), config.steps
        self.register_buffer("pictures", torch.zeros(config.fakes, *config.shape, dtype=torch.uint8))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def grow(self, n: int) -> None:
        """The next n pictures, number i with the seed i, if they are not all there."""
        first = int(self.count)
        n = min(n, len(self.pictures) - first)
        if n < 1:
            return
        was, sampler = self.run.training, self.run.sampler()
        walk = replace(sampler, steps=self.steps) if self.steps else sampler
        *_, state = self.run.eval().sample(Ask(n, sampler=walk), rng=Seeds(first))
        self.run.train(was)
        self.pictures[first : first + n] = (self.run.picture(state) * 255).round().to(torch.uint8)
        self.count += n

    def drawn(self, rng: Seeds) -> tuple[Tensor, Tensor]:
        """A made picture for each generator, (B, C, *S) in [-1, 1], and its number."""
        i = rng.integers(max(int(self.count), 1)).to(self.pictures.device)
        return self.pictures[i].float() / 127.5 - 1, i


class DiscriminatorGuidance(Recipe):
    """Binary cross-entropy of real against made pictures, uniform in the log signal-to-noise ratio."""

    config: Config
    scaffold = ("pool",)
    use = "this run tells made pictures from real ones and steers, `sfumato sample OTHER --discriminator RUN`"
    pool: Made | None

    def __init__(self, config: Config = Config()) -> None:
        super().__init__(config)
        if not config.base:
            raise UserError("A discriminator is trained upon a run that makes pictures: give one with --from RUN.")
        self.noised = Noised(config.base)
        self.value_range, process = self.noised.value_range, self.noised.process
        if not isinstance(process, Affine):
            raise UserError("A discriminator reads noised pictures, and that run (cld) noises what moves them.")
        self.process = process
        encoder = replace(config.reader, channels=self.noised.channels, dims=len(config.shape) - 1)
        self.network = EncoderClassifier(ClassifierConfig(encoder, tuple(config.shape[1:]), 1, config.pool))
        self.label = Label(len(config.classes), encoder.told) if config.classes else None
        self.pool = Made(rebuilt(config.base), config)

    # -- its run -------------------------------------------------------------------------------------------------------

    @classmethod
    def base(cls, config: Config) -> tuple[str, ...]:
        return tuple(name for name in bases() if name != "cld")

    @classmethod
    def upon(cls, config: Config, base: PixelConfig) -> Config:
        """Of the run's shape and classes. Raises UserError for one that makes no pictures by itself."""
        if getattr(base, "stage", "model") != "model":
            raise UserError("the run of --from must make pictures: give the one that the discriminator will steer.")
        return replace(config, shape=base.shape, classes=base.classes, base=remembered(base, network=True))

    def adopt(self, base: Recipe) -> None:
        """The run's averaged weights, and the first pictures."""
        assert self.pool is not None
        own = self.pool.run.state_dict()
        self.pool.run.load_state_dict({name: tensor for name, tensor in base.state_dict().items() if name in own})
        self.pool.grow(self.config.each)

    def after(self, at: At, seen: Loss) -> None:
        if self.pool is not None:
            self.pool.grow(self.config.each)

    def networks(self) -> tuple[nn.Module, ...]:
        return (self.network,)

    # -- training ------------------------------------------------------------------------------------------------------

    def draw(self, rng: Seeds) -> Tensor:
        """(B,) t, uniform in log alpha^2 / sigma^2: the density g^2 / sigma^2 of the paper's appendix."""
        process = self.process
        clean = -2 * math.log(process.at(process.first).ratio)
        noise = -2 * math.log(min(process.at(1.0).ratio, FAR))
        return process.time(noise + (clean - noise) * rng.uniform())

    def logits(self, x: Tensor, t: Point | Tensor | float, labels: Tensor | None = None) -> Tensor:
        """(B,) log d / (1 - d) of x_t at t, told the labels where there are any."""
        told = self.label(labels.to(x.device)).vector if self.label is not None and labels is not None else None
        out: Tensor = self.network(*self.noised.told(x, t), told)
        return out.float()[:, 0]

    def loss(self, batch: Mapping[str, Any], at: At) -> Loss:
        if self.pool is None:
            raise UserError("The run and its pictures were left out of this model: train anew upon the run.")
        made, number = self.pool.drawn(at.rng)
        labels = torch.cat([batch["label"], number % len(self.config.classes)]) if self.label is not None else None
        real, fake = (self.noised.see(images, at.rng, self.draw(at.rng)) for images in (batch["image"], made))
        logits = self.logits(torch.cat([real.x, fake.x]), torch.cat([real.t, fake.t]), labels)
        truth = torch.cat([torch.ones(len(real.x)), torch.zeros(len(fake.x))]).to(logits)
        errors = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        right, level = ((logits.detach() > 0) == (truth > 0)).double(), torch.cat([real.level, fake.level])
        quarter = (level.to(right.device) * QUARTERS).long().clamp(0, QUARTERS - 1)
        shares = {f"accuracy_{k + 1}": right[quarter == k].mean() for k in range(QUARTERS)}
        return Loss(errors.mean(), {"accuracy": right.mean(), **shares}, errors.detach(), level)

    # -- guidance ------------------------------------------------------------------------------------------------------

    def log_ratio(self, labels: Tensor | Sequence[int] | None = None) -> LogProb:
        """log p(x_t) / q(x_t) for `guidance.tilt`, as sure as the code lets it be: its gradient is 0 beyond."""
        chosen = None if labels is None or self.label is None else torch.as_tensor(labels)

        def of(x: Tensor, t: Point) -> Tensor:
            return self.logits(x, t, chosen).clamp(-SURE, SURE).to(x.dtype)

        return of

    @property
    def window(self) -> tuple[float, float]:
        """The t at which it acts: from where the authors' does, up to where the picture is hidden."""
        return float(self.process.time(torch.tensor(-2 * math.log(CLEAR), dtype=torch.float64))), self.noised.hidden

    def sample(self, ask: Ask, *, rng: Seeds) -> Iterator[State]:
        raise UserError(f"A discriminator makes no pictures: {self.use}.")

    def picture(self, state: State, *, quick: bool = False) -> Tensor:
        raise UserError(f"A discriminator makes no pictures: {self.use}.")


_LIKE = replace(FAST, lr=3e-4, weight_decay=1e-7, batch=64)

PRESETS: dict[str, Preset] = {
    "tiny": Preset(Config(), replace(_LIKE, lr=1e-3, steps=1_000), "0.9 M parameters upon a run of any paper's tiny"),
    "fashion": Preset(
        Config((1, 28, 28), fakes=10_000),
        replace(_LIKE, lr=1e-3, steps=1_500),
        "upon a run of Fashion-MNIST; most of the time goes into its pictures",
    ),
    "small": Preset(
        Config(reader=replace(READER, widths=(64, 128, 192)), fakes=50_000, each=128),
        replace(_LIKE, batch=128, steps=20_000),
        "as many pictures as the paper's, upon a run of any paper's small; a GPU",
    ),
}
