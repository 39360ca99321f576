"""Consistency Models. Song, Dhariwal, Chen, Sutskever 2023. arXiv:2303.01469.

A network learns to say, from any point of a path of the probability flow, where the path ends: one call makes a
picture, a few more with fresh noise make a better one (algorithm 1). Distillation (algorithm 2) follows the flow of an
EDM run (`--from RUN`); training (algorithm 3, `--config.mode training`) needs no run.

Departs from the paper: AdamW for RAdam; the metrics are l2 and iCT's pseudo-Huber, not yet LPIPS; the lag of the target
is mu^(s0 / N), as in the paper, where the code has N - 1. The network's clock is that of its teacher, log(s) / 4, and
250 log s in the authors' presets. Values of iCT (Song & Dhariwal 2023, arXiv:2310.14189) are options. The presets
tiny, fashion, fashion_training and small are ours."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sfumato.conditioning.label import Label
from sfumato.core import consistency, parametrisation, schedules
from sfumato.core.cond import Cond
from sfumato.core.denoiser import Denoiser, NeuralDenoiser
from sfumato.core.estimate import like
from sfumato.core.random import Seeds
from sfumato.errors import UserError
from sfumato.papers import edm
from sfumato.pixels import FAST, PixelConfig, Pixels
from sfumato.recipe import At, Loss, Preset, Recipe, Training
from sfumato.samplers.consistency import Consistency as Few
from sfumato.samplers.sampler import Sampler

__all__ = ["PRESETS", "Config", "Consistency"]

GROWTH: dict[str, consistency.Growth] = {
    "fixed": consistency.fixed,
    "root": consistency.root,
    "exponential": consistency.exponential,
}
METRICS: dict[str, consistency.Distance] = {"l2": consistency.squared, "huber": consistency.pseudo_huber}
DRAWS: dict[str, consistency.Draw] = {"uniform": consistency.uniform, "log_normal": consistency.log_normal}
PACE = {"edm": 0.25, "authors": 250.0}


@dataclass(frozen=True)
class Config(PixelConfig):
    """What the model is."""

    clip: bool = True
    mode: Literal["distillation", "training"] = "distillation"
    data_std: float = 0.5
    low: float = 0.002
    high: float = 80.0
    clock: Literal["edm", "authors"] = "edm"  # what the network is told of the noise level s: log(s) / 4 or 250 log s
    growth: Literal["fixed", "root", "exponential"] = "fixed"  # of the number of levels; exponential is iCT's
    fewest: int = 2  # levels at the beginning, s0; of fixed: none
    levels: int = 40  # N, or at the end of growth, s1
    mu: float = 0.95  # how much of the target stays in a step; 0: the target is the model, as in iCT
    metric: Literal["l2", "huber"] = "l2"  # huber is iCT's
    weight: Literal["uniform", "gap"] = "uniform"  # gap: 1 / (distance of the levels), as in iCT
    draw_levels: Literal["uniform", "log_normal"] = "uniform"  # log_normal is iCT's
    steps: int = 2  # of sampling

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (1e-6 < self.data_std < 1e6 and 0 < self.low < self.high < 1e6 and 0.0 <= self.mu <= 1.0):
            raise UserError("data_std and low must be greater than 0, low less than high, and mu from 0 to 1.")
        if not (2 <= self.fewest <= self.levels <= 100_000 and 1 <= self.steps <= 100_000):
            raise UserError("fewest and levels count noise levels, from 2 to 100,000; steps must be at least 1.")


class Frozen(nn.Module):
    """A denoiser and the embedding of its classes, which no gradient reaches."""

    def __init__(self, denoiser: NeuralDenoiser, label: Label | None) -> None:
        super().__init__()
        self.denoiser, self.label = denoiser, label
        self.requires_grad_(False)


class Consistency(Pixels):
    """`weight` d(f(x_t), target(x_s)) of neighbouring levels t > s, with x_s by a step of the teacher's flow
    (algorithm 2) or by the noise that made x_t (algorithm 3)."""

    config: Config
    scaffold = ("teacher", "target")
    steady = False  # it begins near 0, where student and target agree
    teacher: Frozen | None
    target: Frozen | None

    def __init__(self, config: Config = Config()) -> None:
        super().__init__(config)
        self.process = schedules.EDM(config.low, config.high)
        predict = parametrisation.consistency(config.data_std, config.low, pace=PACE[config.clock])
        self.denoiser, self.label = self._model(predict)
        self.target = Frozen(*copy.deepcopy((self.denoiser, self.label)))
        distil = config.mode == "distillation"
        self.teacher = Frozen(*self._model(parametrisation.edm(config.data_std))) if distil else None
        self.distance, self.growth = METRICS[config.metric], GROWTH[config.growth]

    def _model(self, predict: parametrisation.Parametrisation) -> tuple[NeuralDenoiser, Label | None]:
        network = self.make_network()
        return NeuralDenoiser(network, self.process, predict), self.embedding(network)

    # -- its teacher ---------------------------------------------------------------------------------------------------

    @classmethod
    def base(cls, config: Config) -> tuple[str, ...]:
        return ("edm",) if config.mode == "distillation" else ()

    @classmethod
    def upon(cls, config: Config, base: edm.Config) -> Config:
        """Of the teacher's shape, classes, network, noise levels and deviation of the data, on its clock."""
        same: Config = super().upon(config, base)
        return replace(same, data_std=base.data_std, low=base.low, high=base.high, clock="edm")

    def adopt(self, base: Recipe) -> None:
        """The weights of an EDM run, averaged, for teacher, student and target."""
        assert isinstance(base, edm.EDM) and self.teacher is not None and self.target is not None
        for mine in (self.teacher, self, self.target):
            mine.denoiser.network.load_state_dict(base.denoiser.network.state_dict())
            if mine.label is not None and base.label is not None:
                mine.label.load_state_dict(base.label.state_dict())

    @torch.no_grad()
    def started(self) -> None:
        """The target is what the model is."""
        if self.target is not None:
            torch._foreach_copy_(list(self.target.parameters()), self._parameters_of_model())

    def _parameters_of_model(self) -> list[Tensor]:
        """In the order of the target's."""
        label = self.label.parameters() if self.label is not None else ()
        return [p.detach() for p in (*self.denoiser.parameters(), *label)]

    def train(self, mode: bool = True) -> Consistency:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def networks(self) -> tuple[nn.Module, ...]:
        others = [part.denoiser.network for part in (self.target, self.teacher) if part is not None]
        return (self.denoiser.network, *others)

    # -- training ------------------------------------------------------------------------------------------------------

    def count(self, at: At) -> int:
        """N, the levels of this step."""
        return self.growth(at.step, at.total, self.config.fewest, self.config.levels)

    def draw(self, rng: Seeds) -> Tensor:
        """(B,) the noisier t of neighbours on the final grid."""
        grid = consistency.levels(self.process, self.growth(1, 1, self.config.fewest, self.config.levels))
        return grid[DRAWS[self.config.draw_levels](rng, self.process, grid)]

    def loss(self, batch: Mapping[str, Any], at: At) -> Loss:
        if self.target is None:
            raise UserError("What this model was trained with was left out of its final/: go on from its run.")
        process = self.process
        grid = consistency.levels(process, self.count(at))
        i = DRAWS[self.config.draw_levels](at.rng, process, grid)
        t, s = process.at(grid[i]), process.at(grid[i + 1])
        labels, x0 = self._kept(batch, at.rng), self.values(batch["image"])
        truth = process.noise(x0, t, process.draw(x0, at.rng))
        with torch.no_grad():
            before = (
                truth.mix(s.alpha, s.sigma)
                if self.teacher is None
                else consistency.heun(_told(self.teacher, labels), truth.xt, t, s)
            )
            with consistency.replayed(x0.device):
                goal = _told(self.target, labels)(before, s).x0
        errors = self.distance(_told(self, labels)(truth.xt, t).x0, goal)
        if self.config.weight == "gap":
            errors = errors * like(1.0 / (t.sigma - s.sigma), errors)
        return Loss(errors.mean(), per_sample=errors.detach(), t=self.process.share(grid[i]))

    def _kept(self, batch: Mapping[str, Any], rng: Seeds) -> Tensor | None:
        """The labels, some of them withheld: from student, target and teacher alike."""
        if self.label is None:
            return None
        keep = (rng.uniform() >= self.config.drop).to(batch["label"].device)
        return torch.where(keep, batch["label"], self.label.classes)

    @torch.no_grad()
    def after(self, at: At, seen: Loss) -> None:
        """The target follows: target <- mu target + (1 - mu) model."""
        if self.target is None:
            return
        c, N = self.config, self.count(at)
        mu = c.mu if c.growth == "fixed" else consistency.adaptive(c.mu, c.fewest, N)
        torch._foreach_lerp_(list(self.target.parameters()), self._parameters_of_model(), 1.0 - mu)

    # -- sampling ------------------------------------------------------------------------------------------------------

    def sampler(self) -> Sampler:
        """Algorithm 1."""
        return Few(self.config.steps)


