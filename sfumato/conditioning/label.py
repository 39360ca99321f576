"""Class labels as a condition."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.core.cond import Cond

__all__ = ["Label"]


class Label(nn.Module):
    """An embedding for each class and one, the last, for "not told" (the null of classifier-free guidance).

    forward(labels (B,) int64 in [0, classes)) -> Cond with vector (B, width).
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.embedding = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.embedding.weight, std=0.5)

    def forward(self, labels: Tensor) -> Cond:
        return Cond(vector=self.embedding(labels))

    def null(self, n: int) -> Cond:
        """The condition of n pictures that nothing is said about."""
        labels = torch.full((n,), self.classes, device=self.embedding.weight.device)
        return Cond(vector=self.embedding(labels))
