"""The default sampler earns its place: on exact mixtures, against settings of diffusers that people use."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from sfumato.core import times
from sfumato.core.oracle import Gaussian
from sfumato.core.process import Affine
from sfumato.core.schedules import EDM, VE, VP, Cosine, Discrete, Flow, Levels, SubVP
from sfumato.samplers.auto import Auto

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import samplers as bench

PROCESSES = [VP(), SubVP(), VE(), EDM(), Flow(), Cosine(), Discrete.linear(), Discrete.cosine(), Levels()]


@pytest.fixture(scope="module")
def problem() -> tuple:
    mixture = bench.Mixture(7, 8)
    x = torch.randn(192, 8, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    return mixture, x, mixture.flow(x / bench.TOP.alpha, bench.TOP.ratio, steps=400)


@pytest.mark.filterwarnings("ignore")
def test_it_beats_the_settings_that_people_use(problem: tuple) -> None:
    """In the geometric mean over 10 to 50 calls, in the median error and in the root mean square; the whole field is
    in benchmarks/samplers.py."""
    columns = (10, 20, 50)
    peers = bench.diffusers()
    named = ("DDIM", "DPM++2M", "DPM++2M karras", "DPM++2M lu, euler at final", "LMS karras", "Heun karras")
    rows = {name: [bench.errors(peers[f"diffusers {name}"], [problem], n) for n in columns] for name in named}
    mine = [bench.errors(bench.ours()["auto"], [problem], n) for n in columns]
    for k in (0, 1):
        own = math.prod(e[k] for e in mine)
        for name, row in rows.items():
            assert own < 0.5 * math.prod(e[k] for e in row), (name, k)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 25])
def test_it_walks_every_process_with_a_call_a_step(process: Affine, steps: int) -> None:
    """To the end of the probability flow of N(0.3, 0.5^2), whatever alpha(1) is."""
    oracle = Gaussian(process, 0.3, 0.5)
    calls = []

    class Counted:
        def __init__(self) -> None:
            self.process = process

        def __call__(self, x, t):
            calls.append(t)
            return oracle(x, t)

    x1 = process.at(1.0).sigma * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    x0 = Auto(steps=steps)(Counted(), x1)
    assert len(calls) == steps == Auto(steps=steps).calls() and torch.isfinite(x0).all()
    if steps == 25:
        end = process.at(1.0)
        truth = oracle.flow(x1, 1.0) if end.alpha else 0.3 + 0.5 * x1
        assert (x0 - truth).abs().max() < 3e-3


def test_a_process_and_its_rescaling_give_the_same_picture() -> None:
    """VP and VE are the same flow in x / alpha: with the grid in sigma / alpha the samples agree."""

    class Rescaled(VP):
        def alpha(self, t):
            return torch.ones_like(t)

        def sigma(self, t):
            return VP.sigma(self, t) / VP.alpha(self, t)

    vp, ve = VP(), Rescaled()
    z = torch.randn(5, 3, dtype=torch.float64)
    a = Auto(steps=12)(Gaussian(vp, 0.1, 0.4), z)
    b = Auto(steps=12)(Gaussian(ve, 0.1, 0.4), z / vp.at(1.0).alpha)
    assert torch.allclose(a, b, atol=1e-9)


def test_the_grid_is_dense_in_log_noise_when_steps_are_few() -> None:
    process = EDM()
    for steps in (5, 15):
        assert torch.allclose(times.balanced(process, steps, 1, 0), times.log_snr(process, steps, 1, 0), atol=1e-12)
    few, many = (process.points(times.balanced(process, n, 1.0, 0.0)) for n in (15, 60))
    assert many[1].ratio / many[0].ratio > few[1].ratio / few[0].ratio  # finer at the noisy end
    assert [p.t for p in many] == sorted((p.t for p in many), reverse=True) and many[-1].t == 0.0
