"""What is known of each example besides its pixels: which split, label and caption the user's words pick."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfumato.data.decode import Encoded
from sfumato.data.options import DataError, DataOptions, Skipped, escape, nearest, shortlist
from sfumato.data.watch import Files

__all__ = ["Labels", "Records", "captions", "choose", "labels", "select", "unmirrorable"]

Column = Sequence[Any]
FOLDER, SIDECAR, NAMES = "folder", "sidecar", "names"  # columns that only some sources have
CAPTION_CAP = 1 << 16  # characters
SIDED = re.compile(r"\b(left|right|leftwards?|rightwards?|(anti|counter)?-?clockwise)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Records:
    """What a source holds, before any pixel is decoded."""

    what: str  # for messages: 'the folder "photos"'
    names: tuple[str, ...]
    read: Callable[[int], Encoded]  # the encoded picture of a row of the source, from any thread
    stamps: tuple[str, ...] = ()  # change when the source changes; key the cache together with the names
    columns: Mapping[str, Column] = field(default_factory=dict)
    classes: tuple[str, ...] = ()  # names of the labels 0, 1, ...
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    rows: Sequence[int] = ()  # the row of the source of each example
    files: Files | None = None  # of the rows of the source, or one for all

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.names):
            object.__setattr__(self, "rows", range(len(self.names)))

    def __len__(self) -> int:
        return len(self.names)

    def encoded(self, i: int) -> Encoded:
        """The picture of example i."""
        return self.read(self.rows[i])

    def changed(self, i: int) -> bool:
        """Whether the file of example i is another one by now, where it has one of its own."""
        return self.files is not None and not self.files.shared and self.files.differs(self.rows[i]) is not None

    def refuse_changed(self) -> None:
        """Raises DataError if a file that holds many examples was changed since it was listed."""
        if self.files is not None and self.files.shared and self.files.changes(()):
            raise DataError(f"{self.what} was changed while it was read: start again when it is complete")

    def take(self, keep: Sequence[int]) -> Records:
        """Only these examples."""
        return replace(
            self,
            names=tuple(self.names[i] for i in keep),
            rows=[self.rows[i] for i in keep],
            columns={name: [column[i] for i in keep] for name, column in self.columns.items()},
        )


class Labels(NamedTuple):
    """`rows` are the examples that have a label, `values` their classes."""

    values: NDArray[np.int64]
    classes: tuple[str, ...]
    rows: list[int]

    def at(self, keep: Sequence[int]) -> Labels:
        """Of some of the examples that have a label."""
        return self._replace(values=self.values[list(keep)], rows=[self.rows[i] for i in keep])


def choose(records: Records, split: str | None) -> Records:
    """The rows of a split; without a wish `train`, where the data names its splits."""
    column = records.columns.get("split")
    if column is None:
        if split not in (None, "all"):
            raise DataError(
                f'{records.what} has no column or sub-folders that name splits, so split "{split}" cannot '
                "be chosen: leave it out"
            )
        return records
    values = [str(value) for value in column]
    known = sorted(set(values))
    wanted = split or ("train" if "train" in known else "all")
    if wanted == "all":
        return records
    if wanted not in known:
        raise DataError(
            f'{records.what} has no split "{wanted}"{nearest(wanted, known)}: choose {shortlist(known)} or all'
        )
    part = records.take([i for i, value in enumerate(values) if value == wanted])
    if split is not None or len(part) == len(records):
        return part
    note = f"split {wanted}: {len(part):,} of {len(records):,} pictures (split all takes every one)"
    return replace(part, notes=(*records.notes, note))


def labels(records: Records, wanted: str | None) -> Labels | None:
    """Classes from a column, sorted; whole numbers are names too unless the source names its classes."""
    if wanted == "none" or (wanted is None and "label" not in records.columns):
        return None
    column = _column(records, wanted or "label", "labels")
    rows = [i for i, value in enumerate(column) if not _missing(value)]
    if not rows:
        raise DataError(
            f'{records.what}: no picture has a label in "{wanted or "label"}": choose another column or labels none'
        )
    found = [_label(column[i], records.what, wanted or "label") for i in rows]
    numbers = [value for value in found if isinstance(value, int)]
    if len(numbers) < len(found):
        found, numbers = [str(value) for value in found], []
    if numbers and min(numbers) >= 0 and max(numbers) < len(records.classes):
        return Labels(np.array(numbers, np.int64), tuple(map(escape, records.classes)), rows)
    names, values = np.unique(np.array(found), return_inverse=True)
    return Labels(values.astype(np.int64), tuple(str(name) for name in names), rows)


def captions(records: Records, wanted: str | None) -> list[str] | None:
    """A caption for each row, "" where there is none."""
    if wanted == "none":
        return None
    if wanted is None:
        wanted = next((name for name in ("text", "caption", SIDECAR) if name in records.columns), None)
        if wanted is None:
            return None
    clean = cache(lambda text: text[:CAPTION_CAP].strip())  # equal captions are one text in memory
    return ["" if _missing(value) else clean(str(value)) for value in _column(records, wanted, "captions")]


def unmirrorable(texts: Sequence[str] | None, classes: Sequence[str]) -> str | None:
    """Why a mirror would turn these examples into lies, if it would."""
    side = next((text for text in dict.fromkeys(texts or ()) if SIDED.search(text)), None)
    if side is not None:
        return f'not mirrored: captions name a side, as in "{escape(side[:60])}"'
    if classes and all(len(name) == 1 for name in classes):
        return "not mirrored: the classes are named like letters or digits"
    return None


def _column(records: Records, name: str, purpose: str) -> Column:
    if name in records.columns:
        return records.columns[name]
    known = sorted(records.columns)
    has = f"it has {shortlist(known)}" if known else "it has none"
    raise DataError(f'{records.what} has no column "{name}" for {purpose}{nearest(name, known)}: {has}, or choose none')


def _missing(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float) and value != value)


def _label(value: Any, what: str, name: str) -> int | str:
    if isinstance(value, bool | np.bool_ | str):
        return escape(str(value))
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return int(value)
    raise DataError(
        f'{what}: column "{name}" holds {str(value)[:40]!r}, which is no class: choose a column of names '
        "or whole numbers"
    )


def select(records: Records, options: DataOptions) -> tuple[Records, Labels | None]:
    """The rows that the split and the labels leave; rows without a label are listed as skipped."""
    records = choose(records, options.split)
    found = labels(records, options.labels)
    if found is None or len(found.rows) == len(records):
        return records, found
    unlabelled = set(range(len(records))) - set(found.rows)
    lost = tuple(Skipped(records.names[i], "has no label") for i in sorted(unlabelled))
    return replace(records.take(found.rows), skipped=(*records.skipped, *lost)), found
