"""AdamW, clipping and schedules against torch and against formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sfumato.engine.optim import AdamW, factor
from sfumato.recipe import Training


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return {
        "a": nn.Parameter(torch.randn(50, 30, generator=draw).to(dtype)),
        "b": nn.Parameter(torch.randn(7, generator=draw).to(dtype)),
        "c": nn.Parameter(torch.randn(8, 4, 3, 3, generator=draw).to(dtype).to(memory_format=torch.channels_last)),
    }


def give(p: nn.Parameter, values: torch.Tensor) -> None:
    p.grad = torch.empty_like(p).copy_(values)  # in the parameter's own layout, as autograd does


def side_by_side(training: Training, dtype: torch.dtype) -> float:
    """The largest relative difference to torch.optim.AdamW and clip_grad_norm_ after 50 steps."""
    ours, theirs = parameters(dtype), parameters(dtype)
    mine = AdamW(ours, training)
    reference = torch.optim.AdamW(
        theirs.values(),
        lr=training.lr,
        betas=training.betas,
        eps=training.eps,
        weight_decay=training.weight_decay,
        foreach=False,
    )
    draw = torch.Generator().manual_seed(1)
    for _ in range(50):
        for p, q in zip(ours.values(), theirs.values(), strict=True):
            g = torch.randn(p.shape, generator=draw)
            give(p, g)
            give(q, g)
        norm = mine.norm()
        if training.clip:
            reference_norm = torch.nn.utils.clip_grad_norm_(theirs.values(), training.clip)
            assert float(norm) == pytest.approx(float(reference_norm), rel=1e-6)
        mine.step(training.lr, norm, torch.zeros(()))
        reference.step()
    pairs = [(p.detach(), q.detach()) for p, q in zip(ours.values(), theirs.values(), strict=True)]
    return max(float(((p - q).abs() / q.abs().clamp(min=1e-2)).max()) for p, q in pairs)


@pytest.mark.parametrize("clip", [0.0, 1.0, 1e6])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_steps_are_those_of_torch(clip: float, weight_decay: float) -> None:
    training = Training(lr=1e-3, clip=clip, weight_decay=weight_decay, betas=(0.9, 0.99))
    assert side_by_side(training, torch.float64) < (
        1e-7 if clip else 1e-12
    )  # the kernel takes the clipping factor in float32
    assert side_by_side(training, torch.float32) < 5e-6  # float32 rounding of 50 steps of 1e-3


def test_a_bad_gradient_changes_nothing() -> None:
    live = parameters()
    optimiser = AdamW(live, Training())
    for p in live.values():
        give(p, torch.ones(p.shape))
    optimiser.step(1e-3, optimiser.norm(), torch.zeros(()))
    before = {k: t.clone() for k, t in (optimiser.tensors() | {f"p/{k}": p.detach() for k, p in live.items()}).items()}
    next(iter(live.values())).grad[3, 3] = float("inf")
    norm = optimiser.norm()
    optimiser.step(1e-3, norm, (~torch.isfinite(norm)).float())
    after = optimiser.tensors() | {f"p/{k}": p.detach() for k, p in live.items()}
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_schedules() -> None:
    t = Training(steps=110, warmup=10, decay="cosine")
    assert [factor(t, s) for s in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert factor(t, 10) == 1.0 and factor(t, 60) == pytest.approx(0.5) and factor(t, 110) == pytest.approx(0.0)
    assert factor(t, 35) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert [factor(Training(steps=110, warmup=10, decay="linear"), s) for s in (10, 60, 110)] == [1.0, 0.5, 0.0]
    assert {factor(Training(steps=110, warmup=0), s) for s in range(200)} == {1.0}
