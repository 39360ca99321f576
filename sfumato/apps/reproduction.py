"""A paper's figures beside ours: what was published, what we measured, and why the two may not compare."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sfumato.core.random import Seeds
from sfumato.engine.run import RunFolder, read_config
from sfumato.errors import UserError
from sfumato.metrics.receipt import Figure
from sfumato.pixels import Pixels
from sfumato.recipe import Preset, Published, Recipe

__all__ = [
    "BITS",
    "Done",
    "Row",
    "beside",
    "call_seconds",
    "name_of_receipt",
    "same_data",
    "training_cost",
]

BITS = "bits"  # of `sfumato likelihood`, not of `sfumato evaluate`
PROBED = 16  # pictures


@dataclass(frozen=True)
class Done:
    """How ours was made, as far as a paper's protocol says something of it.

    data      as the user calls it
    shape     (C, *S) of the pictures
    training  config.yaml's: steps and batch among others
    sampler   in words
    """

    data: str
    shape: tuple[int, ...]
    training: dict[str, Any]
    sampler: str


class Row(NamedTuple):
    """A published figure beside ours. `apart`: why they do not compare; empty: they do."""

    published: Published | None
    ours: Figure | None
    apart: tuple[str, ...] = ()


def beside(preset: Preset, figures: Sequence[Figure], done: Done) -> list[Row]:
    """Every published figure with ours of that name, where we have it, then what only we measured."""
    ours = {figure.metric: figure for figure in figures}
    rows = [Row(one, ours.get(one.metric), tuple(_reasons(one, ours.get(one.metric), preset, done)))
            for one in preset.published]  # fmt: skip
    told = {one.metric for one in preset.published}
    return rows + [Row(None, figure) for figure in figures if figure.metric not in told]


def _reasons(theirs: Published, ours: Figure | None, preset: Preset, done: Done) -> Iterable[str]:
    """Each a clause: what of their protocol ours departs from."""
    if ours is None:
        yield "not measured here"
        return
    if not ours.features.startswith("inception"):
        yield f"other features than Inception's ({ours.features.partition(' ')[0] or 'none'})"
    if theirs.n is not None and theirs.n != ours.n:
        yield f"n = {ours.n:,} for {theirs.n:,}"
    elif theirs.n is None and ours.n < 50_000:
        yield f"n = {ours.n:,}, and papers mostly take 50,000"
    if not same_data(theirs.data, done.data):
        yield f"other data than {theirs.data}"
    yield from _departures(preset, done)
    if theirs.sampler:
        yield f"theirs is by {theirs.sampler}, ours by {done.sampler}"


def _departures(preset: Preset, done: Done) -> Iterable[str]:
    if tuple(done.shape) != tuple(preset.config.shape):
        yield f"pictures of {_size(done.shape)} for {_size(preset.config.shape)}"
    for name, word in (("steps", "training steps"), ("batch", "pictures a step")):
        had, due = done.training.get(name), getattr(preset.training, name)
        if had is not None and had < due:
            yield f"{had:,} {word} for {due:,}"


def same_data(theirs: str, ours: str) -> bool:
    """Whether a path may be the data set that a paper names: its words are in it, as CIFAR-10 in data/cifar10.npz."""
    words = re.findall(r"[a-z0-9]+", theirs.partition(",")[0].partition(" at ")[0].lower())
    return re.search("".join(words) + r"(?![0-9])", re.sub(r"[^a-z0-9]", "", ours.lower())) is not None


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape[:0:-1])) + {1: ", gray", 3: ", colour"}.get(shape[0], "")


# -- cost --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def call_seconds(recipe: Recipe, pictures: int = PROBED) -> float | None:
    """Seconds that one call of the network takes for one of several pictures; None where it cannot be timed so."""
    if not isinstance(recipe, Pixels):
        return None
    denoiser, device = recipe.denoiser, next(recipe.parameters()).device
    x = denoiser.process.prior((pictures, *recipe.config.shape), Seeds(0), device=device)
    cond = recipe.label and recipe.label.null(pictures)
    was, taken = recipe.training, []
    recipe.eval()
    for _ in range(3):
        start = time.perf_counter()
        float(denoiser(x, 0.5, cond).x0.sum())  # waits for a GPU
        taken.append(time.perf_counter() - start)
    recipe.train(was)
    return min(taken) / pictures


def training_cost(home: Path) -> dict[str, Any]:
    """steps, images and seconds of a run, from its metrics; {} where it kept none."""
    lines = _lines(home.parent if home.name == "final" else home)
    last = lines[-1] if lines else {}
    training = read_config(home).get("training") or {}
    found = {"steps": last.get("step", training.get("steps")), "images": last.get("images"), "seconds": _spent(lines)}
    return {name: value for name, value in found.items() if value is not None}


def _lines(home: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that were written while it trained."""
    path = RunFolder(home).metrics
    text = path.read_text("utf-8", errors="replace") if path.is_file() else ""
    found = []
    for line in text.splitlines():
        with suppress(ValueError):
            told = json.loads(line)
            if isinstance(told, dict) and all(type(told.get(name)) in (int, float) for name in TIMED):
                found.append(told)
    return found


TIMED = ("step", "images", "seconds", "rate")


def _spent(lines: Sequence[dict[str, Any]]) -> float | None:
    """Seconds of the whole training. Those of a line count from where the run was begun or last resumed, as its rate
    (images per second) does: over interruptions each stretch is counted at the rate of its line."""
    if not lines:
        return None
    last = lines[-1]
    if abs(last["seconds"] * last["rate"] - last["images"]) <= 0.02 * last["images"]:
        return float(last["seconds"])
    images = [0, *(line["images"] for line in lines)]
    stretches = zip(pairwise(images), lines, strict=True)
    spent: float = sum((b - a) / line["rate"] for (a, b), line in stretches if b > a and line["rate"] > 0)
    return round(spent, 3)


def name_of_receipt(digest: str, data: str, n: int, seed: int, features: str, metrics: Sequence[str], walk: str) -> str:
    """The same for the same question: a receipt that is there already is not measured again. Raises UserError for a
    file of features that is not there."""
    path = Path(features.partition(":")[2] or features)
    weights = ""
    if path.is_file():
        try:
            weights = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(f"--features '{path}' cannot be read: {(error.strerror or '').lower()}.") from None
    asked = json.dumps([digest, data, n, seed, features, weights, sorted(metrics), walk])
    return f"reproduce_{hashlib.sha256(asked.encode()).hexdigest()[:12]}.json"
