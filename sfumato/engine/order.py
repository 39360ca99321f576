"""Which example comes when: a function of (seed, position), so that resuming needs nothing but the step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.core.random import Seeds, key
from sfumato.engine.plan import out_of_memory
from sfumato.errors import UserError

__all__ = ["Batch", "Data", "Order", "cut", "feed", "listed", "prepare", "share"]

Ints = NDArray[np.int64]


class Data(Protocol):
    """What the engine asks of a data set."""

    @property
    def names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def batch(self, indices: Ints, rng: Seeds | None = None) -> dict[str, Any]: ...


class Order:
    """Epoch after epoch, each a permutation keyed by (seed, epoch): position p is in epoch p // n at p mod n."""

    def __init__(self, n: int, batch: int, seed: int) -> None:
        self.n, self.batch, self.seed = n, batch, seed
        self._epoch = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> Ints:
        # sorted raw 64-bit words: numpy promises the words of a bit generator, not those of `permutation`
        words = np.random.Philox(key(self.seed, "order", epoch)).random_raw(self.n)
        return np.argsort(words, kind="stable")

    def positions(self, step: int) -> range:
        """Positions in the run of the examples of a step."""
        return range(step * self.batch, (step + 1) * self.batch)

    def indices(self, step: int) -> Ints:
        """(batch,) the examples of a step, over all processes."""
        span = self.positions(step)
        first, last = span.start // self.n, (span.stop - 1) // self.n
        row = np.concatenate([self._epoch(epoch) for epoch in range(first, last + 1)])
        return row[span.start - first * self.n : span.stop - first * self.n]


class Batch(NamedTuple):
    """The part of one step's examples that this process works on."""

    step: int
    indices: Ints  # of the whole step, over all processes
    positions: range  # in the run, of this part
    content: dict[str, Any]


def share(total: int, rank: int, size: int) -> slice:
    """The part of `total` that is worker `rank`'s of `size`: consecutive, sizes differ by at most one."""
    return slice(total * rank // size, total * (rank + 1) // size)


def cut(content: Mapping[str, Any], part: slice) -> dict[str, Any]:
    """The same part of everything in a batch."""
    return {name: value[part] for name, value in content.items()}


def prepare(data: Data, order: Order, part: slice, step: int, device: torch.device | None = None) -> Batch:
    """The batch of one step. Raises UserError with the step and its examples."""
    indices, positions = order.indices(step), order.positions(step)[part]
    try:
        content = data.batch(indices[part], Seeds.at(order.seed, positions, "data"))
        return Batch(step, indices, positions, _moved(content, device))
    except Exception as error:
        where = f"the examples of step {step + 1:,} ({listed([data.names[i] for i in indices[part]])})"
        if mistake := _explained(error, where):
            raise mistake from error
        error.add_note(f"This came from reading {where}.")
        raise


def feed(
    data: Data,
    order: Order,
    part: slice,
    start: int,
    stop: int,
    workers: int = 0,
    device: torch.device | None = None,
    halt: Callable[[], bool] = lambda: False,
) -> Iterator[Batch | None]:
    """The batches of steps start..stop, prepared ahead by `workers` threads. Their number changes no bit. None if asked
    to halt while a worker keeps it waiting. Raises UserError when the turn of a step has come that cannot be prepared.
    """
    if not workers:
        yield from (prepare(data, order, part, step, device) for step in range(start, stop))
        return
    ahead: deque[Future[Batch]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="sfumato-data")
    try:
        for step in range(start, stop):
            while len(ahead) <= workers and step + len(ahead) < stop:
                ahead.append(pool.submit(prepare, data, order, part, step + len(ahead), device))
            while not ahead[0].done():
                if halt():
                    yield None
                wait([ahead[0]], timeout=0.1)
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def listed(names: Sequence[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _explained(error: Exception, where: str) -> UserError | None:
    """In one sentence what the user can put right; None for a defect of the data set."""
    if out_of_memory(error):
        return UserError(f"Out of memory while reading {where}. What helps: --workers 0, a smaller --batch or --size.")
    if isinstance(error, OSError):
        why = ": ".join(str(part) for part in (error.filename, error.strerror) if part) or type(error).__name__
        return UserError(f"Reading {where} failed: {why}.")
    if isinstance(error, UserError):
        return UserError(f"Reading {where} failed: {error}")
    return None


def _moved(content: dict[str, Any], device: torch.device | None) -> dict[str, Any]:
    if device is None or device.type == "cpu":
        return content
    pin = device.type == "cuda"
    return {
        k: (v.pin_memory() if pin else v).to(device, non_blocking=True) if isinstance(v, Tensor) else v
        for k, v in content.items()
    }
