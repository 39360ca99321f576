"""metrics.jsonl and log.txt, read with patience: of a run that goes on, was cut short or is old."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sfumato.apps.report.facts import History, Series
from sfumato.engine.run import read_small

__all__ = ["read_history", "read_warnings"]

MOST = 256 << 20  # bytes of either file
WARNINGS = (  # (what log.txt says, what the report says): file names and paths in it stay where they are
    (r"is not finite in step ([\d,]+)", "a step had no finite loss or gradient and was skipped"),
    (r"The pictures of step ([\d,]+) look like noise", "preview pictures looked like noise"),
    (r"^Step ([\d,]+): the loss, .* untrained model's", "the loss was above that of an untrained model"),
    (r"The average has a memory of", "the average of the weights remembers more steps than the run has"),
    (r"No gradient reaches", "some parameters got no gradient"),
    (r"There is one example to train on", "there was one example to train on"),
    (r"examples are all the same", "the examples were all the same"),
    (r"These pictures are of one colour", "the pictures were of one colour"),
    (r"is larger than the data \(", "the batch was larger than the data"),
    (r"The data is not what it was", "files of the data changed or went missing during the run"),
    (r"Out of memory with", "memory was short, so that batches were worked through in smaller parts"),
    (r"The pictures of step ([\d,]+) do not fit into memory", "preview pictures did not fit into memory"),
    (r"could not be (?:written|saved)", "a file could not be written"),
    (r"Falling back to the checkpoint before it", "a damaged checkpoint was passed over"),
    (r"torch\.compile failed", "torch.compile failed, and the run went on without it"),
    (r"^Ended: ", "the run ended with an error"),
)


def read_history(path: Path) -> History:
    """The numbers of a run; an empty History where there is no file. Lines that are no numbers are passed over, and of
    two of the same step the later counts."""
    series: dict[str, dict[int, float]] = {}
    levels: dict[int, dict[int, float]] = {}
    bins, seconds, before = 1, 0.0, 0.0
    for line in _lines(path):
        step = line["step"]
        for name, value in line.items():
            if name != "step" and _finite(value):
                series.setdefault(name, {})[step] = float(value)
        found = line.get("levels")
        found = found if isinstance(found, list) else []
        bins = max(bins, len(found))
        for i, value in enumerate(found):
            if _finite(value):
                levels.setdefault(i, {})[step] = float(value)
        now = float(line["seconds"]) if _finite(line.get("seconds")) else before
        seconds += max(now - before if now >= before else now, 0.0)  # a session begins again at 0
        before = now
    named = {i: f"t {i / bins:.3g} to {(i + 1) / bins:.3g}" for i in range(bins)}
    return History(
        {name: _series(name, points) for name, points in series.items()},
        tuple(_series(named[i], levels[i]) for i in sorted(levels)),
        seconds,
    )


def _series(name: str, points: dict[int, float]) -> Series:
    steps = sorted(points)
    return Series(name, tuple(steps), tuple(points[step] for step in steps))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e30


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for text in _text(path).splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        step = line.get("step") if isinstance(line, dict) else None
        if type(step) is int and 0 <= step < 2**53:
            yield line


def _text(path: Path) -> str:
    try:
        return read_small(path, MOST).decode("utf-8", errors="replace")
    except OSError:
        return ""


def read_warnings(path: Path) -> tuple[str, ...]:
    """What log.txt warned of, each kind once with its count and steps; nothing that names a file."""
    steps: dict[str, list[str]] = {}
    for text in _text(path).splitlines():
        said = text[20:] if re.match(r"\d{4}-\d\d-\d\d ", text) else text
        for pattern, sentence in WARNINGS:
            if found := re.search(pattern, said):
                steps.setdefault(sentence, []).append(found[1] if found.re.groups else "")
    return tuple(_counted(sentence, at) for sentence, at in steps.items())


def _counted(sentence: str, at: list[str]) -> str:
    """A sentence with the first of its steps."""
    steps = list(dict.fromkeys(step.rstrip(",") for step in at if step))
    later = f" and {len(steps) - 6} more" if len(steps) > 6 else ""
    where = f", in step{'s' if len(steps) > 1 else ''} {', '.join(steps[:6])}{later}" if steps else ""
    times = f" ({len(at)} times)" if len(at) > max(len(steps), 1) else ""
    return f"{sentence[0].upper()}{sentence[1:]}{where}{times}."
