"""Charts of numbers over steps: inline SVG with no library. The plot stretches with the page, its words do not: labels
are text beside it, so that a phone shows them as large as a desk does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sfumato.apps.report.facts import Series
from sfumato.apps.report.markup import Html, el, join

__all__ = ["Axis", "Line", "chart", "number", "smoothed", "thinned", "ticks"]

WIDTH, HEIGHT = 1000.0, 400.0  # of the plot, in its own units
MOST = 400  # points of a line
ROWS = 24  # of the table below a chart


@dataclass(frozen=True)
class Axis:
    """From values to places, 0..length. `log`: equal factors are equally long."""

    low: float
    high: float
    length: float
    log: bool = False
    down: bool = False  # larger values are nearer to 0

    def at(self, value: float) -> float:
        share = (self._of(value) - self._of(self.low)) / (self._of(self.high) - self._of(self.low))
        return self.length * (1.0 - share if self.down else share)

    def value(self, place: float) -> float:
        """The inverse of `at`."""
        share = 1.0 - place / self.length if self.down else place / self.length
        x = self._of(self.low) + share * (self._of(self.high) - self._of(self.low))
        return math.exp(x) if self.log else x

    def _of(self, value: float) -> float:
        return math.log(value) if self.log else value


@dataclass(frozen=True)
class Line:
    """A series as it is drawn. `style`: a class of the style sheet; `bold`: the smoothed values, drawn over it."""

    series: Series
    label: str
    style: str
    bold: Series | None = None
    dots: bool = False


# -- numbers -----------------------------------------------------------------------------------------------------------


def smoothed(series: Series, reach: int) -> Series:
    """Means over up to 2 reach + 1 neighbours, fewer at the ends, where they stay symmetric."""
    values, out = series.values, []
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    for i in range(len(values)):
        r = min(reach, i, len(values) - 1 - i)
        out.append((sums[i + r + 1] - sums[i - r]) / (2 * r + 1))
    return Series(series.name, series.steps, tuple(out))


def thinned(series: Series, most: int = MOST) -> Series:
    """The lowest and the highest of each stretch, with the ends: peaks stay, and every point is one that was there."""
    n = len(series)
    if n <= most:
        return series
    bounds = [round(k * n / (most // 2 - 1)) for k in range(most // 2)]
    keep = {0, n - 1}
    for a, b in pairwise(bounds):
        stretch = range(a, b)
        keep |= {min(stretch, key=series.values.__getitem__), max(stretch, key=series.values.__getitem__)}
    chosen = sorted(keep)
    return Series(series.name, tuple(series.steps[i] for i in chosen), tuple(series.values[i] for i in chosen))


def ticks(axis: Axis, wanted: int = 5) -> list[float]:
    """Round numbers within an axis: 1, 2, 5 times powers of ten; on a long logarithmic axis powers of ten alone."""
    if axis.log and axis.high / axis.low > 30:
        low, high = math.ceil(math.log10(axis.low) - 1e-9), math.floor(math.log10(axis.high) + 1e-9)
        every = max(1, math.ceil((high - low + 1) / wanted))
        return [10.0**k for k in range(low, high + 1, every)]
    if axis.log:
        powers = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
        found = [m * 10.0**k for k in powers for m in (1, 2, 3, 5, 7)]
        found = [x for x in found if axis.low * (1 - 1e-9) <= x <= axis.high * (1 + 1e-9)]
        return found if len(found) >= 2 else ticks(Axis(axis.low, axis.high, axis.length), wanted)
    raw = (axis.high - axis.low) / wanted
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= raw * (1 - 1e-9))
    first, last = math.ceil(axis.low / step - 1e-9), math.floor(axis.high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def number(value: float) -> str:
    """Four digits at most, thousands with commas: 0.2967, 12.3, 3,000."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}" if size < 1e7 else f"{value:.3g}".replace("e+0", "e").replace("e+", "e")
    return f"{value:.4g}" if size >= 1e-4 else f"{value:.2e}".replace("e-0", "e-")


def _bounds(values: Sequence[float], log: bool) -> tuple[float, float]:
    """With a little room above and below."""
    low, high = min(values), max(values)
    if log:
        room = max((high / low) ** 0.06, 1.02)
        return low / room, high * room
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return (0.0 if 0 <= low <= 0.35 * high else low - room), high + room


def wants_log(values: Sequence[float]) -> bool:
    """Positive numbers over more than a factor of three."""
    return min(values) > 0 and max(values) > 3 * min(values)


