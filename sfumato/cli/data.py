"""`sfumato data check DATA`, `sfumato data explore DATA`: looking at data before a model is trained on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional

from sfumato.cli.flags import DataFlags
from sfumato.cli.parse import known_flags, option, parse
from sfumato.cli.progress import Progress
from sfumato.data.check import as_dict, check, render
from sfumato.errors import UserError

__all__ = ["run"]


@dataclass(frozen=True)
class Check:
    """Look at every picture once: sizes, classes, captions, copies, what would be skipped and why, and what training
    would make of the rest."""

    source: Annotated[
        str, Positional, option("a folder, .parquet, .npz, .zip, hf:NAME, digits or glyphs", "DATA", "")
    ] = ""
    json: Annotated[bool, option("one JSON object, for programs")] = False
    data: OmitArgPrefixes[DataFlags] = field(default_factory=DataFlags)


def run(args: list[str]) -> int:
    verb, rest = (args[0], args[1:]) if args else ("", [])
    if verb in ("", "-h", "--help"):
        print(_overview())
        return 0
    if verb not in VERBS:
        raise UserError(f"there is no `sfumato data {verb}`: there are `data check DATA` and `data explore DATA`.")
    return VERBS[verb](rest)


def _overview() -> str:
    from sfumato.cli.explore import Explore

    lists = {"check": known_flags(Check), "explore": known_flags(Explore)}
    return (
        "sfumato data check DATA: everything worth knowing before a model is trained on it.\n"
        "sfumato data explore DATA: the data room, a page in the browser.\n\n"
        + "\n".join(f"{verb}: {' '.join(flag for flag in flags if flag[:2] == '--')}" for verb, flags in lists.items())
        + "\n\n`sfumato data check --help` and `sfumato data explore --help` explain."
    )


def _check(args: list[str]) -> int:
    flags = parse(Check, "data check", args)
    if not flags.source:
        raise UserError("data check needs data, as in `sfumato data check photos/`.")
    with Progress("looking at pictures", quiet=flags.json) as show:
        report = check(flags.source, flags.data.options(), show)
    print(json.dumps(as_dict(report), indent=2) if flags.json else render(report))
    return 0


def _explore(args: list[str]) -> int:
    from sfumato.cli.explore import explore

    return explore(args)


VERBS: dict[str, Callable[[list[str]], int]] = {"check": _check, "explore": _explore}
