"""How a selection is spread over each column: histograms of numbers, counts of texts.

Asked with every change of a query, so the columns are kept as numbers (texts as places in a list): a selection is then
counted in a few milliseconds per 100,000 pictures.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfumato.apps.explorer.table import Ids, Table, quoted

__all__ = ["Facets"]

BINS = 24
VALUES = 40  # most frequent ones that are shown
WIDE = 100.0  # the largest over the smallest, from which bins have equal ratios
UNIQUE = ("id", "name", "caption", "sha256", "pixel_hash")  # columns that are no facets


class Counted(NamedTuple):
    """A column of texts or truths: `codes` are places in `values`, -1 where it is empty."""

    values: list[Any]
    codes: NDArray[np.int32]


class Facets:
    """Of a table. Any number of threads may ask."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.lock = threading.Lock()
        self.version = -1
        self.ids: Ids = np.empty(0, np.int64)
        self.columns: dict[str, Counted | NDArray[np.float64]] = {}

    def __call__(self, ids: Ids) -> dict[str, dict[str, Any]]:
        """The table of `Room.facets`, of these pictures."""
        with self.lock:
            if self.version != self.table.version:
                self._read()
            known, columns = self.ids, self.columns
        rows = np.searchsorted(known, ids)
        rows = rows[(rows < len(known)) & (known[np.minimum(rows, len(known) - 1)] == ids)] if len(known) else rows[:0]
        return {
            name: _counts(column, rows) if isinstance(column, Counted) else _histogram(column[rows])
            for name, column in columns.items()
        }

    def _read(self) -> None:
        """The columns as they are now; texts that say something else of nearly every picture are no facets."""
        self.version = self.table.version
        kinds = {name: kind for name, kind in self.table.kinds().items() if name not in UNIQUE}
        self.ids = self.table.ask("SELECT id FROM pictures ORDER BY id").column("id").to_numpy()
        columns: dict[str, Counted | NDArray[np.float64]] = {}
        for name, kind in kinds.items():
            cast = "::DOUBLE" if kind == "number" else ""
            found = self.table.ask(f"SELECT {quoted(name)}{cast} AS v FROM pictures ORDER BY id").column("v")
            if kind == "number":
                columns[name] = found.to_numpy(zero_copy_only=False).astype(np.float64)
                continue
            coded = found.combine_chunks().dictionary_encode()
            codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
            if kind == "truth" or len(coded.dictionary) <= max(VALUES, 0.5 * (codes >= 0).sum()):
                columns[name] = Counted(coded.dictionary.to_pylist(), codes)
        self.columns = columns


def _counts(column: Counted, rows: NDArray[np.int64]) -> dict[str, Any]:
    codes = column.codes[rows]
    counts = np.bincount(codes + 1, minlength=len(column.values) + 1)
    empty, counts = int(counts[0]), counts[1:]
    best = np.argsort(-counts, kind="stable")[:VALUES].tolist()
    shown = sorted(((column.values[i], int(counts[i])) for i in best if counts[i]), key=lambda v: (-v[1], str(v[0])))
    others = len(codes) - empty - sum(n for _, n in shown)
    return {"kind": "counts", "values": [list(value) for value in shown], "others": others, "empty": empty}


def _histogram(values: NDArray[np.float64]) -> dict[str, Any]:
    known = values[np.isfinite(values)]
    empty = len(values) - len(known)
    if not len(known):
        return {"kind": "histogram", "edges": [], "counts": [], "empty": empty}
    low, high = float(known.min()), float(known.max())
    if low > 0 and high / low > WIDE:
        counts = np.histogram(np.log(known), BINS, (np.log(low), np.log(high)))[0]
        edges = np.geomspace(low, high, BINS + 1)
        edges[0], edges[-1] = low, high
    else:
        few = high - low < BINS and bool((known == np.rint(known)).all())
        bins = max(1, round(high - low)) if few else BINS
        counts, edges = np.histogram(known, bins, (low, high if high > low else low + 1))
    return {"kind": "histogram", "edges": edges.tolist(), "counts": counts.tolist(), "empty": empty}
