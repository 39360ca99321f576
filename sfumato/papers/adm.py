"""Diffusion Models Beat GANs on Image Synthesis. Dhariwal, Nichol 2021. arXiv:2105.05233.

Three models, each a stage. The model is improved_ddpm's with another U-Net (attention at three resolutions, residual
blocks that resample) whose term of the bound is not weighed down. A classifier reads noised pictures (`--stage
classifier --from RUN`, upon a run of any paper that makes pixels) and the gradient of what it knows steers sampling
towards a class (`sample RUN --classifier CLASSIFIER --label NAME`). An upsampler makes large pictures from small
ones, told their class where it knows any (`--stage upsampler`, then `upscale RUN PICTURE`, or the FOLDER of `sample`).

Departs from the paper: the gradient is taken at x_t, as in the code, where algorithm 1 has the mean. A guided step
moves the guess by the score, which any sampler understands, but not where noise hides the whole picture;
`--config.guide mean`, of the authors' presets, moves the mean of every ancestral step instead (`--sampler ddim` and
others go by the score). The classifier's random crop is of the decoded picture, enlarged again. The presets tiny,
fashion and small are ours and predict v."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core import guidance
from sfumato.core.cond import Cond
from sfumato.core.denoiser import Denoiser
from sfumato.core.known import shrunk
from sfumato.core.process import Point
from sfumato.core.random import Seeds
from sfumato.errors import UserError
from sfumato.networks import UNetConfig
from sfumato.networks.classifier import ClassifierConfig, EncoderClassifier, Pool
from sfumato.networks.config import (
    ADM_64,
    ADM_128,
    ADM_256,
    ADM_512,
    ADM_UP_256,
    ADM_UP_512,
    READ_64,
    READ_128,
    READ_256,
    READ_512,
)
from sfumato.noised import Noised, bases, remembered
from sfumato.papers import improved_ddpm
from sfumato.papers.improved_ddpm import ImprovedDDPM
from sfumato.pixels import FAST, PixelConfig
from sfumato.recipe import Ask, At, Loss, Preset, Recipe, Training, reported
from sfumato.samplers.ancestral import Ancestral, Guide, mean, score
from sfumato.samplers.sampler import Sampler, State

__all__ = ["ADM", "PRESETS", "Classifier", "Config", "Enlarge", "Upsampler"]

GUIDES: dict[str, Guide] = {"score": score, "mean": mean}
LINEAR = ("linear", "bilinear", "trilinear")
READER = UNetConfig(widths=(32, 64, 96), blocks=1, attention=(2,), head_width=32, groups=0, patch=2)
QUARTERS = 4  # of the noise levels, of which the classifier's accuracy is logged


@dataclass(frozen=True)
class Config(improved_ddpm.Config):
    """What the model is."""

    shape: tuple[int, ...] = (3, 64, 64)
    network: UNetConfig = ADM_64
    schedule: Literal["cosine", "linear"] = "linear"
    T: int = 1000
    rescale_bound: bool = False
    rescale_time: bool = False
    stage: Literal["model", "classifier", "upsampler"] = "model"
    guide: Literal["score", "mean"] = "score"  # what a classifier moves in ancestral steps
    factor: int = 4  # sides of the upsampler's pictures over those that it is given
    reader: UNetConfig = READ_64  # the classifier's encoder
    pool: Pool = "attention"  # average reads pictures of any size
    crop: float = 0.8  # least side of the random crop that the classifier is trained on; 1: none
    base: str = ""  # the run upon which the classifier is trained, in JSON

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (2 <= self.factor <= 64 and 0.1 <= self.crop <= 1.0):
            raise UserError("factor must be from 2 to 64, and crop, a share of the side, from 0.1 to 1.")
        if self.stage == "upsampler" and any(side % self.factor for side in self.shape[1:]):
            sides = " x ".join(map(str, self.shape[:0:-1]))
            raise UserError(f"factor is {self.factor}, and {sides} is no multiple of it: give another --size.")


class _Staged:
    """What the stages are trained upon."""

    stages: tuple[str, ...] = ("model", "classifier", "upsampler")

    @classmethod
    def base(cls, config: Config) -> tuple[str, ...]:
        return bases() if config.stage == "classifier" else ()

    @classmethod
    def upon(cls, config: Config, base: PixelConfig) -> Config:
        """Of the base's shape, noise and, where it has any, classes. Raises UserError for a base that makes none."""
        if getattr(base, "stage", "model") != "model":
            raise UserError("the run of --from must make pictures: give the one that the classifier will steer.")
        return replace(config, shape=base.shape, classes=base.classes or config.classes, base=remembered(base))


