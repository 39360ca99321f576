"""`sfumato cite NAME|RUN`: BibTeX from the docstring of a paper file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from sfumato.cli.papers import Entry, entries, entry
from sfumato.cli.parse import nearest, option, parse
from sfumato.errors import UserError

__all__ = ["bibtex", "run"]


@dataclass(frozen=True)
class Cite:
    """BibTeX of a paper, or of the paper that a run was trained with."""

    what: Annotated[str, Positional, option("a paper as in `sfumato papers`, or a run's folder", "NAME|RUN", "")] = ""


def run(args: list[str]) -> int:
    what = parse(Cite, "cite", args).what
    if not what:
        raise UserError("cite what? Give a paper or a run, as in `sfumato cite ddpm`.")
    print(bibtex(entry(what) or _of_run(what)))
    return 0


def _of_run(what: str) -> Entry:
    if not Path(what).is_dir():
        hint = nearest(what, [e.name for e in entries()], " `sfumato papers` lists the papers.")
        raise UserError(f"there is no paper and no run folder called '{what}':{hint}")
    from sfumato.cli.runs import described, find_run

    name = described(find_run(what, "cite"))["paper"]
    found = entry(name)
    if found is None:
        raise UserError(f"'{what}' was trained with '{name}', a paper that this sfumato does not have: update sfumato.")
    return found


def bibtex(e: Entry) -> str:
    """@article with the arXiv number where there is one."""
    authors = [name.strip() for name in re.split(r",|&| and ", e.authors) if name.strip()]
    key = f"{(authors or [e.name])[0].split()[-1].lower()}{e.year}{e.name}"
    lines = [("title", f"{{{e.title}}}"), ("author", " and ".join(authors)), ("year", e.year)]
    if e.arxiv:
        lines += [("eprint", e.arxiv), ("archivePrefix", "arXiv"), ("journal", f"arXiv preprint arXiv:{e.arxiv}")]
    body = ",\n".join(f"  {name} = {{{value}}}" for name, value in lines if value)
    return f"@article{{{key},\n{body}\n}}"
