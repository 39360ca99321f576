"""Pictures and the noise that makes them, both ways along the probability flow of a trained run."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from sfumato.core import times
from sfumato.core.phase import CLD
from sfumato.core.process import Affine
from sfumato.core.random import Seeds
from sfumato.errors import UserError
from sfumato.pixels import Pixels
from sfumato.recipe import Ask, Recipe
from sfumato.samplers.adaptive import ODE45
from sfumato.samplers.ancestral import DDIM
from sfumato.samplers.consistency import Consistency
from sfumato.samplers.ode import Euler, Heun
from sfumato.samplers.sampler import Sampler
from sfumato.walks import Show, Walk, by, device, editable, finished, fitting, unseen, values, walk_of, walked

__all__ = ["decode", "encode", "encoder", "interpolate", "slerp"]


def encoder(recipe: Recipe, steps: int = 200) -> Sampler:
    """What encodes for this run unless another is asked for."""
    model = editable(recipe)
    return DDIM(steps, times.balanced) if isinstance(model.denoiser.process, Affine) else ODE45()


@torch.no_grad()
def encode(recipe: Recipe, pictures: Tensor, ask: Ask = Ask(), *, rng: Seeds = Seeds(0), show: Show = unseen) -> Tensor:
    """The noise x_1 (B, C, *S) from which the probability flow makes `pictures` (B, C, *S): `decode` does.

    Walked by `ask.sampler` (None: `encoder`), upwards. Nothing is clipped, which could not be undone. For data that
    move (cld) x_1 is (B, 2 C, *S), and `rng` draws the momentum at t = 0."""
    model = editable(recipe)
    walk = _flow(model, ask, len(pictures))
    x = values(model, torch.stack([fitting(model, picture) for picture in pictures]))
    process = model.denoiser.process
    if isinstance(process, CLD):
        momentum = rng.normal(x.shape, device=x.device) * math.sqrt(process.gamma * process.mass)
        x = torch.cat([x, momentum], dim=1)
    return walked(walk.sampler, walk.denoiser, x, show, None, 0.0, 1.0)


@torch.no_grad()
def decode(recipe: Recipe, latents: Tensor, ask: Ask = Ask(), *, show: Show = unseen) -> Tensor:
    """The pictures (B, C, *S) in [0, 1] of `encode`'s latents. Other labels than in encoding make the same picture of
    another class."""
    model = editable(recipe)
    channels, *space = model.config.shape
    halves = 2 if isinstance(model.denoiser.process, CLD) else 1
    if tuple(latents.shape[1:]) != (halves * channels, *space):
        raise UserError(
            f"these latents are of shape {by(latents.shape[1:])}, and this run's {by((halves * channels, *space))}: "
            "encode with the run that decodes."
        )
    walk = _flow(model, ask, len(latents))
    return finished(model, walked(walk.sampler, walk.denoiser, latents.to(device(model)).float(), show, None))


@torch.no_grad()
def interpolate(
    recipe: Recipe, a: Tensor, b: Tensor, n: int = 8, ask: Ask = Ask(), *, rng: Seeds = Seeds(0), show: Show = unseen
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
    return walk_of(model, replace(ask, n=n, sampler=sampler))
