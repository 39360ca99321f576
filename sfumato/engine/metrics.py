"""Numbers of a run on their way to the log: kept on the device until a line is due, in the checkpoint if none is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.recipe import Loss

__all__ = ["LEVELS", "Window", "mean_loss"]

LEVELS = 8  # bins of t in [0, 1]: the loss per noise level


def mean_loss(parts: list[tuple[Loss, float]]) -> Loss:
    """The loss of a batch from those of its micro-batches, each with its share of the whole."""

    def mean(tensors: list[Tensor]) -> Tensor:
        return torch.stack([tensor.detach().float() * w for tensor, (_, w) in zip(tensors, parts, strict=True)]).sum(0)

    def joined(tensors: list[Tensor | None]) -> Tensor | None:
        there = [tensor.detach() for tensor in tensors if tensor is not None]
        return torch.cat(there) if len(there) == len(tensors) else None

    losses = [loss for loss, _ in parts]
    total = sum(w for _, w in parts)
    parts = [(loss, w / total) for loss, w in parts]
    scalars = {name: mean([loss.scalars[name] for loss in losses]) for name in losses[0].scalars}
    return Loss(
        mean([loss.value for loss in losses]),
        scalars,
        joined([loss.per_sample for loss in losses]),
        joined([loss.t for loss in losses]),
    )


class Window:
    """The steps since the last line of metrics."""

    def __init__(self) -> None:
        self._waiting: list[dict[str, Tensor]] = []
        self._per_level: list[tuple[Tensor, Tensor]] = []
        self._rows: list[dict[str, float]] = []
        self._sum, self._count = [0.0] * LEVELS, [0] * LEVELS

    def add(self, values: Mapping[str, Tensor], seen: Loss) -> None:
        """The numbers of one phase of one step. Nothing is fetched from the device."""
        self._waiting.append({name: value.detach() for name, value in values.items()})
        if seen.per_sample is not None and seen.t is not None:
            self._per_level.append((seen.per_sample.detach(), seen.t.detach()))

    def _fetch(self) -> None:
        if self._waiting:
            flat = torch.stack([v.float().reshape(()) for row in self._waiting for v in row.values()]).tolist()
            numbers = iter(flat)
            self._rows += [{name: next(numbers) for name in row} for row in self._waiting]
        for loss, t in self._per_level:  # step by step: a window cut by a checkpoint adds up to the same bits
            level = np.minimum((t.double().cpu().numpy() * LEVELS).astype(int), LEVELS - 1)
            value = loss.double().cpu().numpy()
            good = np.isfinite(value)
            for total, part in (
                (self._sum, np.bincount(level[good], value[good], LEVELS)),
                (self._count, np.bincount(level[good], minlength=LEVELS)),
            ):
                total[:] = [a + b for a, b in zip(total, part.tolist(), strict=True)]
        self._waiting, self._per_level = [], []

    def close(self) -> dict[str, Any]:
        """Means over the window, and an empty window. A number that is not finite is left out of its mean."""
        self._fetch()
        columns: dict[str, list[float]] = {}
        for row in self._rows:
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
        line: dict[str, Any] = {name: _mean(values) for name, values in columns.items()}
        if any(self._count):
            line["levels"] = [s / n if n else None for s, n in zip(self._sum, self._count, strict=True)]
        self.__init__()  # type: ignore[misc]
        return line

    def state(self) -> dict[str, Any]:
        """For the checkpoint: exact in JSON."""
        self._fetch()
        rows = [{name: value if math.isfinite(value) else None for name, value in row.items()} for row in self._rows]
        return {"rows": rows, "sum": self._sum, "count": self._count}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._rows = [
            {name: math.nan if value is None else value for name, value in row.items()} for row in state["rows"]
        ]
        self._sum, self._count = list(state["sum"]), list(state["count"])


def _mean(values: list[float]) -> float | None:
    good = [value for value in values if math.isfinite(value)]
    return math.fsum(good) / len(good) if good else None
