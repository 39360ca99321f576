"""The Frechet distance of Gaussians (FID where the features are Inception's), what is left of it at infinitely many
samples, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.core.random import key
from sfumato.errors import UserError
from sfumato.metrics.statistics import Gaussian, Moments

__all__ = ["Infinity", "frechet", "frechet_infinity", "noise_floor", "root"]

EPS = torch.finfo(torch.float64).eps


class Infinity(NamedTuple):
    """`value` at infinitely many samples, its standard error and 95 % interval, and the distance as it is at n."""

    value: float
    error: float
    low: float
    high: float
    plain: float


def root(cov: Tensor) -> Tensor:
    """(D, R): a factor A with A A^T = cov, without the columns that are zero but for rounding."""
    values, vectors = torch.linalg.eigh(cov)
    keep = values > len(values) * EPS * values[-1]
    factor: Tensor = vectors[:, keep] * values[keep].sqrt()
    return factor


def frechet(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)) in float64 (Dowson and Landau 1982; Heusel et al. 2017,
    arXiv:1706.08500).

    The trace of the root is the nuclear norm of F_a^T F_b with A = F_a F_a^T: a product of centred samples, rotated.
    The eigenvalues of A B, which others take, are wrong by the root of the rounding where A has no full rank; these
    singular values by the rounding itself. Small negative results are rounding and stay as they are.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(f"Features of {len(a.mean)} and of {len(b.mean)} numbers cannot be compared.")
    overlap = torch.linalg.svdvals(root(a.cov).T @ root(b.cov)).sum()
    difference = a.mean - b.mean
    return float(difference @ difference + a.cov.trace() + b.cov.trace() - 2 * overlap)


def frechet_infinity(
    x: Tensor, y: Tensor | Gaussian, *, groups: int = 20, seed: int = 0, level: float = 0.95
) -> Infinity:
    """The Frechet distance at infinitely many samples, and its interval.

    The plain distance is biased by c / n (Chong and Forsyth 2020, arXiv:1911.07023, who extrapolate it in 1 / n from
    subsets of many sizes). Here both the slope and the error come from a jackknife: each of `groups` random groups is
    left out of one set in turn (Busing et al. 1999 for groups of unequal size), once for x and once for y. Given as a
    Gaussian, y is taken as exact: the interval then is that of x alone. Random groups are the same for a seed. Far
    fewer samples than features leave no law in 1 / n: see `enough`.
    """
    one = Moments.of(x).gaussian()
    two = y if isinstance(y, Gaussian) else Moments.of(y).gaussian()
    if one.mean.shape != two.mean.shape:
        raise UserError(f"Features of {len(one.mean)} and of {len(two.mean)} numbers cannot be compared.")
    plain = frechet(one, two)
    sides = [_jackknife(x, two, groups, seed)]
    if not isinstance(y, Gaussian):
        sides.append(_jackknife(y, one, groups, seed + 1))
    value = plain + sum(shift for shift, _ in sides)
    variances = [variance for _, variance in sides]
    error = math.sqrt(sum(variances))
    freedom = sum(variances) ** 2 / max(sum(v * v for v in variances) / (groups - 1), 1e-300)  # Welch, Satterthwaite
    reach = error * _student(0.5 + level / 2, max(freedom, 1.0))
    return Infinity(value, error, value - reach, value + reach, plain)


def _jackknife(rows: Tensor, other: Gaussian, groups: int, seed: int) -> tuple[float, float]:
    """(what to add against the bias of one set, variance): leaving each group of `rows` out in turn."""
    rows, n = rows.detach().to("cpu", torch.float64), len(rows)
    if groups < 2 or n < 2 * groups:
        raise UserError(f"An interval from {groups} groups needs {max(2, groups) * 2} samples or more, here {n}.")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(key("jackknife", seed)))
    mean, measure = rows.mean(0), _measure(other)
    rows = rows - mean
    scatter = rows.T @ rows
    whole = measure(mean, scatter / (n - 1))
    left, share = [], []
    for chosen in order.tensor_split(groups):
        group, rest = rows[chosen], n - len(chosen)
        total = group.sum(0)
        without = scatter - group.T @ group - torch.outer(total, total) / rest
        left.append(measure(mean - total / rest, without / (rest - 1)))
        share.append(n / len(chosen))
    h, theta = torch.tensor(share, dtype=torch.float64), torch.tensor(left, dtype=torch.float64)
    best = groups * whole - ((1 - 1 / h) * theta).sum()
    pseudo = h * whole - (h - 1) * theta
    return float(best - whole), float(((pseudo - best).square() / (h - 1)).mean())


def _measure(other: Gaussian) -> Callable[[Tensor, Tensor], float]:
    """The distance to `other` of a mean and a covariance: quick, for many of them. F^T C F with other = F F^T has the
    eigenvalues of C other, and is symmetric."""
    factor, trace = root(other.cov), other.cov.trace()

    def measure(mean: Tensor, cov: Tensor) -> float:
        values = torch.linalg.eigvalsh(factor.T @ cov @ factor)
        overlap = values[values > len(values) * EPS * values[-1:].sum()].sqrt().sum()  # there may be none
        difference = mean - other.mean
        return float(difference @ difference + cov.trace() + trace - 2 * overlap)

    return measure


def _student(p: float, freedom: float) -> float:
    """Quantile of Student's t by its expansion about the normal one (Fisher and Cornish): within 1 % from 4 on."""
    z = NormalDist().inv_cdf(p)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def noise_floor(reference: Tensor, n: int, m: int | None = None, *, draws: int = 2, seed: int = 0) -> float:
    """The Frechet distance that n perfect samples would have to m (None: n) real ones: between disjoint random parts
    of the reference rows (N, D), as large as n and m where the reference has as many, else scaled from its halves by
    the law 1 / n + 1 / m."""
    m, total = m or n, len(reference)
    if total < 4:
        raise UserError(f"A noise floor needs four reference samples or more, here {total}.")
    first, second = (n, m) if n + m <= total else (total // 2, total // 2)
    found = 0.0
    for draw in range(draws):
        order = torch.randperm(total, generator=torch.Generator().manual_seed(key("floor", seed, draw)))
        parts = reference[order[:first]], reference[order[first : first + second]]
        found += frechet(*(Moments.of(part).gaussian() for part in parts)) / draws
    return found * (1 / n + 1 / m) / (1 / first + 1 / second)
