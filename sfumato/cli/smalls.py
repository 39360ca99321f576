"""Pictures that a command makes others of, one by one: which they are, what the new ones are called and told, and how
they are read, a batch at a time."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from sfumato.cli.pictures import Given
from sfumato.data.decode import EXTENSIONS
from sfumato.data.pictures import read_settings
from sfumato.errors import UserError

__all__ = ["Notes", "Task", "batches", "label_in", "listed", "named"]

SHEETS = ("grid.png", "strip.png")  # what commands write beside single pictures
SINGLE = re.compile(r"(seed|step|picture)_\d+\.png")
SAID = 3  # notes of one kind


class Task(NamedTuple):
    """A picture to be made from another: the i-th, whose seed is that of the first plus i."""

    i: int
    path: Path
    name: str  # of the file to be written
    label: str  # what the network is told; "": no class


@dataclass
class Notes:
    """What is said once the work is done."""

    changed: dict[str, None] = field(default_factory=dict)
    skipped: dict[Path, str] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """Every picture that was skipped, and a few of those that were changed."""
        yield from (f"skipped: {reason}" for reason in self.skipped.values())
        yield from list(self.changed)[:SAID]
        if (more := len(self.changed) - SAID) > 0:
            yield f"note: and {more:,} more of this kind."


# -- which, and under what names ---------------------------------------------------------------------------------------


def listed(given: Sequence[Path], notes: Notes) -> list[Path]:
    """The pictures that were typed; of a folder those in it, in the order of their names, without the sheets that a
    command wrote beside them. Raises UserError for what is not there."""
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            found += _inside(path, notes)
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"there is no picture '{path}': give a PNG, JPEG, WebP, BMP, TIFF or GIF, or a folder.")
    return found


def _inside(folder: Path, notes: Notes) -> list[Path]:
    names = sorted((entry.name for entry in os.scandir(folder) if _a_picture(entry)), key=os.fsencode)
    single = any(SINGLE.fullmatch(name) for name in names)
    sheets = [name for name in names if name in SHEETS and len(names) > 1 and (single or _of_many(folder / name))]
    for name in sheets:
        notes.changed[f"note: '{name}' shows other pictures of '{folder.name}' and is left out."] = None
    if len(names) == len(sheets):
        raise UserError(
            f"there are no pictures in the folder '{folder}' (sub-folders are not entered): give one with "
            f"{', '.join(extension[1:] for extension in EXTENSIONS)} files."
        )
    return [folder / name for name in names if name not in sheets]


def _a_picture(entry: os.DirEntry[str]) -> bool:
    extension = os.path.splitext(entry.name)[1].lower()
    return not entry.name.startswith(".") and extension in EXTENSIONS and not entry.is_dir()


def named(paths: Sequence[Path]) -> list[str]:
    """PNG names that follow those of the files, all different, also where capitals do not count."""
    taken = {sheet.casefold() for sheet in SHEETS}
    names = []
    for path in paths:
        name, n = f"{path.stem}.png", 1
        while name.casefold() in taken:
            n += 1
            name = f"{path.stem}-{n}.png"
        taken.add(name.casefold())
        names.append(name)
    return names


# -- what they say of themselves ---------------------------------------------------------------------------------------


def _request(path: Path) -> Mapping[str, Any]:
    try:
        found = read_settings(path).get("request")
    except UserError:
        return {}
    return found if isinstance(found, Mapping) else {}


def label_in(path: Path) -> str:
    """The class that a PNG of ours says it is of; ""."""
    found = _request(path).get("label")
    return found if isinstance(found, str) else ""


def _of_many(path: Path) -> bool:
    """Whether it says that it is a grid."""
    found = _request(path)
    return isinstance(found.get("n"), int) and found["n"] > 1 and "only" not in found


# -- reading -----------------------------------------------------------------------------------------------------------


def batches(
    tasks: Sequence[Task], size: int, read: Callable[[Path], Given], notes: Notes
) -> Iterator[list[tuple[Task, Tensor]]]:
    """Pictures (C, h, w) in [0, 1] with their tasks, at most `size` at once, told a class all or none. One that cannot
    be used is skipped and noted. Raises UserError where none can."""
    waiting: dict[bool, list[tuple[Task, Tensor]]] = defaultdict(list)
    paths = {task.path for task in tasks}
    for task in tasks:
        try:
            given = read(task.path)
        except UserError as error:
            notes.skipped[task.path] = str(error)
            if len(notes.skipped) == len(paths):
                raise _none(list(notes.skipped.values())) from None
            continue
        notes.changed |= dict.fromkeys(given.notes)
        together = waiting[bool(task.label)]
        together.append((task, given.pixels))
        if len(together) == size:
            yield together.copy()
            together.clear()
    yield from filter(None, waiting.values())


def _none(reasons: Sequence[str]) -> UserError:
    among = f"none of {len(reasons):,} pictures could be used: " if len(reasons) > 1 else ""
    return UserError(f"{among}{reasons[0]}")
