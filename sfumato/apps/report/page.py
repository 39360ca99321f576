"""The page: one HTML file that loads nothing, runs without its script, and obeys none of the words it shows."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from functools import lru_cache
from importlib.resources import files

from sfumato.apps.report import figures, sections
from sfumato.apps.report.charts import Line, chart, number, smoothed
from sfumato.apps.report.facts import Facts, Series
from sfumato.apps.report.markup import Html, el, join
from sfumato.cli.show import amount
from sfumato.metrics.figures import METRICS, title
from sfumato.metrics.receipt import Figure

__all__ = ["page"]

SMOOTH, REACH = 40, 60  # points from which on a series is smoothed; neighbours on a side: this part of them
MEANING = {
    "norm": "Gradient norm, before clipping",
    "ema_lag": "Lag of the average",
    "rate": "Pictures a second",
    "lr": "Learning rate",
    "skipped": "Steps skipped so far",
}
EXPLAINED = {"ema_lag": "How far the averaged weights are from the weights, over the norm of these."}
KEPT = {*MEANING, "images", "seconds", "ema_decay"}


def page(facts: Facts, *, previews: int = 0) -> str:
    """The whole file."""
    found = [(name, word, _section(facts, name, previews)) for name, word in SECTIONS.items()]
    there = [(name, word, parts) for name, word, parts in found if parts]
    nav = el("nav", {"aria-label": "sections"}, *(el("a", {"href": f"#{name}"}, word) for name, word, _ in there))
    bodies = [el("section", {"id": name}, el("h2", None, word), *parts) for name, word, parts in there]
    main = el("main", None, sections.hero(facts), sections.tiles(facts), nav, *bodies, _footer())
    name = " · ".join(filter(None, [facts.about.name, facts.about.paper, "sfumato report"]))
    return f"<!DOCTYPE html>\n{el('html', {'lang': 'en'}, _head(name), el('body', None, main, _script()))}\n"


SECTIONS = {
    "samples": "Samples",
    "way": "From noise to picture",
    "figures": "Figures",
    "nearest": "Nearest training pictures",
    "curves": "Curves",
    "health": "Health",
    "grids": "Over time",
    "run": "The run",
    "again": "To make it again",
    "cite": "To cite it",
}


def _section(facts: Facts, name: str, previews: int) -> list[Html]:
    made: dict[str, Callable[[], list[Html]]] = {
        "samples": lambda: sections.samples(facts.samples) if facts.samples else [],
        "way": lambda: sections.way(facts.samples) if facts.samples and facts.samples.way else [],
        "figures": lambda: figures.figures(facts.receipts),
        "nearest": lambda: sections.nearest(facts.nearest, facts.samples) if facts.nearest and facts.samples else [],
        "curves": lambda: _curves(facts),
        "health": lambda: _health(facts),
        "grids": lambda: sections.grids(facts, previews) if facts.grids else [],
        "run": lambda: sections.run(facts),
        "again": lambda: sections.again(facts),
        "cite": lambda: (
            [el("pre", {"tabindex": 0}, el("code", None, facts.about.bibtex))] if facts.about.bibtex else []
        ),
    }
    absent = sections.absent(facts, name)
    return [*made[name](), *([absent] if absent else [])]


# -- charts ------------------------------------------------------------------------------------------------------------


def _smooth(series: Series) -> tuple[Series | None, int]:
    """The bold line, and how many neighbours each of its points is the mean of."""
    reach = max(1, len(series) // REACH)
    return (smoothed(series, reach), 2 * reach + 1) if len(series) >= SMOOTH else (None, 1)


def _line(series: Series, label: str, style: str) -> Line:
    return Line(series, label, style, _smooth(series)[0], dots=len(series) < 12)


def _said(series: Series) -> str:
    """What a line is, in words."""
    if len(series) < 2:
        return ""
    every = series.steps[1] - series.steps[0]
    _, of = _smooth(series)
    each = f"Each point is the mean of {every:,} steps." if every > 1 else ""
    return f"{each} The bold line is the mean of {of} neighbouring points." if of > 1 else each


def _curves(facts: Facts) -> list[Html]:
    history = facts.history
    losses, held = history.ending("loss"), tuple(s for name, s in history.series.items() if name.startswith("held/"))
    note = " ".join(filter(None, [_said(losses[0]) if losses else "", HELD if held else ""]))
    if not facts.about.steady:
        note += " The loss of this stage changes its meaning as it trains: it says little of quality."
    lines = [_line(s, s.name, "abcd"[i % 4]) for i, s in enumerate(losses)]
    single = [s for s in held if len(held) > 1 or len(losses) != 1]
    together = lines if single else [*lines, *(_line(s, "held-out loss", "b") for s in held)]
    parts = [chart("Loss", together, note=note)]
    parts += [chart("Held-out loss", [_line(s, s.name, "b") for s in single])] if single else []
    known = {s.name for s in (*losses, *held)}
    for name, series in history.series.items():
        if name not in known | KEPT and not name.endswith((*MEANING, "_error")):
            parts.append(_other(name, series, history.get(f"{name}_error")))
    there = [part for part in parts if part is not None]
    return [el("div", {"class": "charts"}, *there)] if there else []


def _other(name: str, series: Series, error: Series) -> Html | None:
    """A number that the recipe or a judge of pictures logged."""
    note = _said(series) if len(series) > SMOOTH else ""
    if name in METRICS:
        note = "Of few pictures of the averaged weights, made during training. " + note
    if len(error):
        note += f"Standard error at the end: {number(error.values[-1])}."
    return chart(title(Figure(name, 0.0, 0)), [_line(series, name, "a")], note=note.strip())


HELD = "The held-out loss is that of the averaged weights on examples that training never sees."


def _health(facts: Facts) -> list[Html]:
    h = facts.history
    parts = [_levels(h.levels)]
    for end, called in MEANING.items():
        found = [s for s in h.ending(end) if s.name == end or s.name.endswith(f"/{end}")]
        found = [s for s in found if end != "skipped" or any(s.values)]
        words = _percent if end == "ema_lag" else number
        lines = [_line(s, s.name if len(found) > 1 else end, "abcd"[i % 4]) for i, s in enumerate(found)]
        log = None if end == "norm" else False
        note = " ".join(filter(None, [EXPLAINED.get(end, ""), _bold(found)]))
        parts.append(chart(called, lines, note=note, words=words, log=log))
    there = [part for part in parts if part is not None]
    return [*_warned(facts), el("div", {"class": "charts small"}, *there)] if there or facts.warnings else []


def _levels(levels: tuple[Series, ...]) -> Html | None:
    """The loss by noise level, in colours from little noise to much; without levels that were hardly ever drawn."""
    often = [s for s in levels if 3 * len(s) >= max(map(len, levels))]
    if len(often) < 2:
        return None
    of = _smooth(often[0])[1]
    note = "By the t that was drawn: from t near 0, little noise, to t near 1."
    note += f" Means of {of} neighbouring points." if of > 1 else ""
    note += f" Left out: {amount(left, 'level')} seldom drawn." if (left := len(levels) - len(often)) else ""
    lines = []
    for i, series in enumerate(often):
        lines.append(Line(_smooth(series)[0] or series, series.name, f"l{round(7 * i / (len(often) - 1))}"))
    return chart("Loss by noise level", lines, note=note)


def _bold(found: list[Series]) -> str:
    of = _smooth(found[0])[1] if found else 1
    return f"Bold: the mean of {of} neighbouring points." if of > 1 else ""


def _percent(share: float) -> str:
    return f"{number(100 * share)} %"


def _warned(facts: Facts) -> list[Html]:
    skipped = facts.history.get("skipped")
    if facts.warnings:
        return [el("ul", {"class": "warnings"}, *(el("li", None, said) for said in facts.warnings))]
    if len(skipped) and not any(skipped.values):
        return [el("p", {"class": "verdict"}, "No step was skipped and nothing was warned of.")]
    return []


# -- around it ---------------------------------------------------------------------------------------------------------


@lru_cache
def _file(name: str) -> str:
    return files("sfumato.apps.report").joinpath(name).read_text(encoding="utf8")


def _head(name: str) -> Html:
    """Only our own script may run, whatever else might be in the page, and nothing may be loaded."""
    code = base64.b64encode(hashlib.sha256(_file("script.js").encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{code}'"
    return el(
        "head",
        None,
        el("meta", {"charset": "utf-8"}),
        el("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        el("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        el("meta", {"name": "color-scheme", "content": "light dark"}),
        el("meta", {"name": "referrer", "content": "no-referrer"}),
        el("title", None, name),
        el("style", None, Html(_file("style.css"))),
    )


def _script() -> Html:
    return el("script", None, Html(_file("script.js")))


def _footer() -> Html:
    return el("footer", None, join(["Made by sfumato report. Everything is in this file; it loads nothing."]))
