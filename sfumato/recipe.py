"""What a paper is: a frozen config, the modules it builds, its losses and its sampling."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from sfumato.core.denoiser import Denoiser
from sfumato.core.random import Seeds
from sfumato.errors import UserError
from sfumato.samplers.sampler import Sampler, State

__all__ = [
    "Ask",
    "At",
    "Loss",
    "Phase",
    "Preset",
    "Published",
    "Recipe",
    "Training",
    "labels_or_spread",
    "latents",
    "reported",
]


@dataclass(frozen=True)
class At:
    """Where in a run a loss is asked for."""

    step: int  # optimiser steps finished before this one
    images: int  # examples seen before this step
    total: int  # steps of the whole run
    phase: str
    rng: Seeds  # one generator per example of the micro-batch; never the global generator
    gather: Callable[[Tensor], Tensor] = torch.Tensor.cpu  # in `after`: the rows of all processes, in the batch's order


class Loss(NamedTuple):
    """What `Recipe.loss` returns: the scalar that is differentiated and what the log may show."""

    value: Tensor  # (), mean over the micro-batch
    scalars: Mapping[str, Tensor] = {}
    per_sample: Tensor | None = None  # (B,) detached: with `t`, the loss per noise level
    t: Tensor | None = None  # (B,) in [0, 1]


@dataclass(frozen=True)
class Phase:
    """Parameters that one optimiser owns. Phases alternate inside one step (generator, discriminator)."""

    parameters: tuple[nn.Parameter, ...]
    every: int = 1  # steps between its updates
    ema: bool = True
    lr: float = 1.0  # factor on the run's learning rate


@dataclass(frozen=True)
class Training:
    """How a paper trains: the part of its hyper-parameters that is not the model's."""

    steps: int = 20_000
    batch: int = 64  # examples per optimiser step, over all processes and micro-batches
    lr: float = 2e-4
    warmup: int = 500  # steps of linear warm-up
    decay: Literal["constant", "cosine", "linear"] = "constant"  # after the warm-up
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0  # global gradient norm; 0 is off
    ema: float = 0.9999  # decay per step; with "images" the half-life in images
    ema_rule: Literal["constant", "warmup", "copy_first", "images"] = "constant"

    def __post_init__(self) -> None:
        """Raises UserError for a value that cannot train anything."""
        numbers = (self.lr, self.eps, self.weight_decay, self.clip, self.ema, *self.betas)
        if not all(abs(number) < float("inf") for number in numbers):
            raise UserError("lr, eps, weight_decay, clip, ema and betas must be finite numbers.")
        unit = {"ema": (self.ema,), "betas": self.betas}
        for name, values in unit.items():
            if not all(0.0 <= v < 1.0 for v in values) and not (name == "ema" and self.ema_rule == "images"):
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 0 and less than 1.")
        if self.ema_rule == "images" and self.ema <= 1.0:
            raise UserError(f"With ema_rule images, ema is a half-life in images, such as 500000, and not {self.ema}.")
        if min(self.weight_decay, self.clip, self.warmup) < 0 or not self.eps > 0:
            raise UserError("weight_decay, clip and warmup must not be negative, and eps must be greater than 0.")


@dataclass(frozen=True)
class Published:
    """A figure that the authors report of the model a preset makes, and of no other.

    metric   the name at `--metrics` ("fid", "is", "pr.precision"), or "bits": bits per dimension
    data     what was trained on, and compared with
    n        samples; None: not said where it was read
    source   title or table, or the repository, that it was read in
    sampler  in words; "": the preset's own
    note     what else it depends on
    """

    metric: str
    value: float
    data: str
    n: int | None
    source: str
    sampler: str = ""
    note: str = ""


def reported(
    figures: Mapping[str, float], data: str, n: int | None, source: str, *, sampler: str = "", note: str = ""
) -> tuple[Published, ...]:
    """Several figures of one model, sampled in one way."""
    return tuple(Published(metric, value, data, n, source, sampler, note) for metric, value in figures.items())


@dataclass(frozen=True)
class Preset:
    """A named setting of a paper; `note` says where its numbers come from, `published` what the authors reached."""

    config: Any
    training: Training = field(default_factory=Training)
    note: str = ""
    published: tuple[Published, ...] = ()
    stages: Mapping[str, Training] = field(default_factory=dict)  # how its other stages train, where not alike


@dataclass(frozen=True)
class Ask:
    """A request for pictures. A recipe whose sampling needs more subclasses it."""

    n: int = 16
    labels: tuple[int, ...] | None = None  # one per picture; None: seed mod classes
    guidance: float = 1.0  # 1 is off, everywhere
    interval: tuple[float, float] | None = None  # of t, where guidance acts; None: everywhere
    rescale: float = 0.0  # how far guidance's larger deviations are taken back, 0 to 1
    negative: tuple[int, ...] | None = None  # labels to be guided away from, in place of none at all
    weak: Recipe | None = None  # a worse model of the kind, told the same, to be guided away from
    sampler: Sampler | None = None  # None: the recipe's own
    size: tuple[int, ...] | None = None  # spatial size; None: the size it was trained at
    steer: Callable[[Denoiser], Denoiser] | None = None  # what is done, last, to the denoiser: a classifier's tilt

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"Asked for {self.n} pictures: ask for at least 1.")
        if not abs(self.guidance) < float("inf"):
            raise UserError(f"guidance is {self.guidance}: it must be a finite number; 1 is off.")
        low, high = self.interval or (0.0, 1.0)
        if not 0.0 <= low < high <= 1.0:
            raise UserError(
                f"guidance acts from t = {low:g} to {high:g}: give two numbers from 0 to 1, the lower first."
            )
        if not 0.0 <= self.rescale <= 1.0:
            raise UserError(f"rescale is {self.rescale}: it is a share, from 0 to 1.")
        if self.negative is not None and self.weak is not None:
            raise UserError("guidance leads away from a negative label or from a weak model: give one of them.")


