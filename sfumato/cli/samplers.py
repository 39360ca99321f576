"""Samplers by the names that users type, and what a picture remembers of one."""

from __future__ import annotations

import dataclasses
from typing import Any

from sfumato.core import times
from sfumato.core.posterior import Variance, large, small
from sfumato.errors import UserError
from sfumato.recipe import Recipe
from sfumato.samplers.ancestral import DDIM, Ancestral
from sfumato.samplers.sampler import Sampler

__all__ = ["SAMPLERS", "SPACINGS", "VARIANCES", "chosen", "facts", "length", "own_sampler"]

SAMPLERS: dict[str, type[Sampler]] = {"ddpm": Ancestral, "ddim": DDIM}
SPACINGS: dict[str, times.Spacing] = {"uniform": times.uniform, "leading": times.leading, "quadratic": times.quadratic}
VARIANCES: dict[str, Variance] = {"small": small, "large": large}


def own_sampler(recipe: Recipe) -> Sampler | None:
    """What the paper samples with, if it walks a denoiser."""
    make: Any = getattr(recipe, "sampler", None)
    found = make() if callable(make) else None
    return found if isinstance(found, Sampler) else None


def chosen(
    own: Sampler,
    name: str | None = None,
    *,
    steps: int | None = None,
    spacing: str | None = None,
    eta: float | None = None,
    variance: str | None = None,
) -> Sampler:
    """The paper's own sampler, or the named one, with the fields that were asked for. Raises UserError."""
    base = own if name is None or type(own) is SAMPLERS.get(name) else _named(name)
    asked: dict[str, Any] = {
        "steps": steps,
        "eta": eta,
        "spacing": _function(SPACINGS, spacing, "spacing"),
        "variance": _function(VARIANCES, variance, "variance"),
    }
    asked = {field: value for field, value in asked.items() if value is not None}
    for field in asked.keys() - _fields(type(base)):
        having = [other for other, kind in SAMPLERS.items() if field in _fields(kind)]
        raise UserError(
            f"--{field} does nothing for this sampler, {facts(base)['sampler']}: "
            f"add --sampler {' or '.join(having)}, or leave it out."
        )
    try:
        return dataclasses.replace(base, **asked)
    except ValueError as error:
        raise UserError(f"{error}.") from None


def _named(name: str) -> Sampler:
    if name not in SAMPLERS:
        raise UserError(f"there is no sampler '{name}': choose {' or '.join(SAMPLERS)} with --sampler.")
    return SAMPLERS[name]()


def _function(table: dict[str, Any], name: str | None, what: str) -> Any:
    if name is not None and name not in table:
        raise UserError(f"there is no {what} '{name}': choose one of {', '.join(table)}.")
    return None if name is None else table[name]


def _fields(kind: type[Sampler]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def facts(sampler: Sampler) -> dict[str, Any]:
    """The sampler as plain values that `chosen` takes back; functions by their name."""
    names = {kind: name for name, kind in SAMPLERS.items()}
    fields = {name: getattr(sampler, name) for name in _fields(type(sampler))}
    return {
        "sampler": names.get(type(sampler), type(sampler).__name__.lower()),
        **{name: getattr(value, "__name__", value) for name, value in fields.items()},
    }


def length(sampler: Sampler, recipe: Recipe) -> int:
    """How many steps the sampler takes on this recipe's process. Raises UserError where it cannot."""
    process: Any = getattr(getattr(recipe, "denoiser", None), "process", None)
    if process is None:
        return sampler.steps
    spacing = getattr(sampler.spacing, "__name__", "")
    if hasattr(process, "__len__") and sampler.spacing is not times.uniform and sampler.steps > len(process):
        raise UserError(
            f"{spacing} spacing cannot pick {sampler.steps} steps from the {len(process)} that this run "
            f"was trained on: give --steps {len(process)} or fewer, or --spacing uniform."
        )
    try:
        return len(sampler.spacing(process, sampler.steps, 1.0, 0.0)) - 1
    except ValueError:
        raise UserError(
            f"{spacing} spacing picks steps from a table, and this run was trained in continuous time: "
            "give --spacing uniform."
        ) from None
