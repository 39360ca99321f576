"""What a report tells, as plain values: gathered first, drawn afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sfumato.metrics.receipt import Receipt

__all__ = ["About", "Facts", "Grid", "History", "Match", "Moment", "Nearest", "Pixels", "Rows", "Samples", "Series"]

Pixels = NDArray[np.uint8]  # (H, W, C)
Rows = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Series:
    """One number of metrics.jsonl over the steps at which it is there and finite."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class History:
    """metrics.jsonl. `levels`: the loss by noise level, from little noise to much, each named by its range of t."""

    series: Mapping[str, Series] = field(default_factory=dict)
    levels: tuple[Series, ...] = ()
    seconds: float = 0.0  # of training, over all its sessions

    def get(self, name: str) -> Series:
        return self.series.get(name, Series(name, (), ()))

    def ending(self, *ends: str) -> tuple[Series, ...]:
        """Those of each phase: the names that end so, in the order of the file."""
        return tuple(s for name, s in self.series.items() if name.endswith(ends))

    @property
    def last(self) -> int:
        """The newest step that a number is known of."""
        return max((s.steps[-1] for s in self.series.values() if len(s)), default=0)


@dataclass(frozen=True)
class About:
    """What the run is. Nothing here names a path, a host or a user."""

    name: str
    paper: str
    title: str
    authors: str
    year: str
    arxiv: str
    preset: str
    note: str  # what the paper file says of the preset
    digest: str  # of the weights
    steps: int  # done
    total: int | None
    parameters: int | None
    plan: Rows
    data: Rows
    config: Rows
    commands: tuple[str, ...]
    versions: Rows
    bibtex: str
    steady: bool = True  # the loss means the same all along


@dataclass(frozen=True)
class Grid:
    """A preview that training wrote."""

    step: int
    pixels: Pixels


@dataclass(frozen=True)
class Moment:
    """One sample on its way: x_t, the guess of x_0 made there, and sigma / alpha; of the end only the picture."""

    noise: float
    xt: Pixels
    x0: Pixels | None


@dataclass(frozen=True)
class Samples:
    """Fresh pictures (n, H, W, C), their seeds and classes, how they were made, and the way of the first."""

    pixels: Pixels
    seeds: tuple[int, ...]
    labels: tuple[str, ...]
    walk: str
    calls: int | None
    note: str = ""
    way: tuple[Moment, ...] = ()


@dataclass(frozen=True)
class Match:
    """A training picture beside a sample: its number in the data, its class, how far, the share of pairs of training
    pictures that are farther apart."""

    index: int
    label: str
    distance: float
    farther: float
    mirrored: bool
    pixels: Pixels


@dataclass(frozen=True)
class Nearest:
    """The memorisation check. `samples` are positions in Samples, those nearest to a training picture first."""

    samples: tuple[int, ...]
    matches: tuple[tuple[Match, ...], ...]
    of: int  # samples looked at
    examples: int  # training pictures searched
    measure: str
    own: float  # median distance of a training picture to its nearest other
    close: float  # below it lie the nearest others of one training picture in twenty
    closer: int  # samples below `close`
    copies: int  # samples below a third of `own`, and of which few training pictures are so near
    exact: bool = True  # as many pictures as the run was trained on


@dataclass(frozen=True)
class Facts:
    """Everything on the page; `missing` says in sentences what is not, and why."""

    about: About
    history: History
    warnings: tuple[str, ...] = ()
    grids: tuple[Grid, ...] = ()
    samples: Samples | None = None
    nearest: Nearest | None = None
    receipts: tuple[Receipt, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
