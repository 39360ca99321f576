"""The table of a room: DuckDB in memory, filled from what the source says of its pictures and what is found in them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.apps.explorer.query import Filter
from sfumato.data.options import nearest, need
from sfumato.errors import UserError

__all__ = ["Ids", "Table", "arrow_column", "clean", "quoted"]

Ids = NDArray[np.int64]
PURPOSE = "the data room"
MEMORY = "2GB"
INT64 = 1 << 63


class Table:
    """`pictures`: a row for each, joined from parts that come one after the other. Any number of threads may ask."""

    def __init__(self, listing: Mapping[str, Sequence[Any]]) -> None:
        """listing: columns with `id`, equally long."""
        self.arrow = need("pyarrow", "explore", PURPOSE)
        self.base = need("duckdb", "explore", PURPOSE).connect(":memory:")
        self.base.execute(f"SET memory_limit = '{MEMORY}'")
        self.base.execute("SET enable_external_access = false")  # SQL reaches no file, whatever gets into it
        self.parts: dict[str, tuple[str, ...]] = {}
        self.lock = threading.Lock()
        self.version = 0
        self._kinds: dict[str, str] = {}
        self.put("listing", self.arrow.table({name: arrow_column(values) for name, values in listing.items()}))

    def put(self, part: str, found: Any) -> None:
        """Adds or replaces a part: an Arrow table with `id`; a column belongs to the part that brings it last."""
        with self.lock:
            cursor = self.base.cursor()
            cursor.register("found", found)
            cursor.execute(f"CREATE OR REPLACE TABLE {quoted('part ' + part)} AS SELECT * FROM found")
            cursor.unregister("found")
            self.parts[part] = tuple(name for name in found.column_names if name != "id")
            self._join(cursor)
            found = cursor.execute("SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = 'pictures'")
            self._kinds = {name: _kind(kind) for name, kind in found.fetchall()}
            self.version += 1
            cursor.close()

    def drop(self, ids: Sequence[int]) -> None:
        """Pictures that cannot be shown."""
        self.put("bad", self.arrow.table({"id": self.arrow.array(list(ids), self.arrow.int64())}))

    def _join(self, cursor: Any) -> None:
        owner = {name.lower(): (part, name) for part, names in self.parts.items() for name in names}
        chosen = [f"{quoted('part ' + part)}.{quoted(name)}" for part, name in owner.values()]
        first = quoted("part listing")
        joins = "".join(
            f" LEFT JOIN {quoted('part ' + part)} ON {quoted('part ' + part)}.id = {first}.id"
            for part in self.parts
            if part not in ("listing", "bad")
        )
        where = f" WHERE {first}.id NOT IN (SELECT id FROM {quoted('part bad')})" if "bad" in self.parts else ""
        cursor.execute(
            f"CREATE OR REPLACE TABLE pictures AS SELECT {', '.join([f'{first}.id', *chosen])} "
            f"FROM {first}{joins}{where} ORDER BY {first}.id"
        )

    def ask(self, sql: str, values: Sequence[Any] = (), **given: Any) -> Any:
        """An Arrow table; `given` are Arrow tables that the question names."""
        with self.lock:
            cursor = self.base.cursor()
        try:
            for name, table in given.items():
                cursor.register(name, table)
            return cursor.sql(sql, params=list(values)).to_arrow_table()
        finally:
            cursor.close()

    def kinds(self) -> dict[str, str]:
        """Column -> number, text or truth."""
        return dict(self._kinds)

    def column(self, name: str) -> str:
        """The column as SQL. Raises UserError for one that is not there."""
        known = self.kinds()
        if name not in known:
            raise UserError(f'there is no column "{clean(name)}"{nearest(name, known)}.')
        return quoted(name)

    def condition(self, filters: Sequence[Filter]) -> tuple[str, list[Any]]:
        """SQL and its values for filters that must all hold; values never become SQL. Raises UserError."""
        parts, values, kinds = ["TRUE"], list[Any](), self.kinds()
        for one in filters:
            column = self.column(one.column)
            if one.low is not None or one.high is not None:
                if kinds[one.column] != "number":
                    raise UserError(f'"{clean(one.column)}" holds no numbers: filter it by its values.')
                parts.append(f"{column} BETWEEN ? AND ?")
                values += [-np.inf if one.low is None else one.low, np.inf if one.high is None else one.high]
            if one.values is not None:
                empty = f" OR {column} IS NULL" if None in one.values else ""
                kind = "DOUBLE" if kinds[one.column] == "number" else "VARCHAR"
                parts.append(f"(CAST({column} AS {kind}) IN (SELECT unnest(?::{kind}[])){empty})")
                values.append([_same_kind(value, kind) for value in one.values if value is not None])
        return " AND ".join(parts), values

    def rows(self, ids: Sequence[int] | Ids, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The rows of these pictures, in this order, as plain values."""
        chosen = "*" if columns is None else ", ".join(quoted(name) for name in columns)
        wanted = self.arrow.table({"id": np.asarray(ids, np.int64), "position": np.arange(len(ids))})
        found = self.ask(
            f"SELECT {'p.*' if columns is None else chosen} FROM wanted JOIN pictures p ON p.id = wanted.id "
            "ORDER BY wanted.position".replace("SELECT id,", "SELECT p.id,"),
            wanted=wanted,
        )
        return [{key: _plain(value) for key, value in row.items()} for row in found.to_pylist()]

    def close(self) -> None:
        with self.lock:
            self.base.close()


def quoted(name: str) -> str:
    """A name as SQL."""
    return '"' + name.replace('"', '""') + '"'


def clean(text: object) -> str:
    """Text that Arrow can hold: halves of characters that stand alone appear as escapes."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def arrow_column(values: Sequence[Any]) -> Any:
    """One type for all: truths, whole numbers, numbers, or else texts. Empty texts stay empty texts."""
    arrow = need("pyarrow", "explore", PURPOSE)
    some = [value for value in values if value is not None]
    if all(isinstance(value, bool | np.bool_) for value in some) and some:
        return arrow.array([None if v is None else bool(v) for v in values], arrow.bool_())
    numbers = all(isinstance(v, int | float | np.integer | np.floating) and not isinstance(v, bool) for v in some)
    if numbers and some and all(isinstance(v, int | np.integer) and -INT64 <= v < INT64 for v in some):
        return arrow.array([None if v is None else int(v) for v in values], arrow.int64())
    if numbers and some:
        return arrow.array([None if v is None or v != v else float(v) for v in values], arrow.float64())
    return arrow.array([None if v is None else clean(v) for v in values], arrow.string())


def _kind(sql: str) -> str:
    return "truth" if sql == "BOOLEAN" else "text" if sql == "VARCHAR" else "number"


def _same_kind(value: str | float | bool, kind: str) -> str | float:
    """As DuckDB spells a truth or a text; numbers as numbers, whatever they were typed as."""
    if kind == "DOUBLE":
        try:
            return float(value)
        except ValueError:
            return float("nan")
    return str(value).lower() if isinstance(value, bool) else clean(value)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
