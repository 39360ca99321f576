"""A receipt as text: what was measured, a table of figures, and what to know about them."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from sfumato.cli.show import Rows, duration, rows, table
from sfumato.metrics.figures import title
from sfumato.metrics.receipt import Figure, Receipt

__all__ = ["told"]

ARROWS = {True: "lower is better", False: "higher is better", None: ""}
WIDE = 110


def told(receipt: Receipt) -> str:
    """For a terminal."""
    parts = [rows(_about(receipt), indent=""), table(_table(receipt.figures))]
    return "\n\n".join([*parts, *_warnings(receipt.figures)])


def _about(receipt: Receipt) -> Rows:
    s, r = receipt.samples, receipt.reference
    out = [("samples", _samples(s)), ("reference", _reference(r))]
    for identity in dict.fromkeys(figure.features for figure in receipt.figures if figure.features):
        out.append(("features", identity))
    c = receipt.cost
    times = [f"{name} {duration(float(c[name]))}" for name in ("sampling", "measuring") if name in c]
    return [*out, ("time", ", ".join(times))]


def _samples(s: Any) -> str:
    if "name" in s:
        return f"{s['name']}: {s['n']:,}{_comma(s.get('size'))}"
    walk = f"{s['sampler']} in {s['steps']} steps" if s.get("steps") else str(s.get("sampler", "its own sampler"))
    calls = f" ({s['calls']:g} network calls a picture)" if s.get("calls") else ""
    guided = f", guidance {s['guidance']:g}" if s.get("guidance", 1.0) != 1.0 else ""
    classes = f"\nclasses {s['labels']}" if s.get("labels") else ""
    seeds = f"seeds {s['seed']} to {s['seed'] + s['n'] - 1}"
    return f"{s['model']}, averaged weights: {s['n']:,} pictures, {s['size']}, {seeds}\n{walk}{calls}{guided}{classes}"


def _reference(r: Any) -> str:
    split = f", split {r['split']}" if r.get("split") else ""
    count = f": {r['size']:,}" if "size" in r else ": statistics alone"
    return f"{r['name']}{count}{_comma(r.get('pixels'))}{split}"


def _comma(text: object) -> str:
    return f", {text}" if text else ""


def _table(figures: tuple[Figure, ...]) -> list[list[str]]:
    head = ["", "value", "95 % interval", "as many real", "n", "reference", ""]
    return [head, *(_row(figure) for figure in figures)]


def _row(f: Figure) -> list[str]:
    floor = "" if f.floor is None or f.metric.endswith(".infinity") else number(f.floor)
    m = "" if f.m is None else f"{f.m:,}"
    return [title(f), number(f.value), _interval(f), floor, f"{f.n:,}", m, ARROWS[f.lower_is_better]]


def _interval(f: Figure) -> str:
    if f.low is not None and f.high is not None:
        return f"{number(f.low)} to {number(f.high)}"
    return "" if f.error is None else f"+- {number(f.error)}"


def number(value: float) -> str:
    """Four digits that mean something."""
    if not math.isfinite(value):
        return "infinite"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 5e-5:
        return f"{value:.1e}"
    return f"{value:#.4g}".rstrip(".") if abs(value) >= 1 else f"{value:.4f}"


def _warnings(figures: tuple[Figure, ...]) -> list[str]:
    lines = [f"{title(f)}: {f.warning}" for f in figures if f.warning]
    return ["\n".join(textwrap.fill(line, WIDE, subsequent_indent="  ") for line in lines)] if lines else []
