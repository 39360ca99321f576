"""`sfumato upscale RUN PICTURE ...`: large pictures from small ones, by a run of adm's stage upsampler."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tyro.conf import Positional

from sfumato.cli.parse import option, parse
from sfumato.cli.pictures import Given, read
from sfumato.cli.progress import Progress
from sfumato.cli.request import Request, names_of, refuse_labels
from sfumato.cli.samplers import SAMPLERS, SPACINGS
from sfumato.cli.show import amount, duration, printable
from sfumato.cli.smalls import Notes, Task, batches, label_in, listed, named
from sfumato.cli.workshop import Edited, Workshop, walked
from sfumato.core.random import Seeds
from sfumato.data.options import shortlist
from sfumato.data.pictures import grid, save_png, to_uint8
from sfumato.engine.plan import choose_threads, using_threads
from sfumato.errors import UserError
from sfumato.papers.adm import Enlarge, Upsampler
from sfumato.samplers.sampler import Sampler, State

__all__ = ["run"]

EXAMPLES = """\
examples
  sfumato train adm photos/ --stage upsampler --size 128   a run that enlarges 32 x 32 four times
  sfumato upscale runs/adm-photos small.png                four times as large; another --seed, other details
  sfumato upscale runs/adm-photos small.png --n 4          four ways, and a grid beside the picture
