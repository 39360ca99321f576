"""The page of what we measured, from the receipts: python benchmarks/receipts_page.py

Reads benchmarks/runs/NAME/evaluation/*.json and benchmarks/receipts/NAME/*.json, and writes docs/receipts.md: a table
for each data set and features, and the spread where a run was trained from several seeds (NAME, NAME_s1, NAME_s2)."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from sfumato.cli.show import duration
from sfumato.metrics.figures import title
from sfumato.metrics.receipt import Figure, Receipt

ROOT = Path(__file__).parent.parent
HEAD = """\
# What we measured

Figures of trained runs, each from its receipt: the runs in `benchmarks/runs/`, whose weights are here, and others, of
which the receipts alone are kept (`benchmarks/receipts/`). Every run is measured against all pictures that it was
trained on, by samples of its averaged weights, from the seed in the table onward, rounded to 256 levels.

**Figures compare within one table**, which has one data set and one kind of features. None is an FID: no Inception
network was at hand. In brackets: the 95 % interval of the distance at infinite n and of KID. *Floor*: the same figure
for as many real pictures, so what lies near it is as good as can be told at this n; for precision and recall it is the
ceiling. `sfumato evaluate RUN DATA` measures any run like this; [reproduce.md](reproduce.md) tells how to meet a
paper's figure, and [field.md](field.md) has those of others.
"""
SPREAD = """
## From seed to seed

The same training from several seeds: mean and standard deviation over the runs, which is what a difference between two
rows above should be held against.

"""
END = """
Written by `benchmarks/receipts_page.py` from the receipts that `benchmarks/receipts.py` writes.
"""


class Kept(NamedTuple):
    """A receipt and the run that it is of."""

    run: str
    receipt: Receipt

    @property
    def features(self) -> str:
        return self.receipt.figures[0].features

    @property
    def reference(self) -> tuple[str, str]:
        """Name and size of the data set, and its fingerprint."""
        told = self.receipt.reference
        return f"{told.get('name', '?')}, {told.get('size', 0):,} pictures of {told.get('pixels', '?')}", (
            str(told.get("fingerprint", ""))
        )

    @property
    def walk(self) -> str:
        told = self.receipt.samples
        calls = f", {told['calls']:g} calls" if "calls" in told else ""
        return f"{told.get('sampler', 'its own')}, {told['steps']} steps{calls}" if "steps" in told else "its own way"


def kept(root: Path) -> list[Kept]:
    """Every receipt, by run. Raises UserError for a file that is none."""
    places = [*root.glob("runs/*/evaluation/*.json"), *root.glob("receipts/*/*.json")]
    names = {path: path.parent.parent.name if path.parent.name == "evaluation" else path.parent.name for path in places}
    found = [Kept(names[path], Receipt.read(path)) for path in sorted(places)]
    return sorted(found, key=lambda one: (one.run, one.walk))


def page(found: Sequence[Kept]) -> str:
    tables: dict[tuple[str, str, str], list[Kept]] = defaultdict(list)
    for one in found:
        tables[*one.reference, one.features].append(one)
    text, last = HEAD, ""
    for (reference, _, features), rows in sorted(tables.items()):
        text += f"\n## {reference}\n" if reference != last else ""
        last = reference
        text += f"\nFeatures: {features or 'none'}.\n\n{table(rows)}{_warnings(rows)}"
    spread = "".join(_spread(*key[::2], rows) for key, rows in sorted(tables.items()))
    return text + (SPREAD + spread if spread else "") + END


def table(rows: Sequence[Kept]) -> str:
    metrics = list(dict.fromkeys(figure.metric for one in rows for figure in one.receipt.figures))
    lines = [["run", "sampled", *map(_short, metrics), "n", "from seed", "training", "sampling", "date", "commit"]]
    for one in rows:
        by = {figure.metric: figure for figure in one.receipt.figures}
        cells = [_figure(by[metric]) if metric in by else "" for metric in metrics]
        n = next(iter(by.values())).n
        made, samples = one.receipt.made, one.receipt.samples
        date, commit = str(made.get("date", ""))[:10], str(made.get("commit", ""))
        cost = [_training(one.receipt), _seconds(one.receipt.cost.get("sampling"))]
        lines.append([one.run, one.walk, *cells, f"{n:,}", str(samples.get("seed", "")), *cost, date, commit])
    head, *body = lines
    return f"{_line(head)}{_line(['---'] * len(head))}{''.join(map(_line, body))}"


def _short(metric: str) -> str:
    """What a column is called; the features stand above the table."""
    return title(Figure(metric, 0.0, 0))


def _figure(figure: Figure) -> str:
    known = figure.low is not None and figure.high is not None
    interval = f" ({figure.low:.3g} to {figure.high:.3g})" if known else ""
    floor = f", floor {figure.floor:.3g}" if figure.floor and not figure.metric.endswith(".infinity") else ""
    return f"{figure.value:.3g}{interval}{floor}"


def _training(receipt: Receipt) -> str:
    told = receipt.cost.get("training") or {}
    steps = f"{told['steps']:,} steps" if "steps" in told else ""
    return ", ".join(filter(None, [steps, _seconds(told.get("seconds"))]))


def _seconds(value: object) -> str:
    return duration(float(value)) if isinstance(value, int | float) else ""


def _warnings(rows: Sequence[Kept]) -> str:
    told = dict.fromkeys(figure.warning for one in rows for figure in one.receipt.figures if figure.warning)
    return "\n" + "".join(f"- {warning}\n" for warning in told) if told else ""


def _spread(reference: str, features: str, rows: Sequence[Kept]) -> str:
    """Runs that differ in the seed alone."""
    groups: dict[tuple[str, str, int], list[Kept]] = defaultdict(list)
    for one in rows:
        groups[re.sub(r"_s\d+$", "", one.run), one.walk, one.receipt.figures[0].n].append(one)
    several = {key: ones for key, ones in groups.items() if len({one.run for one in ones}) > 1}
    if not several:
        return ""
    metrics = list(dict.fromkeys(f.metric for ones in several.values() for one in ones for f in one.receipt.figures))
    lines = [["run", "seeds", "sampled", *map(_short, metrics), "n"]]
    for (run, walk, n), ones in several.items():
        lines.append([run, str(len(ones)), walk, *(_mean(ones, metric) for metric in metrics), f"{n:,}"])
    head, *body = lines
    what = f"{reference.partition(',')[0]}, {features.partition(' ')[0]}"
    return f"{what}:\n\n{_line(head)}{_line(['---'] * len(head))}{''.join(map(_line, body))}\n"


def _mean(ones: Sequence[Kept], metric: str) -> str:
    values = [figure.value for one in ones for figure in one.receipt.figures if figure.metric == metric]
    return f"{statistics.mean(values):.3g} ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    (ROOT / "docs/receipts.md").write_text(page(kept(ROOT / "benchmarks")), encoding="utf-8")


if __name__ == "__main__":
    main()
