"""`sfumato papers [NAME]`: what can be trained. The table is read from the docstrings without importing torch."""

from __future__ import annotations

import ast
import pkgutil
import re
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from tyro.conf import Positional

from sfumato import papers as package
from sfumato.cli.parse import option, parse
from sfumato.cli.show import rows, table

__all__ = ["Entry", "entries", "entry", "run"]


@dataclass(frozen=True)
class Papers:
    """The papers that can be trained; with a NAME, that paper's presets and config in full."""

    name: Annotated[str, Positional, option("a paper, as in the table", "[NAME]", "")] = ""


class Entry(NamedTuple):
    """What a paper's docstring says: "Title. Authors Year. arXiv:ID." and a text."""

    name: str
    title: str
    authors: str
    year: str
    arxiv: str
    text: str


def run(args: list[str]) -> int:
    name = parse(Papers, "papers", args).name
    print(_in_full(name) if name else _all())
    return 0


def entries() -> list[Entry]:
    """Every paper, sorted by name."""
    folders = list(package.__path__)
    found = [module.name for module in pkgutil.iter_modules(folders) if module.name[0] != "_"]
    return [_read(name, Path(folders[0]) / f"{name}.py") for name in sorted(found)]


def entry(name: str) -> Entry | None:
    """The paper `name`, if there is one."""
    return next((found for found in entries() if found.name == name), None)


def _read(name: str, path: Path) -> Entry:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf8"))) or name
    first, _, text = doc.partition("\n")
    found = re.fullmatch(r"(.+?)\. (.+?),? ((?:19|20)\d\d)\.?(?: arXiv:(\S+?))?\.?", first.strip())
    title, authors, year, arxiv = found.groups("") if found else (first, "", "", "")
    return Entry(name, title, authors, year, arxiv, text.strip())


def _all() -> str:
    lines = [("NAME", "YEAR", "ARXIV", "TITLE"), *((e.name, e.year, e.arxiv, e.title) for e in entries())]
    return f"{table(lines)}\n\n`sfumato papers NAME` shows its presets; `sfumato train NAME DATA` trains it."


def _in_full(name: str) -> str:
    from sfumato.registry import paper

    found = paper(name)
    presets = rows((preset, _preset(value)) for preset, value in found.presets.items())
    first, preset = next(iter(found.presets.items()))
    return (
        f"{found.doc.strip()}\n\nPresets (--preset NAME):\n{presets}\n\n"
        f"Config of '{first}' (--config.FIELD VALUE; shape and classes follow the data):\n"
        f"{rows(_fields(preset.config))}"
    )


def _preset(preset: Any) -> str:
    t = preset.training
    told = f"{preset.note}\n{t.steps:,} steps of {t.batch}, lr {t.lr:g} ({t.decay}), ema {t.ema:g} ({t.ema_rule})"
    figures = [f"{p.metric} {p.value:g}" + (f" ({p.sampler})" if p.sampler else "") for p in preset.published]
    return told + (f"\npublished for {preset.published[0].data}: {'; '.join(figures)}" if figures else "")


def _fields(config: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Name and value of every field, nested ones with a dot."""
    out = []
    for field in fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        out += _fields(value, f"{name}.") if is_dataclass(value) else [(name, _plain(value))]
    return out


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) or "(none)" if isinstance(value, tuple) else str(value)
