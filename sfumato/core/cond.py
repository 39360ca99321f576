"""The ways a network can be told something. Networks take the fields as keywords and import nothing of ours."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

__all__ = ["Cond"]


@dataclass(frozen=True)
class Cond:
    """What a batch of B pictures is conditioned on; a field that is None is not there."""

    vector: Tensor | None = None  # (B, D)        added to the time embedding
    tokens: Tensor | None = None  # (B, L, D)     attended to
    mask: Tensor | None = None  # (B, L) bool   which tokens count
    spatial: Tensor | None = None  # (B, C, *S)    concatenated to the input
    control: tuple[Tensor, ...] | None = None  # of (B, C, *S) added to the encoder's outputs

    def items(self) -> dict[str, Any]:
        """The fields that are there: the keywords of a network's call."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}

    def drop(self, null: Cond, keep: Tensor) -> Cond:
        """Where keep (B,) bool is False, the null condition instead, for whole examples (Ho & Salimans 2022, alg.
        1)."""

        def choose(ours: Any, theirs: Any) -> Any:
            if isinstance(ours, tuple):
                return tuple(choose(a, b) for a, b in zip(ours, theirs, strict=True))
            if ours is None:
                return None
            shape = keep.shape + (1,) * (ours.ndim - 1)
            return torch.where(keep.reshape(shape), ours, theirs)

        ours, theirs = _aligned(self, null)
        return Cond(**{name: choose(value, getattr(theirs, name)) for name, value in ours.items().items()})

    @staticmethod
    def cat(a: Cond, b: Cond) -> Cond:
        """One batch of two. Shorter token rows are padded and masked; both must have the same fields."""
        a, b = _aligned(a, b)

        def join(p: Any, q: Any) -> Any:
            return tuple(map(join, p, q)) if isinstance(p, tuple) else torch.cat([p, q])

        return Cond(**{name: join(value, getattr(b, name)) for name, value in a.items().items()})


def _aligned(a: Cond, b: Cond) -> tuple[Cond, Cond]:
    """Both with token rows of the same length. Raises ValueError when one has a field that the other lacks."""
    missing = (a.items().keys() ^ b.items().keys()) - {"mask"}
    if missing:
        raise ValueError(f"two conditions cannot be joined: only one of them has {', '.join(sorted(missing))}")
    if a.tokens is None or b.tokens is None:
        return a, b
    lengths = a.tokens.shape[1], b.tokens.shape[1]
    if lengths[0] == lengths[1] and (a.mask is None) == (b.mask is None):
        return a, b
    return _padded(a, max(lengths)), _padded(b, max(lengths))


def _padded(cond: Cond, length: int) -> Cond:
    assert cond.tokens is not None
    extra = length - cond.tokens.shape[1]
    mask = (
        torch.ones(cond.tokens.shape[:2], dtype=torch.bool, device=cond.tokens.device)
        if cond.mask is None
        else cond.mask
    )
    pad = torch.nn.functional.pad
    return Cond(cond.vector, pad(cond.tokens, (0, 0, 0, extra)), pad(mask, (0, extra)), cond.spatial, cond.control)
