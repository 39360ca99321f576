"""What leaves the room: nothing that a spreadsheet would calculate, and exactly what was in it."""

import csv
import io
import json

import pyarrow.parquet as parquet
import pytest

from sfumato.apps.explorer.export import inert
from sfumato.apps.explorer.query import Filter, Query
from sfumato.errors import UserError
from tests.apps.rooms import drawing, folder_of, settled

HOSTILE = [
    '=HYPERLINK("http://evil","x")',
    "+1+1",
    "-2+3",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "＝1+1",
    "  =1+1",
    'a "quoted", text;\nin two lines',
    "'apostrophe",
    "",
    "plain",
    "emoji 🎉 кошка",
    "<script>alert(1)</script>",
]


@pytest.fixture
def room(tmp_path):
    folder = folder_of(tmp_path, {f"{i:02d}.png": drawing(i, (40, 40)) for i in range(len(HOSTILE))})
    rows = [
        {"file_name": f"{i:02d}.png", "text": "x", "note": text, "=cmd": i - 3.5, "flag": bool(i % 2)}
        for i, text in enumerate(HOSTILE)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    with settled(folder) as found:
        yield found


def test_no_cell_is_a_formula(room):
    content = room.export(Query(), "csv").decode()
    head, *rows = csv.reader(io.StringIO(content, newline=""))
    assert "'=cmd" in head and not any(cell.lstrip()[:1] in tuple("=+@\t\r＝") for cell in head)
    notes = [row[head.index("note")] for row in rows]
    for cell, text in zip(notes, HOSTILE, strict=True):
        dangerous = text.strip()[:1] in tuple("=+-@＝") if text.strip() else False
        assert cell == (f"'{text}" if dangerous else text)
    # numbers stay numbers, also negative ones
    assert [float(row[head.index("'=cmd")]) for row in rows] == [i - 3.5 for i in range(len(HOSTILE))]


def test_parquet_is_exact(room):
    table = parquet.read_table(io.BytesIO(room.export(Query(), "parquet")))
    assert table.column("note").to_pylist() == HOSTILE
    assert table.column("=cmd").to_pylist() == [i - 3.5 for i in range(len(HOSTILE))]
    assert table.column("flag").to_pylist() == [bool(i % 2) for i in range(len(HOSTILE))]
    page = room.page(Query(), 0, 100)["rows"]
    assert [row["sharpness"] for row in page] == table.column("sharpness").to_pylist()


def test_a_selection_is_what_was_asked_for_in_its_order(room):
    query = Query(where=(Filter("=cmd", low=0),), sort="=cmd", descending=True)
    table = parquet.read_table(io.BytesIO(room.export(query, "parquet")))
    assert table.column("=cmd").to_pylist() == [i - 3.5 for i in range(len(HOSTILE) - 1, 3, -1)]
    nothing = room.export(Query(text="nowhere"), "csv").decode().splitlines()
    assert len(nothing) == 1


def test_another_kind_is_refused(room):
    with pytest.raises(UserError, match="csv or parquet"):
        room.export(Query(), "xlsx")


@pytest.mark.parametrize("text", ["-1", "=1", "\u200b=1", "%0A=1", "|cmd", "\ufeff@x"])
def test_inert(text):
    assert inert(text) == f"'{text}"
