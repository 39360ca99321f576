"""Fresh pictures of a run, and the way of the first of them out of the noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.apps.report.facts import Moment, Pixels, Samples
from sfumato.cli.request import batch_of
from sfumato.cli.samplers import in_steps, own_sampler
from sfumato.cli.show import amount
from sfumato.core.random import Seeds
from sfumato.data.pictures import to_uint8
from sfumato.recipe import Ask, Recipe
from sfumato.samplers.auto import Auto
from sfumato.samplers.sampler import Sampler, State
from sfumato.samplers.sde import SSCS, quadratic_striding

__all__ = ["brief", "fresh_samples"]

PATIENCE = 100  # network calls a picture for which the run's own sampler is walked
BRIEF: tuple[Sampler, ...] = (Auto(30), SSCS(50, quadratic_striding))  # in its place: the first that walks the process
MOMENTS = 10
Show = Callable[[str, int, int], object]


def brief(recipe: Recipe) -> tuple[Sampler | None, str]:
    """What a report samples with: the run's own sampler, or a shorter walk, and then the sentence that says so."""
    own = own_sampler(recipe)
    calls = None if own is None else own.calls()
    if own is None or (calls is not None and calls <= PATIENCE):
        return own, ""
    for other in BRIEF:
        with suppress(ValueError):
            other.check(recipe.denoiser.process)  # type: ignore[union-attr, arg-type]
            cost = "as many network calls as it needs" if calls is None else amount(calls, "network call")
            return other, f"The run's own sampler, {in_steps(own)}, takes {cost} a picture; this is a shorter walk."
    return own, ""


@torch.no_grad()
def fresh_samples(
    recipe: Recipe, n: int, seed: int, show: Show, *, sampler: Sampler | None = None, guidance: float = 1.0
) -> Samples:
    """n pictures with the seeds seed, seed + 1, ...; of a model with classes, the class of a picture is its seed modulo
    their number. Raises ArithmeticError where a sampler diverges."""
    walk, note = (sampler, "") if sampler else brief(recipe)
    classes: tuple[str, ...] = tuple(recipe.config.classes)
    guided = f", guidance {guidance:g}" if classes and guidance != 1 else ""
    size = batch_of(None, n, recipe.config.shape[1:])
    pictures, way = [], Way(recipe)
    for first in range(0, n, size):
        m = min(size, n - first)
        ask = Ask(n=m, sampler=walk, guidance=guidance if classes else 1.0)
        for done, state in enumerate(recipe.sample(ask, rng=Seeds(seed + first)), 1):
            if first == 0:
                way.see(state)
            _say(show, first, m, n, done, walk)
        pictures.append(_flat(recipe.picture(state)))
    seeds = tuple(range(seed, seed + n))
    return Samples(
        np.concatenate(pictures),
        seeds,
        tuple(classes[s % len(classes)] for s in seeds) if classes else (),
        (in_steps(walk) if walk else "its own sampler") + guided,
        walk.calls() if walk else None,
        note,
        way.moments(),
    )


def _say(show: Show, first: int, m: int, n: int, done: int, walk: Sampler | None) -> None:
    """A batch counts as it walks, where the number of its steps is known."""
    steps = walk.steps if walk is not None and walk.calls() is not None else 0
    show("sampling", first * max(steps, 1) + min(done, steps) * m, n * max(steps, 1))


def _flat(pictures: Tensor) -> Pixels:
    """(B, C, *S) in [0, 1] as (B, H, W, C) with one or three channels; of volumes and videos the middle slice, of rows
    of numbers a picture one pixel high."""
    x = pictures.float().cpu()
    while x.dim() > 4:
        x = x[:, :, x.shape[2] // 2]
    x = x[:, :, None] if x.dim() == 3 else x
    return to_uint8(x[:, :3] if x.shape[1] > 2 else x[:, :1])


class Way:
    """Remembers the first picture of a batch at every step: x_t, the guess of x_0 from it, alpha and sigma."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.seen: list[tuple[float, float, Tensor, Tensor]] = []
        self.last: State | None = None

    def see(self, state: State) -> None:
        self.last = state._replace(x=state.x[:1].clone(), estimate=None, memory=())
        e = state.estimate
        if e is not None and not isinstance(e.point.t, Tensor):
            self.seen.append((float(e.point.alpha), float(e.point.sigma), e.xt[:1].clone(), e.x0[:1].clone()))

    def moments(self) -> tuple[Moment, ...]:
        """About ten of them, evenly over the steps, and the end."""
        if self.last is None:
            return ()
        chosen = np.unique(np.linspace(0, len(self.seen) - 1, MOMENTS - 1).round().astype(int)) if self.seen else ()
        end = Moment(0.0, _flat(self.recipe.picture(self.last))[0], None)
        return (*(self._moment(*self.seen[i]) for i in chosen), end)

    def _moment(self, alpha: float, sigma: float, xt: Tensor, x0: Tensor) -> Moment:
        assert self.last is not None
        project = getattr(getattr(getattr(self.recipe, "denoiser", None), "process", None), "project", lambda x: x)
        x = project(xt)
        spread = sqrt(float(x.square().mean()) / max(float(project(self.last.x).square().mean()), 1e-12))
        low, high = self.recipe.value_range
        ratio = abs(sigma / alpha) if alpha else float("inf")
        return Moment(ratio, _flat(_unit(x / max(spread, 1.0), low, high))[0], _flat(_unit(x0, low, high))[0])

    def __iter__(self) -> Iterator[Any]:
        return iter(self.seen)


def _unit(x: Tensor, low: float, high: float) -> Tensor:
    return ((x.float() - low) / (high - low)).clamp(0, 1)
