"""Variances of one step: the two fixed ones, and the learned one against diffusers and an independent computation."""

import itertools

import pytest
import torch
from diffusers import DDPMScheduler

from sfumato.core import guidance, losses, parametrisation
from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.estimate import Estimate
from sfumato.core.posterior import large, learned, small
from sfumato.core.random import Seeds
from sfumato.core.schedules import VP, Cosine, Discrete, betas
from sfumato.samplers.ancestral import Ancestral
from sfumato.samplers.sampler import State

CHAIN = Discrete.linear()
RAW = [-1.7, -1.0, -0.3, 0.0, 0.4, 1.0, 1.2]  # of the network's head: nu leaves [0, 1]


class Wavy(torch.nn.Module):
    """Stands for a network with 2 C channels: nonlinear, deterministic; the last half is the variance's."""

    def forward(self, x, time):
        shift = 0.01 * time.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
        return torch.cat([torch.sin(1.7 * x + shift) * 0.9, 1.3 * torch.cos(2.1 * x - shift)], 1)


class Fixed:
    def __init__(self, z):
        self.z = z

    def normal(self, shape, *, dtype, device):
        return self.z.clone()


def respaced(kept):
    """alpha-bar and the betas of the chain that visits the entries `kept` of the linear table alone, by the
    definition."""
    alpha_bar = (1 - betas.linear()).cumprod(0)[kept]
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    return alpha_bar, before, 1 - alpha_bar / before


CHAINS = [list(range(1000)), list(range(0, 1000, 40)), [0, 4, 8, 12, 500, 995, 999]]


@pytest.mark.parametrize("kept", CHAINS, ids=len)
def test_learned_is_the_interpolation_of_the_chain_that_is_walked(kept):
    """log var = nu log beta + (1 - nu) log beta-tilde with the betas of the respaced chain; beta-tilde's first entry
    is replaced by its second, and beta's is not."""
    alpha_bar, before, beta = respaced(kept)
    tilde = beta * (1 - before) / (1 - alpha_bar)
    tilde[0] = tilde[1]
    points = CHAIN.points([0.0] + [(k + 1) / 1000 for k in kept])
    nu = (torch.tensor(RAW, dtype=torch.float64) + 1) / 2
    least = small(points[2], points[1])
    for i, (s, t) in enumerate(itertools.pairwise(points)):
        expected = torch.exp(nu * beta[i].log() + (1 - nu) * tilde[i].log())
        assert torch.allclose(learned(t, s, nu, least), expected, rtol=1e-11)


