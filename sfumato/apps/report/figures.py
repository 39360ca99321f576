"""Figures with their receipts: value, interval, what it depends on, what as many real pictures get, and warnings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfumato.apps.report.charts import number
from sfumato.apps.report.commands import shown
from sfumato.apps.report.markup import Html, el
from sfumato.cli.show import duration
from sfumato.metrics.figures import title
from sfumato.metrics.receipt import Figure, Receipt

__all__ = ["figures"]

WIDE = 120  # of the little line with the interval


def figures(receipts: tuple[Receipt, ...]) -> list[Html]:
    """The newest in full, older ones folded."""
    out = []
    for i, receipt in enumerate(receipts):
        when = _words(receipt.made.get("date"))
        body = [_table(receipt), *_circumstances(receipt)]
        if i == 0:
            out.append(el("div", {"class": "receipt"}, *body))
        else:
            named = ", ".join(filter(None, [when, _samples(receipt)[0]])) or "an earlier receipt"
            out.append(el("details", {"class": "receipt"}, el("summary", None, named), *body))
    return out


def _table(receipt: Receipt) -> Html:
    names = ("", "value", "95 % interval", "as many real pictures", "samples", "reference", "features")
    head = el("tr", None, *(el("th", {"scope": "col"}, name) for name in names))
    rows = [row for figure in receipt.figures for row in _rows(figure)]
    table = el("table", {"class": "figures"}, el("thead", None, head), el("tbody", None, *rows))
    return el("div", {"class": "scroll", "tabindex": 0}, table)


def _rows(f: Figure) -> list[Html]:
    arrow = {True: "\N{NO-BREAK SPACE}↓", False: "\N{NO-BREAK SPACE}↑", None: ""}[f.lower_is_better]
    cells = [
        ("", el("b", None, title(f)), el("span", {"title": _better(f)}, arrow)),
        ("value", el("b", None, number(f.value)), None),
        ("95 % interval", _interval(f), _whisker(f)),
        ("as many real pictures", number(f.floor) if f.floor is not None else "", None),
        ("samples", f"{f.n:,}", None),
        ("reference", f"{f.m:,}" if f.m else "", None),
        ("features", el("small", None, f.features), None),
    ]
    row = el("tr", None, *(el("td", {"data-label": label}, *parts) for label, *parts in cells))
    warned = el("tr", {"class": "warned"}, el("td", {"colspan": len(cells)}, f.warning)) if f.warning else None
    return [row] if warned is None else [row, warned]


def _better(f: Figure) -> str:
    return {True: "lower is better", False: "higher is better", None: ""}[f.lower_is_better]


def _interval(f: Figure) -> str:
    if f.low is not None and f.high is not None:
        return f"{number(f.low)} to {number(f.high)}"
    return f"± {number(f.error)} (standard error)" if f.error is not None else ""


def _whisker(f: Figure) -> Html | None:
    """The interval as a line with the value on it; a tick where as many real pictures are."""
    if f.low is None or f.high is None or not f.low <= f.high:
        return None
    known = [f.low, f.high, f.value, 0.0] + ([f.floor] if f.floor is not None else [])
    low, high = min(known), max(known)
    scale = (WIDE - 8) / ((high - low) or 1.0)

    def at(value: float) -> str:
        return f"{4 + scale * (value - low):.1f}"

    parts = [
        el("path", {"d": f"M4 7H{WIDE - 4}", "class": "grid"}),
        el("path", {"d": f"M{at(f.low)} 7H{at(f.high)}", "class": "line a"}),
        el("circle", {"cx": at(f.value), "cy": "7", "r": "3.5", "class": "a"}),
    ]
    if f.floor is not None:
        parts.append(el("path", {"d": f"M{at(f.floor)} 2V12", "class": "line b"}))
    return el("svg", {"class": "whisker", "viewBox": f"0 0 {WIDE} 14", "aria-hidden": "true"}, *parts)


# -- circumstances -----------------------------------------------------------------------------------------------------

KNOWN = (  # (part of the receipt, name in it, what it is called)
    ("samples", "precision", "precision"),
    ("samples", "labels", "classes"),
    ("samples", "digest", "weights"),
    ("reference", "split", "split"),
    ("made", "sfumato", "sfumato"),
    ("made", "torch", "torch"),
    ("made", "machine", "machine"),
    ("made", "threads", "threads"),
    ("made", "date", "date"),
)


def _circumstances(receipt: Receipt) -> list[Html]:
    samples, cost = _samples(receipt), _cost(receipt.cost)
    known: Mapping[str, Mapping[str, Any]] = {n: getattr(receipt, n) for n in ("samples", "reference", "made")}
    rows = [("samples", ", ".join(filter(None, samples))), ("reference", _reference(receipt)), ("cost", cost)]
    rows += [(called, _words(known[part].get(name))) for part, name, called in KNOWN]
    cells = [el("div", None, el("dt", None, name), el("dd", None, value)) for name, value in rows if value]
    return [el("dl", {"class": "small"}, *cells)] if cells else []


def _samples(receipt: Receipt) -> list[str]:
    s = receipt.samples
    words = [_words(s.get("model") or s.get("name"))]
    spacing = f" ({_words(s['spacing'])})" if s.get("spacing") else ""
    words.append(f"{_words(s['sampler'])} in {_words(s.get('steps'))} steps{spacing}" if s.get("sampler") else "")
    words.append(f"{_words(s['calls'])} network calls a picture" if s.get("calls") else "")
    words.append(f"guidance {_words(s['guidance'])}" if s.get("guidance") not in (None, 1, 1.0) else "")
    words.append(f"seeds from {_words(s['seed'])}" if s.get("seed") is not None else "")
    return words


def _reference(receipt: Receipt) -> str:
    r = receipt.reference
    size = r.get("size")
    counted = f"{size:,} pictures" if type(size) is int else ""
    return ", ".join(filter(None, [_words(r.get("name")), counted, _words(r.get("fingerprint"))[:12]]))


def _cost(cost: Mapping[str, Any]) -> str:
    """Seconds as durations; counts with their noun."""
    parts = []
    for name, value in cost.items():
        if isinstance(value, Mapping):
            inner = _cost(value)
            parts.append(f"{name} ({inner})" if inner else "")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            timed = name.endswith("seconds") or name in ("sampling", "measuring")
            called = name.removesuffix("seconds").strip("_ ")
            parts.append(f"{called} {duration(value)}".strip() if timed else f"{number(value)} {name}")
    return ", ".join(filter(None, parts))


def _words(value: Any) -> str:
    """A plain value; of what looks like a path the last part, though a receipt should hold none."""
    if value in (None, "", [], (), {}) or isinstance(value, Mapping):
        return ""
    return shown(value).replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
