"""A judge for training: how far pictures of the model are from real ones, as KID or as a Frechet distance.

    options = Options(judge=judge(data, held, n=256), evaluate_n=256, ...)

Both are taken at a small n, which is the same at every look: good for telling one checkpoint from the next, not to be
quoted (`sfumato evaluate` measures what can be).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfumato.core.random import key
from sfumato.data import Dataset
from sfumato.data.cache import cache_folder
from sfumato.engine.judge import Verdict
from sfumato.errors import UserError
from sfumato.metrics.choose import choose
from sfumato.metrics.features import Extractor, levels
from sfumato.metrics.figures import Units, title
from sfumato.metrics.frechet import frechet, noise_floor
from sfumato.metrics.kid import kid, mmd
from sfumato.metrics.own import MOST, Own, fit, keep, kept
from sfumato.metrics.receipt import Figure
from sfumato.metrics.reference import fingerprint
from sfumato.metrics.reference import key as named
from sfumato.metrics.statistics import Moments

__all__ = ["FEWEST", "METRICS", "Distance", "judge", "looked_at", "reference_of"]

FEWEST = 16  # pictures on either side
REFERENCE = 1024  # real pictures, or as many as are made if that is more
AT_ONCE = 64
DRAWS = 8  # of a floor
GROUPS = 10  # of a jackknife
QUICK = 512  # numbers a side of a matrix whose singular values are found ten times over in a second or two
Show = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    pass


# -- distances ---------------------------------------------------------------------------------------------------------


class Metric(NamedTuple):
    """Of rows (N, D) made and (M, D) real: (value, standard error; None: not known). Of the real ones alone: what n
    perfect samples would get."""

    measure: Callable[[Tensor, Tensor], tuple[float, float | None]]
    floor: Callable[[Tensor, int], float]


def _kid(made: Tensor, real: Tensor) -> tuple[float, float | None]:
    found = kid(made, real)
    return found.value, found.error


def _kid_floor(real: Tensor, n: int) -> float:
    """Perfect samples have a KID of zero on average, so the floor is its spread: the root mean square over random
    halves of the real rows, by the law 1 / n + 1 / m of a spread about zero."""
    total, half, squares = len(real), len(real) // 2, 0.0
    for draw in range(DRAWS):
        order = torch.randperm(total, generator=torch.Generator().manual_seed(key("kid floor", draw)))
        squares += mmd(real[order[:half]], real[order[half : 2 * half]]) ** 2 / DRAWS
    return float(squares**0.5) * (1 / n + 1 / total) / (2 / half)


def _frechet(made: Tensor, real: Tensor) -> tuple[float, float | None]:
    """As it is at this n: its bias is the same at every look. A jackknife tells the error, where that takes no longer
    than a signal may wait."""
    x, y = made.double(), real.double()
    if min(*made.shape, len(real)) > QUICK:
        return _distance(x, y), None
    left_out = [[_distance(rest, y) for rest in _rests(x)], [_distance(x, rest) for rest in _rests(y)]]
    return _distance(x, y), sum((len(d) - 1) * float(torch.tensor(d).var(correction=0)) for d in left_out) ** 0.5


def _distance(x: Tensor, y: Tensor) -> float:
    """The Frechet distance of rows (N, D), (M, D) float64. With fewer rows than features by the nuclear norm of the
    centred rows' products, which is the trace of the root of both covariances' product, and quick."""
    if min(len(x), len(y)) > x.shape[1]:
        return frechet(Moments.of(x).gaussian(), Moments.of(y).gaussian())
    difference = x.mean(0) - y.mean(0)
    a, b = ((rows - rows.mean(0)) / (len(rows) - 1) ** 0.5 for rows in (x, y))
    overlap = torch.linalg.svdvals(a @ b.T).sum()
    return float(difference @ difference + a.square().sum() + b.square().sum() - 2 * overlap)


def _rests(rows: Tensor) -> Iterator[Tensor]:
    """The rows without each of ten groups of them."""
    for group in range(GROUPS):
        yield rows[torch.arange(len(rows)) % GROUPS != group]


def _frechet_floor(real: Tensor, n: int) -> float:
    return noise_floor(real, n, len(real))


METRICS = {"kid": Metric(_kid, _kid_floor), "fid": Metric(_frechet, _frechet_floor)}


# -- the judge ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Distance:
    """Called with pictures, uint8 (B, C, *S) at a time, it says how far they are from the real rows (M, D)."""

    name: str  # of METRICS
    extractor: Extractor
    real: Tensor
    what: str  # the real pictures, in words
    floor: float  # at n pictures
    n: int
    shape: tuple[int, ...]  # of a picture
    units: Units | None = None  # of the rows, for features without a scale of their own

    def __call__(self, pictures: Iterator[Tensor]) -> Verdict:
        made = torch.cat([looked_at(self.extractor, some) for some in pictures])
        made = made if self.units is None else self.units(made)
        metric = METRICS[self.name]
        value, error = metric.measure(made, self.real)
        about = f"floor {_short(self.floor)}, {self.features}, n {len(made):,}"
        text = f"{self.title} {_short(value)}{'' if error is None else f' +- {_short(error)}'} ({about})"
        return Verdict(self.name, value, error, f"{self.extractor.protocol}, {self.what}, n {len(made):,}", text)

    @property
    def title(self) -> str:
        return title(Figure(self.name, 0.0, 0, features=self.extractor.name)).partition(" (")[0]

    @property
    def features(self) -> str:
        return self.extractor.identity.partition(" (")[0]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@torch.no_grad()
def looked_at(extractor: Extractor, pictures: Tensor) -> Tensor:
    """Features (B, D) float32 on the CPU of uint8 (B, C, *S). Raises UserError for pictures that it cannot read."""
    place = next(extractor.parameters(), torch.empty(0)).device
    with torch.autocast(place.type, enabled=False):
        rows = [extractor(some.to(place)).features.float().cpu() for some in torch.split(pictures, AT_ONCE)]
    return torch.cat(rows)


def reference_of(data: Dataset, held: Dataset | None, n: int) -> tuple[Dataset, str]:
    """The held-out pictures where there are n of them, else those of training; and what they are called."""
    chosen, kind = (held, "held-out") if held is not None and len(held) >= n else (data, "training")
    m = min(len(chosen), max(REFERENCE, n))
    if min(m, n) < FEWEST:
        raise UserError(f"to compare pictures takes {FEWEST} of either side, here {n} made and {m} real ones.")
    words = np.random.Philox(key("reference")).random_raw(len(chosen))
    return chosen.take(np.sort(np.argsort(words, kind="stable")[:m])), f"{m:,} {kind} pictures"


def judge(
    data: Dataset,
    held: Dataset | None = None,
    *,
    metric: str = "kid",
    features: str | Extractor = "lite0",
    n: int = 256,
    device: torch.device | str = "cpu",
    show: Show = _silent,
) -> Distance:
    """A judge that compares n pictures with held-out ones, or with those of training where too few were kept aside.
    `features` is an extractor, or one in the words of `--features`; those of the real pictures are computed here, once.
    Raises UserError: no such features, a missing package, pictures that they cannot read, too few of them."""
    if metric not in METRICS:
        raise UserError(f"There is no judge called '{metric}': choose {', '.join(METRICS)}.")
    real, what = reference_of(data, held, n)
    extractor = choose(features, lambda: _own(data, show)) if isinstance(features, str) else features
    extractor.to(device)
    rows = []
    for pictures in _pictures(real, len(real)):
        rows.append(looked_at(extractor, pictures))
        show(sum(map(len, rows)), len(real))
    seen = torch.cat(rows)
    units = Units.of(Moments.of(seen).gaussian()) if extractor.scaled else None
    seen = seen if units is None else units(seen)
    return Distance(metric, extractor, seen, what, METRICS[metric].floor(seen, n), n, data.shape, units)


def _pictures(data: Dataset, n: int) -> Iterator[Tensor]:
    """The first n, uint8 (B, C, H, W) at a time, never mirrored."""
    for part in np.split(np.arange(n), range(AT_ONCE, n, AT_ONCE)):
        yield levels((data.batch(part, None)["image"] + 1) / 2)


def _own(data: Dataset, show: Show) -> Own:
    """The extractor that trains itself on the training pictures; kept beside the cache of decoded pictures, so that a
    resumed run has the same."""
    path = cache_folder().parent / "own" / f"{named({'data': fingerprint(data)})}.safetensors"
    found = kept(path)
    if found is None:
        found = fit(torch.cat([*_pictures(data, min(len(data), MOST))]), progress=show)
        keep(found, path)
    return found
