"""Looking at a run without touching it: the loss of held-out examples, pictures for a judge, and grids of pictures with
a caption."""

from __future__ import annotations

import textwrap
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from sfumato.core.random import Seeds
from sfumato.data.pictures import grid
from sfumato.engine import files
from sfumato.engine.backward import Backward, Interrupted, reproducible
from sfumato.engine.order import Data, share
from sfumato.engine.plan import out_of_memory
from sfumato.errors import UserError
from sfumato.recipe import Ask, Recipe

__all__ = ["Failed", "captioned", "held_loss", "portfolio", "preview", "why", "write_grid"]

Halt = Callable[[], bool]
T = TypeVar("T")
_WIDE = 320  # pixels that a caption needs
_LINE = 13


def _never() -> bool:
    return False


@torch.no_grad()
def held_loss(backward: Backward, held: Data, step: int, *, limit: int = 512, halt: Halt = _never) -> dict[str, float]:
    """The mean loss of each phase over (at most `limit`) held-out examples. Raises Interrupted, in every process, when
    one is asked to halt.

    t and eps of an example depend on the seed and on the example only, so that values compare over time and runs.
    """
    recipe, world, n = backward.recipe, backward.world, min(len(held), limit)
    mine = np.arange(n)[share(n, world.rank, world.size)]
    size = _at_once(backward)
    chunks = [mine[i : i + size] for i in range(0, len(mine), size)]
    backward.buffers.keep()
    was_training = recipe.training
    recipe.eval()
    try:
        with reproducible(backward.device, backward.seed, "held"), backward.autocast(), backward.eager():
            sums = {name: sum(_losses(backward, held, name, step, chunks, halt)) for name in recipe.phases()}
    finally:
        recipe.train(was_training)
        backward.buffers.restore()
    *totals, halted = world.sum([*sums.values(), float(halt())])
    if halted:
        raise Interrupted
    return {name: total / n for name, total in zip(sums, totals, strict=True)}


def _at_once(backward: Backward) -> int:
    """As many examples as training works through between two looks at signals."""
    return max(1, backward.batch // backward.world.size // backward.accumulate)


def _losses(
    backward: Backward, held: Data, phase: str, step: int, chunks: list[np.ndarray], halt: Halt
) -> Iterator[float]:
    for indices in chunks:
        if halt():
            return
        batch = held.batch(indices, None)
        content = {k: v.to(backward.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        at = backward.at(step, phase, Seeds.at(backward.seed, indices.tolist(), "held"))
        yield float(backward.recipe.loss(content, at).value) * len(indices)


@torch.no_grad()
def preview(recipe: Recipe, ask: Ask, seed: int, device: torch.device, *, halt: Halt = _never) -> Tensor:
    """Pictures (n, C, *S) in [0, 1] by the recipe's sampler; the same seeds every time. Raises Interrupted."""
    was_training = recipe.training
    recipe.eval()
    try:
        with reproducible(device, seed, "preview"):
            last = deque(_until(halt, recipe.sample(ask, rng=Seeds(seed))), maxlen=1).pop()
            return recipe.picture(last, quick=True).float().cpu()
    finally:
        recipe.train(was_training)


class Failed(Exception):
    """Pictures for a judge could not be made, in words; training is not touched by it."""


@torch.no_grad()
def portfolio(backward: Backward, data: Data, ask: Ask, n: int, *, halt: Halt = _never) -> Iterator[Tensor]:
    """Pictures uint8 (n, C, *S), some at a time, of the seeds SEED, SEED + 1, ..., their classes as in the data. All
    processes make them, each its share, before the first is handed out. Until then raises Interrupted, in every
    process, when one is asked to halt, and Failed, in every process, when one fails."""
    world, size = backward.world, _at_once(backward)
    n = max(n, world.size)
    mine = list(range(n)[share(n, world.rank, world.size)])
    made, problem, was_training = list[Tensor](), None, backward.recipe.training
    backward.buffers.keep()
    backward.recipe.eval()
    try:
        with backward.eager():
            for first in range(0, len(mine), size):
                made.append(_pictures(backward, data, ask, mine[first : first + size], n, halt))
    except Interrupted:
        pass
    except Exception as error:  # a recipe's, a sampler's or the user's: whatever it is, training goes on
        problem = error
    finally:
        backward.recipe.train(was_training)
        backward.buffers.restore()
    halted, failed = world.sum([float(halt()), float(problem is not None)])
    if halted:
        raise Interrupted
    if failed:
        raise Failed(why(problem) if problem else "another process could not make its share") from problem
    return _until(halt, iter(torch.split(world.gather(torch.cat(made)), size)))


def _pictures(backward: Backward, data: Data, ask: Ask, which: list[int], n: int, halt: Halt) -> Tensor:
    """uint8 (B, C, *S). Raises UserError for what is no picture."""
    recipe, seed = backward.recipe, backward.seed
    ask = replace(ask, n=len(which), labels=_labels(recipe, data, which, n))
    with reproducible(backward.device, seed, "judge", which[0]), backward.autocast():
        last = deque(_until(halt, recipe.sample(ask, rng=Seeds(seed + which[0]))), maxlen=1).pop()
        images = recipe.picture(last).float()
    if not torch.isfinite(images).all():
        raise UserError("they hold numbers that are not finite")
    return images.clamp(0, 1).mul(255).round().to(torch.uint8).cpu()


def _labels(recipe: Recipe, data: Data, which: list[int], n: int) -> tuple[int, ...] | None:
    """Of examples that are spread over the data, so that classes come as often as there."""
    if not getattr(recipe.config, "classes", ()):
        return None
    labels = data.batch(np.array(which) * len(data) // n, None).get("label")
    return None if labels is None else tuple(labels.tolist())


def why(error: BaseException) -> str:
    """What went wrong, in some words."""
    if out_of_memory(error):
        return "there is too little memory for it"
    said = str(error).strip().splitlines()
    words = said[0].rstrip(".") if said else ""
    return words if isinstance(error, UserError) and words else f"{type(error).__name__}: {words}".rstrip(": ")


def _until(halt: Halt, things: Iterator[T]) -> Iterator[T]:
    for thing in things:
        if halt():
            raise Interrupted
        yield thing


def captioned(pictures: Tensor, caption: str) -> Image.Image:
    """All pictures (n, C, *S) in [0, 1] side by side, small ones enlarged by a whole factor, above their caption. Of
    volumes and videos the middle slice."""
    while pictures.dim() > 4:
        pictures = pictures[:, :, pictures.shape[2] // 2]
    sheet = grid(pictures[:, :3] if pictures.shape[1] > 2 else pictures[:, :1])
    factor = max(1, _WIDE // sheet.width)
    sheet = sheet.convert("RGB").resize((sheet.width * factor, sheet.height * factor), Image.Resampling.NEAREST)
    width = max(sheet.width, _WIDE)
    lines = [part for line in caption.splitlines() for part in textwrap.wrap(line, width // 5)]
    out = Image.new("RGB", (width, sheet.height + _LINE * len(lines) + 4 * bool(lines)), "white")
    out.paste(sheet)
    ImageDraw.Draw(out).multiline_text((3, sheet.height + 2), "\n".join(lines), fill="black", spacing=_LINE - 10)
    return out


def write_grid(pictures: Tensor, path: Path, caption: str = "") -> Path:
    """A PNG with all pictures side by side. Raises OSError."""
    data = BytesIO()
    captioned(pictures, caption).save(data, "PNG")
    files.write_bytes(path.with_name(files.TEMPORARY + path.name), data.getvalue())
    path.with_name(files.TEMPORARY + path.name).replace(path)
    return path