# -- drawing -----------------------------------------------------------------------------------------------------------


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    note: str = "",
    log: bool | None = None,
    words: Callable[[float], str] = number,
) -> Html | None:
    """A figure with a legend, hover values and the numbers as a table; None where there is nothing to draw."""
    lines = [line for line in lines if len(line.series)]
    if not lines:
        return None
    values = [v for line in lines for v in line.series.values]
    scale = wants_log(values) if log is None else log and min(values) > 0
    low, high = _bounds(values, scale)
    steps = [s for line in lines for s in line.series.steps]
    x = Axis(0.0, float(max(*steps, 1)), WIDTH)
    y = Axis(low, high, HEIGHT, log=scale, down=True)
    shown = [Line(thinned(n.series), n.label, n.style, n.bold and thinned(n.bold), n.dots) for n in lines]
    told = " ".join(filter(None, [note, "Logarithmic scale." if scale else "", _thinning(lines)]))
    return el(
        "figure",
        {"class": "chart", "data-chart": json.dumps(_for_script(shown, x, y), separators=(",", ":"))},
        el("figcaption", None, el("h3", None, title), _legend(shown) if len(shown) > 1 else None),
        el("div", {"class": "plot"}, _labels(x, y, words), _svg(title, shown, x, y), el("div", {"class": "tip"})),
        el("p", {"class": "note"}, told) if told else None,
        _table(lines, words),
    )


def _thinning(lines: Sequence[Line]) -> str:
    return "Of each stretch the lowest and the highest point are drawn." if max(map(_length, lines)) > MOST else ""


def _length(line: Line) -> int:
    return len(line.series)


def _for_script(lines: Sequence[Line], x: Axis, y: Axis) -> dict[str, object]:
    """What hovering needs."""
    return {
        "x": x.high,
        "y": [y.low, y.high],
        "log": y.log,
        "lines": [[line.label, line.style, line.series.steps, line.series.values] for line in lines],
    }


def _svg(title: str, lines: Sequence[Line], x: Axis, y: Axis) -> Html:
    grid = [_path(f"M0 {y.at(v):.2f}H{WIDTH:.0f}", "grid") for v in ticks(y)]
    drawn = []
    for line in lines:
        drawn.append(_path(_trace(line.series, x, y), f"line {line.style}" + (" thin" if line.bold else "")))
        if line.bold is not None:
            drawn.append(_path(_trace(line.bold, x, y), f"line {line.style}"))
        if line.dots or len(line.series) == 1:
            dots = "".join(f"M{x.at(s):.2f} {y.at(v):.2f}h0" for s, v in zip(*_points(line.series), strict=True))
            drawn.append(_path(dots, f"dots {line.style}"))
    box = f"0 0 {WIDTH:.0f} {HEIGHT:.0f}"
    named = {"role": "img", "aria-label": _alt(title, lines), "viewBox": box, "preserveAspectRatio": "none"}
    return el("svg", named, *grid, *drawn)


def _points(series: Series) -> tuple[tuple[int, ...], tuple[float, ...]]:
    return series.steps, series.values


def _alt(title: str, lines: Sequence[Line]) -> str:
    parts = [f"{n.label} from {number(n.series.values[0])} to {number(n.series.values[-1])}" for n in lines]
    return f"{title} over steps: {'; '.join(parts)}"


def _path(d: str, kind: str) -> Html:
    return el("path", {"d": d, "class": kind})


def _trace(series: Series, x: Axis, y: Axis) -> str:
    places = [f"{x.at(s):.2f} {y.at(v):.2f}" for s, v in zip(*_points(series), strict=True)]
    return "M" + "L".join(places)


def _labels(x: Axis, y: Axis, words: Callable[[float], str]) -> Html:
    """Words of both axes, placed in per cent of the plot."""
    across = [_label(short(v), f"left:{100 * x.at(v) / WIDTH:.2f}%", "x") for v in ticks(x, 4)]
    up = [_label(words(v), f"top:{100 * y.at(v) / HEIGHT:.2f}%", "y") for v in ticks(y)]
    return el("div", {"class": "axes", "aria-hidden": "true"}, *across, *up)


def _label(text: str, place: str, kind: str) -> Html:
    return el("span", {"class": kind, "style": place}, text)


def short(step: float) -> str:
    """Steps on an axis: 500, 2k, 1.5M."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if step >= unit:
            return f"{step / unit:g}{name}"
    return f"{step:g}"


def _legend(lines: Sequence[Line]) -> Html:
    keys = [el("li", None, el("i", {"class": line.style}), line.label) for line in lines]
    return el("ul", {"class": "legend"}, *keys)


def _table(lines: Sequence[Line], words: Callable[[float], str]) -> Html:
    """The numbers, some two dozen of the steps."""
    steps = sorted({s for line in lines for s in line.series.steps})
    chosen = sorted({steps[round(k * (len(steps) - 1) / (ROWS - 1))] for k in range(ROWS)})
    known = [dict(zip(*_points(line.series), strict=True)) for line in lines]
    head = el("tr", None, el("th", {"scope": "col"}, "step"), *(el("th", {"scope": "col"}, n.label) for n in lines))
    rows = [
        el("tr", None, el("td", None, f"{s:,}"), *(el("td", None, words(of[s]) if s in of else "") for of in known))
        for s in chosen
    ]
    body = el("div", {"class": "scroll"}, el("table", None, el("thead", None, head), el("tbody", None, join(rows))))
    return el("details", None, el("summary", None, "numbers"), body)
