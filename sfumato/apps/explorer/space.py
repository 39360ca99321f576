"""Vectors of pictures, or of captions, and who is near whom: FAISS, exact."""

from __future__ import annotations

from typing import Any

import numpy as np

from sfumato.apps.explorer.eyes import Vectors
from sfumato.apps.explorer.table import Ids
from sfumato.data.options import need
from sfumato.errors import UserError

__all__ = ["Space"]


class Space:
    """Unit vectors (N, D) of `ids`; inner product is cosine.

    Features that are not `raw` are all nearly parallel: each column is centred and scaled by what the room holds, so
    that a cosine tells something. The index is searched whole: at 100,000 pictures that takes milliseconds, and no
    neighbour is missed.
    """

    def __init__(self, ids: Ids, features: Vectors, *, raw: bool, build: str) -> None:
        """build: of the table that these ids belong to. Raises UserError where features are damaged."""
        faiss = need("faiss", "explore", "search by likeness")
        if len(ids) != len(features) or not np.isfinite(features).all():
            raise UserError("the features of these pictures are damaged: close the room and delete its cache.")
        width = features.shape[1]
        self.ids, self.build, self.faiss = ids, build, faiss
        self.mean = np.zeros(width, np.float32) if raw or not len(ids) else features.mean(0)
        spread = features.std(0) if len(ids) else np.zeros(width, np.float32)
        # a column that does not vary says nothing
        self.scale = np.ones(width, np.float32) if raw else np.where(spread > 1e-6, 1 / np.maximum(spread, 1e-6), 0)
        self.vectors = self.told(features)
        self.index: Any = faiss.IndexFlatIP(width)
        self.index.add(self.vectors)

    def __len__(self) -> int:
        return len(self.ids)

    def told(self, features: Vectors) -> Vectors:
        """Features as this space's unit vectors. Raises UserError for those of another size."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise UserError(
                f"features of {features.shape[-1]} numbers cannot be compared with this room's of {len(self.mean)}: "
                "they are of another network."
            )
        x = (features - self.mean) * self.scale
        return np.ascontiguousarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12), np.float32)

    def vector(self, id: int) -> Vectors | None:
        """(1, D) of a picture that is here."""
        i = int(np.searchsorted(self.ids, id))
        return self.vectors[i : i + 1] if i < len(self.ids) and self.ids[i] == id else None

    def nearest(self, asked: Vectors, k: int) -> tuple[Ids, Vectors]:
        """(ids, cosines), the closest first, of one unit vector (1, D)."""
        similarity, rows = self.index.search(np.ascontiguousarray(asked, np.float32), max(1, min(k, len(self.ids))))
        keep = rows[0] >= 0
        return self.ids[rows[0][keep]], similarity[0][keep]

    def cosines(self, asked: Vectors) -> Vectors:
        """With every picture, in the order of `ids`."""
        return np.asarray(self.vectors @ asked[0], np.float32)

    def neighbours(self, k: int) -> tuple[Ids, Vectors]:
        """(N, k) rows and cosines of each one's nearest others."""
        similarity, rows = self.index.search(self.vectors, min(k + 1, len(self.ids)))
        own = rows == np.arange(len(rows))[:, None]
        own[:, -1] |= ~own.any(1)  # among many equals it may not find itself
        shape = (len(rows), rows.shape[1] - 1)
        return rows[~own].reshape(shape), similarity[~own].reshape(shape)

    def clusters(self, k: int) -> Ids:
        """The cluster of each (N,), 0 the largest: spherical k-means with a fixed seed."""
        n, width = self.vectors.shape
        if n < 2 or k < 2:
            return np.zeros(n, np.int64)
        means = self.faiss.Kmeans(
            width,
            min(k, n),
            niter=20,
            nredo=2,
            seed=0,
            spherical=True,
            min_points_per_centroid=1,
            max_points_per_centroid=512,
        )
        means.train(self.vectors)
        found = means.index.search(self.vectors, 1)[1][:, 0]
        order = np.argsort(-np.bincount(found, minlength=min(k, n)), kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        return np.asarray(rank[found], np.int64)
