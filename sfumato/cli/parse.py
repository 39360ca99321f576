"""tyro on frozen dataclasses, with every complaint turned into one UserError."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import tyro
from tyro import conf

from sfumato.errors import UserError

__all__ = ["known_flags", "nearest", "option", "parse"]

T = TypeVar("T")
MOST = 2**63 - 1  # what every file that remembers it, and torch, can hold
STYLE = (conf.FlagCreatePairsOff, conf.DisallowNone)


def option(text: str, metavar: str | None = None, default: str | None = None, *, name: str | None = None) -> Any:
    """How an option appears in the help. `default` says in words what happens without it ("" says nothing)."""
    hint = None if default is None else default and f"(default: {default})"
    return conf.arg(help=text, metavar=metavar, help_behavior_hint=hint, name=name)


def parse(
    kind: type[T], verb: str, args: Sequence[str], *, examples: str = "", default: Any = tyro.MISSING_NONPROP
) -> T:
    """The dataclass `kind` filled from `args`; what they do not give is as in `default`, if there is one. Raises
    UserError; `--help` prints and raises SystemExit(0)."""
    complaint = io.StringIO()
    style = STYLE if default is tyro.MISSING_NONPROP else STYLE[1:]  # what is on can be said again, or taken back
    try:
        with contextlib.redirect_stderr(complaint):
            value, unknown = tyro.cli(
                kind, prog=f"sfumato {verb}", args=list(args), default=default, config=style, return_unknown_args=True
            )
    except SystemExit as stop:
        if stop.code:
            raise UserError(_one_sentence(complaint.getvalue(), verb)) from None
        print(examples)
        raise
    if unknown:
        raise UserError(_unknown(unknown, known_flags(kind), verb))
    for name, number in _numbers(value):
        if not -MOST <= number <= MOST:
            raise UserError(f"{name} is {str(number)[:20]}...: no number here is larger than {MOST:,}.")
    out: T = value
    return out


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """The whole numbers in a dataclass, with their names."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _numbers(getattr(value, field.name), field.name)
    elif isinstance(value, tuple):
        for one in value:
            yield from _numbers(one, name)
    elif isinstance(value, int):
        yield name, value


def known_flags(kind: type[Any]) -> list[str]:
    """Every --option of a dataclass."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"], config=STYLE)
    flags = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w|(?<![\w-])--[a-z]", text.getvalue()))
    return sorted(flag for flag in flags if not flag.endswith(".FIELD"))


def nearest(word: str, choices: Sequence[str], otherwise: str = "") -> str:
    """ " did you mean 'x'?" or something else to say."""
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" did you mean '{near[0]}'?" if near else otherwise


def _unknown(unknown: Sequence[str], flags: Sequence[str], verb: str) -> str:
    flag = next((word for word in unknown if word.startswith("-")), "")
    hint = f"`sfumato {verb} --help` lists what there is."
    if not flag:
        return f"sfumato {verb} does not know what to do with '{unknown[0]}': {hint}"
    name = flag.split("=")[0]
    return f"sfumato {verb} has no option {name}:" + nearest(name.replace("_", "-"), flags, f" {hint}")


def _one_sentence(box: str, verb: str) -> str:
    """The first paragraph of tyro's box, as a sentence of ours where its kind is known."""
    rows = [row.strip("│ ") for row in box.splitlines()]
    titled = 2 if len(rows) > 1 and rows[1].startswith("---") else 0  # where the terminal has no line drawing
    body = [row for row in rows[titled:] if row and row[0] not in "╭╰"]
    cut = next((i for i, row in enumerate(body) if row.startswith(("──", "---", "Got errors"))), len(body))
    said, after = " ".join(body[:cut]), [row for row in body[cut:] if re.match(r"--[a-z]", row)]
    see = f"see `sfumato {verb} --help`."
    if found := re.search(r"Error parsing (\S+): .*?(?:from \[(.*)\]|: ('.*'))\.?$", said):
        return f"{found[1]} cannot be {found[2] or found[3]}: {f'give {after[0]}' if after else see}"
    if found := re.search(r"Error parsing config\S*: (.*)$", said):  # its __post_init__
        return f"{found[1].rstrip('.')}: give another --config.FIELD, or none."
    if found := re.search(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)", said):
        choices = [choice for choice in re.findall(r"'([^']*)'", found[3]) if choice != "None"]
        return f"{found[2]} cannot be '{found[1]}':{nearest(found[1], choices)} Choose one of {', '.join(choices)}."
    if found := re.search(r"Missing value for argument '(.*)'", said):
        return f"{found[1]} needs a value: {see}"
    return said or f"the command was not understood: {see}"
