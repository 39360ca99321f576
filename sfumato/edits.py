"""Edits of pictures by a trained run, which need no training of their own.

    recipe = sfumato.load("runs/photos")
    whole = sfumato.inpaint(recipe, picture, mask, sfumato.Ask(n=4), rng=sfumato.Seeds(0))

Pictures are (C, *S) in [0, 1], of the run's shape; results (n, C, *S) in [0, 1], of which number i has the picture seed
seed + i. A run that knows classes is told those of `ask`, and nothing where it has none (sampling would take them in
turn). `show` is told (done, total) after every step. What a run cannot do raises UserError."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.core import guidance, times
from sfumato.core.denoiser import Denoiser
from sfumato.core.known import LUMA, Known
from sfumato.core.phase import CLD
from sfumato.core.process import Affine, Process
from sfumato.core.random import Seeds
from sfumato.errors import UserError
from sfumato.pixels import Pixels
from sfumato.recipe import Ask, Recipe, labels_or_spread
from sfumato.samplers.adaptive import ODE45
from sfumato.samplers.ancestral import DDIM, Ancestral, small
from sfumato.samplers.consistency import Consistency
from sfumato.samplers.held import Held
from sfumato.samplers.ode import Euler, Heun
from sfumato.samplers.restart import RePaint, Returning
from sfumato.samplers.sampler import Sampler, State

__all__ = [
    "METHODS",
    "Method",
    "Walk",
    "colorize",
    "decode",
    "encode",
    "encoder",
    "inpaint",
    "interpolate",
    "project",
    "reconstruct",
    "redraw",
    "repaint",
    "slerp",
]

Show = Callable[[int, int], object]
FOUR = Ask(n=4)


def _unseen(done: int, total: int) -> None:
    """Nobody watches."""


# -- how the rest is drawn ---------------------------------------------------------------------------------------------


class Walk(NamedTuple):
    """A sampler, and the denoiser that it walks; `clip` is what the run does to every guess of x0."""

    sampler: Sampler
    denoiser: Denoiser  # told and guided, not yet clipped
    clip: Callable[[Denoiser], Denoiser]


Method = Callable[[Walk, Known], tuple[Sampler, Denoiser]]


def project(walk: Walk, known: Known) -> tuple[Sampler, Denoiser]:
    """The known part goes into every guess of x0. As fast as sampling, and biased: what is made listens too little to
    what is known."""
    return walk.sampler, guidance.project(walk.clip(walk.denoiser), known.paste)


def repaint(walk: Walk, known: Known, *, passes: int = 10, length: int = 10) -> tuple[Sampler, Denoiser]:
    """RePaint (Lugmayr et al. 2022, arXiv:2201.09865): ancestral steps with the known part noised to each level, most
    of them walked `passes` times. With one pass as biased as pasting, with ten much less."""
    own, process = walk.sampler, walk.denoiser.process
    if not isinstance(process, Affine):
        raise UserError("repaint noises pictures back and forth, which data that move (cld) cannot: use reconstruct.")
    _refuse_jumps(own, "repaint")
    steps = walk.sampler.steps if isinstance(own, Ancestral) else min(max(own.steps, 100), 250)
    spacing = times.uniform if isinstance(own, ODE45) else own.spacing
    base = Ancestral(steps, spacing, getattr(own, "variance", small))
    return RePaint(base=Held(steps, spacing, known=known, base=base), passes=passes, length=length), walk.clip(
        walk.denoiser
    )


def reconstruct(walk: Walk, known: Known, *, rounds: int = 1) -> tuple[Sampler, Denoiser]:
    """What the known part says of the rest, by the model's own covariance, moves every guess (`guidance.reconstruct`):
    right for normal data. Each call differentiates the network."""
    _refuse_jumps(walk.sampler, "reconstruct")
    return walk.sampler, walk.clip(guidance.reconstruct(walk.denoiser, known.residue, rounds=rounds))


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
    show: Show = _unseen,
) -> Tensor:
    """New pixels where `mask` (*S) is True; all others are the picture's, bit for bit."""
    model = _editable(recipe)
    picture, mask = _fitting(model, picture), mask.to(_device(model), torch.bool)
    if mask.shape != picture.shape[1:]:
        raise UserError(f"the mask is {_sides(mask.shape)} and the picture {_sides(picture.shape[1:])}.")
    if mask.all() or not mask.any():
        what = "everything: nothing is kept. `sample` makes pictures of nothing" if mask.all() else "nothing"
        raise UserError(f"the mask marks {what}: white is what will be made, black what is kept.")
    known = Known(_values(model, picture[None]), ~mask.expand_as(picture)[None])
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
    show: Show = _unseen,
) -> Tensor:
    """Colours for a gray picture (1 or 3, *S), of a coloured one for the mean of its channels. That mean stays: colours
    that no screen can show are made paler."""
    model = _editable(recipe)
    if model.config.shape[0] != 3:
        what = "makes gray pictures" if model.config.shape[0] == 1 else f"has {model.config.shape[0]} channels, not 3"
        raise UserError(f"this run {what}, so that it has no colours to give: train one on colour pictures.")
    gray = _fitting(model, picture.float().mean(0, keepdim=True).expand(3, *picture.shape[1:]))
    basis = LUMA.to(_device(model), torch.float32)
    keep = torch.tensor([True, False, False], device=gray.device).reshape(1, 3, *(1,) * (gray.ndim - 1))
    axes = Known(gray[None], keep, basis)
    known = replace(axes, values=axes.turn(_values(model, gray[None])))
    return _shown(gray, _made(model, known, ask, rng, method, show))


