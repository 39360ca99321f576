"""What the map tells of pictures besides their places: clusters in words and examples, and how strange each one is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from sfumato.apps.explorer.eyes import Vectors
from sfumato.apps.explorer.space import Space
from sfumato.apps.explorer.table import Ids
from sfumato.apps.explorer.words import telling

__all__ = ["described", "named", "strangeness"]

FIFTH = 5  # the neighbour whose distance tells how strange a picture is
SOME = 20_000  # pictures that others are compared with
EXAMPLES = 9
AT_ONCE = 4096


def strangeness(space: Space) -> Vectors:
    """(N,) 1 - cosine to each one's 5th nearest other (its 6th, if it is not itself) among at most SOME; NaN where
    there are not so many."""
    n = len(space)
    step = -(-n // SOME)
    if n <= FIFTH * max(step, 1):
        return np.full(n, np.nan, np.float32)
    some = Space(space.ids[::step], space.vectors[::step], raw=True, build=space.build)
    found = [some.index.search(space.vectors[i : i + AT_ONCE], FIFTH + 1)[0] for i in range(0, n, AT_ONCE)]
    return np.asarray(1 - np.concatenate(found)[:, -1], np.float32)


def described(space: Space, clusters: Ids, texts: Sequence[str]) -> list[dict[str, Any]]:
    """The clusters of `Room.map`, with the pictures nearest to each one's middle and the words that tell it."""
    words = telling(clusters.tolist(), texts)
    out = []
    for cluster in np.unique(clusters).tolist():
        rows = np.flatnonzero(clusters == cluster)
        near = space.vectors[rows] @ space.vectors[rows].mean(0)
        best = rows[np.argsort(-near, kind="stable")[:EXAMPLES]]
        examples = space.ids[best].tolist()
        out.append({"id": cluster, "size": len(rows), "examples": examples, "words": words.get(cluster, [])})
    return out


def named(name: str) -> str:
    """'train/red_fox-02.jpg' to 'red fox 02'."""
    return os.path.splitext(name.rsplit("/", 1)[-1])[0].replace("_", " ").replace("-", " ")
