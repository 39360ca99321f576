"""UniPC as a paper: DDPM's loss, a corrector for no call, the order that it gains."""

import itertools
import math

import pytest
import torch

from sfumato.core.oracle import Mixture
from sfumato.core.random import Seeds
from sfumato.core.schedules import VP
from sfumato.networks import UNetConfig
from sfumato.papers import ddim, ddpm
from sfumato.papers.unipc import PRESETS, Config, UniPC
from sfumato.recipe import Ask, At
from sfumato.samplers import unipc
from tests.papers.tools import loud

SMALL = UNetConfig(widths=(16, 32), blocks=1, attention=(), groups=8)


def test_loss_by_hand():
    """L_simple in x0 on the linear table."""
    recipe = loud(UniPC(Config((1, 8, 8), network=SMALL, predict="x0"))).double()
    x0, rng = Seeds(5).normal((6, 1, 8, 8), dtype=torch.float64), Seeds.at(0, range(6), "loss")
    k, noise = rng.integers(1000), rng.normal(x0.shape, dtype=torch.float64)
    kept = torch.cumprod(1 - ddpm.TABLES["linear"](1000), 0)[k].reshape(-1, 1, 1, 1)
    guess = recipe.denoiser.network(kept.sqrt() * x0 + (1 - kept).sqrt() * noise, k.float())
    expected = (guess - x0).square().mean()
    found = recipe.loss({"image": x0}, At(0, 0, 10, "model", Seeds.at(0, range(6), "loss"))).value
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    parameters = list(recipe.parameters())
    for a, b in zip(torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "shifted_cosine"])
def test_a_step_is_one_call(schedule):
    recipe, count = loud(UniPC(Config((1, 8, 8), network=SMALL, schedule=schedule))), []
    recipe.denoiser.network.register_forward_pre_hook(lambda net, args: count.append(len(args[0])))
    *_, state = recipe.sample(Ask(2), rng=Seeds(0))
    assert len(count) == 10 and state.point.sigma == 0.0 and bool(torch.isfinite(state.x).all())


def test_guidance_takes_the_lower_order():
    free, told = (UniPC(Config((1, 8, 8), classes, SMALL)).sampler() for classes in ((), ("a", "b")))
    assert (free.order, told.order, free.bh) == (3, 2, unipc.bh2)
    fixed = UniPC(Config((1, 8, 8), ("a", "b"), SMALL, order=1, bend="bh1")).sampler()
    assert (fixed.order, fixed.bh) == (1, unipc.bh1)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_corrector_gains_an_order(order):
    process = VP()
    oracle = Mixture(process, torch.tensor([[-1.0], [1.0]]).double(), torch.tensor([0.5, 0.5]).double())
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1)

    def end(order, steps):
        sampler = UniPC(Config((1, 8, 8), network=SMALL, order=order, steps=steps)).sampler()
        return sampler(oracle, x, start=0.8, end=0.2)

    exact = end(3, 700)
    errors = [float((end(order, n) - exact).abs().max()) for n in (40, 80, 160)]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(slopes) > min(order + 1, 3) - 0.2, slopes  # the first steps, of lower order, cost the highest its last


def test_presets():
    for name, preset in PRESETS.items():
        assert preset.training == ddim.PRESETS[name].training
        with torch.device("meta"):
            recipe = UniPC(preset.config)
        assert recipe.sampler().calls() == 10
        if name == "lsun":
            assert round(sum(p.numel() for p in recipe.parameters()) / 1e6, 3) == 113.673
