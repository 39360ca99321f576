"""`sfumato demo`: train on real letters, then write a word in letters that the model invented."""

from __future__ import annotations

from sfumato.apps.demo import Demo, main
from sfumato.cli.parse import parse

__all__ = ["run"]

EXAMPLES = """\
examples
  sfumato demo                      about two minutes the first time
  sfumato demo --word hello         seconds, since the trained run is kept"""


def run(args: list[str]) -> int:
    main(parse(Demo, "demo", args, examples=EXAMPLES))
    return 0
