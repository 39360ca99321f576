"""`sfumato upscale RUN PICTURE`: a large picture from a small one, by a run of adm's stage upsampler."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor
from tyro.conf import Positional

from sfumato.cli.parse import option, parse
from sfumato.cli.pictures import Given, read
from sfumato.cli.progress import Progress
from sfumato.cli.request import Chunk, Request
from sfumato.cli.samplers import SAMPLERS, SPACINGS, walk_of
from sfumato.cli.show import amount, duration, printable
from sfumato.cli.workshop import Edited, Workshop, labels_of, told, walked
from sfumato.core.random import Seeds
from sfumato.data.pictures import grid, save_png, to_uint8
from sfumato.engine.plan import choose_threads
from sfumato.errors import UserError
from sfumato.papers.adm import Enlarge, Upsampler
from sfumato.recipe import Ask
from sfumato.samplers.sampler import State

__all__ = ["run"]

EXAMPLES = """\
examples
  sfumato train adm photos/ --stage upsampler --size 128   a run that enlarges 32 x 32 four times
  sfumato upscale runs/adm-photos small.png                four times as large; another --seed, other details
  sfumato upscale runs/adm-photos small.png --n 4          four ways, and a grid beside the picture"""


@dataclass(frozen=True)
class Upscale:
    """Make a large picture from a small one. The small one is brought to the size that the run enlarges.

    Picture i has the seed SEED + i: what the small one does not say is drawn.
    """

    run: Annotated[str, Positional, option("the folder of an upsampler's run", "RUN", "")] = ""
    picture: Annotated[Path | None, Positional, option("the small picture", "PICTURE", "")] = None
    n: Annotated[int, option("how many ways", "N")] = 1
    seed: Annotated[int, option("of the first picture", "N")] = 0
    label: Annotated[str, option("classes, used in turn", "NAME[,NAME]", "not told")] = ""
    guidance: Annotated[float, option("how strongly the class is meant; 1: off", "SCALE")] = 1.0
    fit: Annotated[Literal["crop", "pad", "stretch"], option("what happens to other shapes")] = "crop"
    sampler: Annotated[str | None, option("how to walk", "|".join(SAMPLERS), "the paper's")] = None
    steps: Annotated[int | None, option("fewer is faster", "N", "the sampler's")] = None
    spacing: Annotated[str | None, option("where the steps lie", "|".join(SPACINGS), "the sampler's")] = None
    eta: Annotated[float | None, option("noise added on the way", "0..1", "the sampler's")] = None
    out: Annotated[Path | None, option("where pictures go", "FOLDER", "RUN/upscaled")] = None
    no_metadata: Annotated[bool, option("write no settings into the PNGs")] = False
    batch: Annotated[int | None, option("pictures made at once", "N", "by their size")] = None
    device: Annotated[str, option("auto: a GPU if there is one", "auto|cpu|cuda[:I]|mps")] = "auto"
    threads: Annotated[int | None, option("CPU threads", "N", "timed")] = None


@dataclass(frozen=True)
class _Shop(Workshop):
    """A workshop whose requests carry the small picture."""

    low: Tensor  # (1, C, h, w) in [0, 1]

    def enlarge(self, ask: Ask) -> Enlarge:
        return Enlarge(**{field.name: getattr(ask, field.name) for field in fields(Ask)}, low=self.low)

    def best_threads(self, n: int) -> int | None:
        """Timed on the first step."""
        if self.device.type != "cpu" or torch.get_num_threads() == 1:
            return None
        ask = self.enlarge(Ask(n=n))
        return choose_threads(lambda: next(iter(self.recipe.sample(ask, rng=Seeds(0)))))[0]


def run(args: list[str]) -> int:
    flags = parse(Upscale, "upscale", args, examples=EXAMPLES)
    if not flags.run or flags.picture is None:
        raise UserError("upscale needs a run and a picture, as in `sfumato upscale runs/NAME small.png`.")
    plain = Workshop.open(flags.run, "upscale", flags)
    recipe = plain.recipe
    if not isinstance(recipe, Upsampler):
        raise UserError(
            f"'{flags.run}' makes pictures of nothing and enlarges none: `sfumato train adm DATA --stage upsampler` "
            "trains a run that does."
        )
    given = read(flags.picture, recipe, flags.fit, recipe.small_size)
    shop = _Shop(plain.home, recipe, plain.config, plain.verb, given.pixels[None])
    _work(flags, shop, recipe, given)
    return 0


def _work(flags: Upscale, shop: _Shop, recipe: Upsampler, given: Given) -> None:
    labels = labels_of(shop, flags.label, flags.guidance)
    sampler = walked(shop, recipe.sampler(), flags)
    request = Edited(
        seed=flags.seed,
        n=flags.n,
        batch=shop.batch(flags.batch, flags.n),
        labels=labels,
        guidance=flags.guidance,
        threads=flags.threads,
        edit="upscale",
        **walk_of(sampler),
    )
    start = time.monotonic()

    def make(ask: Ask, chunk: Chunk, show: Callable[[int, int], object]) -> Tensor:
        states = list[State]()
        for step, state in enumerate(recipe.sample(shop.enlarge(ask), rng=Seeds(flags.seed + chunk.first)), 1):
            show(min(step, sampler.steps), sampler.steps)
            states[:] = [state]
        return recipe.picture(states[0])

    with shop.folder(flags.out, "upscaled") as out:
        made = shop.made(request, sampler, make, "enlarging")
        _write(shop, request, out, made, recipe, metadata=not flags.no_metadata)
    for note in given.notes:
        Progress.say(note)
    where = out / ("grid.png" if flags.n > 1 else _name(request, 0))
    sizes = [" x ".join(map(str, size[::-1])) for size in (recipe.small_size, recipe.config.shape[1:])]
    print(printable(f"{amount(flags.n, 'picture')} in {duration(time.monotonic() - start)}: {where}"))
    print(printable(f"{shop.name}, from {sizes[0]} to {sizes[1]}{told(labels, shop)}, from seed {flags.seed} on"))


def _name(request: Request, i: int) -> str:
    return f"seed_{request.seed + i:08d}.png"


def _write(shop: _Shop, request: Request, out: Path, made: Tensor, recipe: Upsampler, *, metadata: bool) -> None:
    """Every picture; of several also a grid, the small one's bilinear enlargement first."""
    for i, tile in enumerate(to_uint8(made)):
        save_png(out / _name(request, i), tile, shop.settings(request, i) if metadata else None)
    if len(made) > 1:
        first = recipe.beside(shop.low, recipe.config.shape[1:])
        sheet = to_uint8(torch.cat([first, made]))
        save_png(out / "grid.png", grid(sheet), shop.settings(request, None) if metadata else None)