@pytest.mark.parametrize("process", [CHAIN, VP(), Cosine()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nu_0_and_1_are_small_and_large(process, dtype):
    """The small one to the bit, the large one to the rounding of exp."""
    for t, s in itertools.pairwise(process.points([1.0, 0.7, 0.13, 0.02, 0.001])):
        low, high = (learned(t, s, torch.full((2, 3), nu, dtype=dtype)) for nu in (0.0, 1.0))
        assert torch.equal(low, torch.full((2, 3), small(t, s), dtype=dtype))
        expected = torch.full((2, 3), large(t, s), dtype=dtype)
        assert torch.allclose(high, expected, rtol=8 * torch.finfo(dtype).eps, atol=0.0)


def test_the_last_step_has_the_variance_that_stands_for_zero():
    before, t, s = CHAIN.points([0.002, 0.001, 0.0])
    least = small(before, t)
    assert small(t, s) == 0.0 and small(t, s, None, least) == least and large(t, s, None, least) == least
    assert small(before, t, None, 7.0) == least, "only there"
    beta = float(betas.linear()[0])
    assert float(learned(t, s, torch.tensor(1.0, dtype=torch.float64), least)) == pytest.approx(beta, rel=1e-12)
    assert float(learned(t, s, torch.tensor(0.0, dtype=torch.float64), least)) == least
    assert 0.0 < float(learned(t, s, torch.tensor(0.0))) < 1e-19, "without one: diffusers' floor"


def test_a_time_for_each_example_gives_what_each_gets_alone():
    t, s = (torch.tensor(x, dtype=torch.float64) for x in ([0.001, 0.5, 1.0], [0.0, 0.499, 0.3]))
    nu = Seeds(0).normal((3, 2, 4), dtype=torch.float64)
    least = small(*CHAIN.points([0.002, 0.001]))
    for variance in (small, large, learned):
        together = torch.as_tensor(variance(CHAIN.at(t), CHAIN.at(s), nu, least), dtype=torch.float64)
        for i in range(3):
            alone = variance(CHAIN.at(float(t[i])), CHAIN.at(float(s[i])), nu[i], least)
            assert torch.allclose(together[i], torch.as_tensor(alone, dtype=torch.float64), rtol=1e-12)


def test_a_network_that_does_not_learn_its_variance_is_refused():
    class Plain(torch.nn.Module):
        def forward(self, x, time):
            return x

    with pytest.raises(ValueError, match="does not learn its variance"):
        Ancestral(2, variance=learned)(
            NeuralDenoiser(Plain(), CHAIN, parametrisation.eps), torch.ones(1, 1, 2), rng=Seeds(0)
        )


# -- the network's head, and steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("predict", [parametrisation.eps, parametrisation.x0, parametrisation.v])
def test_the_first_channels_predict_and_the_last_are_the_variance(predict):
    x, network = Seeds(0).normal((2, 3, 4)), Wavy()
    found = NeuralDenoiser(network, CHAIN, predict, learn_variance=True)(x, 0.4)
    prediction, raw = network(x, torch.tensor([399.0])).chunk(2, 1)

    class Half(torch.nn.Module):
        def forward(self, x, time):
            return prediction

    plain = NeuralDenoiser(Half(), CHAIN, predict)(x, 0.4)
    assert torch.equal(found.x0, plain.x0) and torch.equal(found.eps, plain.eps) and plain.nu is None
    assert torch.equal(found.nu, (raw + 1) / 2), "neither squashed nor clipped"


def test_guidance_and_clipping_leave_the_variance_of_the_strong_one():
    x, ours = Seeds(0).normal((2, 3, 4)), NeuralDenoiser(Wavy(), CHAIN, parametrisation.eps, learn_variance=True)
    weak = NeuralDenoiser(Wavy(), CHAIN, parametrisation.v, learn_variance=True)
    point = CHAIN.at(0.4)
    for changed in (guidance.clip(ours), guidance.classifier_free(ours, weak, 3.0)):
        assert torch.equal(changed(x, point).nu, ours(x, point).nu)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("k", [999, 500, 40, 1, 0])
def test_each_learned_step_equals_diffusers(k, dtype, tolerance):
    theirs = DDPMScheduler(1000, clip_sample=True, variance_type="learned_range")
    theirs.alphas_cumprod, theirs.betas, theirs.alphas = CHAIN.alpha_bar, CHAIN.betas, 1 - CHAIN.betas
    theirs.one = torch.tensor(1.0, dtype=torch.float64)
    x = Seeds(0).normal((2, 3, 8, 8), dtype=dtype)
    ours = guidance.clip(NeuralDenoiser(Wavy(), CHAIN, parametrisation.eps, learn_variance=True))
    torch.manual_seed(3)
    expected = theirs.step(Wavy()(x, torch.tensor([float(k)])), k, x).prev_sample
    torch.manual_seed(3)
    z = torch.randn(x.shape, dtype=dtype)
    t, s = CHAIN.points([(k + 1) / 1000, k / 1000])
    found = Ancestral(1000, variance=learned).step(ours, State(x, t), s, Fixed(z)).x
    assert found.dtype == dtype
    assert float((found - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("kept", CHAINS[1:], ids=len)
def test_each_learned_step_of_a_respaced_chain_is_equation_15(kept):
    """An independent computation in float64, from the betas of the respaced chain; the network is told the entries of
    the whole one."""
    alpha_bar, before, beta = respaced(kept)
    points = CHAIN.points([0.0] + [(k + 1) / 1000 for k in kept])
    ours = NeuralDenoiser(Wavy(), CHAIN, parametrisation.eps, learn_variance=True)
    x = Seeds(0).normal((2, 3, 8, 8), dtype=torch.float64)
    z = Seeds(1).normal(x.shape, dtype=torch.float64)
    for i in range(1, len(kept)):
        eps, raw = Wavy()(x, torch.tensor([float(kept[i])])).chunk(2, 1)
        x0 = (x - (1 - alpha_bar[i]).sqrt() * eps) / alpha_bar[i].sqrt()
        c1 = beta[i] * before[i].sqrt() / (1 - alpha_bar[i])
        c2 = (1 - beta[i]).sqrt() * (1 - before[i]) / (1 - alpha_bar[i])
        low, high = (beta[i] * (1 - before[i]) / (1 - alpha_bar[i])).log(), beta[i].log()
        fraction = (raw + 1) / 2
        expected = c1 * x0 + c2 * x + torch.exp((fraction * high + (1 - fraction) * low) / 2) * z
        found = Ancestral(variance=learned).step(ours, State(x, points[i + 1]), points[i], Fixed(z)).x
        assert float((found - expected).abs().max()) <= 1e-11 * float(expected.abs().max())


# -- the bound ---------------------------------------------------------------------------------------------------------


def pair(seed, t, nu):
    """A truth and a guess (2, 3, 4) that is a little off, with a learned variance."""
    x0, eps, off = (Seeds(seed + i).normal((2, 3, 4), dtype=torch.float64) for i in (0, 10, 20))
    truth = CHAIN.noise((x0 / 3).clamp(-1, 1).mul(127.5).round() / 127.5, t, eps)
    guess = truth.with_x0(truth.x0 + 0.01 * off)
    guess.nu = nu
    return truth, guess


def test_bound_with_a_learned_variance_is_the_kl_of_two_normals_pixel_by_pixel():
    nu = Seeds(5).normal((2, 3, 4), dtype=torch.float64)
    t, s = CHAIN.points([0.5, 0.4])
    truth, guess = pair(0, t, nu)
    c1 = (s.alpha**2 - t.alpha**2) / s.alpha / t.sigma**2  # c1 of the posterior mean over two whole entries
    p = torch.distributions.Normal(c1 * truth.x0, torch.tensor(small(t, s)).double().sqrt())
    q = torch.distributions.Normal(c1 * guess.x0, learned(t, s, nu).sqrt())
    expected = torch.distributions.kl_divergence(p, q).flatten(1).mean(1) / torch.tensor(2.0).double().log()
    assert torch.allclose(losses.bound(truth, guess, s, variance=learned), expected, rtol=1e-12)


@pytest.mark.parametrize(("nu", "fixed"), [(0.0, small), (1.0, large)])
def test_bound_at_the_ends_of_nu_is_that_of_the_fixed_variances(nu, fixed):
    for t, s in ((0.5, 0.499), (1.0, 0.9), (0.002, 0.001)):
        truth, guess = pair(0, CHAIN.at(t), torch.full((2, 3, 4), nu, dtype=torch.float64))
        one, other = (losses.bound(truth, guess, s, variance=variance) for variance in (learned, fixed))
        assert torch.allclose(one, other, rtol=1e-9)


def test_steps_of_a_batch_with_times_of_its_own_cost_what_each_costs_alone():
    t = torch.tensor([0.001, 0.7], dtype=torch.float64)
    s = t - 1 / 1000
    nu = 0.3 * Seeds(5).normal((2, 3, 4), dtype=torch.float64)
    truth, guess = pair(0, CHAIN.at(t), nu)
    least = small(*CHAIN.points([0.002, 0.001]))
    for variance in (small, large, learned):
        both = losses.step_bits(truth, guess, s, least=least, variance=variance)
        for i in range(2):
            one, point = slice(i, i + 1), CHAIN.at(float(t[i]))
            alone = losses.step_bits(
                Estimate.exact(CHAIN, point, truth.x0[one], truth.eps[one]),
                _with(Estimate.from_x0(CHAIN, point, truth.xt[one], guess.x0[one]), nu[one]),
                float(s[i]),
                least=least,
                variance=variance,
            )
            assert torch.allclose(both[one], alone, rtol=1e-10)


def _with(guess, nu):
    guess.nu = nu
    return guess


def test_the_bound_of_a_held_guess_teaches_the_variance_alone():
    """The gradient in nu is that of the whole bound; the mean gets none, in any dtype and at the last step too."""
    least = small(*CHAIN.points([0.002, 0.001]))
    t = torch.tensor([0.001, 0.7], dtype=torch.float64)
    truth, guess = pair(0, CHAIN.at(t), None)
    answer = torch.cat([guess.eps, 0.2 * guess.eps], 1)

    def gradients(hold):
        leaf = answer.detach().clone().requires_grad_()

        class Head(torch.nn.Module):
            def forward(self, x, time):
                return leaf

        found = NeuralDenoiser(Head(), CHAIN, parametrisation.eps, learn_variance=True)(truth.xt, CHAIN.at(t))
        found = losses.held(found) if hold else found
        losses.step_bits(truth, found, t - 1 / 1000, least=least, variance=learned).sum().backward()
        return leaf.grad.chunk(2, 1)

    (mean, variance), (held_mean, held_variance) = gradients(False), gradients(True)
    assert bool((held_mean == 0).all()) and bool((mean != 0).all())
    assert torch.allclose(held_variance, variance) and bool((variance != 0).all())


def test_the_whole_bound_of_a_learned_variance_at_its_ends_is_that_of_the_fixed_ones():
    """The small one exactly; the large one but for the decoder, whose variance is beta_1 where it is learned."""

    class Told:
        process = CHAIN

        def __init__(self, nu):
            self.nu = nu

        def __call__(self, xt, t):
            guess = Estimate.from_x0(CHAIN, CHAIN.at(t), xt, 0.2 * xt)
            guess.nu = None if self.nu is None else torch.full_like(xt, self.nu)
            return guess

    x0 = (Seeds(0).normal((4, 1, 8), dtype=torch.float64) / 3).clamp(-1, 1).mul(127.5).round() / 127.5
    grid = torch.linspace(1, 0, 26, dtype=torch.float64)
    for nu, fixed in ((0.0, small), (1.0, large)):
        one = losses.variational_bound(Told(nu), x0, grid, rng=Seeds(0), variance=learned)
        other = losses.variational_bound(Told(None), x0, grid, rng=Seeds(0), variance=fixed)
        assert torch.allclose(one.steps[:-1], other.steps[:-1], rtol=1e-9)
        assert torch.allclose(one.steps[-1], other.steps[-1]) == (fixed is small)
        assert torch.equal(one.x0, other.x0) and torch.equal(one.eps, other.eps) and torch.equal(one.prior, other.prior)
