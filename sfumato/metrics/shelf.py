"""Rows of numbers for pictures, by position: computed in batches and by several processes, kept as they come, so that
what was interrupted goes on and repeats nothing."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["Alone", "Ints", "Look", "Processes", "Rows", "Shelf", "rows_of"]

Ints = NDArray[np.int64]
Rows = dict[str, Tensor]  # parts (N, D) float32, in the order of positions
Look = Callable[[Ints], Mapping[str, Tensor]]  # positions (B,) to parts (B, D)
EVERY = 5.0  # seconds of work that a killed process may lose


class Processes(Protocol):
    """Who else works on this: engine.distributed.World fits."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gather(self, rows: Tensor) -> Tensor:
        """The rows (n, ...) of all processes, by rank; n may differ."""
        ...


@dataclass(frozen=True)
class Alone:
    """One process."""

    rank: int = 0
    size: int = 1

    def gather(self, rows: Tensor) -> Tensor:
        return rows


@dataclass
class Shelf:
    """A folder of safetensors files, each with `positions` (B,) and parts (B, D) of some batches. A file that is
    damaged is as good as absent. Without a folder, or once its disk is full, rows stay in memory alone."""

    folder: Path | None
    rows: list[Rows] = field(default_factory=list)
    waiting: list[Rows] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    def read(self, parts: Sequence[str]) -> None:
        """Take in what lies there with all of these parts."""
        known: set[int] = set()
        for path in self.files():
            with contextlib.suppress(OSError, SafetensorError, ValueError):
                found = load_file(path)
                if not {"positions", *parts} <= found.keys():
                    continue
                fresh = [i for i, p in enumerate(found["positions"].tolist()) if p not in known]
                known.update(found["positions"].tolist())
                self.rows.append({name: found[name][fresh] for name in ("positions", *parts)})

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors")) if self.folder else []

    def positions(self) -> Tensor:
        return torch.cat([torch.empty(0, dtype=torch.int64), *(rows["positions"] for rows in self.rows)])

    def add(self, rows: Rows) -> None:
        """Rows of a batch; to the disk some seconds later, together with others."""
        self.rows.append(rows)
        self.waiting.append(rows)
        if time.monotonic() - self.since > EVERY:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        self.since = time.monotonic()
        if self.waiting:
            self.write(_joined(self.waiting), f"{int(self.waiting[0]['positions'][0]):09d}-{secrets.token_hex(4)}")
            self.waiting = []

    def write(self, rows: Rows, name: str) -> Path | None:
        """One file, whole or absent; a warning, and no folder any more, where it cannot be written."""
        if self.folder is None:
            return None
        beside = self.folder / f".{name}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({part: rows[part].contiguous() for part in rows}, beside)
            os.replace(beside, self.folder / f"{name}.safetensors")
        except (OSError, SafetensorError) as error:
            why = getattr(error, "strerror", None) or (str(error).splitlines() or ["no room"])[0]
            warnings.warn(
                f"features cannot be kept ({why}): this evaluation goes on, but not if it is interrupted. "
                "Set SFUMATO_CACHE to a folder with room.",
                RuntimeWarning,
                stacklevel=2,
            )
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            self.folder = None
            return None
        return self.folder / f"{name}.safetensors"

    def tidy(self, rows: Rows) -> None:
        """All rows in one file in place of many."""
        old = self.files()
        if len(old) > 1 and (new := self.write(rows, f"all-{secrets.token_hex(4)}")):
            for path in old:
                if path != new:
                    path.unlink(missing_ok=True)


def rows_of(
    positions: Ints,
    parts: Sequence[str],
    look: Look,
    *,
    keep: Path | None = None,
    batch: int = 64,
    world: Processes | None = None,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> Rows:
    """The parts (N, D) of `positions` (N,), ascending, in all processes: read from `keep` as far as they lie there,
    else computed, `batch` at once, each process its share of the batches. On the way out by an error or Ctrl-C what is
    done is written."""
    world = world or Alone()
    shelf = Shelf(keep)
    if world.rank == 0:
        shelf.read(parts)
    done = world.gather(shelf.positions()).numpy()
    left = np.setdiff1d(positions, done)
    cuts = [left[first : first + batch] for first in range(0, len(left), batch)]
    start, total = len(positions) - len(left), len(positions)
    show(start, total)
    try:
        for turn, cut in enumerate(cuts[world.rank :: world.size]):
            found = look(cut)
            shelf.add(
                {
                    "positions": torch.from_numpy(cut.copy()),
                    **{part: found[part].detach().to("cpu", torch.float32) for part in found},
                }
            )
            show(min(total, start + (turn + 1) * world.size * batch), total)
    finally:
        shelf.flush()
    rows = _everybodys(shelf, parts, world)
    if world.rank == 0:
        shelf.tidy(rows)
    return _of(rows, positions)


def _joined(rows: Sequence[Rows]) -> Rows:
    return {part: torch.cat([one[part] for one in rows]) for part in rows[0]}


def _everybodys(shelf: Shelf, parts: Sequence[str], world: Processes) -> Rows:
    out: Rows = {"positions": world.gather(shelf.positions())}
    for part in parts:
        own = [rows[part] for rows in shelf.rows]
        width = int(world.gather(torch.tensor([own[0].shape[1] if own else 0])).max())
        out[part] = world.gather(torch.cat([torch.empty(0, width), *own]))
    return out


def _of(rows: Rows, positions: Ints) -> Rows:
    """The rows of these positions, in their order."""
    order = rows["positions"].argsort()
    places = order[torch.searchsorted(rows["positions"][order], torch.from_numpy(positions.copy()))]
    return {part: rows[part][places] for part in rows if part != "positions"}
