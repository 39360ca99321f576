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
from sfumato.cli.samplers import SAMPLERS, SPACINGS, walk_of
from sfumato.cli.show import amount, duration, printable
from sfumato.cli.workshop import Edited, Workshop, labels_of, told, walked
from sfumato.core.random import Seeds
from sfumato.data.pictures import grid, save_png, to_uint8
from sfumato.errors import UserError
from sfumato.recipe import Ask

__all__ = ["run"]

EXAMPLES = """\
examples
  sfumato edit runs/photos photo.png --inpaint mask.png      make what is white in the mask
  sfumato edit runs/photos gray.png --colorize --n 8         eight ways to colour it
  sfumato edit runs/photos strokes.png --strength 0.6        a painting in few strokes as a picture"""


@dataclass(frozen=True)
class Edit:
    """Change a picture with a trained run: make a part of it, give it colours, or turn strokes into a picture.

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
    method: Annotated[
        Literal["reconstruct", "repaint", "project"] | None,
        option("how what is known is kept: right, by repeating steps, or fast and biased", None, "reconstruct"),
    ] = None
    passes: Annotated[int | None, option("of repaint: how often steps are walked", "N", "10")] = None
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
    given = read(flags.picture, shop.recipe, flags.fit)
    change, shown = _change(flags, given, shop)
    request = Edited(
        seed=flags.seed,
        n=flags.n,
        batch=shop.batch(flags.batch, flags.n),
        labels=labels,
        guidance=flags.guidance,
        threads=flags.threads,
        **walk_of(sampler),
        **_about(flags),
    )
    start = time.monotonic()

    def make(ask: Ask, chunk: Chunk, show: Callable[[int, int], object]) -> Tensor:
        return change(ask, rng=Seeds(flags.seed + chunk.first), show=show)

    with shop.folder(flags.out, "edits") as out:
        made = shop.made(request, sampler, make, "editing")
        _write(shop, request, out, shown, made, metadata=not flags.no_metadata)
    for note in given.notes:
        Progress.say(note)
    where = out / ("grid.png" if flags.n > 1 else _name(request, 0))
    print(printable(f"{amount(flags.n, 'edit')} in {duration(time.monotonic() - start)}: {where}"))
    print(printable(f"{shop.name}, {_words(request)}{told(labels, shop)}, from seed {flags.seed} on"))
    return 0


def _words(request: Edited) -> str:
    how = f"by {request.method}" if request.method else f"with strength {request.strength:g}"
    return f"{request.edit} {how}".replace("strength with", "with")


def _refuse(flags: Edit) -> None:
    """Raises UserError for what does not go together."""
    if [flags.inpaint is not None, flags.colorize, flags.strength is not None].count(True) != 1:
        raise UserError("say what to do with the picture: one of --inpaint MASK, --colorize and --strength 0..1.")
    if flags.strength is not None and flags.method:
        raise UserError("--method says how a known part is kept, and --strength knows none: leave it out.")
    if flags.strength is not None and not 0 <= flags.strength <= 1:
        raise UserError(f"--strength is {flags.strength:g}: from 0, the picture itself, to 1, a new one.")
    if flags.passes is not None and (flags.method != "repaint" or not 1 <= flags.passes <= 1000):
        raise UserError("--passes is a number from 1 to 1,000 for --method repaint: give both, or leave it out.")


Change = Callable[..., Tensor]  # (ask, rng=, show=) -> (n, C, H, W)


def _change(flags: Edit, given: Given, shop: Workshop) -> tuple[Change, list[Tensor]]:
    """The edit, and what it begins with: the picture, and what of it is known."""
    recipe, pixels = shop.recipe, given.pixels
    if flags.strength is not None:
        return partial(edits.redraw, recipe, pixels, flags.strength), [pixels]
    method = edits.METHODS[flags.method or "reconstruct"]
    if flags.passes is not None:
        method = partial(edits.repaint, passes=flags.passes)
    if flags.colorize:
        gray = pixels.mean(0, keepdim=True).expand_as(pixels)
        return partial(edits.colorize, recipe, pixels, method=method), [pixels, gray]
    assert flags.inpaint is not None
    mask = read_mask(flags.inpaint, given, recipe, flags.fit)
    return partial(edits.inpaint, recipe, pixels, mask, method=method), [pixels, torch.where(mask, 0.5, pixels)]


def _about(flags: Edit) -> dict[str, Any]:
    """What the picture remembers of its edit."""
    if flags.strength is not None:
        return {"edit": "strength", "strength": flags.strength}
    kind = "colorize" if flags.colorize else "inpaint"
    return {"edit": kind, "method": flags.method or "reconstruct", "passes": flags.passes}


def _name(request: Request, i: int) -> str:
    return f"seed_{request.seed + i:08d}.png"


def _write(shop: Workshop, request: Request, out: Path, shown: list[Tensor], made: Tensor, *, metadata: bool) -> None:
    tiles = to_uint8(made)
    for i, tile in enumerate(tiles):
        save_png(out / _name(request, i), tile, shop.settings(request, i) if metadata else None)
    if len(tiles) > 1:
        sheet = np.concatenate([to_uint8(torch.stack(shown)), tiles])
        save_png(out / "grid.png", grid(sheet), shop.settings(request, None) if metadata else None)
