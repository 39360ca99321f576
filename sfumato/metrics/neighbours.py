"""Fidelity and variety apart, by nearest neighbours: precision and recall, density and coverage."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.errors import UserError

__all__ = ["DensityCoverage", "PrecisionRecall", "density_coverage", "precision_recall"]

BATCH = 2048
ROUNDING = 1e-13  # of the largest squared norm: distances as equal as float64 can tell


class PrecisionRecall(NamedTuple):
    """Share of generated samples that look real, share of real ones that could be generated."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density may exceed 1; coverage is the share of real samples with a generated one near."""

    density: float
    coverage: float


def precision_recall(real: Tensor, made: Tensor, *, k: int = 3, closed: bool = True) -> PrecisionRecall:
    """Of rows (N, D) and (M, D): a sample counts if it lies in the ball of any sample of the other set, whose radius
    is the distance to its k-th neighbour (Kynkaanniemi et al. 2019, arXiv:1904.06991). `closed` balls contain their
    surface, as in the paper and torch-fidelity; prdc's do not. Compare at equal n."""
    real, made, slack = _ready(real, made, k)
    slack = slack if closed else -slack
    inside_real, inside_made = _radii(real, k) + slack, _radii(made, k) + slack

    def covered(rows: Tensor, centres: Tensor, radii: Tensor) -> float:
        hits = [_within(_squared(part, centres), radii, closed).any(1) for part in torch.split(rows, BATCH)]
        return float(torch.cat(hits).double().mean())

    return PrecisionRecall(covered(made, real, inside_real), covered(real, made, inside_made))


def density_coverage(real: Tensor, made: Tensor, *, k: int = 5) -> DensityCoverage:
    """density = sum over generated samples of the real balls around each, over k M; coverage = real balls that hold a
    generated sample (Naeem et al. 2020, arXiv:2002.09797). Open balls, as there."""
    real, made, slack = _ready(real, made, k)
    radii = _radii(real, k) - slack
    balls, held = 0, torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for part in torch.split(made, BATCH):
        inside = _within(_squared(part, real), radii, False)
        balls += int(inside.sum())
        held |= inside.any(0)
    return DensityCoverage(balls / (k * len(made)), float(held.double().mean()))


def _ready(real: Tensor, made: Tensor, k: int) -> tuple[Tensor, Tensor, float]:
    """Both in float64 about their common mean, and what rounding may do to a squared distance."""
    if real.shape[1] != made.shape[1]:
        raise UserError(f"Features of {real.shape[1]} and of {made.shape[1]} numbers cannot be compared.")
    if min(len(real), len(made)) <= k:
        raise UserError(f"{k} neighbours need more than {k} samples on both sides: {len(real)} and {len(made)} here.")
    real, made = (rows.detach().to(torch.float64) for rows in (real, made))
    mean = real.mean(0)
    real, made = real - mean, made - mean
    return real, made, ROUNDING * float(max(real.square().sum(1).max(), made.square().sum(1).max()))


def _squared(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2, (N, M)."""
    return torch.addmm(y.square().sum(1), x, y.T, alpha=-2).add_(x.square().sum(1, keepdim=True)).clamp_(min=0)


def _radii(rows: Tensor, k: int) -> Tensor:
    """Squared distance of each row to its k-th neighbour, itself left out."""
    out = []
    for start in range(0, len(rows), BATCH):
        distance = _squared(rows[start : start + BATCH], rows)
        distance.diagonal(start).fill_(torch.inf)
        out.append(distance.kthvalue(k, dim=1).values)
    return torch.cat(out)


def _within(distance: Tensor, radii: Tensor, closed: bool) -> Tensor:
    return distance <= radii if closed else distance < radii
