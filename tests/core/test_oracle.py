"""Exact denoisers against the density they claim to know."""

import itertools

import pytest
import torch

from sfumato.core.oracle import Empirical, Gaussian, Mixture
from sfumato.core.schedules import VP, Cosine, Discrete

MEANS = torch.tensor([[[-1.0, 0.5]], [[0.7, -0.2]], [[0.1, 1.4]]], dtype=torch.float64)
STDS = torch.tensor([0.3, 0.6, 0.1], dtype=torch.float64)
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
X = torch.randn(5, 1, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("process", [VP(), Cosine(), Discrete.linear()], ids=repr)
@pytest.mark.parametrize("t", [0.05, 0.5, 0.9])
def test_score_is_the_gradient_of_the_log_density(process, t):
    point = process.at(t)

    def log_density(x):
        variance = (point.alpha * STDS) ** 2 + point.sigma**2
        square = (x.flatten(1)[:, None] - point.alpha * MEANS.flatten(1)).square().sum(-1)
        return (WEIGHTS.log() - square / (2 * variance) - variance.log()).logsumexp(1)

    x = X.clone().requires_grad_()
    expected = torch.autograd.grad(log_density(x).sum(), x)[0]
    guess = Mixture(process, MEANS, STDS, WEIGHTS)(X, t)
    assert torch.allclose(guess.score, expected, rtol=1e-9, atol=1e-10)
    assert torch.allclose(guess.point.alpha * guess.x0 + guess.point.sigma * guess.eps, X, atol=1e-12)


def test_a_mixture_of_one_is_a_gaussian():
    one = Mixture(VP(), MEANS[:1], STDS[:1])(X, 0.4)
    assert torch.allclose(one.x0, Gaussian(VP(), MEANS[0], 0.3)(X, 0.4).x0, atol=1e-14)


def test_the_data_set_is_a_mixture_of_points():
    t = torch.tensor([0.02, 0.2, 0.5, 0.8, 1.0], dtype=torch.float64)
    points = Mixture(VP(), MEANS, torch.full((3,), 1e-12, dtype=torch.float64))(X, t)
    assert torch.allclose(Empirical(VP(), MEANS)(X, t).x0, points.x0, atol=1e-9)


def test_flow_is_the_solution_of_the_ode():
    """Four thousand midpoint steps of dx/dt = velocity."""
    process = VP()
    oracle, x, grid = Gaussian(process, 0.3, 0.5), X, torch.linspace(1, 0.01, 4001, dtype=torch.float64)
    for a, b in itertools.pairwise(grid):
        middle = x + (b - a) / 2 * oracle(x, float(a)).velocity
        x = x + (b - a) * oracle(middle, float((a + b) / 2)).velocity
    assert torch.allclose(oracle.flow(x, 0.01), oracle.flow(X, 1.0), atol=1e-6)
