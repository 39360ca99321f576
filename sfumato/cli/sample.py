"""`sfumato sample RUN`: pictures from a trained run, which describes itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from tyro.conf import OmitArgPrefixes, Positional

from sfumato.cli.flags import pixels
from sfumato.cli.guide import GuideFlags, asked, refuse_leads, weak_of
from sfumato.cli.parse import option, parse
from sfumato.cli.plan import memory_of
from sfumato.cli.progress import Progress
from sfumato.cli.request import Request, batch_of, from_settings, names_of, refuse_labels, refuse_numbers
from sfumato.cli.runs import (
    at_checkpoint,
    described,
    done,
    find_run,
    free_folder,
    model_hash,
    name_of,
    opened,
    writable,
)
from sfumato.cli.samplers import SAMPLERS, SPACINGS, chosen, length, own_sampler, walk_of
from sfumato.cli.show import size
from sfumato.cli.steer import SteerFlags, remembered, steered
from sfumato.cli.studio import Studio
from sfumato.data.pictures import read_settings
from sfumato.engine.health import noisy
from sfumato.engine.plan import choose_device, out_of_memory
from sfumato.errors import UserError
from sfumato.recipe import Recipe

__all__ = ["run"]

EXAMPLES = """\
examples
  sfumato sample runs/photos                            64 pictures and a grid
  sfumato sample runs/letters --label A,B --guidance 2  classes, and how strongly they are meant
  sfumato sample runs/photos --classifier runs/kinds --label dress     steered by another run
  sfumato sample runs/photos --sampler auto --steps 20  another way to walk from noise to picture
  sfumato sample runs/photos --like grid.png --n 256    as that picture was made, but more"""


@dataclass(frozen=True)
class Sample:
    """Make pictures with a trained run: a grid, and single PNGs that carry their settings.

    Picture i has the seed SEED + i, whatever it is made together with.
    """

    run: Annotated[str, Positional, option("a run's folder, or the final/ of one", "RUN", "")] = ""
    n: Annotated[int | None, option("how many pictures", "N", "64")] = None
    seed: Annotated[int | None, option("of the first picture", "N", "0")] = None
    label: Annotated[str, option("classes, used in turn", "NAME[,NAME]", "all in turn")] = ""
    guidance: Annotated[float | None, option("how strongly the class is meant", "SCALE", "1, off")] = None
    sampler: Annotated[str | None, option("how to walk", "|".join(SAMPLERS), "the paper's")] = None
    steps: Annotated[int | None, option("fewer is faster", "N", "the sampler's")] = None
    spacing: Annotated[str | None, option("where the steps lie", "|".join(SPACINGS), "the sampler's")] = None
    eta: Annotated[float | None, option("noise added on the way: ddim, ..._a, ..._sde", "0..1", "the sampler's")] = None
    size: Annotated[str, option("pixels", "N|WxH", "as trained")] = ""
    like: Annotated[
        Path | None, option("repeat the settings of this PNG; other options override them", "PICTURE", "")
    ] = None
    checkpoint: Annotated[
        str, option("which of the run's models", "best|latest|final|step_N", "final, else the latest")
    ] = ""
    out: Annotated[Path | None, option("where pictures go", "FOLDER", "RUN/pictures")] = None
    strip: Annotated[bool, option("also strip.png: from noise to picture")] = False
    no_metadata: Annotated[bool, option("write no settings into the PNGs")] = False
    batch: Annotated[int | None, option("pictures made at once", "N", "by their size")] = None
    device: Annotated[str, option("auto: a GPU if there is one", "auto|cpu|cuda[:I]|mps")] = "auto"
    precision: Annotated[Literal["fp32", "bf16"] | None, option("bf16: often faster", None, "fp32")] = None
    threads: Annotated[int | None, option("CPU threads", "N", "timed")] = None
    guide: OmitArgPrefixes[GuideFlags] = field(default_factory=GuideFlags)
    steer: OmitArgPrefixes[SteerFlags] = field(default_factory=SteerFlags)


def run(args: list[str]) -> int:
    flags = parse(Sample, "sample", args, examples=EXAMPLES)
    if not flags.run:
        raise UserError("sample needs the folder of a run, as in `sfumato sample runs/NAME`.")
    refuse_numbers(vars(flags))
    run = find_run(flags.run, "sample")
    home = at_checkpoint(run, flags.checkpoint)
    config = described(home)
    recipe = steered(opened(home, choose_device(flags.device)), flags.steer)
    request = remembered(_request(flags, recipe, home), recipe, flags.steer)
    out = writable(flags.out or free_folder(run / "pictures"))
    weak = weak_of(recipe, flags.guide)
    shown = not flags.no_metadata
    studio = Studio(recipe, request, out, name_of(config), model_hash(home), metadata=shown, weak=weak)
    try:
        _doubt(studio.work(strip=flags.strip), config, run, home)
    except ArithmeticError as error:
        raise UserError(f"{error}.") from None
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise _too_much(request) from error
    return 0


def _doubt(pictures: Sequence[Any], config: dict[str, Any], run: Path, home: Path) -> None:
    """A word where the pictures of a model of this run are noise."""
    data, training = config.get("data") or {}, config.get("training") or {}
    own, examples = data.get("roughness"), data.get("examples")
    tiles = torch.from_numpy(np.stack(pictures)).movedim(-1, 1) / 255
    whole = home == run.joinpath("final") or (home == run and (run / "final").exists())
    steps = training.get("steps", 0) if whole else done(run) if home == run else int(home.name[5:])
    batch = training.get("batch", 0)
    told = all(type(n) is int and n > 0 for n in (steps, batch, examples))
    if not (told and isinstance(own, float) and noisy(tiles, own)):
        return
    looks = steps * batch / examples
    Progress.say(
        f"note: these pictures look like noise. The run had {steps:,} steps, {looks:.3g} looks at each of its "
        f"{examples:,} pictures: train it longer, as in `sfumato train --resume {run} --steps {10 * steps}`, and see "
        f"{run / 'log.txt'}."
    )


def _too_much(request: Request) -> UserError:
    """Out of memory: what helps."""
    ways = [f"--batch {request.batch // 2}"] if request.batch > 1 else []
    ways += ["--precision bf16"] if request.precision != "bf16" else []
    ways += ["a smaller --size" if ways else "only a smaller --size"]
    return UserError(f"out of memory with {request.batch} at once. What helps: {', '.join(ways)}.")


def _request(flags: Sample, recipe: Recipe, home: Path) -> Request:
    """Explicit options, else those of --like, else the run's own. Raises UserError."""
    classes: tuple[str, ...] = tuple(recipe.config.classes)
    base = Request(batch=0) if flags.like is None else _liked(flags.like, home)
    if flags.like is not None and (flags.seed is not None or flags.n is not None):
        base = replace(base.alone(classes), batch=0)
    given: dict[str, Any] = {
        name: getattr(flags, name) for name in ("seed", "n", "guidance", "precision", "batch", "threads")
    }
    given |= {"size": _size(flags.size), "labels": names_of(flags.label, classes) or None}
    request = replace(base, **{name: value for name, value in given.items() if value is not None})
    request = asked(request, flags.guide, classes)
    refuse_leads(request)
    refuse_labels(request.labels, 1.0 if request.weak else request.guidance, classes)
    shape = (request.size or tuple(recipe.config.shape[:0:-1]))[::-1]
    batch = batch_of(request.batch, request.n, shape)
    _refuse_large(batch * recipe.config.shape[0] * prod(shape), next(recipe.parameters()).device)
    return _walked(replace(request, batch=batch), flags, recipe)


