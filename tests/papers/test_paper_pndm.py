"""PNDM as a paper: DDPM's loss, the paper's step, its number of calls, and how close it comes."""

import math
from dataclasses import replace

import pytest
import torch

from sfumato.core import losses, times
from sfumato.core.oracle import Gaussian
from sfumato.core.random import Seeds
from sfumato.errors import UserError
from sfumato.networks import UNetConfig
from sfumato.papers import ddpm
from sfumato.papers.pndm import METHODS, PNDM, PRESETS, Config
from sfumato.recipe import Ask
from sfumato.samplers.ancestral import DDIM
from tests.papers.tools import at, loud

SMALL = UNetConfig(widths=(16, 32), blocks=1, attention=(), groups=8)


def test_loss_and_gradient_by_hand():
    """L_simple at antithetic entries, written out."""
    recipe = loud(PNDM(Config((1, 8, 8), network=SMALL))).double()
    x0, parameters = Seeds(5).normal((6, 1, 8, 8), dtype=torch.float64), list(recipe.parameters())
    rng = at(range(6)).rng
    k = (recipe.draw(rng) * 1000).round().long() - 1
    assert (k[0::2] + k[1::2] == 999).all()
    noise = rng.normal(x0.shape, dtype=torch.float64)
    kept = torch.cumprod(1 - ddpm.TABLES["linear"](1000), 0)[k].reshape(-1, 1, 1, 1)
    guess = recipe.denoiser.network(kept.sqrt() * x0 + (1 - kept).sqrt() * noise, k.float())
    expected, found = (guess - noise).square().mean(), recipe.loss({"image": x0}, at(range(6))).value
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    for a, b in zip(torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-12)


def test_its_step_is_the_paper_s_transfer():
    """x_u from x_t and eps as the paper writes it, with a the product of 1 - beta: a DDIM step."""
    process, rng = PNDM(Config((1, 8, 8), network=SMALL)).denoiser.process, Seeds(0)
    x, e = (rng.normal((4, 1, 8, 8), dtype=torch.float64) for _ in range(2))
    for t, u in ((0.9, 0.88), (0.5, 0.1), (0.02, 0.001)):
        a, b = (process.at(v).alpha ** 2 for v in (t, u))
        root = math.sqrt
        noise = e / (root(a) * (root((1 - b) * a) + root((1 - a) * b)))
        paper = x + (b - a) * (x / (root(a) * (root(a) + root(b))) - noise)
        ours = losses.Estimate.from_eps(process, process.at(t), x, e).mix(process.at(u).alpha, process.at(u).sigma)
        assert torch.allclose(ours, paper, atol=1e-12)


@pytest.mark.parametrize(("method", "more"), [("f_pndm", 9), ("s_pndm", 1), ("plms", 0)])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_calls_of_the_network_and_the_code_s_sequence(method, more, schedule):
    recipe, told = loud(PNDM(Config((1, 8, 8), network=SMALL, method=method, schedule=schedule, steps=20))), []
    recipe.denoiser.network.register_forward_pre_hook(lambda net, args: told.append(float(args[1])))
    own = recipe.sampler()
    list(recipe.sample(Ask(2), rng=Seeds(0)))
    assert own.calls() == 20 + more == len(told)
    assert {float(k) for k in range(0, 1000, 50)} <= set(told), "the network is told entries, and half steps between"
    assert told[0] == 950


def test_the_network_s_own_answer_is_remembered():
    recipe = loud(PNDM(Config((1, 8, 8), network=SMALL, method="plms", steps=10)))
    state = next(iter(recipe.sample(Ask(2), rng=Seeds(0))))
    said = state.memory[0]
    assert recipe.config.clip is False
    assert torch.equal(said.tensor * said.scale, state.estimate.eps)


@pytest.mark.parametrize(("steps", "ddim", "f_pndm"), [(20, -0.1326, 4.68e-3), (50, -0.0551, 1.11e-3)])
def test_error_on_a_gaussian(steps, ddim, f_pndm):
    """Relative to the exact flow of N(0, 0.25) from x = 1 at the first entry; the figures are measured ones, of the
    scheme that ends at the least entry."""
    process = PNDM(Config((1, 8, 8), network=SMALL)).denoiser.process
    oracle, x = Gaussian(process, 0.0, 0.5), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    start = times.leading(process, steps, 1.0, 0.0)[0]
    first, last = process.at(float(start)), process.at(0.001)

    def spread(p):
        return math.sqrt(0.25 * p.alpha**2 + p.sigma**2)

    def error(sampler):
        end = sampler(oracle, x, start=float(start), end=0.001)
        return float(end) / (spread(last) / spread(first)) - 1

    own = PNDM(Config((1, 8, 8), network=SMALL, steps=steps)).sampler()
    assert abs(error(own)) < 2 * f_pndm
    assert abs(error(own)) < 0.1 * abs(error(DDIM(steps, times.leading)))
    assert error(DDIM(steps, times.leading)) == pytest.approx(ddim, rel=0.15)


def test_presets():
    for name, preset in PRESETS.items():
        with torch.device("meta"):
            recipe = PNDM(preset.config)
        own = recipe.sampler()
        own.check(recipe.denoiser.process)  # a grid that its table can leave
        assert (own.steps, own.calls(), preset.config.clip) == (50, 59, False), name
        if name == "cifar10":
            assert sum(p.numel() for p in recipe.parameters()) == 35_746_307
    assert PRESETS["fashion"].config.network == ddpm.PRESETS["fashion"].config.network
    assert set(METHODS) == {"f_pndm", "s_pndm", "plms"}


def test_too_few_steps_are_refused():
    recipe = PNDM(Config((1, 8, 8), network=SMALL, steps=3))
    with pytest.raises(ValueError, match="warms up for 3 steps"):
        recipe.sampler()
    with pytest.raises(UserError, match="T and steps"):
        replace(recipe.config, steps=0)
