"""A paper's figures beside ours, on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato.apps.reproduction import BITS, Row
from sfumato.cli.show import amount, duration, rows, table
from sfumato.metrics.figures import title
from sfumato.metrics.receipt import Figure, Receipt

__all__ = ["told"]

HEAD = ("FIGURE", "PUBLISHED", "OURS", "95 %", "FLOOR", "N", "FEATURES")


def told(found: Sequence[Row], receipt: Receipt, data: str, home: Path) -> str:
    """The table, why the two do not compare, what our figures cannot say, and what they cost."""
    parts = [table([HEAD, *map(_cells, found)]), _apart(found), _warnings(found), _facts(receipt, data, home)]
    return "\n" + "\n\n".join(filter(None, parts))


def _cells(row: Row) -> tuple[str, ...]:
    theirs, ours = row.published, row.ours
    name = _name(row)
    published = f"{theirs.value:g}" + (f" ({theirs.sampler})" if theirs.sampler else "") if theirs else ""
    if ours is None:
        return name, published, "", "", "", "", ""
    interval = f"{_short(ours.low)} to {_short(ours.high)}" if ours.low is not None else ""
    floor = _short(ours.floor) if ours.floor and not ours.metric.endswith(".infinity") else ""
    return name, published, _short(ours.value), interval, floor, f"{ours.n:,}", ours.features.partition(" ")[0]


def _name(row: Row) -> str:
    """What the figure is called, theirs with Inception's features; whose features ours is in stands in a column of its
    own, and no other than theirs is ever called FID."""
    if row.published and row.published.metric == BITS:
        return "bits per dimension"
    names = [title(Figure(row.published.metric, 0.0, 0, None, "inception"))] if row.published else []
    names += [title(row.ours).partition(" (")[0]] if row.ours else []
    return names[0] if len(set(names)) == 1 else f"{names[0]}; ours: {names[1]}"


def _short(value: float | None) -> str:
    """Four digits, never a power of ten."""
    if value is None:
        return ""
    return (
        f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) >= 1e-4 or not value else f"{value:.5f}"
    )


def _apart(found: Sequence[Row]) -> str:
    """What must not be compared, said once for all figures that share it."""
    if not any(row.published for row in found):
        return "No figure is published for this preset: ours stand alone."
    measured = [row for row in found if row.published and row.ours]
    clauses = dict.fromkeys(reason for row in measured for reason in row.apart)
    absent = [row for row in found if row.published and row.published.metric == BITS]
    lines = ["Ours do not compare with the published:", *(f"- {clause}" for clause in clauses)] if clauses else []
    if measured and not clauses:
        lines.append("Same data, features, number of samples and training as published: these compare.")
    lines += [f"{BITS}: `sfumato likelihood RUN DATA` measures bits per dimension."] if absent else []
    sources = dict.fromkeys(row.published.source + _note(row) for row in found if row.published)
    return "\n".join([*lines, *(f"published: {source}" for source in sources)])


def _note(row: Row) -> str:
    return f" ({row.published.note})" if row.published and row.published.note else ""


def _warnings(found: Sequence[Row]) -> str:
    return "\n".join(dict.fromkeys(row.ours.warning for row in found if row.ours and row.ours.warning))


def _facts(receipt: Receipt, data: str, home: Path) -> str:
    training: dict[str, Any] = receipt.cost.get("training") or {}
    figures = receipt.figures
    spent = [f"{amount(training['steps'], 'step')} of training" if "steps" in training else ""]
    spent += [f"in {duration(training['seconds'])}" if "seconds" in training else ""]
    sampling = [
        f"{name} in {duration(receipt.cost[name])}" for name in ("sampling", "measuring") if _known(receipt, name)
    ]
    pairs = [
        ("reference", f"{data}: {figures[0].m:,} pictures" if figures and figures[0].m else data),
        ("cost", ", ".join(filter(None, [" ".join(filter(None, spent)), *sampling]))),
        ("seed", str(receipt.samples.get("seed", ""))),
        ("receipt", str(home / "evaluation")),
    ]
    return rows([(name, text) for name, text in pairs if text], indent="")


def _known(receipt: Receipt, name: str) -> bool:
    return isinstance(receipt.cost.get(name), int | float)
