"""What is learnt of the noised pictures of another run: its process, its draws of t, what its network is told of x_t.

A classifier or a discriminator is trained on x_t as a base makes them and then steers any run with the same x_t. It
remembers the base by name and config, so that its own folder is whole, and builds it again without its network."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfumato.core.denoiser import Plan
from sfumato.core.estimate import like
from sfumato.core.phase import CLD
from sfumato.core.process import Affine, Point, Process
from sfumato.core.random import Seeds
from sfumato.errors import UserError
from sfumato.networks import UNetConfig
from sfumato.pixels import PixelConfig, Pixels
from sfumato.registry import MISFITS, config_dict, config_from, paper, papers

__all__ = ["Noised", "Seen", "bases", "rebuilt", "remembered"]

GRID = tuple(k / 16 for k in range(1, 17))
CLOSE = 1e-3  # relative difference of noise levels up to which x_t are taken for the same


def bases() -> tuple[str, ...]:
    """The papers whose runs noise pictures."""
    return tuple(name for name in papers() if issubclass(paper(name).recipe, Pixels))


def remembered(base: PixelConfig, *, network: bool = False) -> str:
    """A run's paper and config in a line of JSON, with its network only where that is needed."""
    plain = {"paper": type(base).__module__.rpartition(".")[2], **config_dict(base)}
    if not network:
        del plain["network"]
    return json.dumps(plain, sort_keys=True)


class _Blank(nn.Module):
    """In the place of a network."""

    config = UNetConfig(widths=(8,))  # what the embedding of classes asks for its width


def rebuilt(text: str, **methods: Any) -> Pixels:
    """The untrained recipe that was remembered, with other methods where given. Raises UserError."""
    try:
        plain = json.loads(text)
        found = paper(str(plain.pop("paper")))
        config = config_from(found.config, plain)
        kind: Any = type(found.recipe.__name__, (found.recipe,), methods) if methods else found.recipe
        recipe = kind(config)
    except (*MISFITS, KeyError, AttributeError, RecursionError) as error:
        raise UserError("The config's base is damaged: it should name a paper and its config, as JSON.") from error
    if not isinstance(recipe, Pixels):
        raise UserError(f"The config's base is a run of {type(recipe).__name__}, which makes no pictures.")
    return recipe


class Seen(NamedTuple):
    """A training batch as a network that reads noised pictures sees it."""

    x: Tensor  # (B, C or 2 C, *S) x_t
    t: Tensor  # (B,)
    level: Tensor  # (B,) where the log counts t, in [0, 1]


class Noised:
    """x_t of a base. Raises UserError for a text that `remembered` did not write."""

    def __init__(self, text: str) -> None:
        self.base = rebuilt(text, make_network=lambda self, **sizes: _Blank())
        self.process: Process = self.base.denoiser.process
        self.channels = self.base.config.shape[0] * (2 if isinstance(self.process, CLD) else 1)
        self.value_range = self.base.value_range

    @property
    def hidden(self) -> float:
        """The t from which on sigma / alpha is more than sqrt(N), N numbers a picture: all of it says less than a nat.

        What a network still says there is not evidence, and a long first step, from noise a thousand times as strong
        as the picture, would multiply it."""
        if not isinstance(self.process, Affine):
            return 1.0
        return float(self.process.time(torch.tensor(-math.log(math.prod(self.base.config.shape)), dtype=torch.float64)))

    def see(self, images: Tensor, rng: Seeds, t: Tensor | None = None) -> Seen:
        """Pictures (B, C, *S) in [-1, 1], noised to t, drawn as the base draws it unless given."""
        t = self.base.draw(rng) if t is None else t
        x0 = self.base.values(images)
        truth = self.process.noise(x0, self.process.at(t), self.process.draw(x0, rng))
        return Seen(truth.xt, t, self.base.level(t))

    def told(self, x: Tensor, t: Point | Tensor | float) -> tuple[Tensor, Tensor]:
        """x_t and the time, (1,) or (B,), as the base's network is given them: scaled, and the original index of a
        table whatever the steps."""
        point = self.process.at(t.t if isinstance(t, Point) else t)
        plan = Plan.of(self.base.denoiser.parametrisation, self.process, point, x.device)
        return (x if plan.inp is None else x * like(plan.inp, x)).float(), plan.time

    def misfit(self, other: Pixels) -> str:
        """Why x_t of `other` are not these, in words; "" where they are."""
        if tuple(other.config.shape) != tuple(self.base.config.shape):
            ours, theirs = _sides(self.base.config.shape), _sides(other.config.shape)
            return f"it reads pictures of {ours}, and that run makes {theirs}"
        if not _alike(self.process, other.denoiser.process) or other.value_range != self.value_range:
            names = (str(type(self.base.config).__module__), str(type(other.config).__module__))
            mine, its = (name.rpartition(".")[2] for name in names)
            return f"it knows pictures that {mine} noised, and that run ({its}) noises them otherwise"
        return ""


def _alike(a: Process, b: Process) -> bool:
    """Whether they noise to the same levels at the same t."""
    return isinstance(a, CLD) == isinstance(b, CLD) and all(
        _near(p, q) for t in GRID for p, q in zip(_numbers(a, t), _numbers(b, t), strict=True)
    )


def _numbers(process: Process, t: float) -> tuple[float, ...]:
    point = process.at(t)
    names = ("alpha", "sigma", "position", "momentum")
    return tuple(float(getattr(point, name)) for name in names if hasattr(point, name))


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=CLOSE, abs_tol=CLOSE / 10)


def _sides(shape: Any) -> str:
    return " x ".join(map(str, shape))
