"""Answering queries: which pictures, in what order."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np

from sfumato.apps.explorer.eyes import Vectors
from sfumato.apps.explorer.fulltext import FullText
from sfumato.apps.explorer.query import Filter, Query
from sfumato.apps.explorer.table import Ids, Table

__all__ = ["Answer", "Asking", "Ranking"]

KEPT = 16  # answers: pages of one query follow each other


class Ranking(NamedTuple):
    """Pictures with a likeness to what was asked for."""

    ids: Ids
    similarity: Vectors


class Answer(NamedTuple):
    """The pictures that match, in order, and their likeness where there is one."""

    ids: Ids
    similarity: Vectors | None


class Asking:
    """Queries on a table and the words beside it. Any number of threads may ask."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.kept: OrderedDict[Any, Answer] = OrderedDict()
        self.lock = threading.Lock()

    def answer(self, query: Query, ranking: Ranking | None, words: FullText | None, stamp: object) -> Answer:
        """Kept for the next page: `stamp` changes whenever the answer could. Raises UserError."""
        name = (query, stamp, self.table.version)
        with self.lock:
            if name in self.kept:
                self.kept.move_to_end(name)
                return self.kept[name]
        found = self._answer(query, ranking, words)
        with self.lock:
            self.kept[name] = found
            while len(self.kept) > KEPT:
                self.kept.popitem(last=False)
        return found

    def _answer(self, query: Query, ranking: Ranking | None, words: FullText | None) -> Answer:
        where, values = self.table.condition(_filters(query))
        given: dict[str, Any] = {}
        joins, order = "", "p.id"
        wanted, unwanted = words.find(query.text) if words is not None else (None, None)
        if wanted is not None:
            joins += " JOIN wanted ON wanted.id = p.id"
            given["wanted"] = self.table.arrow.table({"id": wanted, "place": np.arange(len(wanted))})
            order = "wanted.place, p.id"
        if unwanted is not None:
            where += " AND p.id NOT IN (SELECT id FROM unwanted)"
            given["unwanted"] = self.table.arrow.table({"id": unwanted})
        if query.ids is not None:
            joins += " JOIN chosen ON chosen.id = p.id"
            given["chosen"] = self.table.arrow.table({"id": np.unique(np.array(query.ids, np.int64))})
        if ranking is not None:
            joins += " JOIN ranked ON ranked.id = p.id"
            given["ranked"] = self.table.arrow.table({"id": ranking.ids, "similarity": ranking.similarity})
            order = "ranked.similarity DESC, p.id"
        if query.sort and not (query.sort == "similarity" and ranking is not None):
            way = "DESC" if query.descending else "ASC"
            order = f"p.{self.table.column(query.sort)} {way} NULLS LAST, p.id"
        what = "p.id, ranked.similarity" if ranking is not None else "p.id"
        rows = self.table.ask(f"SELECT {what} FROM pictures p{joins} WHERE {where} ORDER BY {order}", values, **given)
        similarity = rows.column("similarity").to_numpy() if ranking is not None else None
        return Answer(rows.column("id").to_numpy(), similarity)


def _filters(query: Query) -> tuple[Filter, ...]:
    extra = [("cluster", query.cluster), ("group", query.group)]
    return (*query.where, *(Filter(name, low=value, high=value) for name, value in extra if value is not None))
