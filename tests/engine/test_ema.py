"""The average against its definition in float64, and the swap."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sfumato.engine import ema


def parameters(seed: int) -> dict[str, nn.Parameter]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "a": nn.Parameter(torch.randn(5, 3, generator=draw)),
        "b": nn.Parameter(torch.randn(7, generator=draw)),
        "c": nn.Parameter(torch.randn(2, 4, 3, 3, generator=draw).to(memory_format=torch.channels_last)),
    }


def closed_form(name: str, n: int, batch: int) -> float:
    """Spec table 0.7, written out again."""
    seen = (n - 1) * batch
    return {
        "constant": 0.97,
        "warmup": min(0.97, (1 + n) / (10 + n)),
        "copy_first": 0.0 if n == 1 else 0.97,
        "images": 0.5 ** (batch / min(500.0, 0.05 * seen)) if seen else 0.0,
    }[name]


@pytest.mark.parametrize("name", sorted(ema.RULES))
def test_rules_against_a_loop_in_float64(name: str) -> None:
    batch, live = 16, parameters(0)
    average = ema.EMA(live, 500.0 if name == "images" else 0.97, ema.RULES[name])
    truth = {k: p.detach().double() for k, p in live.items()}
    draw = torch.Generator().manual_seed(1)
    for n in range(1, 200):
        for k, p in live.items():
            p.data += 0.1 * torch.randn(p.shape, generator=draw)
            d = closed_form(name, n, batch)
            truth[k] = d * truth[k] + (1 - d) * p.detach().double()
        average.update((n - 1) * batch, batch)
        assert average.last == closed_form(name, n, batch)
    for k, t in average.tensors().items():
        assert (t.double() - truth[k]).abs().max() < 2e-6  # float32 rounding of 200 updates


def test_known_decays() -> None:
    assert ema.warmup(0.9999, 1, 0, 1) == 2 / 11
    assert ema.warmup(0.9999, 10**6, 0, 1) == 0.9999
    assert ema.images(500_000.0, 9, 10**9, 500_000) == 0.5


def test_the_swap_gives_back_every_bit_even_after_an_error() -> None:
    live = parameters(0)
    average = ema.EMA(live, 0.5, ema.constant)
    for p in live.values():
        p.data += 1.0
    before = {k: (p.detach().clone(), p.data_ptr(), p.stride()) for k, p in live.items()}
    averages = {k: t.clone() for k, t in average.tensors().items()}
    with pytest.raises(KeyError), average.swapped():
        assert all(torch.equal(live[k], averages[k]) for k in live)
        raise KeyError
    for k, p in live.items():
        assert torch.equal(p, before[k][0]) and (p.data_ptr(), p.stride()) == before[k][1:]
        assert torch.equal(average.tensors()[k], averages[k])


def test_lag() -> None:
    live = parameters(0)
    average = ema.EMA(live, 0.5, ema.constant)
    assert average.lag() == 0
    for p in live.values():
        p.data *= 2
    assert float(average.lag()) == pytest.approx(0.5, rel=1e-6)
