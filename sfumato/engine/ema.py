"""Exponential moving average of parameters, in one pass over memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from sfumato.engine.optim import global_norm

__all__ = ["EMA", "RULES", "Rule", "constant", "copy_first", "images", "warmup"]

Rule = Callable[[float, int, int, int], float]
"""(decay, update n = 1, 2, ..., images seen before it, batch) -> the decay of this update."""


def constant(decay: float, n: int, seen: int, batch: int) -> float:
    """Improved DDPM, ADM: constant from a copy of the initial weights."""
    return decay


def warmup(decay: float, n: int, seen: int, batch: int) -> float:
    """Score SDE, CLD: min(decay, (1 + n) / (10 + n))."""
    return min(decay, (1 + n) / (10 + n))


def copy_first(decay: float, n: int, seen: int, batch: int) -> float:
    """DDPM (TensorFlow): the first update copies the weights."""
    return 0.0 if n == 1 else decay


def images(half_life: float, n: int, seen: int, batch: int) -> float:
    """EDM: 0.5^(batch / h), h = min(half-life, 5 % of the images seen): the same average at any batch size."""
    h = min(half_life, 0.05 * seen)
    return 0.5 ** (batch / h) if h > 0 else 0.0


RULES: dict[str, Rule] = {"constant": constant, "warmup": warmup, "copy_first": copy_first, "images": images}


class EMA:
    """avg <- avg + (1 - decay) (parameter - avg) of named parameters. Of buffers the live ones serve."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float, rule: Rule) -> None:
        self.decay, self.rule = decay, rule
        self.updates, self.last = 0, 0.0
        self.untrained = 1.0  # share of the initial weights in the average
        self._names = list(parameters)
        self._parameters = list(parameters.values())
        self._average = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self, seen: int, batch: int) -> None:
        """One update, after an optimiser step on `batch` images that follow the first `seen`."""
        self.updates += 1
        self.last = self.rule(self.decay, self.updates, seen, batch)
        self.untrained *= self.last
        if self._average:
            torch._foreach_lerp_(self._average, [p.detach() for p in self._parameters], 1.0 - self.last)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the block the parameters are the averages. Pointers change hands: no copy, every bit comes back."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for i, p in enumerate(self._parameters):
            p.data, self._average[i] = self._average[i], p.data

    @torch.no_grad()
    def lag(self) -> Tensor:
        """|average - parameters| / |parameters|, a scalar tensor."""
        if not self._average:
            return torch.zeros(())
        live = [p.detach() for p in self._parameters]
        return global_norm(list(torch._foreach_sub(self._average, live))) / global_norm(live).clamp(min=1e-30)

    def tensors(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(zip(self._names, self._average, strict=True))
