"""The page of the field's figures, from benchmarks/field.yaml: python benchmarks/field_page.py

Writes docs/field.md: a table for each data set and resolution, with the source of every row and how it was checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
METRICS = ("FID", "sFID", "IS", "precision", "recall", "FVD", "bits/dim", "bits/dim <=")
HEAD = """\
# The field's figures

{figures} figures of {systems} systems on {sets},
as their authors or others published them. None is from memory: each was read again, and the last column says where:

{checks}

They compare within a table at best, and often not even there: Inception networks, resizing, the number of samples and
the reference differ between papers. A dash is a figure that we found in no source; n is empty where the source does not
say it. Lower is better, but for IS, precision and recall. Ours, with their intervals, features and costs, are in
[receipts.md](receipts.md).
"""
END = """
Written by `benchmarks/field_page.py` from `benchmarks/field.yaml`.
"""


def read(path: Path) -> dict[str, Any]:
    """The data; raises ValueError for a row that lacks a source, a check or a figure, or is there twice."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    data: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), loader)
    seen = set()
    for row in data["rows"]:
        if row["source"] not in data["sources"] or row["checked"] not in data["checks"]:
            raise ValueError(f"no source or no check: {row}")
        if not row["figures"] or not set(row["figures"]) <= set(METRICS):
            raise ValueError(f"no figures, or of no known metric: {row}")
        key = tuple(row[name] for name in ("system", "data", "resolution", "guidance", "sampled", "source"))
        if key in seen:
            raise ValueError(f"twice: {key}")
        seen.add(key)
    return data


def page(data: Mapping[str, Any]) -> str:
    rows = data["rows"]
    sets = list(dict.fromkeys(row["data"].partition(",")[0] for row in rows))
    text = HEAD.format(
        figures=sum(len(row["figures"]) for row in rows),
        systems=len({row["system"] for row in rows}),
        sets=", ".join(sets[:-1]) + f" and {sets[-1]}",
        checks="\n".join(f"- *{name}*: {words}" for name, words in data["checks"].items()),
    )
    for of, resolution in dict.fromkeys((row["data"], row["resolution"]) for row in rows):
        mine = [row for row in rows if (row["data"], row["resolution"]) == (of, resolution)]
        title = f"{of}, {resolution} x {resolution}" if resolution else of
        text += f"\n## {title}\n\n{table(mine, data['sources'])}"
    return f"{text}\n## Sources\n\n{sources(data['sources'])}{END}"


def sources(of: Mapping[str, Any]) -> str:
    """Who, what and where, by name."""
    lines = sorted(f"- {one['by']}: {one['title']}. <{one['url']}>\n" for one in of.values())
    return "".join(lines)


def table(rows: list[dict[str, Any]], sources: Mapping[str, Any]) -> str:
    metrics = [metric for metric in METRICS if any(metric in row["figures"] for row in rows)]
    lines = [["system", "guidance", "sampled", *metrics, "n", "source", "checked"]]
    for row in rows:
        source = sources[row["source"]]
        what = ", code" if "github.com" in source["url"] else ""
        where = f"[{source['by']}{what}]({source['url']})" + (f", {row['table']}" if row["table"] else "")
        figures = [_number(row["figures"].get(metric)) for metric in metrics]
        n = f"{row['n']:,}" if row["n"] else ""
        lines.append([row["system"], row["guidance"], row["sampled"], *figures, n, where, row["checked"]])
    head, *body = lines
    return f"{_line(head)}{_line(['---'] * len(head))}{''.join(map(_line, body))}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".rstrip("0").ljust(4, "0") if value < 10 else f"{value:.2f}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    (ROOT / "docs/field.md").write_text(page(read(ROOT / "benchmarks/field.yaml")), encoding="utf-8")


if __name__ == "__main__":
    main()
