"""Ancestral sampling and DDIM: closed forms of the Gaussian oracle (spec 1.6 and 3.6), orders, parity with
diffusers."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from sfumato.core import guidance, parametrisation, times
from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.oracle import Empirical, Gaussian
from sfumato.core.posterior import eps_weight, large, small
from sfumato.core.process import Affine
from sfumato.core.random import Seeds
from sfumato.core.schedules import VP, Cosine, Discrete, betas
from sfumato.samplers.ancestral import DDIM, Ancestral
from sfumato.samplers.sampler import State

CHAIN = Discrete.linear()
ORACLE = Gaussian(CHAIN, 0.0, 0.5)


class Fixed:
    """Stands for Seeds where a test needs to know the noise."""

    def __init__(self, z):
        self.z = z

    def normal(self, shape, *, dtype, device):
        return torch.as_tensor(self.z, dtype=dtype).expand(shape).clone()


class Never:
    def normal(self, *_, **__):
        raise AssertionError("noise drawn although its coefficient is 0")


def moments(sampler, oracle, grid):
    """Exact (mean, variance) of x_0 from x_1 ~ N(0, 1) under a linear denoiser: each step is x_s = a x_t + c + b z."""
    points, mean, variance = oracle.process.points(grid), 0.0, 1.0
    for t, s in itertools.pairwise(points):

        def at(x, z, t=t, s=s):
            return float(sampler.step(oracle, State(torch.full((1, 1), x, dtype=torch.float64), t), s, Fixed(z)).x)

        c = at(0.0, 0.0)
        a, b = at(1.0, 0.0) - c, at(0.0, 1.0) - c
        mean, variance = a * mean + c, a * a * variance + b * b
    return mean, variance


GRID = torch.linspace(1, 0, 1001, dtype=torch.float64)


@pytest.mark.parametrize(("variance", "std"), [(small, 0.496110), (large, 0.500752)])
def test_a_thousand_ancestral_steps_on_a_gaussian(variance, std):
    mean, found = moments(Ancestral(1000, variance=variance), ORACLE, GRID)
    assert math.sqrt(found) == pytest.approx(std, abs=1e-6) and mean == 0.0


def test_posterior_is_equation_7():
    """c1, c2 and beta-tilde of DDPM from the table, against what a step does."""
    b, ab = betas.linear(), CHAIN.alpha_bar
    previous = torch.cat([torch.ones(1, dtype=torch.float64), ab[:-1]])
    for k in (1, 2, 17, 500, 999):
        t, s = CHAIN.points([(k + 1) / 1000, k / 1000])
        c1 = float(b[k] * previous[k].sqrt() / (1 - ab[k]))
        c2 = float((1 - b[k]).sqrt() * (1 - previous[k]) / (1 - ab[k]))
        assert c1 + c2 * t.alpha == pytest.approx(s.alpha, rel=1e-13)
        assert c2 * t.sigma == pytest.approx(eps_weight(t, s), rel=1e-12)
        assert small(t, s) == pytest.approx(float(b[k] * (1 - previous[k]) / (1 - ab[k])), rel=1e-10)
        assert large(t, s) == pytest.approx(float(b[k]), rel=1e-10)


@pytest.mark.parametrize(
    ("steps", "expected"), [(10, 0.3741285), (20, 0.4337344), (50, 0.4724391), (100, 0.4859806), (1000, 0.4984953)]
)
def test_ddim_on_a_gaussian_from_the_first_kept_entry(steps, expected):
    x = DDIM(steps, times.leading)(ORACLE, torch.ones(1, 1, dtype=torch.float64))
    assert float(x) == pytest.approx(expected, abs=5e-8)


@pytest.mark.parametrize("process", [VP(), Cosine(), CHAIN], ids=repr)
def test_ddim_is_of_first_order(process):
    """Measured between t 0.8 and 0.2, where the schedules are smooth (a table is, in steps of whole entries)."""
    oracle, x = Gaussian(process, 0.4, 0.5), torch.full((1, 1), 1.3, dtype=torch.float64)

    # the flow of a Gaussian through a middle time: (x - alpha mean) / std(t) is constant
    def scaled(x, t):
        p = process.at(t)
        return (x - p.alpha * 0.4) / math.sqrt((p.alpha * 0.5) ** 2 + p.sigma**2)

    errors = [abs(float(scaled(DDIM(n)(oracle, x, start=0.8, end=0.2), 0.2) - scaled(x, 0.8))) for n in (30, 60, 120)]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(0.85 < slope < 1.2 for slope in slopes), slopes


def test_full_eta_is_ancestral_with_the_small_variance():
    for steps in (1000, 37):
        a, b = (
            sampler(ORACLE, Seeds(0).normal((2, 3), dtype=torch.float64), rng=Seeds(1))
            for sampler in (DDIM(steps, eta=1.0), Ancestral(steps))
        )
        assert torch.allclose(a, b, atol=1e-9)


def test_every_eta_has_the_same_limit():
    """The variance of the Gaussian, approached in first order: a quarter of the steps, four times the error."""
    for eta in (0.0, 0.5, 1.0):
        errors = [
            0.25 - moments(DDIM(n, eta=eta), ORACLE, torch.linspace(1, 0, n + 1, dtype=torch.float64))[1]
            for n in (100, 400, 1600)
        ]
        assert all(3.3 < a / b < 4.5 for a, b in itertools.pairwise(errors)), (eta, errors)


def test_no_noise_is_drawn_when_its_coefficient_is_zero():
    x = torch.ones(2, 3)
    DDIM(5)(ORACLE, x, rng=Never())
    DDIM(5)(ORACLE, x)
    for sampler in (Ancestral(1), DDIM(1, eta=1.0)):
        assert torch.equal(sampler(ORACLE, x, rng=Never()), ORACLE(x, 1.0).x0)
    with pytest.raises(ValueError, match="rng"):
        Ancestral(2)(ORACLE, x)


@pytest.mark.parametrize(
    "sampler", [DDIM(7), DDIM(7, eta=0.7), Ancestral(7), Ancestral(7, variance=large), DDIM(7, times.quadratic)]
)
def test_a_single_point_is_returned_exactly(sampler):
    point = torch.tensor([0.3, -0.8], dtype=torch.float64)
    x = sampler(Empirical(CHAIN, point[None]), Seeds(0).normal((4, 2), dtype=torch.float64), rng=Seeds(1))
    assert torch.equal(x, point.expand(4, 2))


def test_encoding_then_decoding_returns_with_error_one_over_steps():
    x0 = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    errors = []
    for steps in (50, 100, 200):
        sampler = DDIM(steps)
        x1 = sampler(ORACLE, x0, start=0.0, end=1.0)
        errors.append(float((sampler(ORACLE, x1) - x0).abs().max()))
    assert errors[-1] < 0.05
    assert all(0.8 < math.log2(a / b) < 1.2 for a, b in itertools.pairwise(errors)), errors


@pytest.mark.parametrize("sampler", [DDIM(9), DDIM(9, eta=1.0), Ancestral(9), Ancestral(9, variance=large)])
def test_a_seed_is_the_same_picture_alone_and_among_others(sampler):
    prior = [CHAIN.prior((n, 3, 4, 4), Seeds(s)) for s, n in ((5, 8), (8, 1))]
    many, one = (sampler(ORACLE, x, rng=Seeds(s + 100)) for s, x in zip((5, 8), prior, strict=True))
    assert torch.equal(many[3:4], one)


def test_spacings_are_the_official_lists():
    def kept(spacing, steps):
        return (spacing(CHAIN, steps, 1.0, 0.0)[:-1] * 1000 - 1).round().long().flip(0).tolist()

    assert kept(times.quadratic, 10) == [0, 9, 39, 88, 158, 246, 355, 483, 632, 800]
    assert kept(times.leading, 50) == list(range(0, 1000, 20)) and len(kept(times.leading, 30)) == 31
    assert kept(times.uniform, 50) == list(range(19, 1000, 20))
    theirs = DDIMScheduler(1000, timestep_spacing="trailing")
    theirs.set_timesteps(50)
    assert theirs.timesteps.flip(0).tolist() == kept(times.uniform, 50)


def test_a_process_that_changes_is_sampled_as_it_is():
    @dataclass
    class Bent(Affine):
        power: float = 1.0

        def alpha(self, t):
            return 1 - 0.9 * t**self.power

        def sigma(self, t):
            return t**self.power

    process, found = Bent(), []
    for power in (1.0, 2.0):
        process.power = power
        found.append(float(DDIM(5)(Gaussian(process, 0.3, 0.5), torch.ones(1, 1, dtype=torch.float64))))
        assert found[-1] == float(DDIM(5)(Gaussian(Bent(power), 0.3, 0.5), torch.ones(1, 1, dtype=torch.float64)))
    assert found[0] != found[1]


def test_more_leading_steps_than_entries_are_refused():
    with pytest.raises(ValueError, match="at most 1000"):
        DDIM(2000, times.leading)(ORACLE, torch.ones(1, 1))


def test_states_hold_tensors_of_their_own():
    states = list(DDIM(4).trajectory(ORACLE, torch.ones(1, 1)))
    kept = [float(state.x) for state in states]
    for state in states[:-1]:
        state.x.zero_()
    assert float(states[-1].x) == kept[-1] and [state.t for state in states] == pytest.approx([0.75, 0.5, 0.25, 0.0])


# -- parity with diffusers ---------------------------------------------------------------------------------------------


class Wavy(torch.nn.Module):
    """A deterministic, nonlinear stand-in for a trained network."""

    def forward(self, x, time):
        return torch.sin(1.7 * x + 0.01 * time.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))) * 0.9


PREDICTION = {"epsilon": parametrisation.eps, "sample": parametrisation.x0, "v_prediction": parametrisation.v}


def scheduler(kind, dtype=torch.float64, **settings):
    made = kind(1000, clip_sample=False, **settings)
    made.alphas_cumprod, made.betas, made.alphas = (
        CHAIN.alpha_bar.to(dtype),
        CHAIN.betas.to(dtype),
        (1 - CHAIN.betas).to(dtype),
    )
    made.final_alpha_cumprod = made.one = torch.tensor(1.0, dtype=dtype)
    return made


def at_index(k):
    return CHAIN.points([(k + 1) / 1000])[0] if k >= 0 else CHAIN.points([0.0])[0]


@pytest.mark.parametrize("prediction", PREDICTION)
@pytest.mark.parametrize("k", [999, 500, 19])
def test_each_ddim_step_equals_diffusers(prediction, k):
    theirs, x = scheduler(DDIMScheduler, torch.float32, prediction_type=prediction), Seeds(0).normal((2, 3, 8, 8))
    theirs.set_timesteps(50)
    ours = NeuralDenoiser(Wavy(), CHAIN, PREDICTION[prediction])
    answer = Wavy()(x, torch.tensor([float(k)]))
    for eta in (0.0, 0.6, 1.0):
        z = Seeds(9).normal(x.shape)
        expected = theirs.step(answer, k, x, eta=eta, variance_noise=z if eta else None).prev_sample
        found = DDIM(50, eta=eta).step(ours, State(x, at_index(k)), at_index(k - 20), Fixed(z)).x
        assert float((found - expected).abs().max()) <= 1e-6 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("prediction", PREDICTION)
@pytest.mark.parametrize(("name", "variance"), [("fixed_small", small), ("fixed_large", large)])
@pytest.mark.parametrize("k", [999, 500, 1, 0])
def test_each_ancestral_step_equals_diffusers(prediction, name, variance, k):
    # their table in float64: in float32 1 - alpha_bar is off by 3e-4 at the second entry, and so is their posterior
    theirs = scheduler(DDPMScheduler, torch.float64, prediction_type=prediction, variance_type=name)
    x, ours = Seeds(0).normal((2, 3, 8, 8)), NeuralDenoiser(Wavy(), CHAIN, PREDICTION[prediction])
    torch.manual_seed(3)
    expected = theirs.step(Wavy()(x, torch.tensor([float(k)])), k, x).prev_sample
    torch.manual_seed(3)
    found = (
        Ancestral(1000, variance=variance)
        .step(ours, State(x, at_index(k)), at_index(k - 1), Fixed(torch.randn(x.shape)))
        .x
    )
    assert float((found - expected).abs().max()) <= 1e-6 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-3)])
@pytest.mark.parametrize("clipped", [False, True])
def test_a_chain_of_fifty_ddim_steps_equals_diffusers(dtype, tolerance, clipped):
    """Clipped: diffusers with use_clipped_model_output, which derives eps again as we do."""
    theirs, x = scheduler(DDIMScheduler, dtype), Seeds(0).normal((2, 3, 8, 8), dtype=dtype)
    theirs.register_to_config(clip_sample=clipped)
    theirs.set_timesteps(50)
    ours = NeuralDenoiser(Wavy(), CHAIN, parametrisation.eps)
    found, y = DDIM(50, times.leading)(guidance.clip(ours) if clipped else ours, x), x
    for k in theirs.timesteps.tolist():
        y = theirs.step(Wavy()(y, torch.tensor([float(k)])), k, y, use_clipped_model_output=clipped).prev_sample
    assert float((found - y).abs().max()) < tolerance * float(y.square().mean().sqrt())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-3)])
def test_a_chain_of_fifty_ancestral_steps_equals_diffusers(dtype, tolerance):
    """A table of fifty entries, so that the chain is whole."""
    chain = Discrete.linear(50, 1e-3, 0.3)
    theirs = DDPMScheduler(50, clip_sample=True, variance_type="fixed_small")
    theirs.alphas_cumprod, theirs.betas, theirs.one = (
        chain.alpha_bar.to(dtype),
        chain.betas.to(dtype),
        torch.tensor(1.0, dtype=dtype),
    )
    x = Seeds(0).normal((2, 3, 8, 8), dtype=dtype)
    torch.manual_seed(5)
    noise = [torch.randn(x.shape, dtype=dtype) for _ in range(50)]

    class Replay:
        def __init__(self):
            self.rest = iter(noise)

        def normal(self, shape, *, dtype, device):
            return next(self.rest).clone()

    found = Ancestral(50)(guidance.clip(NeuralDenoiser(Wavy(), chain, parametrisation.eps)), x, rng=Replay())
    torch.manual_seed(5)
    y = x
    for k in range(49, -1, -1):
        y = theirs.step(Wavy()(y, torch.tensor([float(k)])), k, y).prev_sample
    assert float((found - y).abs().max()) < tolerance * float(y.square().mean().sqrt())
