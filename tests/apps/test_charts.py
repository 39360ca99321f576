"""Charts: places map back to values, ticks are round, smoothing and thinning are what they say."""

import json
import math
import re
from html import unescape
from itertools import pairwise

import numpy as np
import pytest

from sfumato.apps.report.charts import Axis, Line, chart, number, short, smoothed, thinned, ticks, wants_log
from sfumato.apps.report.facts import Series


def series(values, steps=None):
    return Series("loss", tuple(steps or range(10, 10 * len(values) + 1, 10)), tuple(map(float, values)))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("down", [False, True])
def test_an_axis_is_undone_by_its_inverse(log, down):
    axis = Axis(0.02, 7.0, 400.0, log, down)
    values = np.geomspace(0.02, 7.0, 50)
    assert [axis.value(axis.at(v)) for v in values] == pytest.approx(values, rel=1e-12)
    assert axis.at(0.02) == pytest.approx(400.0 if down else 0.0) and axis.at(7.0) == pytest.approx(0 if down else 400)


def test_a_logarithmic_axis_makes_equal_factors_equally_long():
    axis = Axis(1.0, 1000.0, 300.0, log=True)
    assert [axis.at(v) for v in (1, 10, 100, 1000)] == pytest.approx([0, 100, 200, 300])


def axis_of(told, length, kind):
    low, high = (0.0, told["x"]) if kind == "x" else told["y"]
    return Axis(low, high, length, log=kind == "y" and told["log"], down=kind == "y")


@pytest.mark.parametrize("values", [[2.0, 1.5, 1.0, 0.9], [5.0, 1.0, 0.2, 0.05], [0.0, 0.0, 1.0], [3.0], [-2.0, 4.0]])
def test_points_of_the_drawing_are_the_numbers(values):
    """From the path back through the axes that the page itself tells the reader of."""
    page = chart("Loss", [Line(series(values), "loss", "a")])
    told = json.loads(unescape(re.search(r'data-chart="([^"]*)"', page)[1]))
    assert told["lines"] == [["loss", "a", list(series(values).steps), values]]
    path = re.search(r'<path d="M([^"]*)" class="line a">', page)[1]
    points = np.array([list(map(float, pair.split())) for pair in path.split("L")])
    x, y = axis_of(told, 1000.0, "x"), axis_of(told, 400.0, "y")
    assert [x.value(p) for p in points[:, 0]] == pytest.approx(series(values).steps, rel=1e-3)
    assert [y.value(p) for p in points[:, 1]] == pytest.approx(values, rel=1e-3, abs=2e-5 * (y.high - y.low))
    assert (points >= 0).all() and (points[:, 0] <= 1000).all() and (points[:, 1] <= 400).all()


def test_numbers_stand_in_a_table_too():
    page = chart("Loss", [Line(series([1.25, 0.5]), "loss", "a"), Line(series([0.75], [20]), "held-out loss", "b")])
    cells = re.findall(r"<td>([^<]*)</td>", page)
    assert cells == ["10", "1.25", "", "20", "0.5", "0.75"]


def test_nothing_to_draw_is_no_chart():
    assert chart("Loss", []) is None and chart("Loss", [Line(Series("loss", (), ()), "loss", "a")]) is None


def test_scales():
    assert wants_log([1.0, 0.2]) and not wants_log([1.0, 0.5]) and not wants_log([1.0, 0.0])
    assert "Logarithmic" in chart("Loss", [Line(series([1, 0.1]), "loss", "a")])
    assert "Logarithmic" not in chart("Loss", [Line(series([1, 0.1]), "loss", "a")], log=False)
    assert "Logarithmic" not in chart("Loss", [Line(series([1, -0.1]), "loss", "a")], log=True)


@pytest.mark.parametrize("low,high,log", [(0, 3000, False), (0.93, 0.97, False), (0.05, 2.1, True), (1e-6, 10, True)])
def test_ticks_are_round_and_inside(low, high, log):
    found = ticks(Axis(low, high, 100.0, log))
    assert 2 <= len(found) <= 12
    assert all(low * (1 - 1e-9) <= v <= high * (1 + 1e-9) for v in found)
    assert all(a < b for a, b in pairwise(found))
    for value in filter(None, found):
        lead = value / 10.0 ** math.floor(math.log10(abs(value)) + 1e-12)
        assert min(abs(lead * 20 - round(lead * 20)), 1) < 1e-6, value  # at most two digits, the second a 0 or 5


def test_smoothing_is_the_mean_of_neighbours():
    values = np.random.default_rng(0).normal(size=50)
    found = smoothed(series(values), 3).values
    for i in range(50):
        r = min(3, i, 49 - i)
        assert found[i] == pytest.approx(values[i - r : i + r + 1].mean(), abs=1e-12)
    line = series(np.arange(30))
    assert smoothed(line, 4).values == pytest.approx(line.values), "a straight line stays where it is"


def test_thinning_keeps_peaks_and_ends_and_invents_nothing():
    values = np.random.default_rng(1).normal(size=20_000)
    values[12_345] = 50.0
    values[777] = -50.0
    whole = series(values)
    thin = thinned(whole)
    assert len(thin) <= 402 and thin.values[0] == values[0] and thin.values[-1] == values[-1]
    assert max(thin.values) == 50.0 and min(thin.values) == -50.0
    known = dict(zip(whole.steps, whole.values, strict=True))
    assert all(known[s] == v for s, v in zip(thin.steps, thin.values, strict=True))
    assert list(thin.steps) == sorted(set(thin.steps))
    assert thinned(series([1, 2, 3])) == series([1, 2, 3])


@pytest.mark.parametrize(
    "value,text",
    [(0, "0"), (0.29671, "0.2967"), (12.34567, "12.35"), (3000, "3,000"), (2e-7, "2.00e-7"), (4.2e9, "4.2e9")],
)
def test_numbers_in_words(value, text):
    assert number(value) == text


def test_steps_on_an_axis():
    assert [short(s) for s in (0, 500, 2000, 1.5e6)] == ["0", "500", "2k", "1.5M"]


def test_hostile_names_are_words():
    page = chart("<b>", [Line(series([1, 2]), '"><script>alert(1)</script>', "a")])
    assert "<script" not in page and "<b>" not in page
