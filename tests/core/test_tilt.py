"""Guidance by the gradient of a log probability: exact posteriors, the official rules, the printed scalars."""

import math

import pytest
import torch

from sfumato.core import guidance, times
from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.oracle import Gaussian, Mixture, PhaseGaussian
from sfumato.core.parametrisation import eps as predict_eps
from sfumato.core.phase import CLD
from sfumato.core.random import Seeds
from sfumato.core.schedules import EDM, VE, VP, Cosine, Discrete, Flow, betas
from sfumato.samplers.ancestral import DDIM, Ancestral, learned, mean, score
from sfumato.samplers.ode import Heun

N = 20_000
MEANS = torch.tensor([[-1.0], [0.5]], dtype=torch.float64)
STDS, WEIGHTS = torch.tensor([[0.4, 0.6], [0.7, 0.3]], dtype=torch.float64)
PROCESSES = {"vp": VP(), "cosine": Cosine(), "flow": Flow(), "edm": EDM(), "ve": VE(high=1000.0)}


def of_class(model, k):
    """log p(y = k | x_t) of the exact classifier."""
    return lambda x, t: model.responsibilities(x, t)[:, k].log()


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("k", [0, 1])
def test_the_exact_classifier_samples_the_exact_posterior(name, k):
    process = PROCESSES[name]
    model = Mixture(process, MEANS, STDS, WEIGHTS)
    told = guidance.tilt(model, of_class(model, k))
    x = process.prior((N, 1), Seeds(3), dtype=torch.float64)
    made = Heun(60, times.balanced)(told, x)
    deviation = float(STDS[k])
    assert abs(float(made.mean()) - float(MEANS[k])) < 3 * deviation / math.sqrt(N) + 2e-3
    assert abs(float(made.std()) - deviation) < 3 * deviation / math.sqrt(2 * N) + 2e-3


@pytest.mark.parametrize("guide", [score, mean])
def test_ancestral_steps_reach_it_with_both_guides(guide):
    process = Discrete(betas.linear(1000))
    model = Mixture(process, MEANS, STDS, WEIGHTS)
    told = guidance.tilt(model, of_class(model, 1))
    x = process.prior((4000, 1), Seeds(1), dtype=torch.float64)
    made = Ancestral(300, guide=guide)(told, x, rng=Seeds(7))
    assert abs(float(made.mean()) - 0.5) < 3 * 0.6 / math.sqrt(4000) + 0.01
    assert abs(float(made.std()) - 0.6) < 3 * 0.6 / math.sqrt(8000) + 0.01


def test_the_tilted_estimate_is_that_of_the_posterior():
    """In every view, at every t: against the Gaussian component that the class is."""
    for process in PROCESSES.values():
        model = Mixture(process, MEANS, STDS, WEIGHTS)
        told, truth = guidance.tilt(model, of_class(model, 0)), Gaussian(process, -1.0, 0.4)
        x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
        for t in (0.05, 0.4, 0.9):
            guess, exact = told(x, t), truth(x, t)
            for view in ("x0", "eps", "score", "velocity"):
                assert torch.allclose(getattr(guess, view), getattr(exact, view), rtol=1e-9, atol=1e-9), (process, view)
            assert torch.equal(guess.bare.x0, model(x, t).x0)


def test_tilts_add_up_and_scale_zero_is_off():
    process = Cosine()
    model, x = Gaussian(process), torch.randn(5, 1, 3, 3, dtype=torch.float64)
    one = guidance.tilt(model, lambda x, t: -x.square().flatten(1).sum(1))
    two = guidance.tilt(one, lambda x, t: x.flatten(1).sum(1), 3.0)
    guess = two(x, 0.3)
    assert torch.allclose(guess.pull, 3 - 2 * x) and torch.allclose(guess.score, model(x, 0.3).score + guess.pull)
    assert torch.equal(guess.bare.eps, model(x, 0.3).eps)
    assert guidance.tilt(model, lambda x, t: x, 0.0) is model
    outside = guidance.tilt(model, lambda x, t: x.flatten(1).sum(1), interval=(0.4, 0.6))
    assert torch.equal(outside(x, 0.3).x0, model(x, 0.3).x0) and outside(x, 0.5).pull is not None


def test_the_gradient_is_that_of_finite_differences():
    process = VP()
    model, x = Gaussian(process), torch.randn(4, 2, dtype=torch.float64)

    def log_prob(x, t):
        return (x.sin() * t.alpha).prod(1)

    pull = guidance.tilt(model, log_prob)(x, 0.2).pull
    h = 1e-6
    for j in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[j] = h
        rise = (log_prob(x + step, process.at(0.2)) - log_prob(x - step, process.at(0.2))) / (2 * h)
        assert torch.allclose(pull[:, j], rise, atol=1e-8)


