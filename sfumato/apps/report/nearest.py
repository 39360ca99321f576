"""Does the model repeat its training pictures? The nearest of them beside the samples, with a scale to judge by.

All training pictures are compared by the root mean square difference of their pixels, at most SIDE a side, as they are
and, where training mirrored them, in the mirror. Where features are given, the CANDIDATES nearest are then ordered by
the distance of their features. Two scales tell what a distance means: that of pairs of training pictures, and that of
a training picture to its nearest other, found in the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sfumato.apps.report.facts import Match, Nearest, Pixels
from sfumato.core.random import key
from sfumato.data import Dataset
from sfumato.metrics.features import Extractor

__all__ = ["nearest_training"]

SIDE = 32
CHUNK = 2048
CANDIDATES = 8
SHOWN, BESIDE = 12, 3  # samples on the page, pictures beside each
REAL, PAIRS = 64, 256  # training pictures whose nearest others, and whose pairs, are the scales
COPY = 3.0  # times nearer than a real picture's nearest other,
ALONE = 2.0  # and than the last candidate: flat pictures are near to many

Show = Callable[[str, int, int], object]
Ints = NDArray[np.int64]


class Found(NamedTuple):
    """For every query the candidates, nearest first: rows of the data, whether in the mirror, distances (Q, K)."""

    rows: Tensor
    mirrored: Tensor
    distances: Tensor


def nearest_training(
    pictures: Pixels, data: Dataset, show: Show, *, extractor: Extractor | None = None, seed: int = 0
) -> Nearest | None:
    """For pictures (n, H, W, C) of the data's size and channels; None for fewer than three examples."""
    n, count = len(pictures), len(data)
    if count < 3:
        return None
    luck = np.random.default_rng(key("report", seed) % 2**63).permutation(count).astype(np.int64)
    real, some = np.sort(luck[:REAL]), np.sort(luck[:PAIRS])
    samples, others = _floats(pictures), _of(data, real)
    queries = torch.cat([_rows(samples), _rows(others)])
    skip = torch.cat([torch.full((n,), -1), torch.from_numpy(real)])
    found = _candidates(queries, skip, data, samples.shape[1:], show)
    pairs = _pairs(_rows(_of(data, some))) / queries.shape[1] ** 0.5
    if extractor is not None:
        looked = Looked(extractor, data, show)
        own = looked.queries(torch.cat([samples, others]))
        found = looked.ordered(own, found)
        pairs = _pairs(looked.of([(int(i), False) for i in some]))
    return _told(found, n, pairs, data, "features of lite0" if extractor else "pixels")


# -- pixels ------------------------------------------------------------------------------------------------------------


def _floats(pixels: NDArray[np.generic]) -> Tensor:
    """(B, H, W, C) uint8 or uint16 as float32 (B, C, H, W) in [0, 1]."""
    scale = float(np.iinfo(pixels.dtype).max)  # type: ignore[type-var]
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / scale


def _of(data: Dataset, indices: Ints) -> Tensor:
    return _floats(np.asarray(data.images[data.rows[indices]]))


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) as float64 rows (B, D), large pictures made smaller by the mean of areas."""
    h, w = x.shape[2:]
    if max(h, w) > SIDE:
        factor = SIDE / max(h, w)
        x = F.adaptive_avg_pool2d(x, (max(1, round(h * factor)), max(1, round(w * factor))))
    return x.flatten(1).double()


def _squared(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 (N, M)."""
    return torch.addmm(y.square().sum(1), x, y.T, alpha=-2).add_(x.square().sum(1, keepdim=True)).clamp_(min=0)


def _candidates(queries: Tensor, skip: Tensor, data: Dataset, shape: torch.Size, show: Show) -> Found:
    """By pixels, over all examples. `skip` (Q,): the example that a query itself is, or -1."""
    queries = queries.contiguous()
    flips = (False, True) if data.flip else (False,)
    best = torch.zeros(len(queries), 0, dtype=torch.float64)
    rows, sides = best.long(), best.bool()
    for start in range(0, len(data), CHUNK):
        show("comparing with the training pictures", start, len(data))
        indices = np.arange(start, min(start + CHUNK, len(data)))
        part = _of(data, indices)
        for flip in flips:
            distance = _squared(queries, _rows(part.flip(3) if flip else part))
            column = torch.from_numpy(indices).expand(len(queries), -1)
            distance.masked_fill_(column == skip[:, None], torch.inf)
            best, rows = torch.cat([best, distance], 1), torch.cat([rows, column], 1)
            sides = torch.cat([sides, torch.full_like(column, flip, dtype=torch.bool)], 1)
        best, order = best.topk(min(CANDIDATES, best.shape[1]), largest=False)
        rows, sides = rows.gather(1, order), sides.gather(1, order)
    exact = best.sqrt() / queries.shape[1] ** 0.5
    return Found(rows, sides, exact)


