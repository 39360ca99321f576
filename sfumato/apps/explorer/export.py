"""A selection as a file for other programs: CSV that no spreadsheet takes for formulas, or exact Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

from sfumato.data.options import need
from sfumato.errors import UserError

__all__ = ["KINDS", "inert", "write"]

KINDS = ("csv", "parquet")
FORMULA = tuple("=+-@\t\r\n|%＝＋－＠")  # what begins one in some spreadsheet, also in full width


def write(table: Any, kind: str) -> bytes:
    """Of an Arrow table. Raises UserError for another kind."""
    if kind == "csv":
        return _csv(table)
    if kind == "parquet":
        sink = io.BytesIO()
        need("pyarrow.parquet", "explore", "writing .parquet").write_table(table, sink)
        return sink.getvalue()
    raise UserError(f"a selection cannot be written as '{str(kind)[:40]}': choose csv or parquet.")


def _csv(table: Any) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow([inert(name) for name in table.column_names])
    for batch in table.to_batches():
        writer.writerows(_cells(batch))
    return out.getvalue().encode()


def _cells(batch: Any) -> Iterable[list[Any]]:
    for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
        yield ["" if value is None else inert(value) if isinstance(value, str) else value for value in row]


def inert(text: str) -> str:
    """Behind an apostrophe where a spreadsheet would calculate. Numbers are not text, and stay as they are."""
    return f"'{text}" if text.lstrip(" \u00a0\u200b\ufeff").startswith(FORMULA) or text[:1] in ("\t", "\r") else text
