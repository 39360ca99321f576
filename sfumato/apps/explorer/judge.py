"""What a trained run makes of one picture: its loss, and its bits per dimension."""

from __future__ import annotations

import threading
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato.cli.likelihood import Likelihood, Meter
from sfumato.cli.runs import find_run, opened
from sfumato.cli.samplers import own_sampler
from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.phase import CLD
from sfumato.core.process import Affine
from sfumato.core.random import Seeds
from sfumato.data import Dataset
from sfumato.data.columns import Records
from sfumato.data.decode import BadPicture, decode
from sfumato.data.fit import Plan
from sfumato.errors import UserError
from sfumato.recipe import At, Recipe
from sfumato.samplers.consistency import Consistency

__all__ = ["Judge"]

DRAWS = 32  # of noise and its level, for the loss
CHANNELS = (1, 3, 4)


class Judge:
    """A run, opened when it is first asked. One picture at a time."""

    def __init__(self, run: Path) -> None:
        """Raises UserError where there is no run."""
        self.home = find_run(run, "data explore DATA --run")
        self.lock = threading.Lock()

    @cached_property
    def recipe(self) -> Recipe:
        return opened(self.home, torch.device("cpu")).requires_grad_(False).eval()

    def __call__(self, records: Records, id: int, label: str | None) -> dict[str, Any]:
        """The table of `Room.judge`. Raises UserError."""
        with self.lock:
            data, known = self._picture(records, id, label)
            bits, note = self._bits(data, known)
            return {"loss": self._loss(data), "bits": bits, "note": note}

    def _picture(self, records: Records, id: int, label: str | None) -> tuple[Dataset, torch.Tensor | None]:
        """The picture as the run would see it, and its class where the run knows that name."""
        shape = tuple(self.recipe.config.shape)
        if len(shape) != 3 or shape[0] not in CHANNELS:
            raise UserError(f"this run makes no pictures but {' x '.join(map(str, shape))}: it cannot judge one.")
        channels, high, wide = shape
        try:
            pixels = decode(records.encoded(id), Plan((wide, high), channels))
        except BadPicture as reason:
            raise UserError(f"{records.names[id]} cannot be judged: {reason}.") from None
        classes = tuple(self.recipe.config.classes)
        place = classes.index(label) if label in classes else None
        labels = None if place is None else np.array([place], np.int64)
        data = Dataset(pixels[None], (records.names[id],), labels=labels, classes=classes)
        return data, None if place is None else torch.tensor([place])

    @torch.no_grad()
    def _loss(self, data: Dataset) -> float | None:
        """The mean of the recipe's own loss over DRAWS seeded levels and noises; the same draws for every picture."""
        if data.classes and data.labels is None:
            return None  # the run wants to be told a class that this picture does not have
        one = data.batch([0])
        batch = {name: v.repeat_interleave(DRAWS, 0) if hasattr(v, "repeat_interleave") else v * DRAWS
                 for name, v in one.items()}  # fmt: skip
        seeds = Seeds.at(0, range(DRAWS), "judge")
        at = At(step=0, images=0, total=1, phase=next(iter(self.recipe.phases())), rng=seeds)
        try:
            return float(self.recipe.loss(batch, at).value)
        except (KeyError, AttributeError, TypeError):
            return None  # a paper whose loss needs more than a picture

    def _bits(self, data: Dataset, label: torch.Tensor | None) -> tuple[float | None, str]:
        denoiser = getattr(self.recipe, "denoiser", None)
        if not isinstance(denoiser, NeuralDenoiser) or not isinstance(denoiser.process, Affine | CLD):
            return None, "This paper has no density of pictures."
        if isinstance(own_sampler(self.recipe), Consistency):
            return None, "A consistency model jumps to the picture: it has no density. Give the run of its teacher."
        meter = Meter(self.recipe, denoiser, data, label, Likelihood(n=1), 1, ())
        try:
            flow = meter.flow(slice(0, 1), lambda share: None)
        except (ArithmeticError, UserError) as error:
            return None, f"The flow cannot be followed: {error}."
        bits = float((flow.bits() + meter.offset).mean())
        return bits, "Bits per dimension of the probability flow; fewer: more probable to the run."
