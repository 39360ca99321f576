"""`bench samplers`: a table whose distances are those to the exact flow, and a picture."""

import json

import pytest
from PIL import Image

pytestmark = pytest.mark.usefixtures("run")


def test_a_table_and_a_picture(run, command, tmp_path):
    words = ("--samplers", "auto", "ddim", "euler_a", "--calls", "5", "40", "--n", "3", "--threads", "1")
    done = command("bench", "samplers", run, *words, "--out", tmp_path / "out")
    assert done.code == 0 and "auto" in done.out and "adds noise" in done.out
    rows = {(row["name"], row["calls"]): row for row in json.loads((tmp_path / "out" / "samplers.json").read_text())}
    assert set(rows) == {(name, n) for name in ("auto", "ddim", "euler_a") for n in (5, 40)}
    assert "median" not in rows["euler_a", 40]
    for name in ("auto", "ddim"):  # more calls come closer to the end of the flow
        assert (
            rows[name, 40]["median"] < rows[name, 5]["median"] and rows[name, 40]["worst"] >= rows[name, 40]["median"]
        )
    with Image.open(tmp_path / "out" / "samplers.png") as picture:
        assert len(picture.getcolors(1 << 24)) > 20
