"""KID: the squared maximum mean discrepancy with a cubic kernel, unbiased at any number of samples."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfumato.errors import UserError

__all__ = ["KID", "kid", "mmd"]


class KID(NamedTuple):
    """The mean over subsets, their standard deviation (what torch-fidelity prints after +-), and the standard error
    of the mean, which is what two figures differ by. Papers quote the value times 1000. May be negative."""

    value: float
    std: float
    error: float


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x . y / D + 1)^3 of rows (N, D), (M, D)."""
    k = x @ y.T / x.shape[1] + 1
    return k * k * k


def mmd(x: Tensor, y: Tensor, *, batch: int = 4096) -> float:
    """Unbiased MMD^2 of rows (N, D), (M, D) in float64: mean k(x, x') + mean k(y, y') - 2 mean k(x, y) over pairs of
    different samples (Binkowski et al. 2018, arXiv:1801.01401, section 3)."""
    n, m = len(x), len(y)
    if n < 2 or m < 2:
        raise UserError(f"KID needs two samples or more on both sides, here {n} and {m}.")
    x, y = (rows.detach().to(torch.float64) for rows in (x, y))

    def within(rows: Tensor) -> float:
        whole = sum(float(_kernel(part, rows).sum()) for part in torch.split(rows, batch))
        diagonal = (rows.square().sum(1) / rows.shape[1] + 1).pow(3).sum()
        return (whole - float(diagonal)) / (len(rows) * (len(rows) - 1))

    across = sum(float(_kernel(part, y).sum()) for part in torch.split(x, batch)) / (n * m)
    return within(x) + within(y) - 2 * across


def kid(x: Tensor, y: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 2020) -> KID:
    """KID of generated rows x and real rows y, averaged over random subsets; seed 2020 draws those of torch-fidelity.

    Being unbiased it may use smaller subsets than 1000: at most half of the smaller set, so that an error can be
    told. Subsets share samples, so the error of their mean is not std / sqrt(subsets): with r = size / n the share of
    two subsets in common, it is std sqrt(r / (1 - r) + 1 / subsets).
    """
    fewest = min(len(x), len(y))
    size = min(size, fewest // 2)
    if size < 2 or subsets < 2:
        raise UserError(f"KID needs four samples or more on both sides and two subsets, here {fewest} and {subsets}.")
    rng = np.random.RandomState(seed)
    found = []
    for _ in range(subsets):
        left = torch.from_numpy(rng.choice(len(x), size, replace=False))
        right = torch.from_numpy(rng.choice(len(y), size, replace=False))
        found.append(mmd(x[left], y[right]))
    std, share = float(np.std(found)), size / fewest
    return KID(float(np.mean(found)), std, std * math.sqrt(share / (1 - share) + 1 / subsets))
