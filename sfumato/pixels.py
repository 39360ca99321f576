"""What recipes that make pictures have in common: a denoiser, labels that it may be told, guidance, sampling.

A paper assigns `denoiser` and `label`, draws its own t, chooses the view and the weight of its loss and the sampler it
walks; everything else is here."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.conditioning.label import Label
from sfumato.core import guidance, losses
from sfumato.core.cond import Cond
from sfumato.core.denoiser import Denoiser, NeuralDenoiser
from sfumato.core.random import Seeds
from sfumato.errors import UserError
from sfumato.networks import HO_CIFAR10, UNet, UNetConfig
from sfumato.recipe import Ask, At, Loss, Preset, Recipe, Training, labels_or_spread
from sfumato.samplers.sampler import Sampler, State

__all__ = ["FASHION", "FAST", "SMALL", "TINY", "PixelConfig", "Pixels", "presets"]

TINY = UNetConfig(widths=(32, 64, 96), blocks=1, attention=(), attend_middle=False, groups=0, patch=2)
FASHION = replace(TINY, widths=(48, 96, 104))
SMALL = UNetConfig(widths=(64, 128, 192), blocks=2, attention=(2,), head_width=32, groups=0)
FAST = Training(
    lr=2e-3, batch=32, steps=2_000, warmup=100, decay="cosine", weight_decay=0.01, ema=0.995, ema_rule="warmup"
)


def presets(config: Any, fashion: str = "") -> dict[str, Preset]:
    """What every paper has for pictures of one's own, from its config: tiny, fashion and small, on our networks.
    `fashion` goes on with what is said of that one."""
    return {
        "tiny": Preset(replace(config, network=TINY), FAST, "1.7 M parameters; minutes on a laptop at 32 x 32"),
        "fashion": Preset(
            replace(config, shape=(1, 28, 28), network=FASHION),
            replace(FAST, lr=1.5e-3, steps=6_000, ema=0.999),
            f"ten minutes on two cores for Fashion-MNIST{fashion}",
        ),
        "small": Preset(
            replace(config, network=SMALL),
            replace(FAST, lr=1e-3, batch=64, steps=20_000, ema=0.999),
            "10 M parameters; an afternoon on a laptop, minutes on a GPU",
        ),
    }


@dataclass(frozen=True)
class PixelConfig:
    """What every pixel model is. `shape` and `classes` follow the data."""

    shape: tuple[int, ...] = (3, 32, 32)
    classes: tuple[str, ...] = ()
    network: UNetConfig = HO_CIFAR10
    clip: bool = False  # x0 held in the range of the data inside every sampling step
    drop: float = 0.1  # how often the label is withheld in training

    def __post_init__(self) -> None:
        if not 0.0 <= self.drop <= 1.0:
            raise UserError(f"drop is {self.drop}: it is the probability of withholding the label, from 0 to 1.")
        if not (2 <= len(self.shape) <= 4 and all(1 <= n <= 8192 for n in self.shape)):
            raise UserError(
                f"shape is {self.shape}: it is channels, then one to three sides, each number from 1 to 8192."
            )


class Pixels(Recipe):
    """`denoiser` is the model; `label` the embedding of its classes, if any."""

    config: Any  # a PixelConfig
    denoiser: NeuralDenoiser
    label: Label | None
    view: losses.View = losses.views.eps  # in which the loss compares
    weight: losses.Weight | None = None
    least: float | None = None  # the t from which on it is trained; None: its process's `first`
    backbone: Callable[[Any], nn.Module] = UNet  # what the config's network is of
    led: int = 0  # the first so many channels alone are moved by guidance; 0: all

    def make_network(self, *, inputs: int = 1, outputs: int = 1, kind: Callable[[Any], nn.Module] | None = None) -> Any:
        """The config's network for the data's shape, with so many times its channels: of `kind`, else the backbone."""
        channels, *space = self.config.shape
        config = replace(self.config.network, channels=inputs * channels, out=outputs * channels, dims=len(space))
        return (kind or self.backbone)(config)

    def embedding(self, network: Any) -> Label | None:
        """The embedding of the config's classes, if it has any."""
        return Label(len(self.config.classes), network.config.told) if self.config.classes else None

    # -- training ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def draw(self, rng: Seeds) -> Tensor:
        """(B,) the t of a training batch."""

    def values(self, images: Tensor) -> Tensor:
        """x0 of pictures in [-1, 1]: the same, stretched to `value_range`."""
        low, high = self.value_range
        return images if (low, high) == (-1.0, 1.0) else images.add(1).mul_((high - low) / 2).add_(low)

    def told(self, batch: Mapping[str, Any], rng: Seeds) -> Cond | None:
        """The labels of a training batch, withheld now and then."""
        if self.label is None:
            return None
        labels = batch["label"]
        keep = (rng.uniform() >= self.config.drop).to(labels.device)
        cond: Cond = self.label(labels)
        return cond.drop(self.label.null(len(labels)), keep)

    def errors(self, x0: Tensor, t: Tensor, cond: Cond | None, rng: Seeds) -> Tensor:
        """(B,) the loss of each example."""
        return losses.denoising(self.denoiser, x0, t, rng=rng, view=self.view, weight=self.weight, cond=cond)

    def loss(self, batch: Mapping[str, Any], at: At) -> Loss:
        t = self.draw(at.rng)
        cond = self.told(batch, at.rng)
        errors = self.errors(self.values(batch["image"]), t, cond, at.rng)
        return Loss(errors.mean(), per_sample=errors.detach(), t=self.level(t))

    def level(self, t: Tensor) -> Tensor:
        """Where the log counts the loss at t, in [0, 1]: t itself, where it spreads the noise levels well."""
        return t

    # -- sampling ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def sampler(self) -> Sampler:
        """What the paper samples with."""

    def guided(self, ask: Ask, seeds: list[int]) -> Denoiser:
        """The denoiser that `ask` wants: told labels, guided, clipped, steered. Raises UserError."""
        labels = None
        if self.label is not None:
            labels = torch.tensor(labels_or_spread(ask, len(self.config.classes), seeds))
        denoiser = self.towards(ask, labels)
        denoiser = guidance.clip(denoiser, *self.value_range) if self.config.clip else denoiser
        return denoiser if ask.steer is None else ask.steer(denoiser)

    def towards(self, ask: Ask, labels: Tensor | None) -> Denoiser:
        """The denoiser told these labels (n,), and led away from what `ask` says. Raises UserError."""
        leads = ask.guidance != 1.0
        if self.label is None and (ask.labels is not None or (leads and ask.weak is None)):
            raise UserError("This model was trained without labels: leave out labels and guidance.")
        strong = self._given(labels)
        if not leads:
            return strong
        options: Any = {"interval": ask.interval, "rescale": ask.rescale, "channels": self.led}
        return guidance.classifier_free(strong, self._away(ask, labels), ask.guidance, **options)

    def _away(self, ask: Ask, labels: Tensor | None) -> Denoiser:
        """What guidance leads away from: a weak model, other labels, or none. Raises UserError."""
        classes = len(self.config.classes)
        if ask.weak is not None:
            if not (isinstance(ask.weak, Pixels) and self._like(ask.weak)):
                raise UserError("the weak model must have this one's process, shape and classes, as a checkpoint has.")
            return ask.weak._given(labels)
        if ask.negative is None:
            return self._given(torch.full((ask.n,), classes))
        return self._given(torch.tensor(labels_or_spread(replace(ask, labels=ask.negative), classes, [])))

    def _like(self, other: Pixels) -> bool:
        """Whether both explain the same x_t, of the same labels."""
        if any(getattr(self.config, name) != getattr(other.config, name) for name in ("shape", "classes")):
            return False
        ours, theirs = self.denoiser.process, other.denoiser.process
        points = [(ours.at(t), theirs.at(t)) for t in (0.1, 0.5, 1.0)]
        return type(ours) is type(theirs) and all(a.alpha == b.alpha and a.sigma == b.sigma for a, b in points)

    def _given(self, labels: Tensor | None) -> Denoiser:
        """Told these labels; one past the last class is "not told"."""
        if self.label is None or labels is None:
            return self.denoiser
        return self.denoiser.given(self.label(labels.to(next(self.parameters()).device)))

    @torch.no_grad()
    def sample(self, ask: Ask, *, rng: Seeds) -> Iterator[State]:
        device = next(self.parameters()).device
        shape = (ask.n, self.config.shape[0], *(ask.size or self.config.shape[1:]))
        x1 = self.denoiser.process.prior(shape, rng, device=device)
        yield from (ask.sampler or self.sampler()).trajectory(self.guided(ask, rng.pictures_of(ask.n)), x1, rng=rng)

    def picture(self, state: State, *, quick: bool = False) -> Tensor:
        low, high = self.value_range
        x = state.estimate.x0 if quick and state.estimate is not None else self.denoiser.process.project(state.x)
        return ((x.float() - low) / (high - low)).clamp(0, 1)
