"""Figures from features: one function for each name at `--metrics`, and what each needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.core.random import key
from sfumato.errors import UserError
from sfumato.metrics.enough import frechet_warning, kid_warning
from sfumato.metrics.frechet import Infinity, frechet, frechet_infinity, noise_floor
from sfumato.metrics.inception_score import inception_score
from sfumato.metrics.kid import kid
from sfumato.metrics.neighbours import DensityCoverage, PrecisionRecall, density_coverage, precision_recall
from sfumato.metrics.receipt import Figure
from sfumato.metrics.statistics import Gaussian, Moments
from sfumato.metrics.vendi import vendi

__all__ = ["METRICS", "Metric", "Seen", "Units", "scaled", "title"]

GROUPS = 20  # of the jackknife


@dataclass(frozen=True)
class Seen:
    """A set as an extractor saw it: parts (N, D) float32 by name (features, logits, spatial), or, of a reference that
    came as statistics, Gaussians alone."""

    identity: str
    parts: dict[str, Tensor]
    known: dict[str, Gaussian]
    what: str = "the reference"  # in sentences

    def rows(self, part: str, metric: str) -> Tensor:
        """Raises UserError where there are none."""
        if part in self.parts:
            return self.parts[part]
        if self.known:
            raise UserError(
                f"{metric} needs the pictures of the reference, and {self.what} holds statistics alone: leave {metric} "
                "out, or give the pictures."
            )
        raise UserError(f"{metric} needs {NEEDS[part]}, which {self.identity} does not give: use {REMEDY}.")


NEEDS = {"logits": "the logits of a classifier", "spatial": "spatial features", "features": "features"}
REMEDY = "--features inception:FILE"


class Units(NamedTuple):
    """Mean and deviation (D,) of a reference's features, in which sets are compared. A feature that is the same in the
    whole reference is only centred."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, reference: Gaussian) -> Units:
        deviation = reference.cov.diagonal().sqrt()
        return cls(reference.mean, torch.where(deviation > 1e-6 * deviation.max(), deviation, 1.0))

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows (N, D) in these units, float32."""
        return ((rows.double() - self.mean) / self.deviation).float()


def scaled(made: Seen, real: Seen) -> tuple[Seen, Seen]:
    """Both in the reference's units."""
    known = real.known.get("features") or Moments.of(real.parts["features"]).gaussian()
    units = Units.of(known)

    def rows(seen: Seen) -> dict[str, Tensor]:
        own = {part: tensor for part, tensor in seen.parts.items() if part == "features"}
        return seen.parts | {part: units(tensor) for part, tensor in own.items()}

    ours = Gaussian(known.mean * 0, known.cov / torch.outer(units.deviation, units.deviation), known.n)
    gaussians = real.known | ({"features": ours} if "features" in real.known else {})
    return replace(made, parts=rows(made)), replace(real, parts=rows(real), known=gaussians)


class Metric(NamedTuple):
    """What is called with (samples, reference, metric, seed), which part it looks at, whether it needs a reference, and
    the fewest samples."""

    figures: Callable[[Seen, Seen, str, int], tuple[Figure, ...]]
    part: str = "features"
    least: int = 4
    reference: bool = True


