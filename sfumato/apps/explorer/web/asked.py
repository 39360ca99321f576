"""What the page asks, read with suspicion: JSON in, a Query out, a sentence for whatever it cannot be."""

from __future__ import annotations

import json
import math
from typing import Any

from sfumato.apps.explorer.query import Filter, Query
from sfumato.errors import UserError

__all__ = ["first_and_n", "object_of", "query_of", "spelled"]

FIELDS = {"text", "meaning", "like", "where", "sort", "descending", "cluster", "group", "ids"}
LONGEST = 2000  # characters of a search
MOST = 1_000_000  # ids, and pictures of a page
FILTERS = 100


def object_of(body: bytes) -> dict[str, Any]:
    """A JSON object. Raises UserError."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError("the page asked something that is no JSON object: reload it.")
    return found


def query_of(found: object) -> Query:
    """Raises UserError for anything that no query holds."""
    if not isinstance(found, dict) or not found.keys() <= FIELDS:
        raise UserError("a query has the fields " + ", ".join(sorted(FIELDS)) + ".")
    return Query(
        text=_words(found.get("text", ""), "text"),
        meaning=_words(found.get("meaning", ""), "meaning"),
        like=_perhaps(found.get("like"), "like", least=-(2**53)),
        where=_filters(found.get("where", [])),
        sort=_words(found.get("sort", ""), "sort"),
        descending=found.get("descending") is True,
        cluster=_perhaps(found.get("cluster"), "cluster", least=-1),
        group=_perhaps(found.get("group"), "group"),
        ids=None if found.get("ids") is None else _ids(found["ids"]),
    )


def whole(value: object, name: str, *, least: int = 0, most: int = 2**53) -> int:
    """A whole number in a range. Raises UserError."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UserError(f"`{name}` is no whole number from {least:,} to {most:,}.")
    return value


def spelled(text: str) -> int:
    """The id of a picture in an address. Raises UserError."""
    return whole(int(text) if text.isascii() and text.isdigit() and len(text) < 18 else text, "id")


def first_and_n(found: dict[str, Any], most: int) -> tuple[int, int]:
    """Which part of a list. Raises UserError."""
    return whole(found.get("first", 0), "first"), whole(found.get("n", min(100, most)), "n", least=1, most=most)


def _perhaps(value: object, name: str, *, least: int = 0) -> int | None:
    return None if value is None else whole(value, name, least=least)


def _words(value: object, name: str) -> str:
    if not isinstance(value, str) or len(value) > LONGEST:
        raise UserError(f"`{name}` is no text of at most {LONGEST:,} characters.")
    return value.encode("utf8", "replace").decode()  # half a surrogate pair is no text


def _ids(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MOST:
        raise UserError(f"`ids` is no list of at most {MOST:,} pictures.")
    return tuple(whole(one, "ids") for one in value)


def _filters(value: object) -> tuple[Filter, ...]:
    if not isinstance(value, list) or len(value) > FILTERS:
        raise UserError(f"`where` is no list of at most {FILTERS} filters.")
    return tuple(_filter(one) for one in value)


def _filter(one: object) -> Filter:
    if not isinstance(one, dict) or not one.keys() <= {"column", "low", "high", "values"} or "column" not in one:
        raise UserError("a filter has a column, and low, high or values.")
    values = one.get("values")
    if values is not None and (not isinstance(values, list) or len(values) > 10_000):
        raise UserError("the values of a filter are a list.")
    return Filter(
        column=_words(one["column"], "column"),
        low=_figure(one.get("low")),
        high=_figure(one.get("high")),
        values=None if values is None else tuple(_value(one) for one in values),
    )


def _figure(value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise UserError("the ends of a filter are numbers.")
    return float(value)


def _value(value: object) -> str | float | bool | None:
    if isinstance(value, str):
        return _words(value, "values")
    return value if value is None or isinstance(value, bool) else _figure(value)
