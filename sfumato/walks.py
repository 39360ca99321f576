"""What edits of pictures have in common: the run, told what is asked for, and its way from noise.

`show` is told (done, total) after every step. What a run cannot do raises UserError."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.core import guidance
from sfumato.core.denoiser import Denoiser
from sfumato.core.random import Seeds
from sfumato.errors import UserError
from sfumato.pixels import Pixels
from sfumato.recipe import Ask, Recipe, labels_or_spread
from sfumato.samplers.adaptive import ODE45
from sfumato.samplers.restart import Returning
from sfumato.samplers.sampler import Sampler, State

__all__ = [
    "Show",
    "Walk",
    "by",
    "device",
    "editable",
    "finished",
    "fitting",
    "sides",
    "told",
    "unseen",
    "values",
    "walk_of",
    "walked",
]

Show = Callable[[int, int], object]


def unseen(done: int, total: int) -> None:
    """Nobody watches."""


class Walk(NamedTuple):
    """A sampler, and the denoiser that it walks; `clip` is what the run does to every guess of x0."""

    sampler: Sampler
    denoiser: Denoiser  # told and guided, not yet clipped
    clip: Callable[[Denoiser], Denoiser]


def editable(recipe: Recipe) -> Pixels:
    if not isinstance(recipe, Pixels):
        raise UserError("this run does not work on pixels: edits need one of ddpm, edm, score_sde, flow_matching, ...")
    return recipe


def fitting(model: Pixels, picture: Tensor) -> Tensor:
    """The picture where the model is. Raises UserError for another shape."""
    if tuple(picture.shape) != tuple(model.config.shape):
        raise UserError(f"the picture is of shape {by(picture.shape)}, and this run makes {by(model.config.shape)}.")
    return picture.to(device(model), torch.float32)


def values(model: Pixels, pictures: Tensor) -> Tensor:
    x0: Tensor = model.values(pictures * 2 - 1)
    return x0


def told(model: Pixels, ask: Ask) -> Denoiser:
    """The denoiser with the classes of `ask`, or with none. Raises UserError."""
    classes = len(model.config.classes)
    if model.label is None or ask.labels is not None:
        return model.towards(ask, torch.tensor(labels_or_spread(ask, classes, [])) if model.label else None)
    if ask.guidance != 1.0:
        raise UserError("guidance makes a class stronger: say which, with a label.")
    if model.config.drop == 0.0:
        raise UserError("this run was never without a class in training: say which, with a label.")
    return model.towards(ask, torch.full((ask.n,), classes))


def walk_of(model: Pixels, ask: Ask) -> Walk:
    """The sampler and the denoiser that `ask` wants. Raises UserError where they do not go together."""
    sampler = ask.sampler or model.sampler()
    denoiser = told(model, ask)
    try:
        sampler.check(denoiser.process)
    except ValueError as error:
        raise UserError(f"{str(error).rstrip('.')}.") from None
    low, high = model.value_range
    clip = (lambda d: guidance.clip(d, low, high)) if model.config.clip else (lambda d: d)
    return Walk(sampler, denoiser, clip)


def walked(
    sampler: Sampler, denoiser: Denoiser, x: Tensor, show: Show, rng: Seeds | None, start: float = 1.0, end: float = 0.0
) -> Tensor:
    """x at the end of the way, with a word after every step."""
    again = isinstance(sampler, Returning) and sampler.calls()
    try:
        total = again or (0 if isinstance(sampler, ODE45) else len(sampler.points(denoiser.process, start, end)) - 1)
        for done, state in enumerate(sampler.trajectory(denoiser, x, rng=rng, start=start, end=end), 1):
            show(done, max(done, total))
            x = state.x
    except (ValueError, ArithmeticError) as error:
        raise UserError(f"{str(error).rstrip('.')}.") from None
    return x


def finished(model: Pixels, x: Tensor) -> Tensor:
    return model.picture(State(x, model.denoiser.process.at(0.0)))


def device(model: Pixels) -> torch.device:
    return next(model.parameters()).device


def sides(space: tuple[int, ...]) -> str:
    """Width first, as people say it."""
    return " x ".join(str(side) for side in reversed(space))


def by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
