"""The Vendi score: how many different samples there are, in effect."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.errors import UserError

__all__ = ["vendi"]


def vendi(rows: Tensor) -> float:
    """exp of the entropy of the eigenvalues of K / n, K the cosine similarities of rows (N, D) (Friedman and Dieng
    2022, arXiv:2210.02410): 1 when all are alike, n when all are orthogonal. Needs no reference set."""
    if not len(rows):
        raise UserError("A Vendi score needs a sample.")
    unit = torch.nn.functional.normalize(rows.detach().double(), dim=1)
    small = unit.T @ unit if unit.shape[0] > unit.shape[1] else unit @ unit.T
    values = torch.linalg.eigvalsh(small / len(rows))
    values = values[values > 0]
    return float(torch.exp(-(values * values.log()).sum()))
