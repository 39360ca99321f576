"""`sfumato bench samplers RUN`: quality against network calls, as a table and as a picture."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from tyro.conf import Positional

from sfumato.cli.parse import nearest, option, parse
from sfumato.cli.progress import Progress
from sfumato.cli.runs import described, find_run, free_folder, opened, refuse_use, writable
from sfumato.cli.samplers import SAMPLERS, length, own_sampler, refuse_jumps
from sfumato.cli.show import table
from sfumato.core.random import Seeds
from sfumato.data.pictures import grid, save_png, to_uint8
from sfumato.engine.plan import choose_device, using_threads
from sfumato.errors import UserError
from sfumato.recipe import Ask, Recipe
from sfumato.samplers.adaptive import ODE45
from sfumato.samplers.auto import Auto
from sfumato.samplers.sampler import Sampler

__all__ = ["run"]

KNOWN = ("auto", "ddim", "pndm", "heun", "lms", "dpmpp", "unipc", "euler_a", "dpmpp_2m_sde", "ddpm")
MOVING = ("sscs", "em", "ode45")  # of data with a momentum
TRUTHS: tuple[Sampler, ...] = (Auto(250), ODE45(10_000, rtol=1e-6, atol=1e-6))
"""What goes to the end of the flow: the first that walks the process."""
EXAMPLES = """\
examples
  sfumato bench samplers runs/photos                                  ten samplers at 5 to 50 calls
  sfumato bench samplers runs/photos --samplers auto heun --calls 9 19  some of them"""


@dataclass(frozen=True)
class Bench:
    """Walk the same noise with many samplers: how far each ends from the exact flow, and what one sees.

    Samplers that add noise end elsewhere by design: of them there is the picture, and no distance.
    """

    what: Annotated[str, Positional, option("what to compare", "samplers", "")] = ""
    run: Annotated[str, Positional, option("a run's folder", "RUN", "")] = ""
    samplers: Annotated[tuple[str, ...], option("which", "NAME ...", "the best known")] = ()
    calls: Annotated[tuple[int, ...], option("how often the network may be asked", "N ...", "5 10 20 50")] = (
        5,
        10,
        20,
        50,
    )
    n: Annotated[int, option("pictures", "N")] = 16
    seed: Annotated[int, option("of the first picture", "N")] = 0
    out: Annotated[Path | None, option("where table and picture go", "FOLDER", "RUN/bench")] = None
    device: Annotated[str, option("auto: a GPU if there is one", "auto|cpu|cuda[:I]|mps")] = "auto"
    threads: Annotated[int | None, option("CPU threads", "N", "as torch sees fit")] = None


class Walk(NamedTuple):
    """One sampler at one number of calls."""

    name: str
    calls: int
    seconds: float  # per picture
    median: float | None  # over pictures, root mean square per pixel from the flow's end, in [-1, 1]; None: adds noise
    worst: float | None
    tiles: NDArray[np.uint8]


def run(args: list[str]) -> int:
    flags = parse(Bench, "bench", args, examples=EXAMPLES)
    if flags.what != "samplers" or not flags.run:
        raise UserError("bench what? There is `sfumato bench samplers RUN`.")
    for name in flags.samplers:
        if name not in SAMPLERS:
            raise UserError(f"there is no sampler '{name}':{nearest(name, list(SAMPLERS), ' choose from --help.')}")
    if flags.n < 1 or min(flags.calls, default=0) < 1:
        raise UserError("--n and --calls must be at least 1.")
    home = find_run(flags.run, "bench samplers")
    described(home)
    recipe = opened(home, choose_device(flags.device))
    refuse_use(recipe, "bench samplers")
    if own_sampler(recipe) is None:
        raise UserError("this run does not walk a denoiser: there are no samplers to compare.")
    refuse_jumps(recipe, "to compare samplers on")
    names = flags.samplers or (KNOWN if _walks_it(Auto(), recipe) else MOVING)
    if not any(_walks_it(SAMPLERS[name], recipe) for name in names):
        length(SAMPLERS[names[0]], recipe)  # says why
    flags = replace(flags, samplers=names)
    out = writable(flags.out or free_folder(home / "bench"))
    with using_threads(flags.threads):
        walks = list(_walks(recipe, flags))
    print(_table(walks))
    rows = [{**walk._asdict(), "tiles": None} for walk in walks]
    (out / "samplers.json").write_text(
        json.dumps([{k: v for k, v in r.items() if v is not None} for r in rows], indent=1)
    )
    save_png(out / "samplers.png", _picture(walks))
    print(f"{out / 'samplers.png'}, and samplers.json beside it")
    return 0


def _walks(recipe: Recipe, flags: Bench) -> Iterator[Walk]:
    truth = _end(recipe, next(way for way in TRUTHS if _walks_it(way, recipe)), flags).x
    low, high = recipe.value_range
    plans = [(name, n, sampler) for name in flags.samplers for n, sampler in _plans(name, flags.calls, recipe)]
    with Progress("comparing samplers") as show:
        for done, (name, n, sampler) in enumerate(plans):
            if sampler is not None:
                end = _end(recipe, sampler, flags)
                off = (end.x - truth).square().flatten(1).mean(1).sqrt() * (2 / (high - low))
                median, worst = (None, None) if sampler.stochastic else (float(off.median()), float(off.max()))
                yield Walk(name, n or end.calls, end.seconds / flags.n, median, worst, to_uint8(end.pictures[:4]))
            show(done + 1, len(plans))


def _walks_it(sampler: Sampler, recipe: Recipe) -> bool:
    try:
        return length(sampler, recipe) > 0
    except UserError:
        return False


def _plans(name: str, calls: tuple[int, ...], recipe: Recipe) -> list[tuple[int, Sampler | None]]:
    """The sampler at each number of calls; once, as it is, where it decides on its way (0: not known yet)."""
    if not _walks_it(SAMPLERS[name], recipe):
        return []
    return [(n, _within(name, n, recipe)) for n in calls] if SAMPLERS[name].calls() else [(0, SAMPLERS[name])]


def _within(name: str, calls: int, recipe: Recipe) -> Sampler | None:
    """The sampler with as many steps as that many calls allow; None where it cannot."""
    for steps in range(calls, 0, -1):
        try:
            sampler = replace(SAMPLERS[name], steps=steps)
            sampler.check(recipe.denoiser.process)  # type: ignore[union-attr, arg-type]
        except ValueError:
            continue
        needed = sampler.calls()
        if needed is not None and needed <= calls:
            return sampler
    return None


class End(NamedTuple):
    """Where a walk ended."""

    x: Tensor
    pictures: Tensor
    seconds: float
    calls: int  # where the sampler counted them, else 0


@torch.no_grad()
def _end(recipe: Recipe, sampler: Sampler, flags: Bench) -> End:
    start = time.perf_counter()
    states = recipe.sample(Ask(n=flags.n, sampler=sampler), rng=Seeds(flags.seed))
    state = deque(states, maxlen=1).pop()
    x = recipe.denoiser.process.project(state.x)  # type: ignore[union-attr, operator]
    calls = state.memory[0].calls if isinstance(sampler, ODE45) else 0
    return End(x.float().cpu(), recipe.picture(state).float().cpu(), time.perf_counter() - start, calls)


def _table(walks: list[Walk]) -> str:
    def shown(x: float | None) -> str:
        return "adds noise" if x is None else f"{x:.4f}"

    head = ("sampler", "calls", "from the flow's end: median", "worst", "a picture takes")
    body = [(w.name, str(w.calls), shown(w.median), shown(w.worst), f"{1000 * w.seconds:,.0f} ms") for w in walks]
    return table([head, *body])


def _picture(walks: list[Walk]) -> Image.Image:
    """A row for each sampler, a column for each number of calls; in a cell the same four pictures."""
    names, calls = list(dict.fromkeys(w.name for w in walks)), sorted({w.calls for w in walks})
    cells = {(w.name, w.calls): grid(w.tiles, columns=2).convert("RGB") for w in walks}
    first = next(iter(cells.values()))
    zoom = max(1, 96 // first.width)
    wide, high, left, top = first.width * zoom + 8, first.height * zoom + 8, 90, 18
    sheet = Image.new("RGB", (left + wide * len(calls), top + high * len(names)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, n in enumerate(calls):
        draw.text((left + i * wide, 3), f"{n} calls", fill="black")
    for j, name in enumerate(names):
        draw.text((3, top + j * high + high // 2 - 8), name, fill="black")
        for i, n in enumerate(calls):
            if cell := cells.get((name, n)):
                big = cell.resize((cell.width * zoom, cell.height * zoom), Image.Resampling.NEAREST)
                sheet.paste(big, (left + i * wide, top + j * high))
    return sheet
