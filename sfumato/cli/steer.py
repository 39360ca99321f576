"""`--classifier` and `--discriminator`: a trained run, steered by others that know its noised pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from torch import Tensor

from sfumato.cli.parse import option
from sfumato.cli.progress import Progress
from sfumato.cli.request import Request
from sfumato.cli.runs import described, find_run, model_hash, opened, refuse_use
from sfumato.core import guidance
from sfumato.core.denoiser import Denoiser
from sfumato.core.random import Seeds
from sfumato.errors import UserError
from sfumato.papers.adm import Classifier
from sfumato.papers.discriminator_guidance import DiscriminatorGuidance
from sfumato.pixels import Pixels
from sfumato.recipe import Ask, At, Loss, Recipe, labels_or_spread
from sfumato.samplers.ancestral import mean
from sfumato.samplers.auto import Auto
from sfumato.samplers.consistency import Consistency
from sfumato.samplers.ode import Heun
from sfumato.samplers.sampler import Sampler, State

__all__ = ["SteerFlags", "Steered", "remembered", "steered"]

MOST = 1000.0
SMOOTH = 2  # of `auto`: a gradient is not as smooth in t as a guess, and sets in at once where its window begins
Knows = TypeVar("Knows", Classifier, DiscriminatorGuidance)


@dataclass(frozen=True)
class SteerFlags:
    """Other runs that steer, and how strongly; 1 is exact where they are."""

    classifier: Annotated[Path | None, option("a run of adm's stage classifier: steers to --label", "RUN", "")] = None
    classifier_scale: Annotated[float | None, option("0 is off, 2 to 10 are usual", "SCALE", "1")] = None
    discriminator: Annotated[
        Path | None, option("a run of discriminator_guidance: steers to what is real", "RUN", "")
    ] = None
    discriminator_scale: Annotated[float | None, option("0 is off", "SCALE", "1")] = None
    discriminator_second: Annotated[
        float | None, option("of Heun's second slope; the authors have 2, and 0 here", "SCALE", "the same")
    ] = None


@dataclass(frozen=True)
class Forces:
    """What steers a run."""

    classifier: Classifier | None = None
    scale: float = 1.0
    discriminator: DiscriminatorGuidance | None = None
    slopes: tuple[float, float] = (1.0, 1.0)  # the discriminator's at the beginning and the end of a step of Heun's

    def tilted(self, denoiser: Denoiser, labels: Tensor | None, real: float, sampler: Sampler) -> Denoiser:
        """score + scale grad log p(y | x_t) + real grad log p(x_t) / q(x_t), each within its window."""
        if self.classifier is not None and labels is not None:
            always = getattr(sampler, "guide", None) is mean  # where the authors' rule bounds it by the step's variance
            interval = None if always else self.classifier.window
            denoiser = guidance.tilt(denoiser, self.classifier.log_prob(labels), self.scale, interval=interval)
        if self.discriminator is not None:
            d = self.discriminator
            denoiser = guidance.tilt(denoiser, d.log_ratio(labels), real, interval=d.window)
        return denoiser


class Steered(Recipe):
    """A run whose denoiser others tilt. One that knows classes is told them too; one that knows none takes those of
    the classifier."""

    def __init__(self, run: Pixels, forces: Forces) -> None:
        read = () if forces.classifier is None else tuple(forces.classifier.config.classes)
        super().__init__(replace(run.config, classes=tuple(run.config.classes) or read))
        self.run, self.forces = run, forces
        self.denoiser, self.value_range, self.sampler = run.denoiser, run.value_range, run.sampler

    def loss(self, batch: Mapping[str, Any], at: At) -> Loss:
        raise UserError("A steered run is not trained: train the run, or what steers it.")

    def sample(self, ask: Ask, *, rng: Seeds) -> Iterator[State]:
        classes, forces = len(self.config.classes), self.forces
        labels = torch.tensor(labels_or_spread(ask, classes, rng.pictures_of(ask.n))) if classes else None
        sampler: Sampler = ask.sampler or self.run.sampler()
        if isinstance(sampler, Auto):
            sampler = replace(sampler, order=SMOOTH)
        bare: list[Denoiser] = []

        def steer(denoiser: Denoiser) -> Denoiser:
            bare[:] = [denoiser]
            return forces.tilted(denoiser, labels, forces.slopes[0], sampler)

        def second(_: Denoiser) -> Denoiser:
            return forces.tilted(bare[0], labels, forces.slopes[1], sampler)

        if forces.slopes[0] != forces.slopes[1]:
            if not isinstance(sampler, Heun):
                raise UserError(
                    "--discriminator-second is of Heun's second slope: add --sampler heun, or leave it out."
                )
            sampler = replace(sampler, second=second)
        told = ask.labels if self.run.label is not None else None
        yield from self.run.sample(replace(ask, labels=told, sampler=sampler, steer=steer), rng=rng)

    def picture(self, state: State, *, quick: bool = False) -> Tensor:
        return self.run.picture(state, quick=quick)


# -- from the command line ---------------------------------------------------------------------------------------------


def steered(recipe: Recipe, flags: SteerFlags) -> Recipe:
    """The recipe, or steered as was asked for. Raises UserError for what does not go together."""
    refuse_use(recipe, "sample")
    for name in ("classifier", "discriminator"):
        _refuse_scales(name, flags)
    if flags.classifier is None and flags.discriminator is None:
        return recipe
    if not isinstance(recipe, Pixels) or isinstance(recipe.sampler(), Consistency):
        raise UserError("only runs that walk from noise to pixels can be steered, such as ddpm and edm, and not this.")
    first = _or_one(flags.discriminator_scale)
    forces = Forces(
        None if flags.classifier is None else _opened(Classifier, "classifier", flags.classifier, recipe),
        _or_one(flags.classifier_scale),
        None if flags.discriminator is None else _opened(DISCRIMINATOR, "discriminator", flags.discriminator, recipe),
        (first, first if flags.discriminator_second is None else flags.discriminator_second),
    )
    return Steered(recipe, forces)


DISCRIMINATOR = DiscriminatorGuidance
REMEDY = {
    "classifier": "`sfumato train adm DATA --stage classifier --from RUN` trains one upon a run",
    "discriminator": "`sfumato train discriminator_guidance DATA --from RUN` trains one upon a run",
}


def _or_one(scale: float | None) -> float:
    return 1.0 if scale is None else scale


def _refuse_scales(name: str, flags: SteerFlags) -> None:
    """Raises UserError for a scale that is no number, and one of nothing."""
    for flag in (f"{name}_scale", f"{name}_second"):
        scale: float | None = getattr(flags, flag, None)
        option = f"--{flag.replace('_', '-')}"
        if scale is None:
            continue
        if not math.isfinite(scale) or abs(scale) > MOST:
            raise UserError(f"{option} is {scale:g}: give a number; 0 is off, 1 exact, 2 to 10 are usual.")
        if getattr(flags, name) is None:
            raise UserError(f"{option} says how strongly a {name} steers: give one, --{name} RUN.")


def _opened(kind: type[Knows], name: str, typed: Path, run: Pixels) -> Knows:
    """That run, one that knows what `run` makes. Raises UserError."""
    home = find_run(typed, f"sample RUN --{name}")
    found = opened(home, next(run.parameters()).device).requires_grad_(False).eval()
    if not isinstance(found, kind):
        raise UserError(f"'{typed}' is no {name} (it is a run of {described(home)['paper']}): {REMEDY[name]}.")
    if why := found.noised.misfit(run):
        raise UserError(f"the {name} '{typed}' cannot steer this run: {why}. {REMEDY[name]}.")
    known, read = tuple(run.config.classes), tuple(found.config.classes)
    if known != read and (known or name == "discriminator"):
        raise UserError(
            f"the {name} '{typed}' knows other classes ({_some(read)}) than this run ({_some(known)}): {REMEDY[name]}, "
            "with the data and --labels that it had."
        )
    return found


def _refuse_size(request: Request, forces: Forces) -> None:
    """Raises UserError for pictures of another size than what steers can read."""
    for name in ("classifier", "discriminator"):
        reader: Any = getattr(forces, name)
        if reader is None or request.size is None or reader.config.pool == "average":
            continue
        if request.size[::-1] != tuple(reader.config.shape[1:]):
            sides = " x ".join(map(str, reader.config.shape[:0:-1]))
            other = "train one with --config.pool average"
            raise UserError(f"the {name} reads pictures of {sides} alone: leave out --size, or {other}.")


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "none"


def remembered(request: Request, recipe: Recipe, flags: SteerFlags) -> Request:
    """The request with what steers; one that is repeated keeps its scales. Raises UserError where that is not given."""
    names = ("classifier", "discriminator")
    hashes = {name: model_hash(typed) if (typed := getattr(flags, name)) else "" for name in names}
    for name in names:
        before = getattr(request, name)
        if before and not hashes[name]:
            raise UserError(f"a {name} steered that picture: give it again, with --{name} RUN.")
        if before not in ("", hashes[name]):
            Progress.say(f"note: another {name} steered that picture: its settings are repeated, the picture is not.")
    if not isinstance(recipe, Steered):
        return request
    forces = recipe.forces
    _refuse_size(request, forces)
    if flags.classifier_scale is None and request.classifier_scale is not None:
        forces = replace(forces, scale=request.classifier_scale)
    if flags.discriminator_scale is None and flags.discriminator_second is None and request.discriminator_slopes:
        forces = replace(forces, slopes=request.discriminator_slopes)
    recipe.forces = forces
    scale = forces.scale if hashes["classifier"] else None
    slopes = forces.slopes if hashes["discriminator"] else None
    told: dict[str, Any] = {**hashes, "classifier_scale": scale, "discriminator_slopes": slopes}
    return replace(request, **told)
