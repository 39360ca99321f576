"""Levels, draws, steps and distances of consistency training."""

import itertools
import math

import pytest
import torch

from sfumato.core import consistency
from sfumato.core.oracle import Gaussian
from sfumato.core.random import Seeds
from sfumato.core.schedules import EDM, VP


def test_levels_are_rho_7_from_the_noisiest():
    sigma = 80 * consistency.levels(EDM(), 40)
    ends = 80 ** (1 / 7), 0.002 ** (1 / 7)
    expected = [(ends[0] + i / 39 * (ends[1] - ends[0])) ** 7 for i in range(40)]
    assert sigma.tolist() == pytest.approx(expected, rel=1e-9) and float(sigma[22]) == pytest.approx(1.38237, rel=1e-5)
    assert len(consistency.levels(EDM(), 2)) == 2


def test_root_growth_is_the_papers():
    found = [consistency.root(k, 1000, 2, 150) for k in range(1001)]
    assert found[0] == 2 and found[-1] == 151 and found == sorted(found)
    k = 377
    assert found[k] == math.ceil(math.sqrt(k / 1000 * (151**2 - 4) + 4) - 1) + 1


def test_exponential_growth_is_icts():
    found = [consistency.exponential(k, 800, 10, 1280) for k in range(801)]
    assert sorted(set(found)) == [11, 21, 41, 81, 161, 321, 641, 1281] and found == sorted(found)
    assert found.count(11) == 100 == found.count(641)  # K' = floor(K / 8)


def test_the_target_lags_less_at_close_levels():
    assert consistency.adaptive(0.95, 2, 151) == pytest.approx(math.exp(2 * math.log(0.95) / 151))
    assert consistency.adaptive(0.0, 2, 10) == 0.0


def test_log_normal_draws():
    """Each neighbour as often as iCT says."""
    process, grid = EDM(), consistency.levels(EDM(), 12)
    found = torch.bincount(consistency.log_normal(Seeds.at(0, range(20_000)), process, grid), minlength=11) / 20_000
    level = [(math.log(80 * t) + 1.1) / (math.sqrt(2) * 2.0) for t in grid.tolist()]
    p = torch.tensor([math.erf(a) - math.erf(b) for a, b in itertools.pairwise(level)])
    assert torch.allclose(found.float(), p / p.sum(), atol=0.012)
    uniform = torch.bincount(consistency.uniform(Seeds.at(0, range(4000)), process, grid), minlength=11)
    assert len(uniform) == 11 and uniform.min() > 280


@pytest.mark.parametrize("process", [EDM(), VP()], ids=lambda p: type(p).__name__)
def test_a_step_follows_the_flow_to_second_order(process):
    """Every example between levels of its own; the error of n steps falls as n^-2."""
    oracle, errors = Gaussian(process, 0.1, 0.5), []
    begin = torch.tensor([[1.0], [-0.5], [2.0]], dtype=torch.float64)
    for n in (8, 16, 32):
        grid = torch.stack([torch.linspace(a, 0.05, n + 1, dtype=torch.float64) for a in (0.3, 0.4, 0.2)], 1)
        x, exact = begin, oracle.flow(begin, grid[0])
        for t, s in itertools.pairwise(grid):
            x = consistency.heun(oracle, x, process.at(t), process.at(s))
        errors.append(float((oracle.flow(x, grid[-1]) - exact).abs().max()))
    assert errors[0] / errors[1] > 3.4 and errors[1] / errors[2] > 3.4


def test_distances():
    a, b = (Seeds(k).normal((3, 2, 5), dtype=torch.float64) for k in (0, 1))
    square = (a - b).square().sum((1, 2))
    assert torch.allclose(consistency.squared(a, b), square / 10)
    c = 0.00054 * math.sqrt(10)
    assert torch.allclose(consistency.pseudo_huber(a, b), (square + c**2).sqrt() - c)
    assert not consistency.pseudo_huber(a, a).any()


def test_dropout_repeats_after_the_block():
    with torch.random.fork_rng():
        with consistency.replayed(torch.device("cpu")):
            first = torch.nn.functional.dropout(torch.ones(100), 0.5)
        assert torch.equal(first, torch.nn.functional.dropout(torch.ones(100), 0.5))