class Recipe(nn.Module, ABC):
    """A paper as software. Build every module in `__init__` from the frozen `config`."""

    stages: tuple[str, ...] = ("model",)  # trained one after another, each an ordinary run
    value_range: tuple[float, float] = (-1.0, 1.0)  # of x0; pictures of a batch are in [-1, 1]
    steady: bool = True  # its loss means the same all along, so that the first step's is an untrained model's
    scaffold: tuple[str, ...] = ()  # submodules that only training needs: final/ and `load` leave them out
    told_classes: bool = False  # a paper about classes, which pictures without labels do not show
    use: str = ""  # of a run that makes no pictures by itself, what it is for, in words; it is not previewed

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def phases(self) -> dict[str, Phase]:
        """What trains, by which optimiser. Default: one phase with everything that requires a gradient."""
        return {"model": Phase(tuple(p for p in self.parameters() if p.requires_grad))}

    @abstractmethod
    def loss(self, batch: Mapping[str, Any], at: At) -> Loss:
        """The scalar loss of one micro-batch. Draws from `at.rng` only."""

    def forward(self, batch: Mapping[str, Any], at: At) -> Loss:
        return self.loss(batch, at)

    def after(self, at: At, seen: Loss) -> None:
        """Called after the optimiser's step of each phase: EMA teachers, codebooks, histories of t.

        `seen.value` is the mean over the whole batch; `per_sample` and `t` are this process's share, `at.gather` gives
        everybody's. State that lives on is a registered buffer, changed in place and in all processes alike."""

    @classmethod
    def base(cls, config: Any) -> tuple[str, ...]:
        """Papers one of whose runs this config is trained upon, a teacher or a frozen part; (): it needs none."""
        return ()

    @classmethod
    def upon(cls, config: Any, base: Any) -> Any:
        """`config` as it must be upon a base of that config: by default of its shape, its classes and its network."""
        shared = {"shape", "classes", "network"} & {f.name for f in dataclasses.fields(config)}
        return dataclasses.replace(config, **{name: getattr(base, name) for name in shared if hasattr(base, name)})

    @classmethod
    def apart(cls, config: Any, base: Any) -> str:
        """The first field of `config` that is not as `upon` would have it: no model for that base. "": none."""
        same = cls.upon(config, base)
        names = (field.name for field in dataclasses.fields(config))
        return next((name for name in names if getattr(config, name) != getattr(same, name)), "")

    def adopt(self, base: Recipe) -> None:
        """Take what is needed of a base: copies of its weights, before the first step."""
        raise NotImplementedError

    def started(self) -> None:
        """Called once the weights of another run are in, to be fine-tuned: scaffold that copies them follows."""

    def lasting(self, names: Iterable[str]) -> Iterator[str]:
        """The names of tensors that are no scaffold."""
        return (name for name in names if name.partition(".")[0] not in self.scaffold)

    def strip(self) -> Recipe:
        """This recipe without its scaffold."""
        for name in self.scaffold:
            setattr(self, name, None)
        return self

    def networks(self) -> tuple[nn.Module, ...]:
        """Where the time goes, what `compile` compiles and `checkpointing` recomputes: the denoiser's network."""
        network = getattr(getattr(self, "denoiser", None), "network", None)
        return (network,) if isinstance(network, nn.Module) else ()

    @abstractmethod
    def sample(self, ask: Ask, *, rng: Seeds) -> Iterator[State]:
        """Every state from noise to data."""

    @abstractmethod
    def picture(self, state: State, *, quick: bool = False) -> Tensor:
        """(B, C, *S) in [0, 1]; `quick` may trade quality for speed (previews)."""


def labels_or_spread(ask: Ask, classes: int, seeds: Sequence[int]) -> tuple[int, ...]:
    """The label of each asked picture: as asked (a single one serves all), else its seed mod classes, which spreads
    them evenly and makes a picture's class, too, a function of its seed. Raises UserError for labels that are not
    there."""
    if ask.labels is None:
        return tuple(seed % classes for seed in seeds)
    if len(ask.labels) not in (1, ask.n):
        raise UserError(f"{len(ask.labels)} labels for {ask.n} pictures: give one for all, or one for each.")
    for label in ask.labels:
        if not 0 <= label < classes:
            raise UserError(f"There is no label {label}: this model knows {classes} classes, counted from 0.")
    return ask.labels * ask.n if len(ask.labels) == 1 else ask.labels


def latents(config: Any) -> str:
    """Why a model of this config makes no pictures and learns from none, in words, where its x0 is what an autoencoder
    makes of a picture; "": it is a picture."""
    if not getattr(config, "latent", False):
        return ""
    shape = " x ".join(map(str, config.shape))
    return f"this model is of latents, {shape} numbers, whose autoencoder is not here yet"
