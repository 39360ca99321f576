"""`sfumato interpolate RUN A B`: pictures on the way from one to another."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor
from tyro.conf import Positional

from sfumato import encodings
from sfumato.cli.encode import one_label
from sfumato.cli.parse import option, parse
from sfumato.cli.pictures import read_all
from sfumato.cli.progress import Progress
from sfumato.cli.request import Chunk, Request
from sfumato.cli.samplers import in_steps
from sfumato.cli.show import amount, duration, printable
from sfumato.cli.workshop import Workshop, told, walked
from sfumato.core.random import Seeds
from sfumato.data.pictures import grid, save_png, to_uint8
from sfumato.engine.plan import using_threads
from sfumato.errors import UserError
from sfumato.recipe import Ask
from sfumato.samplers.sampler import Sampler

__all__ = ["run"]

EXAMPLES = """\
examples
  sfumato interpolate runs/photos a.png b.png
  sfumato interpolate runs/letters a.png b.png --n 12 --label A"""


@dataclass(frozen=True)
class Interpolate:
    """Pictures from A to B, at equal angles between their encodings. The first and the last are A and B, as exactly as
    encoding and decoding keeps them."""

    run: Annotated[str, Positional, option("a run's folder, or the final/ of one", "RUN", "")] = ""
    a: Annotated[Path | None, Positional, option("the first picture", "A", "")] = None
    b: Annotated[Path | None, Positional, option("the last picture", "B", "")] = None
    n: Annotated[int, option("how many pictures, with A and B", "N")] = 8
    label: Annotated[str, option("the class that the run is told, of all", "NAME", "none")] = ""
    sampler: Annotated[str | None, option("how to walk", "ddim|euler|heun|ode45", "ddim; of cld ode45")] = None
    steps: Annotated[int | None, option("more is more exact", "N", "200")] = None
    seed: Annotated[int, option("of the momentum of A (cld alone has one)", "N")] = 0
    fit: Annotated[Literal["crop", "pad", "stretch"], option("what happens to other shapes")] = "crop"
    out: Annotated[Path | None, option("where pictures go", "FOLDER", "RUN/interpolation")] = None
    no_metadata: Annotated[bool, option("write no settings into the PNGs")] = False
    batch: Annotated[int | None, option("pictures at once", "N", "by their size")] = None
    device: Annotated[str, option("auto: a GPU if there is one", "auto|cpu|cuda[:I]|mps")] = "auto"
    threads: Annotated[int | None, option("CPU threads", "N", "timed")] = None


def run(args: list[str]) -> int:
    flags = parse(Interpolate, "interpolate", args, examples=EXAMPLES)
    if not flags.run or flags.a is None or flags.b is None:
        raise UserError("interpolate needs a run and two pictures, as in `sfumato interpolate runs/NAME a.png b.png`.")
    shop = Workshop.open(flags.run, "interpolate", flags)
    if flags.n < 2:
        raise UserError(f"--n is {flags.n}: an interpolation has at least its 2 ends.")
    label, sampler = one_label(shop, flags.label), walked(shop, encodings.encoder(shop.recipe), flags)
    ends, notes = read_all((flags.a, flags.b), shop.recipe, flags.fit)
    request = shop.request(flags, sampler, label, flags.n)
    start = time.monotonic()
    with shop.folder(flags.out, "interpolation") as out:
        images = _between(shop, request, sampler, ends, flags.seed)
        tiles = to_uint8(images)
        for i, tile in enumerate(tiles):
            save_png(out / f"step_{i:04d}.png", tile, None if flags.no_metadata else shop.settings(request, i))
        sheet = grid(tiles, columns=flags.n)
        save_png(out / "grid.png", sheet, None if flags.no_metadata else shop.settings(request, None))
    for note in notes:
        Progress.say(note)
    print(printable(f"{amount(flags.n, 'picture')} in {duration(time.monotonic() - start)}: {out / 'grid.png'}"))
    print(printable(f"{shop.name}, {in_steps(sampler)}{told(label, shop)}"))
    return 0


def _between(shop: Workshop, request: Request, sampler: Sampler, ends: Tensor, seed: int) -> Tensor:
    """(n, C, H, W) from one end to the other."""
    ask = shop.ask(request, Chunk(0, 2), sampler)
    with using_threads(request.threads or shop.best_threads(2)), Progress("encoding") as show:
        pair = encodings.encode(shop.recipe, ends, ask, rng=Seeds(seed), show=show)
    between = encodings.slerp(pair[0], pair[1], torch.linspace(0, 1, request.n))

    def make(ask: Ask, chunk: Chunk, show: Callable[[int, int], object]) -> Tensor:
        return encodings.decode(shop.recipe, between[chunk.first : chunk.first + chunk.size], ask, show=show)

    return shop.made(request, sampler, make, "decoding")
