"""The parts of the page that are words and pictures, each from the facts; None where there is nothing to say."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sfumato.apps.report.charts import number
from sfumato.apps.report.facts import Facts, Match, Moment, Nearest, Pixels, Rows, Samples
from sfumato.apps.report.markup import Html, el, image, sources
from sfumato.cli.show import amount, duration

__all__ = [
    "absent",
    "again",
    "citation",
    "definitions",
    "grids",
    "hero",
    "nearest",
    "percent",
    "run",
    "samples",
    "tiles",
    "way",
]

KB = 1000
BUDGET = {"samples": 1600 * KB, "grids": 1300 * KB, "way": 300 * KB, "nearest": 700 * KB}  # characters of pictures
MOSAIC = 16


def absent(facts: Facts, section: str) -> Html | None:
    """The sentence that stands in place of a section."""
    said = facts.missing.get(section)
    return el("p", {"class": "absent"}, *_coded(said)) if said else None


def _coded(text: str) -> list[Html | str]:
    """What stands between backticks is code."""
    return [el("code", None, part) if i % 2 else part for i, part in enumerate(text.split("`"))]


def definitions(rows: Rows) -> Html:
    return el("dl", None, *(el("div", None, el("dt", None, name), el("dd", None, value)) for name, value in rows))


# -- the top -----------------------------------------------------------------------------------------------------------


def hero(facts: Facts) -> Html:
    a = facts.about
    byline = ", ".join(filter(None, [a.authors, a.year]))
    arxiv = el("a", {"href": f"https://arxiv.org/abs/{a.arxiv}", "rel": "noreferrer"}, f"arXiv:{a.arxiv}")
    called = a.paper + (f" · {a.preset}" if a.preset else "")
    words = el(
        "div",
        None,
        el("p", {"class": "kicker"}, f"sfumato report · {called}" if a.name else "sfumato report"),
        el("h1", None, a.name or called),
        el("p", {"class": "paper"}, el("cite", None, a.title), Html("<br>") if byline else None, byline + " "),
        el("p", {"class": "paper"}, arxiv) if a.arxiv else None,
        el("p", {"class": "state"}, _state(facts)),
    )
    return el("header", {"class": "hero"}, words, _mosaic(facts.samples))


def _state(facts: Facts) -> str:
    a = facts.about
    if a.total is None:
        return f"{a.steps:,} steps." if a.steps else "How long it was trained is not recorded."
    if a.steps >= a.total:
        return f"Trained to the end: {a.total:,} steps."
    return f"Still training, or stopped: {a.steps:,} of {a.total:,} steps. What follows is how it stood then."


def _mosaic(made: Samples | None) -> Html | None:
    """Some samples as one picture."""
    if made is None or len(made.pixels) < 4:
        return None
    side = min(int(len(made.pixels) ** 0.5), int(MOSAIC**0.5))
    _, h, w, c = made.pixels.shape
    sheet = made.pixels[: side * side].reshape(side, side, h, w, c).swapaxes(1, 2).reshape(side * h, side * w, c)
    (source,) = sources([sheet], BUDGET["way"])
    kind = "mosaic crisp" if max(h, w) <= 64 else "mosaic"
    return image(source, f"{side * side} of the samples", sheet, lazy=False, more={"class": kind})


def tiles(facts: Facts) -> Html:
    a, h = facts.about, facts.history
    losses, held, skipped = h.ending("loss"), h.ending("held/model"), h.get("skipped")
    images, rate = h.get("images"), h.get("rate")
    found = [
        ("parameters", short_count(a.parameters) if a.parameters else ""),
        ("steps", f"{a.steps:,}" if a.steps else ""),
        ("pictures seen", short_count(int(images.values[-1])) if len(images) else ""),
        ("time", duration(h.seconds) if h.seconds else ""),
        ("pictures / s", number(round(rate.values[-1], 1)) if len(rate) else ""),
        ("loss", number(round(losses[0].values[-1], 4)) if losses else ""),
        ("held-out loss", number(round(held[0].values[-1], 4)) if held else ""),
        ("steps skipped", f"{skipped.values[-1]:,.0f}" if len(skipped) else ""),
    ]
    cells = [el("div", None, el("dd", None, value), el("dt", None, name)) for name, value in found if value]
    return el("dl", {"class": "tiles"}, *cells)


def short_count(n: int) -> str:
    """2.55 M, 96,000."""
    return f"{n / 1e9:.3g} G" if n >= 1e9 else f"{n / 1e6:.3g} M" if n >= 1e6 else f"{n:,}"


# -- samples -----------------------------------------------------------------------------------------------------------


def samples(made: Samples) -> list[Html]:
    found = sources(list(made.pixels), BUDGET["samples"])
    cells = [_sample(made, i, source) for i, source in enumerate(found)]
    large = " large" if max(made.pixels.shape[1:3]) > 96 else ""
    cost = f" ({amount(made.calls, 'network call')} a picture)" if made.calls else ""
    told = f"{len(cells)} pictures from the averaged weights, none left out: {made.walk}{cost}, seeds "
    told += f"{made.seeds[0]} to {made.seeds[-1]}. {made.note}"
    return [el("p", None, told.strip()), el("div", {"class": f"wall{large}", "data-wall": True}, *cells)]


def _sample(made: Samples, i: int, source: str) -> Html:
    seed, label = made.seeds[i], made.labels[i] if made.labels else ""
    name = f"seed {seed}" + (f", class {label}" if label else "")
    picture = image(source, f"Sample with {name}", made.pixels[i])
    words = el("figcaption", None, f"{seed}" + (f" · {label}" if label else ""))
    link = el("a", {"href": f"#seed-{seed}", "title": name}, picture)
    return el("figure", {"id": f"seed-{seed}", "data-name": name}, link, words)


def way(made: Samples) -> list[Html]:
    """Two rows: x_t, and the guess of x_0 from it."""
    tiles = [m.xt for m in made.way] + [m.x0 for m in made.way if m.x0 is not None]
    found = sources(tiles, BUDGET["way"])
    n = len(made.way)
    upper = [_moment(m, m.xt, found[i], "x_t") for i, m in enumerate(made.way)]
    guesses = [m for m in made.way if m.x0 is not None]
    lower = [_moment(m, m.x0, found[n + i], "the guess") for i, m in enumerate(guesses) if m.x0 is not None]
    label = f" (class {made.labels[0]})" if made.labels else ""
    told = (
        f"Seed {made.seeds[0]}{label}, {made.walk}. Above: where the walk is, all at the contrast of the finished "
        "picture. Below: the clean picture that the network guesses from there. The numbers are noise over signal, "
        "sigma / alpha."
    )
    strip = el("div", {"class": "way", "style": f"--n:{n}"}, *upper, *lower)
    return [el("p", None, told), el("div", {"class": "scroll", "tabindex": 0}, strip)]


def _moment(m: Moment, pixels: Pixels, source: str, what: str) -> Html:
    level = "picture" if m.x0 is None else number(float(f"{m.noise:.2g}"))
    alt = "The finished picture" if m.x0 is None else f"{what} at noise over signal {level}"
    words = el("figcaption", None, level) if what == "x_t" else None
    return el("figure", None, image(source, alt, pixels), words)


# -- over time ---------------------------------------------------------------------------------------------------------


def grids(facts: Facts, there: int) -> list[Html]:
    found = sources([g.pixels for g in facts.grids], BUDGET["grids"])
    frames = []
    for grid, source in zip(facts.grids, found, strict=True):
        kind = "crisp" if max(grid.pixels.shape[:2]) <= 640 else None
        picture = image(source, f"Preview at step {grid.step:,}", grid.pixels, more={"class": kind})
        frames.append(el("figure", {"data-step": grid.step}, picture, el("figcaption", None, f"step {grid.step:,}")))
    shown = f"{len(frames)} of {there} previews" if there > len(frames) else amount(len(frames), "preview")
    told = f"{shown} that training wrote, always of the same seeds and by the averaged weights of that step."
    return [el("p", None, told), el("div", {"class": "reel", "data-reel": True, "tabindex": 0}, *frames)]


# -- memorisation ------------------------------------------------------------------------------------------------------


def nearest(found: Nearest, made: Samples) -> list[Html]:
    tiles = [made.pixels[i] for i in found.samples] + [m.pixels for row in found.matches for m in row]
    addresses = iter(sources(tiles, BUDGET["nearest"]))
    own = [next(addresses) for _ in found.samples]
    cards = []
    for i, source, row in zip(found.samples, own, found.matches, strict=True):
        others = [_match(m, next(addresses)) for m in row]
        picture = image(source, f"Sample with seed {made.seeds[i]}", made.pixels[i])
        sample = el("figure", {"class": "own"}, picture, el("figcaption", None, f"seed {made.seeds[i]}"))
        cards.append(el("div", {"class": "pair"}, sample, *others))
    return [*_verdict(found), el("div", {"class": "pairs"}, *cards)]


def _match(m: Match, source: str) -> Html:
    label = f" ({m.label})" if m.label else ""
    picture = image(source, f"Training picture {m.index}{label}", np.asarray(m.pixels))
    mirror = ", mirrored" if m.mirrored else ""
    words = f"{number(float(f'{m.distance:.3g}'))}: closer than {percent(m.farther)} of pairs{mirror}"
    return el("figure", {"title": f"training picture {m.index}{label}"}, picture, el("figcaption", None, words))


def percent(share: float) -> str:
    """Never rounded up to all."""
    if share >= 1:
        return "all"
    return f"{min(100 * share, 99.99):.{2 if share > 0.99 else 1 if share > 0.9 else 0}f} %"


def _verdict(found: Nearest) -> list[Html]:
    """What the distances say, in sentences."""
    own = number(_three(found.own))
    usual = f"a third of the distance that a training picture usually has to its nearest other ({own})"
    if found.copies:
        lie = "lies" if found.copies == 1 else "lie"
        said = (
            f"{amount(found.copies, 'sample')} of {found.of} {lie} within {usual}, and half as far as from the eighth "
            "nearest: this is how a copy of a training picture looks. Judge by eye, below."
        )
    else:
        said = (
            f"None of {found.of} samples looks like a copy of a training picture: within {usual}, and half as far as "
            "from the eighth nearest."
        )
    scale = (
        f"{found.closer} of {found.of} are nearer to a training picture than 95 % of training pictures are to their "
        f"nearest other ({number(_three(found.close))}); of real pictures it would be about one in twenty."
    )
    if found.measure == "pixels":
        how = "Distance: root mean square difference of pixels in 0 to 1."
    else:
        how = "Distance: between features of lite0, among the eight nearest by pixels."
    which = "training pictures" if found.exact else "pictures given, which are not as many as the run was trained on"
    how += (
        f" Searched: all {found.examples:,} {which}. 'Closer than N % of pairs' compares with pairs of "
        "training pictures. Shown: the samples nearest to any, nearest first."
    )
    kind = "verdict bad" if found.copies else "verdict"
    return [el("p", {"class": kind}, said), el("p", None, scale), el("p", {"class": "note"}, how)]


def _three(x: float) -> float:
    return float(f"{x:.3g}")


# -- words -------------------------------------------------------------------------------------------------------------


def run(facts: Facts) -> list[Html]:
    a = facts.about
    note = el("p", None, f"Preset {a.preset}: {a.note}.") if a.note else None
    cards = [
        el("div", {"class": "card"}, el("h3", None, "Plan"), definitions(a.plan)) if a.plan else None,
        el("div", {"class": "card"}, el("h3", None, "Data"), definitions(a.data)) if a.data else None,
    ]
    table = el("details", None, el("summary", None, "every field of the config"), definitions(a.config))
    return _there([note, el("div", {"class": "cards"}, *cards), table if a.config else None])


def again(facts: Facts) -> list[Html]:
    a = facts.about
    weights: Rows = (("weights", f"SHA-256 begins {a.digest}"),) if a.digest else ()
    seeded = any(name == "seed" for name, _ in a.plan)
    note = "" if seeded else " The seed and the way the data was read are not recorded with this model."
    return [
        el("p", None, f"DATA, RUN and BASE stand for paths.{note}"),
        el("pre", {"tabindex": 0}, el("code", None, *_lines(a.commands))),
        definitions((*a.versions, *weights)),
    ]


def _lines(commands: Iterable[str]) -> list[Html | str]:
    """One a line, broken between words alone."""
    out: list[Html | str] = []
    for command in commands:
        for word in command.split(" "):
            out += [el("span", None, word), " "]
        out[-1] = "\n"
    return out[:-1]


def citation(facts: Facts) -> list[Html]:
    bibtex = facts.about.bibtex
    return [el("pre", {"tabindex": 0}, el("code", None, bibtex))] if bibtex else []


def _there(parts: Iterable[Html | None]) -> list[Html]:
    return [part for part in parts if part is not None]
