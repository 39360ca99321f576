"""What is picked from the data and the machine when the user does not say: size, preset, how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count

import numpy as np
import torch
from torch import Tensor

from sfumato.core.random import Seeds
from sfumato.data.arrays import Arrays
from sfumato.data.columns import select
from sfumato.data.dataset import Dataset
from sfumato.data.decode import BadPicture, header
from sfumato.data.fit import natural_size
from sfumato.data.options import DataOptions
from sfumato.data.sources import listing
from sfumato.engine.backward import Buffers
from sfumato.engine.plan import choose_threads, out_of_memory
from sfumato.recipe import At, Recipe
from sfumato.registry import Paper

__all__ = ["pick_preset", "pick_size", "rehearse", "timing"]

LARGEST = {"cpu": 64, "mps": 128, "cuda": 128}  # sides above which training takes longer than people wait
BY_DEVICE = {"cpu": "tiny", "mps": "small", "cuda": "small"}


def pick_size(source: str, options: DataOptions, device: torch.device) -> DataOptions:
    """The options, with a size where the pictures' own would be too slow on this machine."""
    if options.size is not None or source.partition(":")[0] in ("digits", "glyphs"):
        return options
    own, most = _own_size(source, options), LARGEST[device.type]
    if own is None or max(own) <= most:
        return options
    shrink = most / max(own)
    wide, high = (max(8, round(side * shrink / 8) * 8) for side in own)
    return replace(options, size=wide if wide == high else (wide, high))


def _own_size(source: str, options: DataOptions) -> tuple[int, int] | None:
    """The (width, height) that the data would have by itself, from the headers of some hundred pictures."""
    found = listing(source, options)
    if isinstance(found, Arrays):
        return found.images.shape[2], found.images.shape[1]
    records, _ = select(found, options)
    sizes = []
    for i in range(0, len(records), max(1, len(records) // 200)):
        try:
            sizes.append(header(records.encoded(i)).size)
        except BadPicture:
            continue
    return natural_size(sizes) if sizes else None


def pick_preset(found: Paper, device: torch.device) -> str:
    """The largest preset that this kind of machine trains while one waits; else the paper's first."""
    name = BY_DEVICE[device.type]
    return name if name in found.presets else next(iter(found.presets))


# -- how long it will take ---------------------------------------------------------------------------------------------


def rehearse(recipe: Recipe, data: Dataset, total: int, dtype: torch.dtype, pictures: int) -> Callable[[], object]:
    """Forward and backward of `pictures` examples, leaving no trace in the recipe. The device is the recipe's."""
    device = next(recipe.parameters()).device
    positions = np.arange(pictures)
    content = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in data.batch(positions % len(data), None).items()
    }
    steps, buffers = count(), Buffers(recipe)

    def work() -> None:
        rng = Seeds.at(next(steps), positions.tolist(), "rehearsal")
        at = At(0, 0, total, next(iter(recipe.phases())), rng)
        with torch.random.fork_rng(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = recipe.loss(content, at).value
        loss.backward()  # type: ignore[no-untyped-call]
        recipe.zero_grad(set_to_none=True)
        buffers.restore()
        float(loss.detach())  # waits for a GPU

    return work


def timing(work: Callable[[], object], device: torch.device, threads: int | None) -> tuple[int | None, float | None]:
    """(CPU threads, seconds of one call); no seconds where memory is too short for it."""
    try:
        if device.type == "cpu" and threads is None:
            return choose_threads(work)
        work()
        start = time.perf_counter()
        work()
        return threads, time.perf_counter() - start
    except Exception as error:
        if not out_of_memory(error):
            raise
        return threads, None
