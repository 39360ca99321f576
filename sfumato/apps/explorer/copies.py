"""Copies among pictures: exact ones by hashes, near ones (resized, compressed again, cropped, mirrored) by looking.

Candidates are the nearest neighbours of an 8 x 8 colour picture and of its mirror image (FAISS); each is then laid over
the other and compared in colour at 32 x 32. A hash alone takes different glyphs for copies and misses crops; a
similarity of features alone takes the same emoji in other colours for copies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfumato.apps.explorer.align import compare
from sfumato.apps.explorer.table import Ids
from sfumato.data.options import need

__all__ = ["RULES", "Group", "groups", "near_pairs"]

CELLS = 8  # a side of the small pictures that neighbours are searched among
NEIGHBOURS = 10
REDUCED = 32  # numbers that are left of them where there are many pictures
MANY = 4000
HOPEFUL = 0.75  # difference at 8 x 8, relative to the contrast, beyond which nothing is a copy
SAME, PATCH = 0.28, 0.80  # the same at 32 x 32, over all and in the worst patch
FLOOR = 5.0  # levels added to the contrast: noise of compression is no difference
AT_ONCE = 4096
RULES = f"{CELLS}-{NEIGHBOURS}-{HOPEFUL}-{SAME}-{PATCH}-2"  # what is kept was found by these

Signs = NDArray[np.uint8]
Pairs = NDArray[np.int64]  # (P, 2)


class Group(NamedTuple):
    """Pictures that are copies of each other. `exact`: all have the same pixels."""

    exact: bool
    ids: tuple[int, ...]


def groups(
    ids: Ids, files: Sequence[str], pixels: Sequence[str], signs: Signs, show: Callable[[float], None]
) -> list[Group]:
    """The largest first. files, pixels: hashes; signs (N, S, S, 3) uint8. Near copies are looked for among one of each
    exact group. `show` is told the share that is done."""
    joined = Joined(len(ids))
    for same in (files, pixels):
        for first, second in _equal(same):
            joined.join(first, second)
    exact = joined.roots()
    one_of_each = np.flatnonzero(exact == np.arange(len(ids)))
    for first, second in one_of_each[near_pairs(signs[one_of_each], show)]:
        joined.join(int(first), int(second))
    found: dict[int, list[int]] = defaultdict(list)
    for i, root in enumerate(joined.roots()):
        found[int(root)].append(i)
    out = [
        Group(len({int(exact[i]) for i in rows}) == 1, tuple(int(ids[i]) for i in rows))
        for rows in found.values()
        if len(rows) > 1
    ]
    return sorted(out, key=lambda group: (-len(group.ids), group.ids))


def near_pairs(signs: Signs, show: Callable[[float], None]) -> Pairs:
    """Rows that are near copies of each other (P, 2)."""
    if len(signs) < 2:
        return np.empty((0, 2), np.int64)
    small, mirror = _cells(signs), _cells(signs[:, :, ::-1])
    contrast = np.sqrt(small.reshape(len(small), -1, 3).var(1).mean(1))
    show(0.0)
    pairs = _candidates(small, mirror, contrast, show)
    keep = []
    for start in range(0, len(pairs), AT_ONCE):
        keep.append(_same(signs, pairs[start : start + AT_ONCE]))
        show(0.5 + 0.5 * min(1.0, (start + AT_ONCE) / len(pairs)))
    return pairs[np.concatenate(keep), :2] if keep else np.empty((0, 2), np.int64)


def _cells(signs: Signs) -> NDArray[np.float32]:
    """(N, CELLS CELLS 3)."""
    n, side = signs.shape[:2]
    out = np.empty((n, CELLS * CELLS * 3), np.float32)
    for i in range(0, n, AT_ONCE):
        part = signs[i : i + AT_ONCE].reshape(-1, CELLS, side // CELLS, CELLS, side // CELLS, 3)
        out[i : i + AT_ONCE] = part.mean((2, 4), dtype=np.float32).reshape(len(part), -1)
    return out


def _candidates(
    small: NDArray[np.float32],
    mirror: NDArray[np.float32],
    contrast: NDArray[np.float32],
    show: Callable[[float], None],
) -> Pairs:
    """(first, second, whether the first is mirrored), each pair once in each way."""
    faiss = need("faiss", "explore", "looking for copies")
    turn = _reduction(small)
    keys, k = np.ascontiguousarray(small @ turn), min(NEIGHBOURS + 1, len(small))
    index = faiss.IndexFlatL2(keys.shape[1])
    index.add(keys)
    found = []
    for flip, asked in enumerate((small, mirror)):
        for start in range(0, len(asked), AT_ONCE):
            part = np.ascontiguousarray(asked[start : start + AT_ONCE] @ turn)
            near = index.search(part, k)[1]
            first = np.repeat(np.arange(start, start + len(part)), k)
            found.append(_hopeful(asked, small, contrast, first, near.reshape(-1), flip))
            show((flip + (start + len(part)) / len(asked)) / 4)
    return np.unique(np.concatenate(found), axis=0)


def _hopeful(
    asked: NDArray[np.float32],
    small: NDArray[np.float32],
    contrast: NDArray[np.float32],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    flip: int,
) -> Pairs:
    keep = (first != second) & (second >= 0)
    first, second = first[keep], second[keep]
    gap = np.sqrt(np.square(asked[first] - small[second]).mean(1))
    keep = gap < HOPEFUL * (np.minimum(contrast[first], contrast[second]) + FLOOR)
    # what lies on the other's mirror lies so the other way round too
    ordered = np.sort(np.stack([first[keep], second[keep]], 1), 1)
    return np.column_stack([ordered, np.full(len(ordered), flip)]).astype(np.int64)


def _reduction(small: NDArray[np.float32]) -> NDArray[np.float32]:
    """Onto the main directions of many pictures: an exact search would take minutes otherwise."""
    width = small.shape[1]
    if len(small) < MANY:
        return np.eye(width, dtype=np.float32)
    some = small[:: max(1, len(small) // 20_000)].astype(np.float64)
    return np.asarray(np.linalg.eigh(np.cov(some.T))[1][:, -REDUCED:], np.float32)


def _same(signs: Signs, pairs: Pairs) -> NDArray[np.bool_]:
    """The one laid on the other or the other on the one, whichever fits: the whole picture must go on the crop."""
    first, second = signs[pairs[:, 0]], signs[pairs[:, 1]]
    mirrored = pairs[:, 2] == 1
    first[mirrored] = first[mirrored][:, :, ::-1]
    out = np.zeros(len(pairs), bool)
    for found in (compare(first, second), compare(second, first)):
        scale = found.contrast + FLOOR
        out |= (found.rms < SAME * scale) & (found.peak < PATCH * scale)
    return out


def _equal(codes: Sequence[Hashable]) -> Iterable[tuple[int, int]]:
    seen: dict[Hashable, int] = {}
    for i, code in enumerate(codes):
        first = seen.setdefault(code, i)
        if first != i:
            yield first, i


class Joined:
    """Rows joined into groups; each group is named by its first row."""

    def __init__(self, n: int) -> None:
        self.up = list(range(n))

    def root(self, i: int) -> int:
        while self.up[i] != i:
            self.up[i] = self.up[self.up[i]]
            i = self.up[i]
        return i

    def join(self, i: int, j: int) -> None:
        a, b = self.root(i), self.root(j)
        self.up[max(a, b)] = min(a, b)

    def roots(self) -> NDArray[np.int64]:
        return np.array([self.root(i) for i in range(len(self.up))], np.int64)


def as_json(found: Sequence[Group]) -> list[dict[str, Any]]:
    """For a shelf."""
    return [{"exact": group.exact, "ids": list(group.ids)} for group in found]