def _pairs(rows: Tensor) -> Tensor:
    """Sorted distances of all pairs."""
    i, j = torch.triu_indices(len(rows), len(rows), 1)
    return _squared(rows, rows)[i, j].sqrt().sort().values


# -- features ----------------------------------------------------------------------------------------------------------


class Looked:
    """Features of training pictures, each looked at once."""

    def __init__(self, extractor: Extractor, data: Dataset, show: Show) -> None:
        self.extractor, self.data, self.show = extractor, data, show
        self.known: dict[tuple[int, bool], Tensor] = {}

    def queries(self, pictures: Tensor, batch: int = 64) -> Tensor:
        parts = []
        for start in range(0, len(pictures), batch):
            self.show("looking at pictures", start, len(pictures))
            levels = (pictures[start : start + batch] * 255).round().to(torch.uint8)
            parts.append(self.extractor(levels).features)
        return torch.cat(parts).double()

    def of(self, wanted: list[tuple[int, bool]]) -> Tensor:
        """Rows of features for (example, mirrored)."""
        new = sorted(set(wanted) - self.known.keys())
        if new:
            pixels = _of(self.data, np.array([i for i, _ in new], np.int64))
            mirror = torch.tensor([m for _, m in new])
            pixels[mirror] = pixels[mirror].flip(3)
            self.known |= dict(zip(new, self.queries(pixels), strict=True))
        return torch.stack([self.known[one] for one in wanted])

    def ordered(self, own: Tensor, found: Found) -> Found:
        """The candidates by the distance of their features."""
        width = found.rows.shape[1]
        names = list(zip(found.rows.flatten().tolist(), found.mirrored.flatten().tolist(), strict=True))
        theirs = self.of(names).reshape(len(own), width, -1)
        distance = (theirs - own[:, None]).square().sum(2).sqrt()
        distance[~torch.isfinite(found.distances)] = torch.inf
        order = distance.argsort(1)
        return Found(found.rows.gather(1, order), found.mirrored.gather(1, order), distance.gather(1, order))


# -- telling -----------------------------------------------------------------------------------------------------------


def _told(found: Found, n: int, pairs: Tensor, data: Dataset, measure: str) -> Nearest:
    first, real = found.distances[:n, 0], found.distances[n:, 0]
    close, own = float(real.quantile(0.05)), float(real.median())
    order = first.argsort().tolist()[:SHOWN]
    return Nearest(
        samples=tuple(order),
        matches=tuple(_matches(found, i, pairs, data) for i in order),
        of=n,
        examples=len(data),
        measure=measure,
        own=own,
        close=close,
        closer=int((first < close).sum()),
        copies=int(((first < own / COPY) & (first < found.distances[:n, -1] / ALONE)).sum()),
    )


def _matches(found: Found, i: int, pairs: Tensor, data: Dataset) -> tuple[Match, ...]:
    """The nearest examples, each once."""
    out: dict[int, Match] = {}
    for row, flip, distance in zip(*(of[i].tolist() for of in found), strict=True):
        if row in out or len(out) == BESIDE or distance == float("inf"):
            continue
        pixels = np.asarray(to_levels(data.pixels(row)))
        label = data.classes[data.labels[row]] if data.labels is not None and data.classes else ""
        farther = float((pairs > distance).double().mean())
        out[row] = Match(row, label, distance, farther, flip, pixels[:, ::-1] if flip else pixels)
    return tuple(out.values())


def to_levels(pixels: NDArray[np.generic]) -> Pixels:
    """uint8, of uint16 the nearest level below; without an alpha channel."""
    levels = (pixels.astype(np.int64) // 257 if pixels.dtype == np.uint16 else pixels).astype(np.uint8)
    return np.ascontiguousarray(levels[..., :3] if levels.shape[-1] > 2 else levels[..., :1])
