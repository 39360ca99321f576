"""Decoded examples of one size, ready to be indexed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.core.random import Seeds, key
from sfumato.data.options import DataError, Skipped
from sfumato.data.watch import Files

__all__ = ["Dataset", "scaled"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pictures as one array (N, H, W, C) uint8 or uint16, in memory or mapped from the cache, and what we know of them.

    A subset shares the array: `rows` says which row each example is.
    """

    images: NDArray[Any]
    names: Sequence[str]  # unique, printable, the same wherever the data lies
    labels: Ints | None = None
    classes: tuple[str, ...] = ()
    captions: Sequence[str] | None = None
    masks: NDArray[np.uint8] | None = None  # (N, H, W), in step with `images`
    families: Sequence[str] | None = None  # glyphs: the type family of each
    mirror_safe: bool = True  # a mirrored example is as real as the example
    flip: bool = False  # batches mirror half of the examples
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()  # what the user should know about how the data was read
    fingerprint: str = ""  # changes when the pictures or the way they are read change
    files: Files | None = None  # what was read, to see whether it is still there
    rows: Ints = field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self) -> None:
        if not len(self.rows):
            object.__setattr__(self, "rows", np.arange(len(self.images)))
        for of in (self.names, self.labels, self.captions, self.families):
            if of is not None and len(of) != len(self.rows):
                raise ValueError(f"{len(self.rows)} examples, but {len(of)} names, labels or captions")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, h, w, c = self.images.shape
        return c, h, w

    def pixels(self, index: int) -> NDArray[Any]:
        """Example `index` as it is stored, (H, W, C)."""
        return np.asarray(self.images[self.rows[index]])

    def batch(self, indices: Ints | Sequence[int], rng: Seeds | None = None) -> dict[str, Any]:
        """The examples `indices`: image float32 (B, C, H, W) in [-1, 1], label int64 (B,) (0 without labels), index
        int64 (B,), text list of str ("" without captions), mask float32 (B, 1, H, W) in {0, 1} where there are masks.

        With `rng` (one generator per example) and `flip`, each example is mirrored with probability 1/2; without it
        nothing is random.
        """
        indices = np.asarray(indices, np.int64)
        rows = self.rows[indices]
        which = rng.uniform(len(rows)) < 0.5 if rng is not None and self.flip else None
        out: dict[str, Any] = {
            "image": _mirror(scaled(self.images[rows]), which),
            "label": torch.from_numpy(self._labels[indices]),
            "index": torch.from_numpy(indices),
            "text": [self.captions[i] for i in indices] if self.captions is not None else [""] * len(rows),
        }
        if self.masks is not None:
            out["mask"] = _mirror(torch.from_numpy(self.masks[rows]).float()[:, None], which)
        return out

    def changes(self) -> tuple[Skipped, ...]:
        """Examples whose files are gone or were changed since the data was opened, by name; where one file holds many
        examples, that file; one entry if all is lost. Examples themselves do not change: they were decoded before.
        Looks at every file once without opening it, and never raises."""
        return () if self.files is None else self.files.changes(self.names)

    @cached_property
    def _labels(self) -> Ints:
        return np.zeros(len(self), np.int64) if self.labels is None else self.labels

    def take(self, indices: Ints | Sequence[int]) -> Dataset:
        """The examples `indices`, in this order, without copying pictures."""
        indices = np.asarray(indices, np.int64)
        if not len(indices):
            raise DataError("this choice leaves no example: choose a larger part of the data")

        def pick(of: Sequence[str] | None) -> tuple[str, ...] | None:
            return None if of is None else tuple(of[i] for i in indices)

        return replace(
            self,
            rows=self.rows[indices],
            names=pick(self.names) or (),
            captions=pick(self.captions),
            families=pick(self.families),
            labels=None if self.labels is None else self.labels[indices],
            files=None if self.files is None else self.files.take(indices.tolist()),
        )

    def split(self, holdout: float, seed: int = 0) -> tuple[Dataset, Dataset]:
        """(train, held out): an example is held out if the hash of its name falls below `holdout`, so that examples
        keep their side when others are added, removed or reordered. Both sides get at least one example."""
        if not 0 < holdout < 1:
            raise DataError(f"holdout {holdout} is not a share between 0 and 1: 0.02 keeps 2 % of the pictures aside")
        if len(self) < 2:
            raise DataError("one picture cannot be split into training and held-out pictures: use holdout 0")
        luck = np.array([key("holdout", seed, name) for name in self.names], np.float64) / 2.0**63
        held = luck < holdout
        held[luck.argmin()], held[luck.argmax()] = True, False
        return self.take(np.flatnonzero(~held)), self.take(np.flatnonzero(held))


def scaled(pixels: NDArray[Any]) -> Tensor:
    """(B, H, W, C) uint8 or uint16 to float32 (B, C, H, W) in [-1, 1]: x / 127.5 - 1, x / 32767.5 - 1."""
    planes = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return planes.float().div_(np.iinfo(pixels.dtype).max / 2).sub_(1)


def _mirror(x: Tensor, which: Tensor | None) -> Tensor:
    """Mirrors some examples of a fresh tensor (B, C, H, W) in place."""
    if which is not None and which.any():
        x[which] = x[which].flip(3)
    return x
