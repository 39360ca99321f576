"""Edits of pictures by a trained run, which need no training of their own.

    recipe = sfumato.load("runs/photos")
    whole = sfumato.inpaint(recipe, picture, mask, sfumato.Ask(n=4), rng=sfumato.Seeds(0))

Pictures are (C, *S) in [0, 1], of the run's shape; results (n, C, *S) in [0, 1], of which number i has the picture seed
seed + i. A run that knows classes is told those of `ask`, and nothing where it has none (sampling would take them in
turn). `show` is told (done, total) after every step. What a run cannot do raises UserError."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sfumato.core import guidance, times
from sfumato.core.denoiser import Denoiser
from sfumato.core.known import LUMA, Known, Measured, blurred, shrunk, spread
from sfumato.core.process import Affine, Process
from sfumato.core.random import Seeds
from sfumato.errors import UserError
from sfumato.pixels import Pixels
from sfumato.recipe import Ask, Recipe
from sfumato.samplers.adaptive import ODE45
from sfumato.samplers.ancestral import Ancestral, small
from sfumato.samplers.consistency import Consistency
from sfumato.samplers.held import Held
from sfumato.samplers.restart import RePaint
from sfumato.samplers.sampler import Sampler
from sfumato.walks import Show, Walk, by, device, editable, finished, fitting, sides, unseen, values, walk_of, walked

__all__ = [
    "METHODS",
    "NOISE",
    "ROUNDS",
    "Method",
    "colorize",
    "deblur",
    "enlarge",
    "inpaint",
    "project",
    "reconstruct",
    "redraw",
    "repaint",
]

FOUR = Ask(n=4)


# -- how the rest is drawn ---------------------------------------------------------------------------------------------


Method = Callable[[Walk, Any], tuple[Sampler, Denoiser]]  # of a run, and what is `Known` or `Measured`


def project(walk: Walk, known: Known | Measured) -> tuple[Sampler, Denoiser]:
    """The known part goes into every guess of x0. As fast as sampling, and biased: what is made listens too little to
    what is known."""
    if isinstance(known, Measured) and known.inverse is None:
        raise UserError("project puts what is known in its place, and a blurred picture has none: use reconstruct.")
    return walk.sampler, guidance.project(walk.clip(walk.denoiser), known.paste)


def repaint(
    walk: Walk, known: Known | Measured, *, passes: int = 10, length: int = 10, steps: int | None = None
) -> tuple[Sampler, Denoiser]:
    """RePaint (Lugmayr et al. 2022, arXiv:2201.09865): ancestral steps with the known part noised to each level, most
    of them walked `passes` times. With one pass as biased as pasting, with ten much less. `steps` None: those of an
    ancestral sampler, of another one at least 100 and at most 250."""
    own, process = walk.sampler, walk.denoiser.process
    if isinstance(known, Measured):
        raise UserError("repaint keeps pixels, and here only sums of pixels are known: use reconstruct or project.")
    if not isinstance(process, Affine):
        raise UserError("repaint noises pictures back and forth, which data that move (cld) cannot: use reconstruct.")
    _refuse_jumps(own, "repaint")
    steps = steps or (own.steps if isinstance(own, Ancestral) else min(max(own.steps, 100), 250))
    spacing = times.uniform if isinstance(own, ODE45) else own.spacing
    base = Ancestral(steps, spacing, getattr(own, "variance", small))
    return RePaint(base=Held(steps, spacing, known=known, base=base), passes=passes, length=length), walk.clip(
        walk.denoiser
    )


def reconstruct(walk: Walk, known: Known | Measured, *, rounds: int = 1) -> tuple[Sampler, Denoiser]:
    """What the known part says of the rest, by the model's own covariance, moves every guess (`guidance.reconstruct`):
    right for normal data. Each call differentiates the network 1 + rounds times."""
    _refuse_jumps(walk.sampler, "reconstruct")
    if not 1 <= rounds <= 1000:
        raise UserError(f"rounds is {rounds}: a number from 1 to 1,000; 1 to 5 are usual.")
    moved = guidance.reconstruct(walk.denoiser, known.residue, noise=known.noise, rounds=rounds)
    return walk.sampler, walk.clip(moved)


NOISE, ROUNDS = 0.02, 3  # of deblurring: a picture's noise, and what it takes where known numbers are wide sums
METHODS: dict[str, Method] = {"project": project, "repaint": repaint, "reconstruct": reconstruct}


def _refuse_jumps(own: Sampler, what: str) -> None:
    if isinstance(own, Consistency):
        raise UserError(f"a consistency model jumps to the picture, and {what} needs the steps between: use project.")


# -- edits -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def inpaint(
    recipe: Recipe,
    picture: Tensor,
    mask: Tensor,
    ask: Ask = FOUR,
    *,
    rng: Seeds,
    method: Method = reconstruct,
    show: Show = unseen,
) -> Tensor:
    """New pixels where `mask` (*S) is True; all others are the picture's, bit for bit."""
    model = editable(recipe)
    picture, mask = fitting(model, picture), mask.to(device(model), torch.bool)
    if mask.shape != picture.shape[1:]:
        raise UserError(f"the mask is {sides(mask.shape)} and the picture {sides(picture.shape[1:])}.")
    if mask.all() or not mask.any():
        what = "everything: nothing is kept. `sample` makes pictures of nothing" if mask.all() else "nothing"
        raise UserError(f"the mask marks {what}: white is what will be made, black what is kept.")
    known = Known(values(model, picture[None]), ~mask.expand_as(picture)[None])
    made = _made(model, known, ask, rng, method, show)
    return torch.where(mask, made, picture)


