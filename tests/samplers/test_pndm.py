"""PNDM: the table of spec 4.6, its transfers, its warm-ups, parity with diffusers in both modes."""

import itertools

import pytest
import torch
from diffusers import PNDMScheduler

from sfumato.core import parametrisation, times
from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.estimate import Estimate
from sfumato.core.oracle import Gaussian
from sfumato.core.random import Seeds
from sfumato.core.schedules import VP, Discrete, Flow
from sfumato.samplers.pndm import PNDM, heun, plain, runge_kutta
from sfumato.samplers.sampler import State

CHAIN = Discrete.linear()
ORACLE = Gaussian(CHAIN, 0.0, 0.5)


class Wavy(torch.nn.Module):
    """A nonlinear stand-in for a network, which keeps the times it was asked at."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, x, time):
        self.asked.append(float(time))
        return torch.sin(1.7 * x + 0.01 * time.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))) * 0.9


@pytest.mark.parametrize(
    ("steps", "printed"), [(20, "4.68e-03"), (50, "1.11e-03"), (100, "4.57e-04"), (250, "1.41e-04")]
)
def test_f_pndm_on_a_gaussian(steps, printed):
    """Relative error against the exact flow from x = 1 at the first kept entry, range(0, T, T // S) and then clean."""
    first = float(times.leading(CHAIN, steps, 1.0, 0.0)[0])
    x = torch.ones(1, 1, dtype=torch.float64)
    found = float(PNDM(steps, times.leading)(ORACLE, x)) / float(ORACLE.flow(x, first)) - 1
    assert f"{found:.2e}" == printed


def test_the_transfer_is_a_ddim_step():
    """Equation 9 as printed, for any x, e and times."""
    draw = Seeds(4)
    for i in range(20):
        x, e = draw.normal((2, 3), dtype=torch.float64).unbind(0)
        t, u = CHAIN.points((draw.integers(1000, 2) + 1) / 1000)
        a, b = t.alpha**2, u.alpha**2
        expected = x + (b - a) * (
            x / (a**0.5 * (a**0.5 + b**0.5)) - e / (a**0.5 * (((1 - b) * a) ** 0.5 + ((1 - a) * b) ** 0.5))
        )
        found = Estimate.from_eps(CHAIN, t, x, e).mix(u.alpha, u.sigma)
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12), i


@pytest.mark.parametrize(
    ("sampler", "calls"),
    [
        (PNDM(20), 29),
        (PNDM(20, depth=2, warm_up=heun), 21),
        (PNDM(20, warm_up=heun), 21),
        (PNDM(20, warm_up=plain), 20),
        (PNDM(20, depth=1, warm_up=plain), 20),
    ],
)
def test_calls(sampler, calls):
    network = Wavy()
    list(sampler.trajectory(NeuralDenoiser(network, CHAIN, parametrisation.eps), torch.ones(1, 2)))
    assert len(network.asked) == calls == sampler.calls()


def test_half_steps_are_half_way_in_t():
    network = Wavy()
    PNDM(8)(NeuralDenoiser(network, CHAIN, parametrisation.eps), torch.ones(1, 2))
    assert network.asked[:6] == pytest.approx([999, 936.5, 936.5, 874, 874, 811.5])


def test_a_start_without_signal_warms_up_one_step_later():
    network = Wavy()
    denoiser = NeuralDenoiser(network, Flow(), parametrisation.velocity)
    assert PNDM(10)(denoiser, torch.ones(1, 2)).isfinite().all() and len(network.asked) == PNDM(10).calls()
    assert network.asked[:4] == pytest.approx([1000, 900, 850, 850])


def test_a_warm_up_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="more than 3"):
        PNDM(3)
    for depth, warm_up in ((2, runge_kutta), (0, plain), (5, plain)):
        with pytest.raises(ValueError, match=f"to 4, not {depth}"):
            PNDM(20, depth=depth, warm_up=warm_up)


def theirs_and_calls(steps, skip, dtype):
    """Their scheduler on our table, and how many of its calls make each step."""
    theirs = PNDMScheduler(1000, skip_prk_steps=skip, set_alpha_to_one=True)
    theirs.alphas_cumprod, theirs.final_alpha_cumprod = CHAIN.alpha_bar.to(dtype), torch.tensor(1.0, dtype=dtype)
    theirs.set_timesteps(steps)
    return theirs, [2] + [1] * (steps - 1) if skip else [4, 4, 4] + [1] * (steps - 3)


MODES = pytest.mark.parametrize(("skip", "warm_up"), [(False, runge_kutta), (True, heun)])


@MODES
@pytest.mark.parametrize("steps", [20, 50, 100])
def test_a_chain_equals_diffusers_in_float64(steps, skip, warm_up):
    """`steps` whose half steps, T // S // 2, need no rounding. Their last step must be told to go to clean."""
    theirs, _ = theirs_and_calls(steps, skip, torch.float64)
    network, x = Wavy(), Seeds(0).normal((2, 3, 8, 8), dtype=torch.float64)
    found = PNDM(steps, times.leading, warm_up=warm_up)(NeuralDenoiser(network, CHAIN, parametrisation.eps), x)
    for k in theirs.timesteps.tolist():
        x = theirs.step(Wavy()(x, torch.tensor([float(k)])), k, x).prev_sample
    assert network.asked == pytest.approx(theirs.timesteps.tolist())
    assert float((found - x).abs().max()) < 1e-8 * float(x.square().mean().sqrt())


@MODES
def test_each_step_equals_diffusers_in_float32(skip, warm_up):
    """Their table in float64: in float32 1 - alpha_bar is off by 3e-4 at the second entry."""
    theirs, calls = theirs_and_calls(20, skip, torch.float64)
    ours, sampler = NeuralDenoiser(Wavy(), CHAIN, parametrisation.eps), PNDM(20, times.leading, warm_up=warm_up)
    points, rest = CHAIN.points(times.leading(CHAIN, 20, 1.0, 0.0)), iter(theirs.timesteps.tolist())
    x, memory = Seeds(0).normal((2, 3, 8, 8)), ()
    for (t, s), n in zip(itertools.pairwise(points), calls, strict=True):
        found = sampler.step(ours, State(x, t, None, memory), s, None)
        memory = found.memory
        for k in itertools.islice(rest, n):
            x = theirs.step(Wavy()(x, torch.tensor([float(k)])), k, x).prev_sample
        assert float((found.x - x).abs().max()) <= 1e-6 * max(1.0, float(x.abs().max()))


def test_order_two_with_every_warm_up():
    process = VP()
    oracle, x = Gaussian(process, 0.4, 0.5), torch.full((1, 1), 1.3, dtype=torch.float64)
    t, s = process.points([0.8, 0.2])
    std = [((p.alpha * 0.5) ** 2 + p.sigma**2) ** 0.5 for p in (t, s)]
    exact = s.alpha * 0.4 + std[1] / std[0] * (x - t.alpha * 0.4)
    for settings in ({}, {"warm_up": heun}, {"depth": 2, "warm_up": heun}, {"warm_up": plain}):
        coarse, fine = (float((PNDM(n, **settings)(oracle, x, start=0.8, end=0.2) - exact).abs()) for n in (64, 256))
        assert coarse / fine > 4**1.85, settings
