"""What one step of training did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.engine.judge import Verdict

__all__ = ["Step"]


@dataclass(frozen=True)
class Step:
    """What one step did. Losses are fetched from the device only when they are looked at."""

    step: int  # steps finished
    total: int
    images: int  # examples seen
    lr: float
    seconds: float
    values: Mapping[str, Tensor] = field(default_factory=dict)  # loss, norm; PHASE/loss, ... with several phases
    saved: Path | None = None  # a checkpoint, or final/ in the last step
    grid: Path | None = None  # a preview
    held: Mapping[str, float] | None = None
    verdict: Verdict | None = None  # of the averaged model's pictures, in the first process
    line: Mapping[str, Any] | None = None  # what went to metrics.jsonl
    stopped: str | None = None  # the signal that ended the run after this step; EXIT_CODES has its exit code

    @property
    def loss(self) -> float:
        return float(next(iter(self.values.values())))

    @property
    def norm(self) -> float:
        """The gradient norm of the first phase, before clipping."""
        return float(next(v for name, v in self.values.items() if name.endswith("norm")))
