"""The denoising loss and the variational bound against closed forms (spec 1.6)."""

import itertools
import math

import pytest
import torch

from sfumato.core import losses
from sfumato.core.estimate import Estimate
from sfumato.core.losses import views
from sfumato.core.oracle import Gaussian, Mixture
from sfumato.core.posterior import large, small
from sfumato.core.random import Seeds
from sfumato.core.schedules import VP, Discrete

CHAIN = Discrete.linear()
S = 0.5


def pixel_exact_terms(variance):
    """KL terms t = 2..T of data N(0, 0.25) and the exact denoiser, the expectation taken exactly: |x0 - guess|^2 is
    set to Var(x0 | x_t), which is all that the KL sees of x0."""
    oracle, terms = Gaussian(CHAIN, 0.0, S), []
    points = CHAIN.points(torch.arange(1000, 0, -1, dtype=torch.float64) / 1000)
    xt = torch.full((1, 1), 0.7, dtype=torch.float64)
    for t, s in itertools.pairwise(points):
        guess = oracle(xt, t)
        spread = math.sqrt(S**2 * t.sigma**2 / (t.alpha**2 * S**2 + t.sigma**2))
        terms.append(float(losses.bound(guess.with_x0(guess.x0 + spread), guess, s, variance=variance)))
    return terms[::-1]


@pytest.mark.parametrize(("variance", "total"), [(small, 6.302437), (large, 5.645641)])
def test_bound_of_the_gaussian(variance, total):
    terms = pixel_exact_terms(variance)
    assert sum(terms) == pytest.approx(total, abs=2e-6)
    if variance is small:
        assert terms[:3] == pytest.approx([0.864383, 0.458111, 0.319756], abs=2e-6)


@pytest.mark.parametrize(("variance", "total"), [(small, 6.302437), (large, 5.645641)])
def test_bound_of_the_gaussian_by_draws(variance, total):
    """The official code's loop over all steps, on 40,000 pixels; and the report of each step's errors."""
    x0, grid = S * Seeds(1).normal((1, 40_000), dtype=torch.float64), torch.linspace(1, 0, 1001, dtype=torch.float64)
    found = losses.variational_bound(Gaussian(CHAIN, 0.0, S), x0, grid, rng=Seeds(2), variance=variance)
    assert float(found.steps[:-1].sum()) == pytest.approx(total, rel=3e-3)
    assert torch.allclose(found.total, found.prior + found.steps.sum(0), rtol=1e-12)
    for t, x0_error, eps_error in list(zip(CHAIN.points(grid), found.x0, found.eps, strict=False))[:-1:100]:
        spread = S**2 * t.sigma**2 / (t.alpha**2 * S**2 + t.sigma**2)
        assert float(x0_error) == pytest.approx(spread, rel=0.03)
        assert float(eps_error) == pytest.approx(float(x0_error) * (t.alpha / t.sigma) ** 2, rel=1e-9)


def test_bound_is_told_a_whole_grid():
    oracle, x0 = Gaussian(CHAIN, 0.0, S), torch.zeros(1, 2, dtype=torch.float64)
    for grid in ([1.0, 0.0], [0.9, 0.5, 0.0], [1.0, 0.5, 0.001]):
        with pytest.raises(ValueError, match="from 1 to 0"):
            losses.variational_bound(oracle, x0, grid, rng=Seeds(0))
    shares: list[float] = []
    losses.variational_bound(oracle, x0, [1.0, 0.6, 0.3, 0.0], rng=Seeds(0), show=shares.append)
    assert shares == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_prior_term_of_uniform_data():
    g = torch.Generator().manual_seed(0)
    x0 = torch.rand(4, 250_000, generator=g, dtype=torch.float64) * 2 - 1
    assert float(losses.prior_bits(CHAIN, x0).mean()) == pytest.approx(9.72e-6, rel=5e-3)


@pytest.mark.parametrize("std", [0.004, 0.05, 0.7])
@pytest.mark.parametrize("mean", [-1.2, -0.99, 0.123, 1.0])
@pytest.mark.parametrize("n", [256, 4096])
def test_decoder_is_a_distribution_over_the_levels(n, std, mean):
    levels = (torch.arange(n, dtype=torch.float64) / ((n - 1) / 2) - 1).reshape(n, 1)
    bits = losses.decoder_bits(levels, torch.full_like(levels, mean), std**2, levels=n)
    kept = bits < 39.8  # the floor of 1e-12 adds what is not there
    assert float((2.0 ** -bits[kept]).sum()) == pytest.approx(1.0, abs=1e-9)