def _told(model: Frozen | Consistency, labels: Tensor | None) -> Denoiser:
    if model.label is None or labels is None:
        return model.denoiser
    cond: Cond = model.label(labels)
    return model.denoiser.given(cond)


def _upon_edm(name: str, **config: Any) -> Config:
    """For the network of EDM's preset of that name."""
    base = edm.PRESETS[name].config
    return Config(base.shape, network=base.network, data_std=base.data_std, **config)


_IMAGENET = replace(edm.PRESETS["imagenet64"].config.network, dropout=0.0)
_IMPROVED: dict[str, Any] = {  # iCT's values
    "mode": "training",
    "growth": "exponential",
    "fewest": 10,
    "levels": 1280,
    "mu": 0.0,
    "metric": "huber",
    "weight": "gap",
    "draw_levels": "log_normal",
}
_FAST = replace(FAST, lr=5e-4)

_SHORT: dict[str, Any] = {"levels": 18, "mu": 0.9, "metric": "huber", "draw_levels": "log_normal"}  # for short runs

PRESETS: dict[str, Preset] = {
    "tiny": Preset(_upon_edm("tiny", **_SHORT), _FAST, "upon a run of edm's tiny"),
    "fashion": Preset(
        _upon_edm("fashion", **_SHORT),
        replace(_FAST, steps=3_000, ema=0.999),
        "ten minutes on two cores upon a run of edm's fashion",
    ),
    "fashion_training": Preset(
        _upon_edm("fashion", **{**_IMPROVED, "levels": 160}),
        replace(_FAST, lr=1e-3, steps=5_000, ema=0.999),
        "without a run: iCT's values, fewer levels; ten minutes on two cores for Fashion-MNIST",
    ),
    "small": Preset(
        _upon_edm("small", **_SHORT),
        replace(_FAST, lr=3e-4, batch=64, steps=10_000, ema=0.999),
        "upon a run of edm's small",
    ),
    "imagenet64": Preset(
        Config((3, 64, 64), network=_IMAGENET, clock="authors", drop=0.0),
        Training(steps=600_000, batch=2048, lr=8e-6, warmup=0, clip=0.0, ema=0.9999432189950708),
        "the authors' distillation with l2; their FID of 6.20 in one call is with LPIPS",
    ),
    "imagenet64_training": Preset(
        Config((3, 64, 64), network=_IMAGENET, mode="training", clock="authors", growth="root", levels=200, drop=0.0),
        Training(steps=800_000, batch=2048, lr=1e-4, warmup=0, clip=0.0, ema=0.9999432189950708),
        "the authors' training, with l2 for LPIPS",
    ),
}
