"""The Inception score: sure about each picture, and not about which comes next."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfumato.errors import UserError

__all__ = ["Score", "inception_score"]


class Score(NamedTuple):
    """Mean and standard deviation over the splits."""

    value: float
    std: float


def inception_score(logits: Tensor, *, splits: int = 10, seed: int | None = 2020) -> Score:
    """exp(mean KL(p(y | x) || p(y))) of logits (N, classes), split by split (Salimans et al. 2016, arXiv:1606.03498).

    `seed` shuffles first; 2020 gives the order of torch-fidelity, None leaves the order of the files, as ADM does.
    Probabilities are as good as logits once their logarithm is taken. Grows with n: compare at equal n and splits.
    """
    n = len(logits)
    if n < splits:
        raise UserError(f"An Inception score in {splits} splits needs as many samples, here {n}.")
    if seed is not None:
        logits = logits[torch.from_numpy(np.random.RandomState(seed).permutation(n)).to(logits.device)]
    surprise = logits.detach().double().log_softmax(1)
    scores = []
    for i in range(splits):
        part = surprise[i * n // splits : (i + 1) * n // splits]
        p = part.exp()
        gain = torch.where(p > 0, p * (part - p.mean(0).log()), 0.0)
        scores.append(float(gain.sum(1).mean().exp()))
    return Score(float(np.mean(scores)), float(np.std(scores)))