def _refuse_large(numbers: int, device: torch.device) -> None:
    """Raises UserError where noise, x_t, its estimate and the picture alone do not fit into memory."""
    need, there = 4 * 4 * numbers, memory_of(device)
    if need > there:
        raise UserError(
            f"pictures of this size and number take at least {size(need)} at once, and this machine has {size(there)} "
            "of memory: give a smaller --size or --batch."
        )


def _walked(request: Request, flags: Sample, recipe: Recipe) -> Request:
    """The request with every field of its sampler filled in."""
    own = own_sampler(recipe)
    if own is None:
        return request
    if request.sampler and flags.sampler in (None, request.sampler):
        own = request.walk(own)
    sampler = chosen(own, flags.sampler, steps=flags.steps, spacing=flags.spacing, eta=flags.eta)
    length(sampler, recipe)
    return replace(request, **walk_of(sampler))


def _liked(picture: Path, home: Path) -> Request:
    request, digest = from_settings(read_settings(picture), str(picture))
    if digest and digest != model_hash(home):
        Progress.say(
            f"note: other weights than those of {home} made '{picture.name}': "
            "its settings are repeated, the picture is not."
        )
    return request


def _size(text: str) -> tuple[int, int] | None:
    wanted = pixels(text)
    return (wanted, wanted) if isinstance(wanted, int) else wanted