@torch.no_grad()
def colorize(
    recipe: Recipe,
    picture: Tensor,
    ask: Ask = FOUR,
    *,
    rng: Seeds,
    method: Method = reconstruct,
    show: Show = unseen,
) -> Tensor:
    """Colours for a gray picture (1 or 3, *S), of a coloured one for the mean of its channels. That mean stays: colours
    that no screen can show are made paler."""
    model = editable(recipe)
    if model.config.shape[0] != 3:
        what = "makes gray pictures" if model.config.shape[0] == 1 else f"has {model.config.shape[0]} channels, not 3"
        raise UserError(f"this run {what}, so that it has no colours to give: train one on colour pictures.")
    gray = fitting(model, picture.float().mean(0, keepdim=True).expand(3, *picture.shape[1:]))
    basis = LUMA.to(device(model), torch.float32)
    keep = torch.tensor([True, False, False], device=gray.device).reshape(1, 3, *(1,) * (gray.ndim - 1))
    axes = Known(gray[None], keep, basis)
    known = replace(axes, values=axes.turn(values(model, gray[None])))
    return _shown(gray, _made(model, known, ask, rng, method, show))


def _shown(gray: Tensor, made: Tensor) -> Tensor:
    """Pictures whose channels have the mean `gray`, in [0, 1], with as much of the colour of `made` as fits."""
    colour = made - made.mean(1, keepdim=True)
    room = torch.where(colour > 0, 1 - gray, gray) / colour.abs().clamp(min=1e-6)
    return (gray + colour * room.amin(1, keepdim=True).clamp(max=1.0)).clamp(0, 1)


@torch.no_grad()
def enlarge(
    recipe: Recipe, picture: Tensor, ask: Ask = FOUR, *, rng: Seeds, method: Method = reconstruct, show: Show = unseen
) -> Tensor:
    """Pictures of the run's size whose cells have the means of a small one (C, *S / factor), factor a whole number: no
    upsampler is needed. The means stay as they are."""
    model = editable(recipe)
    shape = tuple(model.config.shape)
    factor = shape[-1] // max(picture.shape[-1], 1)
    if factor < 2 or shape != (shape[0], *(side * factor for side in picture.shape[1:])):
        raise UserError(
            f"the picture to enlarge is of shape {by(picture.shape)}, and this run makes {by(shape)}: its sides must "
            "be a half, a third, a quarter ... of those."
        )
    small = picture.to(device(model), torch.float32)[None]
    known = Measured(values(model, small), partial(shrunk, factor=factor), partial(spread, factor=factor))
    return _meant(small, _made(model, known, ask, rng, method, show), factor)


