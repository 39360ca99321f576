"""Pictures unlike the others: too dark, blurred, empty, of a strange shape, far from all.

Each check looks at one column and asks for two things: that a picture lies far from the room's median (the robust z
score of Iglewicz and Hoaglin 1993, z = 0.6745 (x - median) / MAD), and that it is bad by itself, so that a room of good
pictures has no bad ones, and a room of bad ones does not call them usual. The checks are CleanVision's nine without the
copies, and three more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfumato.apps.explorer.table import Ids

__all__ = ["CHECKS", "outliers", "robust"]

FAR = 3.5  # robust z
MOST = 500
Values = NDArray[np.float64]


class Check(NamedTuple):
    """side: -1 looks at small values, 1 at large ones, 0 at both. `certain`: bad whatever the others are; `possible`:
    bad if it also lies far from the others."""

    column: str
    says: str
    side: int
    certain: Callable[[Values], NDArray[np.bool_]]
    possible: Callable[[Values], NDArray[np.bool_]]


def never(x: Values) -> NDArray[np.bool_]:
    return np.zeros(len(x), bool)


def always(x: Values) -> NDArray[np.bool_]:
    return np.ones(len(x), bool)


CHECKS: dict[str, Check] = {
    "dark": Check("lightest", "Nearly black: 95 % of the pixels are darker than this.", -1,
                  lambda x: x < 0.15, lambda x: x < 0.35),
    "light": Check("darkest", "Nearly white: 95 % of the pixels are lighter than this.", 1,
                   lambda x: x > 0.97, lambda x: x > 0.9),
    "blurred": Check("sharpness", "Without fine detail: the logarithm of the variance of the Laplacian.", -1,
                     lambda x: x < 0.5, lambda x: x < 1.6),
    "empty": Check("entropy", "Little to see: the bits of information in its brightness.", -1,
                   lambda x: x < 1.0, lambda x: x < 3.0),
    "pale": Check("contrast", "Hardly any contrast: the spread of its brightness.", -1,
                  lambda x: x < 0.01, lambda x: x < 0.06),
    "vivid": Check("saturation", "Much more colourful than the others.", 1, never, lambda x: x > 0.5),
    "shape": Check("aspect", "Unusually wide or high: width over height.", 0,
                   lambda x: np.maximum(x, 1 / x) > 4, lambda x: np.maximum(x, 1 / x) > 1.5),
    "size": Check("megapixels", "Much smaller or larger than the others, in megapixels.", 0, never, always),
    "weight": Check("bits_per_pixel", "Stored in far fewer or more bits for each pixel than the others.", 0,
                    never, always),
    "strange": Check("strangeness", "Far from every other picture: 1 - cosine to its 5th nearest.", 1, never, always),
}  # fmt: skip
LOGARITHMIC = ("aspect", "megapixels", "bits_per_pixel")


def robust(x: Values) -> Values:
    """z scores by the median; where more than half are equal, by the mean distance instead (Iglewicz and Hoaglin)."""
    if not len(x):
        return x
    away = x - np.median(x)
    spread = float(np.median(np.abs(away)))
    if spread > 0:
        return 0.6745 * away / spread
    mean = float(np.abs(away).mean())
    return away / (1.253314 * mean) if mean > 0 else np.zeros_like(x)


def outliers(ids: Ids, columns: Mapping[str, Values], gray: NDArray[np.bool_]) -> dict[str, dict[str, Any]]:
    """The table of `Room.outliers`. Columns hold NaN where a value is not known."""
    found = {
        name: _check(check, ids, columns[check.column]) for name, check in CHECKS.items() if check.column in columns
    }
    few = 0 < gray.sum() < 0.2 * len(gray)  # a room of gray pictures has no gray outliers
    rows = [{"id": int(id), "value": 1.0, "z": None} for id in ids[gray][:MOST]] if few else []
    found["gray"] = {
        "says": "Without colour, where most have some.",
        "column": "gray",
        "rows": rows,
        "total": int(gray.sum()) if few else 0,
    }
    return found


def _check(check: Check, ids: Ids, values: Values) -> dict[str, Any]:
    known = np.isfinite(values)
    ids, x = ids[known], values[known]
    z = robust(np.log(np.maximum(x, 1e-12)) if check.column in LOGARITHMIC else x)
    far = np.abs(z) > FAR if check.side == 0 else check.side * z > FAR
    bad = check.certain(x) | (far & check.possible(x))
    strength = np.abs(z) if check.side == 0 else check.side * z
    order = np.flatnonzero(bad)[np.argsort(-strength[bad], kind="stable")]
    rows = [{"id": int(ids[i]), "value": float(x[i]), "z": float(z[i])} for i in order[:MOST]]
    return {"says": check.says, "column": check.column, "rows": rows, "total": int(bad.sum())}