# -- discriminator guidance, spec 8.6 ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "end"), [(0, 0, 1.044728840), (1, 1, 0.527624637), (2, 0, 0.608031513), (1, 0, 0.803543470)]
)
def test_a_discriminator_turns_the_model_into_the_data(first, second, end):
    process = EDM()
    model, data = Gaussian(process, 0.0, 1.0), Gaussian(process, 0.0, 0.5)

    def ratio(x, t):
        return data.log_prob(x, t) - model.log_prob(x, t)

    x = torch.full((1, 1), 80.0, dtype=torch.float64)
    both = Heun(18, times.power, second=lambda _: guidance.tilt(model, ratio, second))
    made = float(both(guidance.tilt(model, ratio, first), x))
    assert made == pytest.approx(end, abs=1e-8)
    if first == second == 1:
        assert made == pytest.approx(float(Heun(18, times.power)(data, x)), abs=1e-12)


# -- ADM's rules, on a stub network and a quadratic classifier ---------------------------------------------------------


def stub(x, time):
    """A network of six channels: a smooth eps, and o."""
    wave = torch.sin(x + time.reshape(-1, 1, 1, 1) / 300)
    return torch.cat([0.8 * wave, 0.5 * wave.flip(1)], 1)


def official(process, x, seed, respaced, ddim=False, scale=2.0):
    """guided-diffusion's p_mean_variance, condition_mean and condition_score written out (ADM, algorithms 1 and 2)."""
    bar = torch.cat([torch.ones(1, dtype=torch.float64), process.alpha_bar[respaced]])
    new = 1 - bar[1:] / bar[:-1]
    for i in reversed(range(len(respaced))):
        now, before = bar[i + 1], bar[i]
        out, o = stub(x, torch.tensor([float(respaced[i])], dtype=torch.float64)).chunk(2, 1)
        x0 = ((x - (1 - now).sqrt() * out) / now.sqrt()).clamp(-1, 1)
        gradient = scale * (0.3 - x)  # of log p = -|x - 0.3|^2 / 2
        posterior = new * (1 - bar[:-1]) / (1 - bar[1:])
        if ddim:
            eps = (x - now.sqrt() * x0) / (1 - now).sqrt() - (1 - now).sqrt() * gradient
            x0 = (x - (1 - now).sqrt() * eps) / now.sqrt()
            x = before.sqrt() * x0 + (1 - before).sqrt() * eps
            continue
        high, low = new[i].log(), torch.cat([posterior[1:2], posterior[1:]])[i].log()
        variance = ((o + 1) / 2 * high + (1 - (o + 1) / 2) * low).exp()
        centre = before.sqrt() * new[i] / (1 - now) * x0 + (1 - new[i]).sqrt() * (1 - before) / (1 - now) * x
        x = centre + variance * gradient
        if i:
            x = x + variance.sqrt() * seed.normal(x.shape, dtype=torch.float64)
    return x


@pytest.mark.parametrize("ddim", [False, True])
def test_25_respaced_steps_equal_the_official_rule(ddim):
    process = Discrete(betas.linear(1000))
    denoiser = NeuralDenoiser(Stub(), process, predict_eps, learn_variance=True)
    clipped = guidance.clip(denoiser)
    told = guidance.tilt(clipped, lambda x, t: -0.5 * (x - 0.3).square().flatten(1).sum(1), 2.0)
    entries = torch.linspace(0, 999, 25).round().long()
    grid = [0.0, *((entries + 1) / 1000).tolist()]
    x = Seeds(5).normal((3, 3, 4, 4), dtype=torch.float64)

    def spacing(*_):
        return torch.tensor(grid[::-1], dtype=torch.float64)

    walk = DDIM(25, spacing) if ddim else Ancestral(25, spacing, variance=learned, guide=mean)
    made = walk(told, x, rng=Seeds(9))
    assert torch.allclose(made, official(process, x, Seeds(9), entries, ddim), rtol=1e-6, atol=1e-6)


class Stub(torch.nn.Module):
    def forward(self, x, time):
        return stub(x, time.double())


# -- phase space -------------------------------------------------------------------------------------------------------


def test_in_phase_space_the_momentum_is_pulled():
    """By the log ratio of two models' densities: the one becomes the other, at every t."""
    process = CLD()
    model, data = PhaseGaussian(process, 0.0, 1.0), PhaseGaussian(process, 0.4, 0.5)
    told = guidance.tilt(model, lambda u, t: data.log_prob(u, t) - model.log_prob(u, t))
    u = Seeds(2).normal((6, 2, 3), dtype=torch.float64)
    for t in (0.1, 0.5, 0.9):
        guess, exact = told(u, t), data(u, t)
        assert torch.allclose(guess.eps, exact.eps, rtol=1e-9) and torch.allclose(guess.x0, exact.x0, rtol=1e-9)


# -- classifier-free guidance, spec 7.4 --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("w", "end"), [(-1.0, 0.0), (0.0, 0.993404692), (0.5, 1.222983585), (1.0, 1.356764902), (3.0, 1.486388655)]
)
def test_classifier_free_scalars(w, end):
    """Data N(1, 0.25) of a class and N(0, 1) of all: the paper's w is our scale less 1."""
    process = EDM()
    told, none = Gaussian(process, 1.0, 0.5), Gaussian(process, 0.0, 1.0)
    x = torch.zeros(1, 1, dtype=torch.float64)
    made = float(Heun(18, times.power)(guidance.classifier_free(told, none, 1.0 + w), x))
    assert made == pytest.approx(end, abs=1e-8)