in two stages, a small picture of a class and then its details
  sfumato sample runs/small --label dress --n 8 --out small/
  sfumato upscale runs/adm-photos small/                   each told its own class, under its own name"""
SHOWN = 16  # pictures on the grid


@dataclass(frozen=True)
class Upscale:
    """Make large pictures from small ones. Small ones are brought to the size that the run enlarges.

    Picture i has the seed SEED + i, whatever it is made together with: what the small one does not say is drawn. A run
    that knows classes is told --label or, without it, the class that a PNG made by sfumato names.
    """

    run: Annotated[str, Positional, option("the folder of an upsampler's run", "RUN", "")] = ""
    pictures: Annotated[tuple[Path, ...], Positional, option("small ones, or folders", "PICTURE ...", "")] = ()
    n: Annotated[int, option("how many ways, of a single picture", "N")] = 1
    seed: Annotated[int, option("of the first picture", "N")] = 0
    label: Annotated[str, option("classes, used in turn", "NAME[,NAME]", "what the PNG says, or not told")] = ""
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


def run(args: list[str]) -> int:
    flags = parse(Upscale, "upscale", args, examples=EXAMPLES)
    if not flags.run or not flags.pictures:
        raise UserError("upscale needs a run and a picture, as in `sfumato upscale runs/NAME small.png`.")
    shop = Workshop.open(flags.run, "upscale", flags, Upsampler, "sfumato train adm DATA --stage upsampler")
    recipe, notes = shop.recipe, Notes()
    assert isinstance(recipe, Upsampler)
    tasks = _tasks(shop, flags, listed(flags.pictures, notes), notes)
    _refuse_untold(tasks, recipe, flags.guidance)
    sampler = walked(shop, recipe.sampler(), flags)
    labels = names_of(flags.label, shop.classes)
    request = shop.request(flags, sampler, labels, len(tasks), seed=flags.seed, guidance=flags.guidance)
    _Work(shop, recipe, request, sampler, flags, notes).work(tasks)
    return 0


def _tasks(shop: Workshop, flags: Upscale, paths: Sequence[Path], notes: Notes) -> list[Task]:
    """Several ways of one picture, or one of each. Raises UserError."""
    typed = names_of(flags.label, shop.classes)
    refuse_labels(typed, flags.guidance, shop.classes)
    if len(flags.pictures) == 1 and not flags.pictures[0].is_dir():
        paths = [*paths] * flags.n
        names = [Request(seed=flags.seed).file(i) for i in range(flags.n)]
    elif flags.n != 1:
        raise UserError("--n is how many ways a single picture is enlarged: give one picture, or leave it out.")
    else:
        names = named(paths)
    said = lru_cache(maxsize=1)(partial(_said, shop.classes, notes))
    labels = (typed[i % len(typed)] if typed else said(path) for i, path in enumerate(paths))
    return [Task(i, *row) for i, row in enumerate(zip(paths, names, labels, strict=True))]


def _said(classes: Sequence[str], notes: Notes, path: Path) -> str:
    """The class that a picture names, if the run knows it."""
    label = label_in(path) if classes else ""
    if label and label not in classes:
        notes.changed[f"note: '{path.name}' is of the class '{label}', which this run does not know: not told."] = None
    return label if label in classes else ""


def _refuse_untold(tasks: Sequence[Task], recipe: Upsampler, guidance: float) -> None:
    """Raises UserError, before any work, for a picture of no known class where one is needed."""
    path = next((task.path for task in tasks if not task.label), None)
    if path is None or recipe.label is None:
        return
    if guidance != 1.0 or recipe.config.drop == 0.0:
        why = "--guidance makes a class stronger" if guidance != 1.0 else "this run was always told a class"
        raise UserError(f"{why}, and '{path.name}' names none that it knows: say which with --label NAME.")


@dataclass(frozen=True)
class _Work:
    """`work(tasks)` makes and writes them, a batch at a time, and says what there is now."""

    shop: Workshop
    recipe: Upsampler
    request: Edited
    sampler: Sampler
    flags: Upscale
    notes: Notes
    sheet: dict[int, list[NDArray[np.uint8]]] = field(default_factory=dict)  # the first pictures: small, large

    def work(self, tasks: Sequence[Task]) -> None:
        start, made = time.monotonic(), list[str]()
        with self.shop.folder(self.flags.out, "upscaled") as out, Progress("enlarging") as show:
            _refuse_inputs(out, tasks)
            threads = self.request.threads
            for group in batches(tasks, self.request.batch, lru_cache(maxsize=1)(self._read), self.notes):
                ask = self._ask(group)
                threads = threads or self._best_threads(ask)
                with using_threads(threads):
                    self._write(out, group, self._made(ask, group, partial(_share, show, len(made), len(tasks))))
                made += [task.name for task, _ in group]
            self._write_sheet(out, ways=len({task.path for task in tasks}) == 1)
        for note in self.notes.lines():
            Progress.say(note)
        where = out / ("grid.png" if len(made) > 1 else made[0])
        print(printable(f"{amount(len(made), 'picture')} in {duration(time.monotonic() - start)}: {where}"))
        print(printable(f"{self.shop.name}, {self._words(tasks)}, from seed {self.request.seed} on"))

    def _read(self, path: Path) -> Given:
        return read(path, self.recipe, self.flags.fit, self.recipe.small_size)

    # -- making --------------------------------------------------------------------------------------------------------

    def _ask(self, group: Sequence[tuple[Task, Tensor]]) -> Enlarge:
        told = [self.shop.classes.index(task.label) for task, _ in group if task.label]
        low = torch.stack([pixels for _, pixels in group])
        labels = tuple(told) or None
        return Enlarge(len(group), labels=labels, guidance=self.request.guidance, sampler=self.sampler, low=low)

    def _made(self, ask: Enlarge, group: Sequence[tuple[Task, Tensor]], show: Callable[[float], object]) -> Tensor:
        """(n, C, H, W) in [0, 1]; `show` is told how many pictures' work is done."""
        last: list[State] = []
        rng = Seeds.pictures([self.request.seed + task.i for task, _ in group])
        for step, state in enumerate(self.recipe.sample(ask, rng=rng), 1):
            show(ask.n * min(1.0, step / self.sampler.steps))
            last[:] = [state]
        return self.recipe.picture(last[0]).cpu()

    def _best_threads(self, ask: Enlarge) -> int | None:
        """Timed on the first step."""
        if self.shop.device.type != "cpu" or torch.get_num_threads() == 1:
            return None
        return choose_threads(lambda: next(iter(self.recipe.sample(ask, rng=Seeds(0)))))[0]

    # -- writing -------------------------------------------------------------------------------------------------------

    def _write(self, out: Path, group: Sequence[tuple[Task, Tensor]], made: Tensor) -> None:
        for (task, pixels), tile in zip(group, to_uint8(made), strict=True):
            told = replace(self.request, labels=(task.label,) if task.label else ())
            save_png(out / task.name, tile, None if self.flags.no_metadata else self.shop.settings(told, task.i))
            if task.i < SHOWN:
                small = self.recipe.beside(pixels[None], self.recipe.config.shape[1:])
                self.sheet[task.i] = [to_uint8(small)[0], tile]

    def _write_sheet(self, out: Path, *, ways: bool) -> None:
        """Small and large side by side; of one picture's ways the small one, enlarged bilinearly, once."""
        pairs = [self.sheet[i] for i in sorted(self.sheet)]
        if len(pairs) > 1:
            tiles = [pairs[0][0], *(large for _, large in pairs)] if ways else [tile for pair in pairs for tile in pair]
            told = None if self.flags.no_metadata else self.shop.settings(self.request, None)
            save_png(out / "grid.png", grid(np.stack(tiles), columns=None if ways else 8), told)

    def _words(self, tasks: Sequence[Task]) -> str:
        """From what to what, and which classes were told."""
        small, large = (
            " x ".join(map(str, size[::-1])) for size in (self.recipe.small_size, self.recipe.config.shape[1:])
        )
        names = dict.fromkeys(task.label for task in tasks if task.label)
        told = (f", told {shortlist(names, 4)}" if names else ", told no class") if self.shop.classes else ""
        return f"from {small} to {large}{told}"


def _share(show: Progress, before: int, total: int, now: float) -> None:
    show(before + int(now), total)


def _refuse_inputs(out: Path, tasks: Sequence[Task]) -> None:
    """Raises UserError where a small picture would be written over."""
    small = {task.path.resolve() for task in tasks}
    if found := next((task.name for task in tasks if (out / task.name).resolve() in small), ""):
        raise UserError(f"'{found}' in '{out}' is one of the small pictures: give another folder with --out.")