def test_whole_bound_of_two_equal_levels():
    """Data of two levels, each with probability 1/2: the exact denoiser pays 1 bit for the choice, and what the
    decoder's fixed variance costs, -log2 of the mass that a normal of that variance leaves in a bin."""
    g = torch.Generator().manual_seed(0)
    values = torch.tensor([102.0, 152.0], dtype=torch.float64) / 127.5 - 1
    x0 = values[torch.randint(2, (64, 1, 8, 8), generator=g)]

    class Pixelwise:
        process = CHAIN

        def __call__(self, xt, t):
            one = Mixture(CHAIN, values.reshape(2, 1), torch.full((2,), 1e-9, dtype=torch.float64))(
                xt.reshape(-1, 1), t
            )
            return Estimate.from_x0(CHAIN, one.point, xt, one.x0.reshape(xt.shape))

    found = losses.variational_bound(Pixelwise(), x0, torch.linspace(1, 0, 1001, dtype=torch.float64), rng=Seeds(0))
    assert torch.allclose(found.total, found.prior + found.steps.sum(0)) and found.steps.shape == (1000, 64)
    assert 1.0 < float((found.total - found.steps[-1]).mean()) < 1.04  # 1 bit and what a thousand finite steps lose
    std = math.sqrt(small(*CHAIN.points([0.002, 0.001])))
    assert float(found.steps[-1].mean()) == pytest.approx(-math.log2(math.erf(1 / 255 / std / math.sqrt(2))), rel=1e-9)


def test_loss_of_the_exact_denoiser_is_the_posterior_variance():
    """E|eps - eps_hat|^2 = alpha^2 s^2 / (alpha^2 s^2 + sigma^2), by 200,000 draws."""
    process, t = VP(), 0.4
    x0 = S * Seeds(1).normal((2, 100_000), dtype=torch.float64)
    p = process.at(t)
    found = losses.denoising(Gaussian(process, 0.0, S), x0, t, rng=Seeds(2))
    expected = p.alpha**2 * S**2 / (p.alpha**2 * S**2 + p.sigma**2)
    assert float(found.mean()) == pytest.approx(expected, rel=0.015)


@pytest.mark.parametrize("view", ["x0", "eps", "v", "score", "velocity"])
def test_each_view_is_the_plain_error_of_its_definition(view):
    process, t = VP(), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    x0, eps = Seeds(1).normal((3, 2, 4), dtype=torch.float64), Seeds(2).normal((3, 2, 4), dtype=torch.float64)
    oracle = Gaussian(process, 0.0, S)
    truth = process.noise(x0, t, eps)
    expected = (getattr(oracle(truth.xt, t), view) - getattr(truth, view)).square().flatten(1).mean(1)
    assert torch.allclose(
        losses.denoising(oracle, x0, t, rng=Seeds(0), eps=eps, view=getattr(views, view)), expected, rtol=1e-12
    )


@pytest.mark.parametrize("weight", [losses.snr, losses.min_snr(5.0), losses.truncated_snr])
def test_a_weight_means_the_same_in_every_view(weight):
    process, t = VP(), torch.tensor([0.1, 0.3, 0.6, 0.95], dtype=torch.float64)
    x0, eps = Seeds(1).normal((4, 2, 4), dtype=torch.float64), Seeds(2).normal((4, 2, 4), dtype=torch.float64)
    rows = [
        losses.denoising(Gaussian(process, 0.1, S), x0, t, rng=Seeds(0), eps=eps, view=view, weight=weight)
        for view in (views.x0, views.eps, views.v, views.score, views.velocity)
    ]
    for row in rows[1:]:
        assert torch.allclose(row, rows[0], rtol=1e-9)


def test_min_snr_is_the_published_weight_of_each_prediction():
    """min(snr, 5) of x0, min(snr, 5) / snr of eps, min(snr, 5) / (snr + 1) of v (Hang et al. 2023, section 3.4)."""
    process = VP()
    for t in (0.05, 0.3, 0.8):
        p = process.at(t)
        r, w = (p.alpha / p.sigma) ** 2, float(losses.min_snr(5.0)(process, p))
        assert w / float(views.eps.gain(process, p)) == pytest.approx(min(r, 5) / r)
        assert w / float(views.v.gain(process, p)) == pytest.approx(min(r, 5) / (r + 1))
