"""What a user may ask of data, what cannot be used, and how names are shown."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, NamedTuple

from sfumato.errors import UserError

__all__ = ["DataError", "DataOptions", "Skipped", "escape", "nearest", "need", "shortlist"]

SIDE_CAP = 8192


class DataError(UserError):
    """The data cannot be used as asked."""


class Skipped(NamedTuple):
    """A file or row that was left out: its escaped name and the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class DataOptions:
    """How data is read. The defaults pick everything from the data.

    size      pixels: an int for squares or (width, height); None: the data's own, for folders the median short side
              rounded down to a size that networks like
    channels  1 gray, 3 colour, 4 with alpha; None: 1 if every picture is gray, 4 if alpha is kept and used, else 3
    fit       crop: resize the short side, keep the centre; pad: resize the long side, fill with the border's colour;
              stretch: ignore the shape
    flip      auto: mirror half of the training pictures unless the data is not mirror-safe (letters, digits, captions
              that say left or right)
    alpha     white: lay transparent pictures on white; keep: as a fourth channel
    labels    "folder" (first sub-folder = class), a column, "none"; None: the column `label` where there is one
    captions  a column, "sidecar" (picture.txt beside picture.png), "names" (file names), "none"; None: the first of
              `text`, `caption`, sidecar that exists
    split     rows or sub-folders of this split; "all"; None: `train` where the data says what that is
    strict    refuse data with bad pictures in place of skipping them
    cache     keep decoded pictures on disk for the next start
    """

    size: int | tuple[int, int] | None = None
    channels: Literal[1, 3, 4] | None = None
    fit: Literal["crop", "pad", "stretch"] = "crop"
    flip: Literal["auto", "on", "off"] = "auto"
    alpha: Literal["white", "keep"] = "white"
    labels: str | None = None
    captions: str | None = None
    split: str | None = None
    strict: bool = False
    cache: bool = True

    def __post_init__(self) -> None:
        if self.wh is not None and not all(1 <= side <= SIDE_CAP for side in self.wh):
            raise DataError(
                f"size {self.size} is not possible: give one or two numbers from 1 to {SIDE_CAP}, as 64 or 96x64"
            )
        for name, value, allowed in (
            ("channels", self.channels, (None, 1, 3, 4)),
            ("fit", self.fit, ("crop", "pad", "stretch")),
            ("flip", self.flip, ("auto", "on", "off")),
            ("alpha", self.alpha, ("white", "keep")),
        ):
            if value not in allowed:
                raise DataError(f"{name} cannot be {value!r}: choose {shortlist(str(v) for v in allowed if v)}")

    @property
    def wh(self) -> tuple[int, int] | None:
        """The size asked for as (width, height)."""
        if self.size is None or isinstance(self.size, int):
            return None if self.size is None else (self.size, self.size)
        return self.size[0], self.size[-1]


def escape(name: str | bytes | os.PathLike[str]) -> str:
    """A name on one printable line: control characters and bytes that are not UTF-8 appear as backslash escapes."""
    text = os.fsdecode(name)
    return text if text.isprintable() else "".join(map(_escape_one, text))


def _escape_one(c: str) -> str:
    if "\udc80" <= c <= "\udcff":  # a byte that is not UTF-8, as os.fsdecode shows it
        return f"\\x{ord(c) - 0xDC00:02x}"
    return c if c.isprintable() else c.encode("unicode_escape").decode()


def nearest(word: str, choices: Iterable[str]) -> str:
    """' (did you mean "x"?)' or nothing."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f' (did you mean "{escape(close[0])}"?)' if close else ""


def shortlist(words: Iterable[str], limit: int = 8) -> str:
    """'a, b, c and 5 more'."""
    every = [escape(word) for word in words]
    head = ", ".join(every[:limit])
    return head if len(every) <= limit else f"{head} and {len(every) - limit:,} more"


def need(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional package, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"{purpose} needs the package `{module.split('.')[0]}`, which is not installed: "
            f'pip install "sfumato[{extra}]"'
        ) from error
