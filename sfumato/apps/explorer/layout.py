"""A map: points in the plane so that neighbours stay neighbours.

A neighbour embedding in the manner of t-SNE's and UMAP's common form (Damrich and others 2023, arXiv:2206.01816): each
point is pulled to its nearest neighbours and pushed from random others under the Cauchy kernel 1 / (1 + d^2), from a
start by principal components. Written here because scikit-learn's t-SNE takes minutes for 20,000 points.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sfumato.apps.explorer.eyes import Vectors
from sfumato.apps.explorer.table import Ids

__all__ = ["POINTS", "plane"]

POINTS = 20_000
ROUNDS = 300
PUSHES = 5  # random others for each neighbour
FARTHEST = 4.0  # of one step

Plane = NDArray[np.float32]


def plane(vectors: Vectors, near: Ids, *, seed: int = 0, rounds: int = ROUNDS) -> Plane:
    """(N, 2) in [0, 1] of vectors (N, D) with neighbours (N, k), rows."""
    n = len(vectors)
    if n < 3 or not near.shape[1]:
        return np.linspace(0.4, 0.6, max(n, 1), dtype=np.float32)[:n, None].repeat(2, 1)
    rng = np.random.default_rng(seed)
    at = _start(vectors, rng)
    heads = np.repeat(np.arange(n), near.shape[1])
    tails = near.reshape(-1)
    some = max(1, len(heads) // 4)
    for step in range(rounds):
        rate = np.float32(1 - step / rounds)
        edge = rng.integers(0, len(heads), some)
        _pull(at, heads[edge], tails[edge], rate)
        _push(at, np.repeat(heads[edge], PUSHES), rng.integers(0, n, some * PUSHES), rate)
    return _framed(at)


def _start(vectors: Vectors, rng: np.random.Generator) -> Plane:
    """The two main components, some units wide, equal pictures a little apart."""
    x = vectors - vectors.mean(0)
    axes = np.linalg.eigh(x.T @ x)[1][:, -2:]
    at = x @ axes
    spread = at.std(0)
    return np.asarray(10 * at / np.maximum(spread, 1e-6) + rng.normal(0, 0.1, at.shape), np.float32)


def _pull(at: Plane, heads: Ids, tails: Ids, rate: np.float32) -> None:
    gap = at[tails] - at[heads]
    step = rate * gap * (2 / (1 + np.square(gap).sum(1, keepdims=True)))
    _move(at, heads, step)
    _move(at, tails, -step)


def _push(at: Plane, heads: Ids, others: Ids, rate: np.float32) -> None:
    gap = at[heads] - at[others]
    far = np.square(gap).sum(1, keepdims=True)
    _move(at, heads, (rate * gap * (2 / ((0.1 + far) * (1 + far)))).clip(-FARTHEST, FARTHEST))


def _move(at: Plane, rows: Ids, steps: Plane) -> None:
    for axis in range(2):
        at[:, axis] += np.bincount(rows, steps[:, axis], len(at)).clip(-FARTHEST, FARTHEST)


def _framed(at: Plane) -> Plane:
    """Into the unit square, the few that flew far away held at its edge."""
    low, high = np.percentile(at, [0.5, 99.5], axis=0)
    side = float(max((high - low).max(), 1e-6))
    middle = (low + high) / 2
    return np.asarray(((at - middle) / (1.06 * side) + 0.5).clip(0, 1), np.float32)
