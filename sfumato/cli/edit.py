"""`sfumato edit RUN PICTURE`: parts made anew, colours, strokes turned into pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor
from tyro.conf import Positional

from sfumato import edits
from sfumato.cli.parse import option, parse
from sfumato.cli.pictures import Given, read, read_mask
from sfumato.cli.progress import Progress
from sfumato.cli.request import Chunk, Request
from sfumato.cli.samplers import SAMPLERS, SPACINGS
from sfumato.cli.show import amount, duration, printable
from sfumato.cli.workshop import Edited, Workshop, labels_of, told, walked
from sfumato.core.known import spread
from sfumato.core.random import Seeds
from sfumato.data.pictures import grid, save_png, to_uint8
from sfumato.errors import UserError
from sfumato.recipe import Ask
from sfumato.walks import sides

__all__ = ["run"]

EXAMPLES = """\
examples
  sfumato edit runs/photos photo.png --inpaint mask.png      make what is white in the mask
  sfumato edit runs/photos gray.png --colorize --n 8         eight ways to colour it
  sfumato edit runs/photos strokes.png --strength 0.6        a painting in few strokes as a picture
  sfumato edit runs/photos small.png --enlarge 4             four times as large, by a run that never learnt it
  sfumato edit runs/photos soft.png --deblur 1.5             sharp pictures that look like this when blurred"""


@dataclass(frozen=True)
class Edit:
    """Change a picture with a trained run: make a part of it, colour, enlarge or deblur it, or turn strokes into one.

    The mask is white where the picture is made and black where it is kept; kept pixels stay exactly what they are.
    Edit i has the seed SEED + i. docs/editing.md compares the methods.
    """

    run: Annotated[str, Positional, option("a run's folder, or the final/ of one", "RUN", "")] = ""
    picture: Annotated[Path | None, Positional, option("what to edit", "PICTURE", "")] = None
    inpaint: Annotated[Path | None, option("make what is white in this picture", "MASK", "")] = None
    colorize: Annotated[bool, option("give colours to a gray picture; a coloured one is turned gray first")] = False
    strength: Annotated[
        float | None, option("noise the picture so far and denoise it: 0 keeps it, 1 forgets it", "0..1", "")
    ] = None
    enlarge: Annotated[
        int | None, option("a picture whose sides are so many times smaller than the run's", "N", "")
    ] = None
    deblur: Annotated[
        float | None, option("a picture blurred by a bell of this deviation, in pixels of the run", "WIDTH", "")
    ] = None
    noise: Annotated[float | None, option("of --deblur: how little its pixels are trusted", "0.001..1", "0.02")] = None
    method: Annotated[
        Literal["reconstruct", "repaint", "project"] | None,
        option("how what is known is kept: right, by repeating steps, or fast and biased", None, "reconstruct"),
    ] = None
    passes: Annotated[int | None, option("of repaint: how often steps are walked", "N", "10")] = None
    rounds: Annotated[int | None, option("of reconstruct: nearer the truth, and slower", "N", "1, of --deblur 3")] = (
        None
    )
    n: Annotated[int, option("how many edits", "N")] = 4
    seed: Annotated[int, option("of the first", "N")] = 0
    label: Annotated[str, option("classes, used in turn", "NAME[,NAME]", "none is told")] = ""
    guidance: Annotated[float, option("how strongly the class is meant", "SCALE", "1, off")] = 1.0
    sampler: Annotated[str | None, option("how to walk", "|".join(SAMPLERS), "the paper's")] = None
    steps: Annotated[int | None, option("fewer is faster", "N", "the sampler's")] = None
    spacing: Annotated[str | None, option("where the steps lie", "|".join(SPACINGS), "the sampler's")] = None
    eta: Annotated[float | None, option("noise added on the way: ddim, ..._a, ..._sde", "0..1", "the sampler's")] = None
    fit: Annotated[Literal["crop", "pad", "stretch"], option("what happens to other shapes")] = "crop"
    out: Annotated[Path | None, option("where pictures go", "FOLDER", "RUN/edits")] = None
    no_metadata: Annotated[bool, option("write no settings into the PNGs")] = False
    batch: Annotated[int | None, option("edits made at once", "N", "by their size")] = None
    device: Annotated[str, option("auto: a GPU if there is one", "auto|cpu|cuda[:I]|mps")] = "auto"
    threads: Annotated[int | None, option("CPU threads", "N", "timed")] = None


def run(args: list[str]) -> int:
    flags = parse(Edit, "edit", args, examples=EXAMPLES)
    if not flags.run or flags.picture is None:
        raise UserError("edit needs a run and a picture, as in `sfumato edit runs/NAME photo.png --inpaint mask.png`.")
    _refuse(flags)
    shop = Workshop.open(flags.run, "edit", flags)
    labels = labels_of(shop, flags.label, flags.guidance)
    sampler = walked(shop, shop.recipe.sampler(), flags)
    given = read(flags.picture, shop.recipe, flags.fit, _small(flags, shop))
    change, shown = _change(flags, given, shop)
    about = {"seed": flags.seed, "guidance": flags.guidance, **_about(flags)}
    request = shop.request(flags, sampler, labels, flags.n, **about)
    start = time.monotonic()

    def make(ask: Ask, chunk: Chunk, show: Callable[[int, int], object]) -> Tensor:
        return change(ask, rng=Seeds(flags.seed + chunk.first), show=show)

    with shop.folder(flags.out, "edits") as out:
        made = shop.made(request, sampler, make, "editing")
        _write(shop, request, out, shown, made, metadata=not flags.no_metadata)
    for note in given.notes:
        Progress.say(note)
    where = out / ("grid.png" if flags.n > 1 else request.file(0))
    print(printable(f"{amount(flags.n, 'edit')} in {duration(time.monotonic() - start)}: {where}"))
    print(printable(f"{shop.name}, {_words(request)}{told(labels, shop)}, from seed {flags.seed} on"))
    return 0


def _words(request: Edited) -> str:
    how = f"by {request.method}" if request.method else f"with strength {request.strength:g}"
    return f"{request.edit} {how}".replace("strength with", "with")


def _refuse(flags: Edit) -> None:
    """Raises UserError for what does not go together."""
    if [bool(flags.colorize), *(getattr(flags, name) is not None for name in KINDS)].count(True) != 1:
        raise UserError(
            "say what to do with the picture: one of --inpaint MASK, --colorize, --enlarge N, --deblur WIDTH and "
            "--strength 0..1."
        )
    if flags.strength is not None and (flags.method or flags.rounds):
        option = "--method" if flags.method else "--rounds"
        raise UserError(f"{option} says how a known part is kept, and --strength knows none: leave it out.")
    if flags.strength is not None and not 0 <= flags.strength <= 1:
        raise UserError(f"--strength is {flags.strength:g}: from 0, the picture itself, to 1, a new one.")
    if flags.passes is not None and (flags.method != "repaint" or not 1 <= flags.passes <= 1000):
        raise UserError("--passes is a number from 1 to 1,000 for --method repaint: give both, or leave it out.")
    if flags.rounds is not None and (flags.method not in (None, "reconstruct") or not 1 <= flags.rounds <= 1000):
        raise UserError("--rounds is a number from 1 to 1,000 for --method reconstruct.")
    if flags.noise is not None and flags.deblur is None:
        raise UserError("--noise is of --deblur WIDTH: give both, or leave it out.")


KINDS = ("inpaint", "strength", "enlarge", "deblur")


def _small(flags: Edit, shop: Workshop) -> tuple[int, ...] | None:
    """The size (high, wide) of the picture to enlarge. Raises UserError for a factor that the run's has not."""
    if flags.enlarge is None:
        return None
    space = shop.recipe.config.shape[1:]
    if flags.enlarge < 2 or any(side % flags.enlarge for side in space):
        raise UserError(
            f"--enlarge is {flags.enlarge}: a number from 2 on that divides the run's sides, {sides(space)}."
        )
    return tuple(side // flags.enlarge for side in space)


Change = Callable[..., Tensor]  # (ask, rng=, show=) -> (n, C, H, W)


def _change(flags: Edit, given: Given, shop: Workshop) -> tuple[Change, list[Tensor]]:
    """The edit, and what it begins with: the picture, and what of it is known."""
    recipe, pixels = shop.recipe, given.pixels
    if flags.strength is not None:
        return partial(edits.redraw, recipe, pixels, flags.strength), [pixels]
    method = _method(flags)
    if flags.colorize:
        gray = pixels.mean(0, keepdim=True).expand_as(pixels)
        return partial(edits.colorize, recipe, pixels, method=method), [pixels, gray]
    if flags.enlarge is not None:
        return partial(edits.enlarge, recipe, pixels, method=method), [spread(pixels[None], flags.enlarge)[0]]
    if flags.deblur is not None:
        return partial(edits.deblur, recipe, pixels, flags.deblur, noise=_noise(flags), method=method), [pixels]
    assert flags.inpaint is not None
    mask = read_mask(flags.inpaint, given, recipe, flags.fit)
    return partial(edits.inpaint, recipe, pixels, mask, method=method), [pixels, torch.where(mask, 0.5, pixels)]


def _method(flags: Edit) -> edits.Method:
    """How what is known is kept."""
    name = flags.method or "reconstruct"
    options: dict[str, dict[str, Any]] = {
        "repaint": {"passes": flags.passes or 10, "steps": flags.steps},
        "reconstruct": {"rounds": _rounds(flags)},
    }
    return partial(edits.METHODS[name], **options.get(name, {}))


def _rounds(flags: Edit) -> int:
    return flags.rounds or (edits.ROUNDS if flags.deblur is not None else 1)


def _noise(flags: Edit) -> float:
    return edits.NOISE if flags.noise is None else flags.noise


def _about(flags: Edit) -> dict[str, Any]:
    """What the picture remembers of its edit."""
    if flags.strength is not None:
        return {"edit": "strength", "strength": flags.strength}
    kind = next((name for name in KINDS if getattr(flags, name) is not None), "colorize")
    about: dict[str, Any] = {"edit": kind, "method": flags.method or "reconstruct", "passes": flags.passes}
    if about["method"] == "reconstruct" and _rounds(flags) > 1:
        about["rounds"] = _rounds(flags)
    if flags.enlarge is not None:
        about["factor"] = flags.enlarge
    if flags.deblur is not None:
        about |= {"width": flags.deblur, "noise": _noise(flags)}
    return about


def _write(shop: Workshop, request: Request, out: Path, shown: list[Tensor], made: Tensor, *, metadata: bool) -> None:
    tiles = to_uint8(made)
    for i, tile in enumerate(tiles):
        save_png(out / request.file(i), tile, shop.settings(request, i) if metadata else None)
    if len(tiles) > 1:
        sheet = np.concatenate([to_uint8(torch.stack(shown)), tiles])
        save_png(out / "grid.png", grid(sheet), shop.settings(request, None) if metadata else None)