class ADM(_Staged, ImprovedDDPM):
    """The recipe of a config's stage: of the model this class, of the others those below."""

    config: Config

    def __new__(cls, config: Config = Config()) -> Any:
        if cls is ADM and config.stage == "classifier":
            return Classifier(config)
        return super().__new__(Upsampler if cls is ADM and config.stage == "upsampler" else cls)

    def __init__(self, config: Config = Config()) -> None:
        super().__init__(config)

    def sampler(self) -> Sampler:
        """The code's strided steps, guided as the config says."""
        own = super().sampler()
        assert isinstance(own, Ancestral)
        return replace(own, guide=GUIDES[self.config.guide])


# -- the upsampler -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Enlarge(Ask):
    """A request for enlarged pictures."""

    low: Tensor | None = None  # (n or 1, C, *S / factor) in [0, 1]; 8-bit levels, as the authors'


class Upsampler(ADM):
    """The model beside the small picture, enlarged bilinearly; in training it is the mean of the large one's cells."""

    use = "this run enlarges pictures, `sfumato upscale RUN PICTURE`"

    def make_network(self, *, inputs: int = 1, outputs: int = 1, kind: Any = None) -> Any:
        return super().make_network(inputs=2 * inputs, outputs=outputs)

    @property
    def small_size(self) -> tuple[int, ...]:
        """The spatial size of the pictures that it enlarges to its own."""
        return tuple(side // self.config.factor for side in self.config.shape[1:])

    def beside(self, low: Tensor, size: Sequence[int]) -> Tensor:
        """The spatial condition: small pictures (B, C, *s) at a large size."""
        return F.interpolate(low, tuple(size), mode=LINEAR[low.ndim - 3], align_corners=False)

    def told(self, batch: Mapping[str, Any], rng: Seeds) -> Cond:
        cond = super().told(batch, rng) or Cond()
        large = self.values(batch["image"])
        low = shrunk(large, self.config.factor)
        return replace(cond, spatial=self.beside(low, large.shape[2:]))

    def towards(self, ask: Ask, labels: Tensor | None) -> Denoiser:
        """Beside the small picture, told the labels or, where none are asked for, that nothing is said."""
        if not isinstance(ask, Enlarge) or ask.low is None:
            raise UserError(f"There is no picture to enlarge: {self.use}.")
        if ask.negative is not None or ask.weak is not None:
            raise UserError("An upsampler is guided by its classes alone: leave out other guidance.")
        spatial, blank = self._spatial(ask, ask.low), self.label is None or ask.labels is None
        if blank and (ask.guidance != 1.0 or (self.label is not None and self.config.drop == 0.0)):
            what = "This run was always told a class" if self.label is not None else "Guidance makes a class stronger"
            raise UserError(f"{what}: ask for one that it knows.")
        null = Cond() if self.label is None else self.label.null(ask.n)
        plain = self.denoiser.given(replace(null, spatial=spatial))
        if blank or self.label is None or labels is None:
            return plain
        told = self.denoiser.given(replace(self.label(labels.to(spatial.device)), spatial=spatial))
        return guidance.classifier_free(told, plain, ask.guidance, interval=ask.interval, rescale=ask.rescale)

    def _spatial(self, ask: Ask, low: Tensor) -> Tensor:
        """The small pictures as the network is told them. Raises UserError for another size."""
        size = tuple(ask.size or self.config.shape[1:])
        want = (self.config.shape[0], *(side // self.config.factor for side in size))
        if tuple(low.shape[1:]) != want:
            raise UserError(f"The picture to enlarge must be {want}, and is {tuple(low.shape[1:])}.")
        values = self.values(low.to(next(self.parameters()).device) * 2 - 1)
        return self.beside(values.expand(ask.n, *want), size)


# -- the classifier ----------------------------------------------------------------------------------------------------


class Classifier(_Staged, Recipe):
    """log p(y | x_t) by cross-entropy on noised pictures."""

    config: Config
    use = "this run tells classes apart and steers another, `sfumato sample OTHER --classifier RUN --label NAME`"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if len(config.classes) < 2:
            there = "one" if config.classes else "none"
            raise UserError(
                f"A classifier tells classes apart, and this data has {there}: give --labels folder, or a column."
            )
        if not config.base:
            raise UserError("A classifier is trained upon a run that makes pictures: give one with --from RUN.")
        self.noised = Noised(config.base)
        self.value_range = self.noised.value_range
        encoder = replace(config.reader, channels=self.noised.channels, dims=len(config.shape) - 1)
        self.network = EncoderClassifier(
            ClassifierConfig(encoder, tuple(config.shape[1:]), len(config.classes), config.pool)
        )

    def adopt(self, base: Recipe) -> None:
        """Nothing: what the base's noise is stands in the config."""

    def networks(self) -> tuple[nn.Module, ...]:
        return (self.network,)

    def logits(self, x: Tensor, t: Point | Tensor | float) -> Tensor:
        """(B, K) of x_t (B, C, *S) at t."""
        out: Tensor = self.network(*self.noised.told(x, t))
        return out.float()

    def log_prob(self, labels: Tensor | Sequence[int]) -> guidance.LogProb:
        """log p(y | x_t) of the labels (B,), for `guidance.tilt`."""
        chosen = torch.as_tensor(labels)

        def of(x: Tensor, t: Point) -> Tensor:
            known = self.logits(x, t).log_softmax(1)
            return known.gather(1, chosen.to(known.device)[:, None])[:, 0].to(x.dtype)

        return of

    @property
    def window(self) -> tuple[float, float]:
        """The t at which it is asked where the score is moved. The authors, who move the mean of a step, always ask."""
        return 0.0, self.noised.hidden

    def loss(self, batch: Mapping[str, Any], at: At) -> Loss:
        """Cross-entropy at the base's times, and the share of right answers by quarters of the noise."""
        images = cropped(batch["image"], at.rng, self.config.crop) if self.training else batch["image"]
        seen, labels = self.noised.see(images, at.rng), batch["label"]
        logits = self.logits(seen.x, seen.t)
        errors = F.cross_entropy(logits, labels, reduction="none")
        right = (logits.detach().argmax(1) == labels).double()
        quarter = (seen.level.to(right.device) * QUARTERS).long().clamp(0, QUARTERS - 1)
        shares = {f"accuracy_{k + 1}": right[quarter == k].mean() for k in range(QUARTERS)}
        return Loss(errors.mean(), {"accuracy": right.mean(), **shares}, errors.detach(), seen.level)

    def sample(self, ask: Ask, *, rng: Seeds) -> Iterator[State]:
        raise UserError(f"A classifier makes no pictures: {self.use}.")

    def picture(self, state: State, *, quick: bool = False) -> Tensor:
        raise UserError(f"A classifier makes no pictures: {self.use}.")


def cropped(images: Tensor, rng: Seeds, least: float) -> Tensor:
    """Pictures (B, C, H, W) in [-1, 1], of each a random window whose sides are `least` to 1 of the whole, enlarged to
    its size. Without two sides as they are."""
    if images.ndim != 4 or least == 1.0:
        return images
    side = 1.0 - (1.0 - least) * rng.uniform()
    across, down = ((2.0 * rng.uniform() - 1.0) * (1.0 - side) for _ in range(2))
    none = torch.zeros_like(side)
    rows = torch.stack([side, none, across, none, side, down], 1).reshape(-1, 2, 3).to(images)
    where = F.affine_grid(rows, list(images.shape), align_corners=False)
    return F.grid_sample(images, where, "bicubic", "border", align_corners=False).clamp_(-1.0, 1.0)


# -- presets -----------------------------------------------------------------------------------------------------------


def _ours(name: str) -> Preset:
    """improved_ddpm's preset of that name, a small reader beside it."""
    preset = improved_ddpm.PRESETS[name]
    plain = {field: getattr(preset.config, field) for field in ("shape", "network", "schedule", "predict", "steps")}
    reads = replace(FAST, steps=3_000, weight_decay=0.05, decay="linear")
    return Preset(Config(**plain, reader=READER), preset.training, preset.note, stages={"classifier": reads})


def _training(steps: int, batch: int = 256, lr: float = 1e-4) -> Training:
    return Training(steps=steps, batch=batch, lr=lr, warmup=0, clip=0.0, ema=0.9999, ema_rule="constant")


def _reading(steps: int, batch: int = 256, lr: float = 3e-4) -> dict[str, Training]:
    """The classifier's: no average, the rate falls to 0."""
    plain = replace(_training(steps, batch, lr), weight_decay=0.05, decay="linear", ema=0.0)
    return {"classifier": plain}


_COMMON: dict[str, Any] = {"drop": 0.0, "guide": "mean"}
_README = "github.com/openai/guided-diffusion, README"


def _figures(fid: float, precision: float, recall: float, data: str, how: str) -> tuple[Any, ...]:
    figures = {"fid": fid, "pr.precision": precision, "pr.recall": recall}
    return reported(figures, data, None, _README, sampler=how)


def _imagenet(size: int, network: UNetConfig, reader: UNetConfig, **more: Any) -> Config:
    return Config((3, size, size), network=network, reader=reader, **_COMMON, **more)


_HOW = "250 steps, classifier scale {}"

PRESETS: dict[str, Preset] = {
    **{name: _ours(name) for name in ("tiny", "fashion", "small")},
    "imagenet64": Preset(
        _imagenet(64, ADM_64, READ_64, schedule="cosine"),
        _training(540_000, 2048, 3e-4),
        "the paper's with classes: 296 M parameters, the classifier 65 M",
        _figures(2.07, 0.74, 0.63, "ImageNet at 64 x 64, with classes", "250 steps, no classifier"),
        _reading(300_000, 1024, 6e-4),
    ),
    "imagenet128": Preset(
        _imagenet(128, ADM_128, READ_128),
        _training(4_360_000),
        "the paper's with classes: 422 M parameters, the classifier 43 M",
        _figures(2.97, 0.78, 0.59, "ImageNet at 128 x 128, with classes", _HOW.format(0.5)),
        _reading(300_000),
    ),
    "imagenet256": Preset(
        _imagenet(256, ADM_256, READ_256),
        _training(1_980_000),
        "the paper's with classes: 554 M parameters, the classifier 54 M",
        _figures(4.59, 0.82, 0.52, "ImageNet at 256 x 256, with classes", _HOW.format("1.0")),
        _reading(500_000),
    ),
    "imagenet256_uncond": Preset(
        _imagenet(256, ADM_256, READ_256),
        _training(1_980_000),
        "the paper's for --labels none: 553 M parameters; a classifier of its own steers it, with scale 10",
        stages=_reading(500_000),
    ),
    "imagenet512": Preset(
        _imagenet(512, ADM_512, READ_512),
        _training(1_940_000),
        "the paper's with classes: 559 M parameters, the classifier 54 M",
        _figures(7.72, 0.87, 0.42, "ImageNet at 512 x 512, with classes", _HOW.format("4.0")),
        _reading(500_000),
    ),
    "lsun": Preset(
        Config((3, 256, 256), network=replace(ADM_256, dropout=0.1), reader=READ_256, steps=1000, **_COMMON),
        _training(500_000),
        "the paper's bedrooms (cats 200,000 steps, horses 250,000): 553 M parameters",
        _figures(1.90, 0.66, 0.51, "LSUN bedroom at 256 x 256", "1000 steps"),
    ),
    "upsample256": Preset(
        _imagenet(256, ADM_UP_256, READ_256, stage="upsampler"),
        _training(500_000),
        "the paper's from 64 x 64, with classes: 312 M parameters",
    ),
    "upsample512": Preset(
        _imagenet(512, ADM_UP_512, READ_512, stage="upsampler"),
        _training(1_050_000),
        "the paper's from 128 x 128, with classes: 309 M parameters",
    ),
}
