"""Whether n samples are enough for a figure to mean something, and if not, how many are."""

from __future__ import annotations

import math

from sfumato.metrics.frechet import Infinity
from sfumato.metrics.kid import KID

__all__ = ["frechet_warning", "kid_warning", "needed_for_frechet", "needed_for_kid"]

SHARE = 0.1  # of the figure that may be bias, or error


def needed_for_frechet(found: Infinity, floor: float, n: int, width: int) -> int | None:
    """Samples at which the bias, floor n / N, is at most a tenth of the distance, and no fewer than twice the
    features, below which the covariance has hardly its rank. None: the distance cannot be told from zero here."""
    if found.low <= 0:
        return None
    return max(2 * width, math.ceil(n * floor / (SHARE * found.value)))


def frechet_warning(found: Infinity, floor: float, n: int, width: int) -> str:
    """A sentence if n samples say little, "" if they are enough. `floor` is the distance of as many real samples."""
    needed = needed_for_frechet(found, floor, n, width)
    if needed is None:
        return (
            f"n = {n:,} cannot tell this distance from none: as many real samples are {floor:.3g} away. "
            f"Use {max(4 * n, 2 * width):,} samples or more, or KID, which is unbiased."
        )
    if needed <= n:
        return ""
    why = f"the covariance of {width} features has hardly its rank" if n < 2 * width else "its bias is over a tenth"
    return f"n = {n:,} is too small for this Frechet distance ({why}): use {needed:,} samples or more."


def needed_for_kid(found: KID, n: int) -> int | None:
    """Samples at which the standard error, which falls as 1 / sqrt(n), is at most a tenth of the value. None: the
    value cannot be told from zero here."""
    if found.value <= 2 * found.error:
        return None
    return math.ceil(n * (found.error / (SHARE * found.value)) ** 2)


def kid_warning(found: KID, n: int) -> str:
    """A sentence if n samples say little, "" if they are enough."""
    needed = needed_for_kid(found, n)
    if needed is None:
        return (
            f"n = {n:,} cannot tell this KID from zero ({found.value:.2g} +- {found.error:.2g}): use {4 * n:,} or more."
        )
    return "" if needed <= n else f"n = {n:,} leaves this KID an error over a tenth: use {needed:,} samples or more."
