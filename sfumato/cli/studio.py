"""A recipe at work on a request: batches of bounded size, pictures written as they are made."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.cli.progress import Progress
from sfumato.cli.request import Chunk, Request
from sfumato.cli.samplers import in_steps, length, own_sampler
from sfumato.cli.show import amount, duration, printable
from sfumato.core.random import Seeds
from sfumato.data.pictures import grid, save_png, to_uint8
from sfumato.engine.plan import choose_threads, using_threads
from sfumato.recipe import Ask, Recipe
from sfumato.samplers.adaptive import ODE45
from sfumato.samplers.sampler import Sampler

__all__ = ["Studio"]

GRID = 256  # pictures on the grid at most
FRAMES, ROWS = 10, 8  # of the denoising strip
Pixels = NDArray[np.uint8]


class _Made(NamedTuple):
    """A finished batch: pictures (m, C, H, W) in [0, 1], and states on the way there if asked for."""

    chunk: Chunk
    images: Tensor
    frames: list[Tensor]


def _spread(steps: int) -> list[int]:
    """Numbers of steps for a strip: evenly, with the last."""
    return sorted({round(k * steps / (FRAMES - 1)) for k in range(1, FRAMES)} - {0})


@dataclass(frozen=True)
class Studio:
    """`work()` makes and writes what the request asks for."""

    recipe: Recipe
    request: Request
    out: Path
    model: str
    digest: str
    metadata: bool = True
    weak: Recipe | None = None  # what guidance leads away from

    def work(self, *, strip: bool = False) -> list[Pixels]:
        """Batch by batch; then the grid, and a word about what there is now. Returns what the grid shows."""
        start = time.monotonic()
        if self.request.threads is None and (threads := self._best_threads()):
            return replace(self, request=replace(self.request, threads=threads)).work(strip=strip)
        kept: list[Pixels] = []
        with using_threads(self.request.threads), self._autocast():
            for made in self._make(strip=strip):
                kept += self._write(made.chunk, to_uint8(made.images))[: GRID - len(kept)]
                if made.frames:
                    rows = torch.stack(made.frames, 1).flatten(0, 1)
                    self._save("strip.png", grid(rows, columns=len(made.frames)), None, rows.shape)
        if len(kept) > 1:
            tiles = np.stack(kept)
            self._save("grid.png", grid(tiles), None, (0, 0, *tiles.shape[1:3]))
        self._report(time.monotonic() - start)
        return kept

    # -- making --------------------------------------------------------------------------------------------------------

    def _make(self, *, strip: bool) -> Iterator[_Made]:
        chunks, sampler = list(self.request.chunks()), self._sampler()
        steps = length(sampler, self.recipe) if sampler else 1
        own = isinstance(sampler, ODE45)  # finds its steps: how many is known at the end
        wanted = set(range(1, steps + 1) if own else _spread(steps)) if strip else set()
        with Progress("sampling") as show:
            for done, chunk in enumerate(chunks):
                frames: list[Tensor] = []
                trajectory = self.recipe.sample(self._ask(chunk), rng=Seeds(self.request.seed + chunk.first))
                for step, state in enumerate(trajectory, 1):
                    show(*((done, len(chunks)) if own else (done * steps + step, len(chunks) * steps)))
                    if done == 0 and step in wanted:
                        frames.append(self.recipe.picture(state)[:ROWS].float().cpu())
                yield _Made(chunk, self.recipe.picture(state), [frames[k - 1] for k in _spread(len(frames))])

    def _ask(self, chunk: Chunk) -> Ask:
        r = self.request
        names = [self._label(i) for i in range(chunk.first, chunk.first + chunk.size)]
        labels = tuple(self._classes.index(name) for name in names) if self._classes else None
        away = [r.negative[i % len(r.negative)] for i in range(chunk.first, chunk.first + chunk.size) if r.negative]
        return Ask(
            n=chunk.size,
            labels=labels,
            guidance=r.guidance,
            interval=r.interval,
            rescale=r.rescale,
            negative=tuple(map(self._classes.index, away)) or None,
            weak=self.weak,
            sampler=self._sampler(),
            size=r.size and r.size[::-1],
        )

    @property
    def _classes(self) -> tuple[str, ...]:
        return tuple(self.recipe.config.classes)

    def _label(self, i: int) -> str:
        return self.request.label(i, self._classes) if self._classes else ""

    def _sampler(self) -> Sampler | None:
        own = own_sampler(self.recipe)
        return own and self.request.walk(own)

    def _best_threads(self) -> int | None:
        """Timed on one step of the first batch: on a busy core two threads can be far slower than one."""
        if self._device.type != "cpu":
            return None
        ask = self._ask(next(self.request.chunks()))

        def step() -> None:
            next(iter(self.recipe.sample(ask, rng=Seeds(0))))

        return choose_threads(step)[0] if torch.get_num_threads() > 1 else 1

    @property
    def _device(self) -> torch.device:
        return next(self.recipe.parameters()).device

    def _autocast(self) -> Any:
        bf16 = self.request.precision == "bf16"
        return torch.autocast(self._device.type, torch.bfloat16) if bf16 else nullcontext()

    # -- writing -------------------------------------------------------------------------------------------------------

    def _write(self, chunk: Chunk, tiles: Pixels) -> list[Pixels]:
        """Single pictures, each with its settings; those that were written."""
        written = []
        for i, tile in enumerate(tiles, chunk.first):
            if self.request.only in (None, i):
                self._save(self.request.file(i), tile, i, (0, 0, *tile.shape[:2]))
                written.append(tile)
        return written

    def _save(self, name: str, image: Any, i: int | None, shape: tuple[int, ...]) -> None:
        label = "" if i is None else self._label(i)
        told = self.request.settings(i, model=self.model, digest=self.digest, label=label, size=(shape[3], shape[2]))
        save_png(self.out / name, image, told if self.metadata else None)

    def _report(self, seconds: float) -> None:
        r = self.request
        first = r.seed + (r.only or 0)
        single = r.only is not None or r.n == 1
        where = self.out / (self.request.file(r.only or 0) if single else "grid.png")
        made = f"{amount(1 if single else r.n, 'picture')} in {duration(seconds)}: {where}"
        print(printable(made + ("" if single else " and single pictures beside it")))
        seeds = f"seed {first}" if single else f"seeds {first} to {first + r.n - 1}"
        guided = f", guidance {r.guidance:g}" if r.guidance != 1 else ""
        again = f", in a batch of {r.batch} as it was made" if r.only is not None and r.batch > 1 else ""
        sampler = self._sampler()
        walked = in_steps(sampler) if sampler else "its own sampler"
        print(printable(f"{self.model}, {walked}{guided}, {seeds}{again}"))
