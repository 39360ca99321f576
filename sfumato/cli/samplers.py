"""Samplers by the names that users type, and what a picture remembers of one."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import Any

from sfumato.cli.parse import nearest
from sfumato.cli.show import amount
from sfumato.core import times
from sfumato.core.posterior import Variance, between, large, learned, small
from sfumato.errors import UserError
from sfumato.recipe import Recipe
from sfumato.samplers import pndm
from sfumato.samplers.adaptive import ODE45
from sfumato.samplers.ancestral import DDIM, Ancestral
from sfumato.samplers.auto import Auto
from sfumato.samplers.consistency import Consistency, few
from sfumato.samplers.langevin import PredictorCorrector
from sfumato.samplers.multistep import DEIS, LMS, DPMpp2M, DPMpp2MSDE, DPMpp3M, DPMpp3MSDE
from sfumato.samplers.ode import DPM2, DPM2Ancestral, DPMpp2S, DPMppSDE, DPMSolver, Euler, EulerAncestral, Heun
from sfumato.samplers.restart import Restart
from sfumato.samplers.sampler import Sampler
from sfumato.samplers.sde import SSCS, EulerMaruyama, quadratic_striding, striding
from sfumato.samplers.unipc import UniPC

__all__ = [
    "SAMPLERS",
    "SPACINGS",
    "VARIANCES",
    "chosen",
    "facts",
    "in_steps",
    "length",
    "own_sampler",
    "refuse_jumps",
    "walk_of",
]

SAMPLERS: dict[str, Sampler] = {
    "auto": Auto(),
    "ddpm": Ancestral(),
    "ddim": DDIM(),
    "pndm": pndm.PNDM(50),
    "euler": Euler(30, times.power),
    "heun": Heun(18, times.power),
    "euler_a": EulerAncestral(30, times.power),
    "lms": LMS(30, times.power),
    "dpm2": DPM2(18, times.power),
    "dpm2_a": DPM2Ancestral(18, times.power),
    "dpm_solver": DPMSolver(15, times.log_snr),
    "dpmpp": DPMpp2M(30, times.log_snr),
    "dpmpp_3m": DPMpp3M(30, times.log_snr),
    "dpmpp_2s": DPMpp2S(18, times.log_snr),
    "dpmpp_sde": DPMppSDE(25, times.log_snr),
    "dpmpp_2m_sde": DPMpp2MSDE(30, times.log_snr),
    "dpmpp_3m_sde": DPMpp3MSDE(30, times.log_snr),
    "deis": DEIS(30, times.log_snr),
    "unipc": UniPC(20, times.log_snr),
    "ode45": ODE45(),
    "em": EulerMaruyama(),
    "pc": PredictorCorrector(),
    "restart": Restart(),
    "sscs": SSCS(),
    "consistency": Consistency(),
}
"""Each as it is when nothing else is asked for: with steps and a grid that suit it."""

SPACINGS: dict[str, times.Spacing] = {
    "balanced": times.balanced,
    "uniform": times.uniform,
    "quadratic": times.quadratic,
    "power": times.power,
    "log_snr": times.log_snr,
    "few": few,
    "leading": times.leading,
    "trailing": times.trailing,
    "strided": times.strided,
    "striding": striding,
    "quadratic_striding": quadratic_striding,
}
WALK = ("steps", "spacing", "eta", "variance")  # what of a sampler can be asked for
VARIANCES: dict[str, Variance] = {"small": small, "large": large, "learned": learned}


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
    base = own if name is None or name == facts(own)["sampler"] else _named(name)
    grid = _spacing(spacing)
    asked: dict[str, Any] = {
        "steps": grid.steps if steps is None and isinstance(grid, times.Respacing) else steps,
        "eta": eta,
        "spacing": grid,
        "variance": _variance(variance),
    }
    asked = {field: value for field, value in asked.items() if value is not None}
    for field in asked.keys() - _fields(base):
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
        hint = nearest(name, list(SAMPLERS), f" choose one of {', '.join(SAMPLERS)}.")
        raise UserError(f"there is no sampler '{name}':{hint}")
    return SAMPLERS[name]


def _function(table: dict[str, Any], name: str | None, what: str) -> Any:
    if name is not None and name not in table:
        raise UserError(f"there is no {what} '{name}': choose one of {', '.join(table)}.")
    return None if name is None else table[name]


def _variance(name: str | None) -> Any:
    """A variance by its name, or by its share of the larger one."""
    if name is not None and name not in VARIANCES:
        with suppress(ValueError):
            if 0.0 <= (share := float(name)) <= 1.0:
                return between(share)
    return _function(VARIANCES, name, "variance")


def _spacing(name: str | None) -> Any:
    """A spacing by its name, or by the entries that it keeps."""
    if name is not None and name not in SPACINGS:
        with suppress(ValueError):
            return times.Respacing(name)
    return _function(SPACINGS, name, "spacing")


def _fields(sampler: Sampler) -> set[str]:
    return {field.name for field in dataclasses.fields(sampler)}


def facts(sampler: Sampler) -> dict[str, Any]:
    """The sampler as plain values that `chosen` takes back; functions by their name."""
    names = {type(known): name for name, known in SAMPLERS.items()}
    fields = {name: getattr(sampler, name) for name in WALK if name in _fields(sampler)}
    return {
        "sampler": names.get(type(sampler), type(sampler).__name__.lower()),
        **{name: getattr(value, "__name__", value) for name, value in fields.items()},
    }


def walk_of(sampler: Sampler) -> dict[str, Any]:
    """The fields of a request that say how it walks; None: the sampler has no such field."""
    return {name: facts(sampler).get(name) for name in ("sampler", *WALK)}


def refuse_jumps(recipe: Recipe, what: str) -> None:
    """Raises UserError for a consistency model, whose answers are ends of the flow and no guesses along it."""
    if isinstance(own_sampler(recipe), Consistency):
        raise UserError(
            f"a consistency model jumps to the picture and has no flow {what}: give the run of its teacher."
        )


def in_steps(sampler: Sampler) -> str:
    """The sampler in words."""
    steps = "steps of its own" if isinstance(sampler, ODE45) else amount(sampler.steps, "step")
    return f"{facts(sampler)['sampler']} in {steps}"


def length(sampler: Sampler, recipe: Recipe) -> int:
    """How many steps the sampler takes on this recipe's process. Raises UserError where it cannot walk it."""
    denoiser: Any = getattr(recipe, "denoiser", None)
    process: Any = getattr(denoiser, "process", None)
    if process is None:
        return sampler.steps
    if getattr(sampler, "variance", None) is learned and not getattr(denoiser, "learn_variance", False):
        raise UserError("this run does not learn its variance: leave out --like, or sample with ddim.")
    try:
        sampler.check(process)
        return len(sampler.points(process)) - 1
    except ValueError as error:
        raise UserError(f"{str(error).rstrip('.')}.") from None
