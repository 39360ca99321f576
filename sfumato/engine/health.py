"""Is the run well? In words, from numbers that are there anyway."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.recipe import Training

__all__ = ["Facts", "caption", "noisy", "reasons", "roughness", "unusual"]


def roughness(images: Tensor) -> float:
    """E (x_i - x_j)^2 / (2 Var x) over neighbours i, j of pictures (B, C, *S): 1 for white noise, near 0 where pictures
    are smooth, NaN where they are flat. The variance is that within each channel of each picture."""
    x = images.double()
    space = tuple(range(2, x.dim()))
    x = x - x.mean(space, keepdim=True)
    step = [x.diff(dim=d).square().mean() for d in space if x.shape[d] > 1]
    variance = x.square().mean()
    return float(torch.stack(step).mean() / (2 * variance)) if step and variance > 1e-6 else math.nan


def noisy(pictures: Tensor, data: float) -> bool:
    """Whether pictures are rougher than half-way from the data's roughness to white noise's."""
    return data < 0.8 and roughness(pictures) > 0.5 * (1.0 + data)


@dataclass(frozen=True)
class Facts:
    """What is known of a run at some step."""

    training: Training
    step: int
    examples: int
    first: float  # loss of the first step: that of a model that knows nothing
    last: float | None  # mean loss since the last line
    untrained: float  # share of the initial weights in the average
    skipped: int = 0

    @property
    def diverged(self) -> bool:
        return self.last is not None and 0 < 3 * self.first < self.last


def reasons(facts: Facts) -> Iterator[str]:
    """Why pictures may be noise, the likeliest first; at least one."""
    t, found = facts.training, False
    if facts.diverged:
        found = True
        yield f"the loss, {facts.last:.3g}, is above an untrained model's, {facts.first:.3g}: lower --lr ({t.lr:g})"
    if facts.untrained > 0.1:
        found = True
        yield (
            f"the average, which makes the pictures, is still {facts.untrained:.0%} untrained weights: train longer, "
            "or with a smaller --training.ema"
        )
    if facts.skipped > 0.05 * facts.step:
        found = True
        yield f"{facts.skipped:,} of {facts.step:,} steps were skipped for numbers that are not finite: lower --lr"
    if not facts.diverged and facts.last is not None and facts.last > 0.5 * facts.first > 0:
        found = True
        looks = facts.step * t.batch / facts.examples
        yield (
            f"little is learnt yet: the loss is {facts.last:.3g}, an untrained model's {facts.first:.3g}, after "
            f"{facts.step:,} steps ({looks:.3g} looks at each example): train longer, or try another --lr"
        )
    if not found:
        yield "the loss has fallen all the same: train longer, and sample with more --steps or another --sampler"


def unusual(names: Sequence[str], batch: int, images: Tensor) -> Iterator[str]:
    """What is odd about the data, from some of its examples (B, C, *S)."""
    n = len(names)
    if n == 1:
        yield "There is one example to train on: the model will learn to repeat it."
    elif float((images - images[:1]).abs().max()) == 0.0:
        yield f"The first {len(images):,} of {n:,} examples are all the same: the model will learn to repeat it."
    if float(images.amax() - images.amin()) == 0.0:
        yield "These pictures are of one colour, without anything to be seen."
    if 1 < n < batch:
        yield f"A batch of {batch:,} is larger than the data ({n:,}): every step sees examples more than once."


def caption(line: Mapping[str, Any], held: Mapping[str, float] | None, noise: bool) -> str:
    """What stands below a grid: the numbers of the newest line of metrics, and the loss from little noise to much."""
    parts = [f"step {line['step']:,}"]
    parts += [
        f"{name} {value:.4g}" for name, value in line.items() if name.endswith(("loss", "norm")) and value is not None
    ]
    parts += [f"held-out {value:.4g}" for value in (held or {}).values()]
    if line.get("ema_lag") is not None:
        parts.append(f"EMA lag {line['ema_lag']:.2%}")
    parts += [f"{line['skipped']:,} skipped"] * bool(line["skipped"])
    levels = ["-" if v is None else f"{v:.2g}" for v in line.get("levels", ())]
    lines = [
        ", ".join(parts),
        *([f"loss by noise level {' '.join(levels)}"] if levels else []),
        f"order {line['order']}",
    ]
    return "\n".join([*lines, *(["looks like noise"] if noise else [])])
