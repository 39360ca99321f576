"""Two sets of pictures compared one with one, by their names: SSIM, PSNR, Dice, LPIPS."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.metrics.features import rgb
from sfumato.metrics.pairs import dice, psnr, ssim
from sfumato.metrics.receipt import Figure
from sfumato.metrics.reference import key
from sfumato.metrics.shelf import Ints, Processes, rows_of
from sfumato.metrics.sources import Source
from sfumato.networks.perceptual import LPIPS

__all__ = ["PAIRED", "Judge", "Matching", "compare", "judge", "match", "mean_figure"]

Measure = Callable[[Tensor, Tensor], Tensor]  # uint8 (B, C, *S) twice to (B,)


class Judge(NamedTuple):
    """A measure of two pictures, who it is (for LPIPS), and which way is better."""

    measure: Measure
    features: str = ""
    lower_is_better: bool = False


def _unit(x: Tensor) -> Tensor:
    return x.float() / 255


PAIRED: dict[str, Judge] = {
    "ssim": Judge(lambda x, y: ssim(_unit(x), _unit(y))),
    "psnr": Judge(lambda x, y: psnr(_unit(x), _unit(y))),
    "dice": Judge(lambda x, y: dice(_unit(x), _unit(y))),
}
"""Without LPIPS, whose weights somebody has to give: `judge`."""


def judge(lpips: LPIPS, name: str) -> Judge:
    """LPIPS of `open_lpips` as a measure of levels."""

    @torch.no_grad()
    def measure(x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = lpips(*(rgb(of, "LPIPS").float() / 127.5 - 1 for of in (x, y)))
        return found

    return Judge(measure, name.removeprefix("LPIPS "), lower_is_better=True)


@dataclass(frozen=True)
class Matching:
    """Positions (P,) of the pairs in both sets, and the names that have no partner."""

    left: Ints
    right: Ints
    alone: tuple[tuple[str, ...], tuple[str, ...]]


def match(left: Sequence[str], right: Sequence[str]) -> Matching:
    """Pairs of equal names; where the files are of different kinds, of equal names but for the ending. A name that
    fits several is alone. Raises UserError for no pair at all."""
    one, other = _places(left), _places(right)
    both = sorted(one.keys() & other.keys(), key=one.__getitem__)
    if not both:
        raise UserError(
            f"no picture of one has the name of a picture of the other (such as '{left[0]}' and '{right[0]}'): ssim, "
            "psnr, dice and lpips compare pictures of equal names. Two sets without pairs are compared by fid, kid, pr."
        )
    places = np.array([(one[name], other[name]) for name in both], np.int64)
    taken = set(places[:, 0].tolist()), set(places[:, 1].tolist())
    names = (
        (name for i, name in enumerate(of) if i not in done) for of, done in zip((left, right), taken, strict=True)
    )
    return Matching(places[:, 0], places[:, 1], (tuple(next(names)), tuple(next(names))))


def _places(names: Sequence[str]) -> dict[str, int]:
    """Each name without its ending, if no other has it."""
    bare = [os.path.splitext(name)[0] for name in names]
    often = Counter(bare)
    return {name: i for i, name in enumerate(bare) if often[name] == 1}


def compare(
    made: Source,
    reference: Source,
    pairs: Matching,
    judges: Mapping[str, Judge],
    *,
    batch: int = 64,
    show: Callable[[int, int], None] = lambda done, total: None,
    keep: Path | None = None,
    world: Processes | None = None,
) -> tuple[Figure, ...]:
    """The mean of each judge over the pairs, with its standard error and 95 % interval. Raises UserError for pictures
    that a judge cannot look at."""

    def look(positions: Ints) -> dict[str, Tensor]:
        x, y = made.batch(pairs.left[positions]), reference.batch(pairs.right[positions])
        return {name: judge.measure(x, y).float()[:, None] for name, judge in judges.items()}

    about = {
        "pairs": [made.fingerprint, reference.fingerprint],
        "judges": {name: judge.features for name, judge in judges.items()},
        "places": hashlib.blake2b(pairs.left.tobytes() + pairs.right.tobytes(), digest_size=8).hexdigest(),
    }
    folder = keep / key({"matched": json.dumps(about)}) if keep else None
    n = np.arange(len(pairs.left))
    rows = rows_of(n, tuple(judges), look, keep=folder, batch=batch, world=world, show=show)
    return tuple(
        mean_figure(name, rows[name][:, 0], judge.features, lower_is_better=judge.lower_is_better)
        for name, judge in judges.items()
    )


def mean_figure(name: str, values: Tensor, features: str = "", *, lower_is_better: bool = False) -> Figure:
    """A figure of one number for each pair, (P,); infinite ones (PSNR of equal pictures) are counted, not averaged."""
    finite, warning = values[values.isfinite()].double(), ""
    n, equal = len(finite), len(values) - len(finite)
    if not n:
        return Figure(name, math.inf, equal, equal, features, lower_is_better=lower_is_better, warning="All are equal.")
    if equal:
        warning = f"{equal:,} of {len(values):,} pairs are equal, and {name} infinite there: the mean is of the others."
    mean, error = float(finite.mean()), float(finite.std() / math.sqrt(n)) if n > 1 else None
    low, high = (None, None) if error is None else (mean - 1.96 * error, mean + 1.96 * error)
    return Figure(name, mean, n, n, features, error, low, high, lower_is_better=lower_is_better, warning=warning)
