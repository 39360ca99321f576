"""What `--guidance` leads away from, and where: `--guidance-interval`, `--guidance-rescale`, `--negative`, `--weak`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from sfumato.cli.parse import option
from sfumato.cli.progress import Progress
from sfumato.cli.request import Request, names_of, refuse_labels
from sfumato.cli.runs import find_run, model_hash, opened
from sfumato.errors import UserError
from sfumato.recipe import Ask, Recipe

__all__ = ["GuideFlags", "asked", "refuse_leads", "weak_of"]


@dataclass(frozen=True)
class GuideFlags:
    """Of --guidance: what it leads away from, by default no class, and where."""

    guidance_interval: Annotated[
        tuple[float, float] | None, option("where it acts, in t from 0, data, to 1", "LOW HIGH", "everywhere")
    ] = None
    guidance_rescale: Annotated[
        float | None, option("how much of the contrast that it adds is taken back", "0..1", "0")
    ] = None
    negative: Annotated[str, option("classes to be led away from, used in turn", "NAME[,NAME]", "no class")] = ""
    weak: Annotated[Path | None, option("a worse run of the kind, told the same, to be led away from", "RUN", "")] = (
        None
    )


def asked(request: Request, flags: GuideFlags, classes: Sequence[str]) -> Request:
    """The request with what was asked for. Raises UserError for what no guidance is."""
    given: dict[str, Any] = {
        "interval": flags.guidance_interval,
        "rescale": flags.guidance_rescale,
        "negative": names_of(flags.negative, classes) or None,
        "weak": flags.weak and model_hash(find_run(flags.weak, "sample RUN --weak")),
    }
    if given["weak"] and request.weak not in ("", given["weak"]):
        Progress.say("note: another weak run led that picture: its settings are repeated, the picture is not.")
    request = replace(request, **{name: value for name, value in given.items() if value is not None})
    if request.weak and flags.weak is None:
        raise UserError("another run led that picture: give it again, with --weak RUN.")
    refuse_labels(request.negative, 1.0, classes)
    Ask(1, guidance=request.guidance, interval=request.interval, rescale=request.rescale)
    return request


def refuse_leads(request: Request) -> None:
    """Raises UserError for guidance that leads nowhere: a note would come after the work."""
    options = {"interval": "--guidance-interval", "rescale": "--guidance-rescale", "negative": "--negative"}
    options |= {"weak": "--weak"}
    named = [option for name, option in options.items() if getattr(request, name)]
    if named and request.guidance == 1.0:
        raise UserError(f"{named[0]} says how guidance acts, and it is off: add --guidance SCALE, as in --guidance 3.")
    if request.negative and request.weak:
        raise UserError("guidance leads away from --negative or from --weak: give one of them.")


def weak_of(recipe: Recipe, flags: GuideFlags) -> Recipe | None:
    """The worse model. Raises UserError."""
    if flags.weak is None:
        return None
    device = next(recipe.parameters()).device
    return opened(find_run(flags.weak, "sample RUN --weak"), device).requires_grad_(False).eval()