def _meant(small: Tensor, made: Tensor, factor: int) -> Tensor:
    """Pictures whose cells have the means `small`, in [0, 1], with as much of the detail of `made` as fits."""
    even = spread(small, factor)
    detail = made - spread(shrunk(made, factor), factor)
    room = torch.where(detail > 0, 1 - even, even) / detail.abs().clamp(min=1e-6)
    for axis in range(2, room.ndim):
        room = torch.stack(torch.split(room, factor, axis), axis).amin(axis + 1)
    return (even + detail * spread(room.clamp(max=1.0), factor)).clamp(0, 1)


@torch.no_grad()
def deblur(
    recipe: Recipe,
    picture: Tensor,
    width: float,
    ask: Ask = FOUR,
    *,
    noise: float = NOISE,
    rng: Seeds,
    method: Method = partial(reconstruct, rounds=ROUNDS),
    show: Show = unseen,
) -> Tensor:
    """Sharp pictures that would look like this one under a normal bell of deviation `width` pixels and white noise of
    deviation `noise`, in [0, 1]: little noise trusts every pixel."""
    model = editable(recipe)
    low, high = model.value_range
    if not (0.1 <= width <= max(model.config.shape[1:]) and 0.001 <= noise <= 1.0):
        raise UserError(
            f"the blur is {width:g} pixels wide and the noise {noise:g}: from 0.1 pixels to the picture's side, and "
            "noise from 0.001 to 1."
        )
    seen = values(model, fitting(model, picture)[None])
    known = Measured(seen, partial(blurred, width=width), noise=noise * (high - low))
    return _made(model, known, ask, rng, method, show)


@torch.no_grad()
def redraw(
    recipe: Recipe, picture: Tensor, strength: float, ask: Ask = FOUR, *, rng: Seeds, show: Show = unseen
) -> Tensor:
    """The picture noised part of the way and denoised again (SDEdit; Meng et al. 2022, arXiv:2108.01073): strokes
    become pictures.

    Of the sampler's N steps the last round(strength N) are walked, from the picture noised to where they begin. 1 walks
    all from noise alone: what `recipe.sample` makes. 0, and less than half a step, is the picture. For ode45, which
    finds its own steps, strength is the t where it begins."""
    if not 0.0 <= strength <= 1.0:
        raise UserError(
            f"the strength is {strength:g}: from 0, the picture itself, to 1, in which nothing is left of it."
        )
    model = editable(recipe)
    picture = fitting(model, picture)
    walk = walk_of(model, ask)
    start, sampler = _last(walk.sampler, walk.denoiser.process, strength)
    if start == 0.0:
        return picture.expand(ask.n, *picture.shape).clone()
    x0 = values(model, picture[None]).expand(ask.n, *picture.shape)
    process = walk.denoiser.process
    if strength == 1.0:
        x = process.prior(x0.shape, rng, device=x0.device)
    else:
        x = process.noise(x0, start, process.draw(x0, rng)).xt
    return finished(model, walked(sampler, walk.clip(walk.denoiser), x, show, rng, start))


@dataclass(frozen=True)
class _Tail:
    """The last `kept` steps of a grid of `steps`."""

    spacing: times.Spacing
    steps: int
    kept: int

    def __call__(self, process: Process, steps: int, start: float, end: float) -> Tensor:
        return self.spacing(process, self.steps, 1.0, 0.0)[-self.kept - 1 :]


def _last(sampler: Sampler, process: Process, strength: float) -> tuple[float, Sampler]:
    """Where the last part of the sampler's way begins, and a sampler that walks it."""
    if isinstance(sampler, ODE45):
        return (strength if strength >= process.first else 0.0), sampler
    grid = sampler.spacing(process, sampler.steps, 1.0, 0.0)
    kept = round(strength * (len(grid) - 1))
    if kept in (0, len(grid) - 1):
        return (1.0 if kept else 0.0), sampler
    tail = _Tail(sampler.spacing, sampler.steps, kept)
    return float(grid[-kept - 1]), replace(sampler, steps=kept, spacing=tail)


def _made(model: Pixels, known: Known | Measured, ask: Ask, rng: Seeds, method: Method, show: Show) -> Tensor:
    """Pictures (n, C, *S) with the known part, as far as the method holds it."""
    sampler, denoiser = method(walk_of(model, ask), known)
    shape = (ask.n, *model.config.shape)
    x = denoiser.process.prior(shape, rng, device=device(model))
    return finished(model, walked(sampler, denoiser, x, show, rng))