def _shown(gray: Tensor, made: Tensor) -> Tensor:
    """Pictures whose channels have the mean `gray`, in [0, 1], with as much of the colour of `made` as fits."""
    colour = made - made.mean(1, keepdim=True)
    room = torch.where(colour > 0, 1 - gray, gray) / colour.abs().clamp(min=1e-6)
    return (gray + colour * room.amin(1, keepdim=True).clamp(max=1.0)).clamp(0, 1)


@torch.no_grad()
def redraw(
    recipe: Recipe, picture: Tensor, strength: float, ask: Ask = FOUR, *, rng: Seeds, show: Show = _unseen
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
    model = _editable(recipe)
    picture = _fitting(model, picture)
    walk = _walk(model, ask)
    start, sampler = _last(walk.sampler, walk.denoiser.process, strength)
    if start == 0.0:
        return picture.expand(ask.n, *picture.shape).clone()
    x0 = _values(model, picture[None]).expand(ask.n, *picture.shape)
    process = walk.denoiser.process
    if strength == 1.0:
        x = process.prior(x0.shape, rng, device=x0.device)
    else:
        x = process.noise(x0, start, process.draw(x0, rng)).xt
    return _picture(model, _walked(sampler, walk.clip(walk.denoiser), x, show, rng, start))


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


# -- encodings ---------------------------------------------------------------------------------------------------------


def encoder(recipe: Recipe, steps: int = 200) -> Sampler:
    """What encodes for this run unless another is asked for."""
    model = _editable(recipe)
    return DDIM(steps, times.balanced) if isinstance(model.denoiser.process, Affine) else ODE45()


@torch.no_grad()
def encode(
    recipe: Recipe, pictures: Tensor, ask: Ask = Ask(), *, rng: Seeds = Seeds(0), show: Show = _unseen
) -> Tensor:
    """The noise x_1 (B, C, *S) from which the probability flow makes `pictures` (B, C, *S): `decode` does.

    Walked by `ask.sampler` (None: `encoder`), upwards. Nothing is clipped, which could not be undone. For data that
    move (cld) x_1 is (B, 2 C, *S), and `rng` draws the momentum at t = 0."""
    model = _editable(recipe)
    walk = _flow(model, ask, len(pictures))
    x = _values(model, torch.stack([_fitting(model, picture) for picture in pictures]))
    process = model.denoiser.process
    if isinstance(process, CLD):
        momentum = rng.normal(x.shape, device=x.device) * math.sqrt(process.gamma * process.mass)
        x = torch.cat([x, momentum], dim=1)
    return _walked(walk.sampler, walk.denoiser, x, show, None, 0.0, 1.0)


@torch.no_grad()
def decode(recipe: Recipe, latents: Tensor, ask: Ask = Ask(), *, show: Show = _unseen) -> Tensor:
    """The pictures (B, C, *S) in [0, 1] of `encode`'s latents. Other labels than in encoding make the same picture of
    another class."""
    model = _editable(recipe)
    channels, *space = model.config.shape
    halves = 2 if isinstance(model.denoiser.process, CLD) else 1
    if tuple(latents.shape[1:]) != (halves * channels, *space):
        raise UserError(
            f"these latents are of shape {_by(latents.shape[1:])}, and this run's {_by((halves * channels, *space))}: "
            "encode with the run that decodes."
        )
    walk = _flow(model, ask, len(latents))
    return _picture(model, _walked(walk.sampler, walk.denoiser, latents.to(_device(model)).float(), show, None))


@torch.no_grad()
def interpolate(
    recipe: Recipe, a: Tensor, b: Tensor, n: int = 8, ask: Ask = Ask(), *, rng: Seeds = Seeds(0), show: Show = _unseen
) -> Tensor:
    """n pictures from a to b, both among them as they are after encoding and decoding: equal steps on the great circle
    between their encodings."""
    if n < 2:
        raise UserError(f"an interpolation has at least its 2 ends, not {n}.")

    def half(offset: int) -> Show:
        return lambda done, total: show(done + offset * total, 2 * total)

    ends = encode(recipe, torch.stack([a, b]), ask, rng=rng, show=half(0))
    return decode(recipe, slerp(ends[0], ends[1], torch.linspace(0, 1, n)), ask, show=half(1))


def slerp(a: Tensor, b: Tensor, shares: Tensor) -> Tensor:
    """(n, *a.shape): at each share of the angle from a to b, lengths in proportion (Shoemake 1985). Noise stays as long
    as noise is, where a straight line would be shorter. Opposite directions have no shortest way: a straight line."""
    p, q = a.flatten().double(), b.flatten().double()
    long, other = p.norm(), q.norm()
    u, v = p / long.clamp(min=1e-30), q / other.clamp(min=1e-30)
    angle = 2 * torch.atan2((u - v).norm(), (u + v).norm())
    w = shares.to(p)[:, None]
    if float(angle.sin()) < 1e-6:
        return torch.lerp(p, q, w).reshape(-1, *a.shape).to(a)
    turned = (((1 - w) * angle).sin() * u + (w * angle).sin() * v) / angle.sin()
    out: Tensor = turned * torch.lerp(long, other, w)
    return out.reshape(-1, *a.shape).to(a)


def _flow(model: Pixels, ask: Ask, n: int) -> Walk:
    """A deterministic way between picture and noise. Raises UserError."""
    if ask.guidance != 1.0:
        raise UserError("a guided way cannot be walked back: leave out guidance.")
    own = model.sampler()
    if isinstance(own, Consistency):
        raise UserError("a consistency model jumps to the picture and has no way back: encode with a run of edm.")
    sampler = ask.sampler or encoder(model)
    if sampler.stochastic or not isinstance(sampler, DDIM | Euler | Heun | ODE45):
        why = "adds noise" if sampler.stochastic else "looks back at steps that are not there on the way up"
        raise UserError(f"{type(sampler).__name__} {why}, and cannot encode: use ddim, euler, heun or ode45.")
    return _walk(model, replace(ask, n=n, sampler=sampler))


# -- shared ------------------------------------------------------------------------------------------------------------


def _editable(recipe: Recipe) -> Pixels:
    if not isinstance(recipe, Pixels):
        raise UserError("this run does not work on pixels: edits need one of ddpm, edm, score_sde, flow_matching, ...")
    return recipe


def _fitting(model: Pixels, picture: Tensor) -> Tensor:
    """The picture where the model is. Raises UserError for another shape."""
    if tuple(picture.shape) != tuple(model.config.shape):
        raise UserError(f"the picture is of shape {_by(picture.shape)}, and this run makes {_by(model.config.shape)}.")
    return picture.to(_device(model), torch.float32)


def _values(model: Pixels, pictures: Tensor) -> Tensor:
    x0: Tensor = model.values(pictures * 2 - 1)
    return x0


def _told(model: Pixels, ask: Ask) -> Denoiser:
    """The denoiser with the classes of `ask`, or with none. Raises UserError."""
    classes = len(model.config.classes)
    if model.label is None or ask.labels is not None:
        return model.towards(ask, torch.tensor(labels_or_spread(ask, classes, [])) if model.label else None)
    if ask.guidance != 1.0:
        raise UserError("guidance makes a class stronger: say which, with a label.")
    if model.config.drop == 0.0:
        raise UserError("this run was never without a class in training: say which, with a label.")
    return model.towards(ask, torch.full((ask.n,), classes))


def _walk(model: Pixels, ask: Ask) -> Walk:
    """The sampler and the denoiser that `ask` wants. Raises UserError where they do not go together."""
    sampler = ask.sampler or model.sampler()
    denoiser = _told(model, ask)
    try:
        sampler.check(denoiser.process)
    except ValueError as error:
        raise UserError(f"{str(error).rstrip('.')}.") from None
    low, high = model.value_range
    clip = (lambda d: guidance.clip(d, low, high)) if model.config.clip else (lambda d: d)
    return Walk(sampler, denoiser, clip)


def _made(model: Pixels, known: Known, ask: Ask, rng: Seeds, method: Method, show: Show) -> Tensor:
    """Pictures (n, C, *S) with the known part, as far as the method holds it."""
    sampler, denoiser = method(_walk(model, ask), known)
    shape = (ask.n, *model.config.shape)
    x = denoiser.process.prior(shape, rng, device=_device(model))
    return _picture(model, _walked(sampler, denoiser, x, show, rng))


def _walked(
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


def _picture(model: Pixels, x: Tensor) -> Tensor:
    return model.picture(State(x, model.denoiser.process.at(0.0)))


def _device(model: Pixels) -> torch.device:
    return next(model.parameters()).device


def _sides(space: tuple[int, ...]) -> str:
    """Width first, as people say it."""
    return " x ".join(str(side) for side in reversed(space))


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
