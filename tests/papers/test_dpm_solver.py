"""DPM-Solver as a paper: DDPM's loss, calls of the network, the order that it claims."""

import itertools
import math

import pytest
import torch

from sfumato.core import times
from sfumato.core.oracle import Mixture
from sfumato.core.random import Seeds
from sfumato.core.schedules import VP
from sfumato.networks import UNetConfig
from sfumato.papers import ddim
from sfumato.papers.dpm_solver import PRESETS, Config, DPMSolver
from sfumato.recipe import Ask, At
from sfumato.samplers.ancestral import DDIM
from tests.papers.tools import loud

SMALL = UNetConfig(widths=(16, 32), blocks=1, attention=(), groups=8)


def test_loss_by_hand():
    """L_simple in v on the continuous cosine schedule of the small presets."""
    config = Config((1, 8, 8), network=SMALL, schedule="shifted_cosine", predict="v")
    recipe, x0 = loud(DPMSolver(config)).double(), Seeds(5).normal((6, 1, 8, 8), dtype=torch.float64)
    here = At(0, 0, 10, "model", Seeds.at(0, range(6), "loss"))
    rng = Seeds.at(0, range(6), "loss")
    t, noise = recipe.draw(rng), rng.normal(x0.shape, dtype=torch.float64)
    angle = (0.5 * math.pi * 0.9999 * t).reshape(-1, 1, 1, 1)
    guess = recipe.denoiser.network(angle.cos() * x0 + angle.sin() * noise, (1000 * t).float())
    expected = (guess - (angle.cos() * noise - angle.sin() * x0)).square().mean()
    found = recipe.loss({"image": x0}, here).value
    assert found.item() == pytest.approx(expected.item(), rel=1e-7)
    parameters = list(recipe.parameters())
    for a, b in zip(torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("order", "steps", "calls"), [(1, 20, 20), (2, 10, 19), (3, 7, 19)])
@pytest.mark.parametrize("schedule", ["linear", "shifted_cosine"])
def test_calls_and_the_equal_steps_in_lambda(order, steps, calls, schedule):
    recipe, count = loud(DPMSolver(Config((1, 8, 8), network=SMALL, schedule=schedule, order=order, steps=steps))), []
    recipe.denoiser.network.register_forward_pre_hook(lambda net, args: count.append(len(args[0])))
    *_, state = recipe.sample(Ask(2), rng=Seeds(0))
    assert recipe.sampler().calls() == calls == len(count) and state.point.sigma == 0.0
    process = recipe.denoiser.process
    points = process.points(recipe.sampler().spacing(process, steps, 1.0, 0.0))[1:-1]
    gaps = torch.tensor([p.lam for p in points]).diff()
    assert torch.allclose(gaps, gaps[:1].expand_as(gaps), rtol=1e-6)


def test_order_1_is_ddim():
    recipe = loud(DPMSolver(Config((1, 8, 8), network=SMALL, clip=False, order=1, steps=9)))
    *_, a = recipe.sample(Ask(2), rng=Seeds(0))
    *_, b = recipe.sample(Ask(2, sampler=DDIM(9, times.log_snr)), rng=Seeds(0))
    assert torch.allclose(a.x, b.x, atol=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_error_falls_as_claimed(order):
    """On two bumps, from t = 0.8 to 0.2 in equal steps of lambda, against 300 of the highest order."""
    process = VP()
    oracle = Mixture(process, torch.tensor([[-1.0], [1.0]]).double(), torch.tensor([0.5, 0.5]).double())
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1)

    def end(order, steps):
        sampler = DPMSolver(Config((1, 8, 8), network=SMALL, order=order, steps=steps)).sampler()
        return sampler(oracle, x, start=0.8, end=0.2)

    exact = end(3, 300)
    errors = [float((end(order, n) - exact).abs().max()) for n in (24, 48, 96)]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(slopes) > order - 0.15, slopes


def test_presets():
    for name, preset in PRESETS.items():
        assert preset.training == ddim.PRESETS[name].training
        with torch.device("meta"):
            recipe = DPMSolver(preset.config)
        assert recipe.sampler().calls() == 19
        if name == "cifar10":
            assert sum(p.numel() for p in recipe.parameters()) == 35_746_307 and not preset.config.clip
