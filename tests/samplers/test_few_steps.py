"""Algorithm 1 of consistency models on the exact map of a Gaussian, and the authors' levels."""

import math
from dataclasses import replace

import pytest
import torch

from sfumato.core import parametrisation
from sfumato.core.estimate import Estimate
from sfumato.core.oracle import Gaussian
from sfumato.core.random import Seeds
from sfumato.core.schedules import EDM, VP, Flow
from sfumato.samplers.ancestral import DDIM
from sfumato.samplers.consistency import Consistency, few
from tests.samplers.tools import Counted, Draws

STD = 0.5


class Exact:
    """Where the flow of data N(0, STD^2) is at `first`: x / alpha times sqrt((STD^2 + r_1^2) / (STD^2 + r^2))."""

    def __init__(self, process):
        self.process = process

    def __call__(self, x, t):
        point = self.process.at(t)
        first = self.process.at(self.process.first).ratio
        share = ((STD**2 + first**2) / (STD**2 + point.ratio**2)) ** 0.5
        return Estimate.from_x0(self.process, point, x, x * (share / point.alpha))


@pytest.mark.parametrize("process", [EDM(), VP()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_exact_map_keeps_the_variance(process, steps):
    """A step is linear in x and in its noise: the variance of the last is exact, by probing with each noise alone."""
    sampler, first, zero = Consistency(steps), process.at(process.first).ratio, torch.zeros(1, 1, dtype=torch.float64)
    denoiser, top = Exact(process), process.at(1.0)
    parts = [float(sampler(denoiser, torch.ones(1, 1, dtype=torch.float64), rng=Draws()))]
    parts[0] *= (top.alpha**2 * STD**2 + top.sigma**2) ** 0.5
    parts += [float(sampler(denoiser, zero, rng=Draws(k))) for k in range(steps - 1)]
    assert sum(part**2 for part in parts) == pytest.approx(STD**2 + first**2, rel=1e-9)


def test_the_authors_levels():
    """t(22) of 40 is 1.38237 (spec 12.2)."""
    sigma = [(80 * few(EDM(), steps, 1.0, 0.0)).tolist() for steps in (1, 2, 4)]
    assert sigma[0] == [80.0, 0.0] and sigma[1] == [80.0, pytest.approx(1.38237, rel=1e-5), 0.0]
    roots = torch.tensor([*sigma[2][:-1], 0.002]) ** (1 / 7)
    assert torch.allclose(roots.diff(), roots.diff()[0].expand(4), atol=1e-5)


@pytest.mark.parametrize("process", [EDM(), VP(), Flow()], ids=lambda p: type(p).__name__)
def test_calls_and_ends(process):
    for steps in (1, 2, 5):
        denoiser = Counted(Gaussian(process, 0.0, STD))
        x = process.prior((2, 3), Seeds(0), dtype=torch.float64)
        *_, state = Consistency(steps).trajectory(denoiser, x, rng=Seeds(0))
        assert denoiser.calls == steps == Consistency(steps).calls() and state.t == 0.0
    assert torch.equal(Consistency(1)(denoiser, x), DDIM(1)(denoiser, x))  # and no noise is needed


def test_it_never_walks_up():
    with pytest.raises(ValueError, match="cannot encode"):
        Consistency(2)(Gaussian(EDM(), 0.0, STD), torch.zeros(1, 1), start=0.0, end=1.0)
    with pytest.raises(ValueError, match="to the data only"):
        few(EDM(), 2, 0.0, 1.0)


# -- the parametrisation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("low", [0.002, 0.0031, 0.7])
def test_it_is_the_identity_at_the_lowest_level_to_the_last_bit(low, dtype):
    process, x = EDM(low, 80.0), 3 * Seeds(0).normal((64, 5), dtype=dtype)
    out = 1e6 * Seeds(1).normal((64, 5), dtype=dtype)
    predict = parametrisation.consistency(0.5, low)
    for t in (process.first, torch.full((64,), process.first, dtype=torch.float64), process.first / 3):
        point = process.at(t)
        estimate = Estimate(process, point, x, out, *predict(process, point).rows(point), x)
        assert torch.equal(estimate.x0, x) and not estimate.eps.any()


def test_the_papers_coefficients():
    process, low, sd = EDM(), 0.002, 0.5
    for s in (0.002, 0.0021, 0.3, 2.0, 80.0):
        point = process.at(torch.tensor([s / 80], dtype=torch.float64))
        c = parametrisation.consistency(sd, low, pace=250.0)(process, point)
        assert float(c.skip) == pytest.approx(sd**2 / ((s - low) ** 2 + sd**2), rel=1e-12)
        assert float(c.out) == pytest.approx((s - low) * sd / (s**2 + sd**2) ** 0.5, rel=1e-9, abs=1e-15)
        assert float(c.inp) == pytest.approx(1 / (s**2 + sd**2) ** 0.5, rel=1e-12)
        assert float(c.time) == pytest.approx(250 * math.log(s), rel=1e-12)
        x, out = (Seeds(k).normal((1, 4), dtype=torch.float64) for k in (0, 1))
        estimate = Estimate(process, point, x, out, *c.rows(point), x)
        assert torch.allclose(estimate.x0 + s * estimate.eps, x, rtol=1e-12)
        host = process.at(s / 80)
        assert [float(v) for v in c[:4]] == pytest.approx(
            parametrisation.consistency(sd, low, pace=250.0)(process, host)[:4], rel=1e-9
        )


def test_steps_are_a_setting():
    assert replace(Consistency(), steps=4).calls() == 4
    with pytest.raises(ValueError, match="at least 1"):
        Consistency(0)