def _some(rows: Tensor, n: int, seed: int, stream: str) -> tuple[Tensor, Tensor]:
    """(n random rows, the others)."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(key(stream, seed)))
    return rows[order[:n]], rows[order[n:]]


def _frechet(made: Seen, real: Seen, metric: str, seed: int) -> tuple[Figure, ...]:
    part = METRICS[metric].part
    x = made.rows(part, metric)
    if part in real.known:
        return _against_known(x, real.known[part], Figure(metric, 0.0, len(x), real.known[part].n, made.identity), seed)
    y = real.rows(part, metric)
    about = Figure(metric, 0.0, len(x), len(y), made.identity)
    if torch.equal(x, y):
        plain = frechet(Moments.of(x).gaussian(), Moments.of(y).gaussian())
        return (replace(about, value=plain, warning="Both sets are the same pictures in the same order."),)
    found = frechet_infinity(x, y, groups=_groups(len(x), len(y)), seed=seed)
    floor = noise_floor(y, len(x), len(y), seed=seed)
    return _both(about, found, floor, frechet_warning(found, floor, len(x), x.shape[1]))


def _groups(*numbers: int) -> int:
    return min(GROUPS, *(n // 2 for n in numbers))


def _against_known(x: Tensor, known: Gaussian, about: Figure, seed: int) -> tuple[Figure, ...]:
    found = frechet_infinity(x, known, groups=_groups(len(x)), seed=seed)
    bias = max(found.plain - found.value, 0.0)
    return _both(about, found, None, frechet_warning(found, bias, len(x), x.shape[1]))


def _both(about: Figure, found: Infinity, floor: float | None, warning: str) -> tuple[Figure, ...]:
    plain = replace(about, value=found.plain, floor=floor, warning=warning)
    endless = replace(
        about,
        metric=f"{about.metric}.infinity",
        value=found.value,
        error=found.error,
        low=found.low,
        high=found.high,
        floor=0.0,
    )
    return plain, endless


def _kid(made: Seen, real: Seen, metric: str, seed: int) -> tuple[Figure, ...]:
    x, y = made.rows("features", metric), real.rows("features", metric)
    found = kid(x, y)
    reach = 1.96 * found.error
    low, high = found.value - reach, found.value + reach
    one, other = _some(y, min(len(x), len(y) // 2), seed, "kid floor")
    floor = kid(one, other).value if len(one) > 3 else None
    warning = kid_warning(found, min(len(x), len(y)))
    return (Figure(metric, found.value, len(x), len(y), made.identity, found.error, low, high, floor, warning=warning),)


def _score(made: Seen, real: Seen, metric: str, seed: int) -> tuple[Figure, ...]:
    x = made.rows("logits", metric)
    found, floor = inception_score(x), None
    if "logits" in real.parts and len(real.parts["logits"]) >= len(x):
        floor = inception_score(_some(real.parts["logits"], len(x), seed, "score")[0]).value
    few = "" if len(x) >= 5000 else f"n = {len(x):,}: a score grows with n; published ones are of 50,000 pictures."
    return (Figure(metric, found.value, len(x), None, made.identity, found.std, None, None, floor, False, few),)


Pair = Callable[[Tensor, Tensor], PrecisionRecall | DensityCoverage]


def _neighbours(
    made: Seen,
    real: Seen,
    metric: str,
    seed: int,
    measure: Pair,
) -> tuple[Figure, ...]:
    """At equal numbers, since the radii shrink as a set grows."""
    x, y = made.rows("features", metric), real.rows("features", metric)
    n = min(len(x), len(y))
    chosen, rest = _some(y, n, seed, "neighbours")
    found = measure(chosen, _some(x, n, seed, "samples")[0] if len(x) > n else x)
    floor = measure(chosen, rest[:n]) if len(rest) >= n else (None, None)
    names = METRICS_OF_TWO[metric]
    return tuple(
        Figure(f"{metric}.{name}", value, n, n, made.identity, floor=least, lower_is_better=False)
        for name, value, least in zip(names, found, floor, strict=True)
    )


METRICS_OF_TWO = {"pr": ("precision", "recall"), "dc": ("density", "coverage")}


def _pr(made: Seen, real: Seen, metric: str, seed: int) -> tuple[Figure, ...]:
    return _neighbours(made, real, metric, seed, precision_recall)


def _dc(made: Seen, real: Seen, metric: str, seed: int) -> tuple[Figure, ...]:
    return _neighbours(made, real, metric, seed, density_coverage)


def _vendi(made: Seen, real: Seen, metric: str, seed: int) -> tuple[Figure, ...]:
    x, floor = made.rows("features", metric), None
    if "features" in real.parts and len(real.parts["features"]) >= len(x):
        floor = vendi(_some(real.parts["features"], len(x), seed, "vendi")[0])
    return (Figure(metric, vendi(x), len(x), None, made.identity, floor=floor, lower_is_better=False),)


METRICS: dict[str, Metric] = {
    "fid": Metric(_frechet),
    "sfid": Metric(_frechet, "spatial"),
    "fvd": Metric(_frechet),
    "kid": Metric(_kid),
    "is": Metric(_score, "logits", least=10, reference=False),
    "pr": Metric(_pr),
    "dc": Metric(_dc, least=6),
    "vendi": Metric(_vendi, least=1, reference=False),
}
"""Of two sets of pictures. `floor` of precision, recall, density, coverage, scores and Vendi is what as many real
pictures get; it is the best that samples should get, not the least."""

TITLES = {
    "kid": "KID",
    "pr.precision": "precision",
    "pr.recall": "recall",
    "dc.density": "density",
    "dc.coverage": "coverage",
    "vendi": "Vendi score",
    "lpips": "LPIPS",
    "ssim": "SSIM",
    "psnr": "PSNR, dB",
    "dice": "Dice",
    "clip": "CLIP score",
}


def title(figure: Figure) -> str:
    """The figure's name for people: FID with the features of Inception alone, else the Frechet distance of others,
    with their name. "FID", "Frechet distance (lite0@64)", "KID (own@32)"."""
    name, _, part = figure.metric.partition(".")
    by = figure.features.partition(" (")[0]
    inception = by.partition("@")[0] == "inception"
    own_name = {
        "fid": "FID" if inception else "Frechet distance",
        "sfid": "sFID" if inception else "spatial Frechet distance",
        "fvd": "FVD" if "i3d" in by.lower() else "Frechet video distance",
        "is": "Inception score" if inception else "classifier score",
    }.get(name, TITLES.get(figure.metric, figure.metric))
    own_name += " at infinite n" if part == "infinity" else ""
    return own_name if inception or not by else f"{own_name} ({by})"
