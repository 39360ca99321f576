"""Likelihood by the probability flow against closed forms (spec 5.6), and the bound above it."""

import math

import pytest
import torch

from sfumato.core import guidance, likelihood, losses, parametrisation
from sfumato.core.cond import Cond
from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.likelihood import density, dequantised, gaussian, mean_of, offset, rademacher
from sfumato.core.oracle import Gaussian, Mixture
from sfumato.core.phase import CLD
from sfumato.core.posterior import large, small
from sfumato.core.random import Seeds
from sfumato.core.schedules import EDM, VE, VP, Cosine, Discrete, Flow, Levels, SubVP, betas

PROCESSES = [
    VP(),
    SubVP(),
    VE(),
    EDM(),
    Flow(),
    Cosine(),
    Discrete.linear(),
    Discrete(betas.jsd(100)),
    Levels(100),
]
MEANS = torch.tensor([[-0.6, 0.2], [0.5, 0.5], [0.1, -0.7]], dtype=torch.float64)
STDS = torch.tensor([0.1, 0.2, 0.05], dtype=torch.float64)
HERE = torch.tensor([[0.3, 0.2], [-0.6, 0.3], [0.12, -0.7]], dtype=torch.float64)


def mixture(process):
    return Mixture(process, MEANS, STDS, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))


def drawn(n, seed=0):
    """n draws of the mixture's data."""
    g = torch.Generator().manual_seed(seed)
    k = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), n, replacement=True, generator=g)
    return MEANS[k] + STDS[k, None] * torch.randn(n, 2, generator=g, dtype=torch.float64)


class Wavy(torch.nn.Module):
    """A nonlinear stand-in for a network, whose flow is that of no known distribution."""

    def __init__(self, slope=0.3):
        super().__init__()
        self.slope = slope

    def forward(self, x, time, vector=None):
        shift = 0.0 if vector is None else vector.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
        late = 0.001 * time.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
        return 0.4 * torch.sin(1.3 * x + late + shift) + self.slope * x.flip(-1)


class Counted:
    def __init__(self, inner):
        self.inner, self.process, self.calls = inner, inner.process, 0

    def __call__(self, xt, t):
        self.calls += 1
        return self.inner(xt, t)


# -- closed forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("eps", "expected"), [(1e-5, 1.0470977518), (1e-3, 1.0473334697)])
def test_vp_flow_of_a_gaussian(eps, expected):
    """E[-log2 p] over x ~ p_eps: log p is quadratic in x, so that its value at one deviation is its expectation."""
    process = VP()
    p = process.at(eps)
    x = torch.full((1, 3), math.sqrt((p.alpha * 0.5) ** 2 + p.sigma**2), dtype=torch.float64)
    found = density(Gaussian(process, 0.0, 0.5), x, eps=eps, rtol=1e-9, atol=1e-9)
    assert float(found.bits()) == pytest.approx(expected, abs=1e-9)
    assert float(found.bits()) + offset() == pytest.approx(7 + expected, abs=1e-9)
    data = density(Gaussian(process, 0.0, 0.5), torch.full((1, 3), 0.5, dtype=torch.float64), eps=1e-5)
    assert float(data.bits()) == pytest.approx(1.0470955852, abs=5e-6), "the entropy of the data"


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_flow_of_a_mixture_is_its_exact_density(process):
    """By every process alike. What the model's prior differs from the oracle's p_1 is put back."""
    oracle = mixture(process)
    found = density(oracle, HERE, rtol=1e-6, atol=1e-6)
    std = process.prior_std or float(process.at(1.0).sigma)
    prior = Gaussian(process, 0.0, 1.0).log_prob(found.x1 / std, 0.0) - 2 * math.log(std)
    found_log = found.log_prob[:, 0] - prior + oracle.log_prob(found.x1, 1.0)
    assert torch.allclose(found_log, oracle.log_prob(HERE, process.first), atol=1e-5)


def test_one_flow_whatever_the_schedule():
    """Schedules that begin at the same noise level give the same steps and the same density, but for the scale of x."""
    found = []
    for process in (Flow(), Cosine(end=1.0 - 1e-9), EDM(high=1e6)):
        eps = float(process.time(-2 * math.log(1e-3)))
        p = process.at(eps)
        of = density(mixture(process), HERE * math.hypot(p.alpha, p.sigma), eps=eps, rtol=1e-6, atol=1e-6)
        found.append((of.calls, of.log_prob + 2 * math.log(math.hypot(p.alpha, p.sigma))))
    for calls, log_prob in found[1:]:
        assert calls == found[0][0] and torch.allclose(log_prob, found[0][1], atol=1e-5)


def test_the_flow_encodes():
    process = VP()
    oracle, eps = Gaussian(process, 0.4, 0.5), 1e-4
    found = density(oracle, HERE, eps=eps, rtol=1e-7, atol=1e-7)
    assert torch.allclose(oracle.flow(found.x1, 1.0), oracle.flow(HERE, eps), atol=1e-6)


@pytest.mark.parametrize(
    ("predict", "slope"), [(parametrisation.velocity, 0.1), (parametrisation.v, 0.1), (parametrisation.x0, 0.1)]
)
def test_the_density_of_any_network_integrates_to_one(predict, slope):
    """Of a network that is the score of nothing: change of variables alone makes it a density."""
    x = torch.linspace(-12, 12, 301, dtype=torch.float64)[:, None]
    found = density(NeuralDenoiser(Wavy(slope), Cosine(), predict), x, rtol=1e-5, eps=0.1)
    assert float(torch.trapezoid(found.log_prob[:, 0].exp(), x[:, 0])) == pytest.approx(1.0, abs=1e-4)
    assert float(found.log_prob[[0, -1]].max()) < -12, "all of it lies within"


def test_calls_are_counted_and_the_share_that_is_done_grows():
    denoiser, told = Counted(mixture(VP())), []
    found = density(denoiser, HERE, rtol=1e-4, atol=1e-4, show=told.append)
    assert found.calls == denoiser.calls == len(told)
    assert told[0] == 0.0 and told[-1] > 0.99 and all(0.0 <= done <= 1.0 for done in told)


def test_the_flow_begins_where_networks_were_trained():
    for process in (VP(), EDM(), Discrete.linear(20)):
        one, other = (density(Gaussian(process, 0.1, 0.5), HERE, eps=eps) for eps in (None, process.first))
        assert torch.equal(one.log_prob, other.log_prob)


# -- the divergence ----------------------------------------------------------------------------------------------------


def test_random_signs_are_exact_where_the_jacobian_is_diagonal():
    oracle = Gaussian(VP(), 0.1, torch.tensor([0.2, 0.5, 0.9, 0.4], dtype=torch.float64))
    x = Seeds(0).normal((5, 4), dtype=torch.float64)
    exact = density(oracle, x)
    signs = density(oracle, x, probes=rademacher(x, Seeds(1), 3))
    assert torch.allclose(signs.log_prob, exact.log_prob.expand(5, 3), rtol=1e-12)
    normal = density(oracle, x, probes=gaussian(x, Seeds(1), 3))
    assert float((normal.log_prob - exact.log_prob).abs().min()) > 1e-3


def test_probes_are_right_on_average_and_signs_vary_less():
    x, k = HERE[:1].expand(300, 2).clone(), 4
    oracle = mixture(VP())
    exact = float(density(oracle, HERE[:1], rtol=1e-4).log_prob)
    spread = []
    for probe in (rademacher, gaussian):
        found = density(oracle, x, probes=probe(x, Seeds(3), k), rtol=1e-3)
        of = mean_of(found.log_prob.flatten())
        assert abs(of.value - exact) < 4 * of.error
        spread.append(of.error)
    assert spread[0] < 0.75 * spread[1]


def test_signs_are_signs():
    v = rademacher(torch.zeros(3, 2, 50, dtype=torch.float32), Seeds(0), 4)
    assert v.shape == (4, 3, 2, 50) and v.dtype == torch.float32 and bool((v.abs() == 1).all())
    assert abs(float(v.mean())) < 0.12 and not torch.equal(v[0], v[1])


# -- networks ----------------------------------------------------------------------------------------------------------


def test_float32_networks_agree_with_float64():
    denoiser = NeuralDenoiser(Wavy(), Discrete.linear(), parametrisation.eps)
    x = Seeds(0).normal((4, 2, 6), dtype=torch.float64) / 2
    v = rademacher(x, Seeds(1))
    wide = density(denoiser, x, probes=v)
    narrow = density(denoiser, x.float(), probes=v.float())
    assert narrow.log_prob.dtype == torch.float64 and narrow.x1.dtype == torch.float32
    assert torch.allclose(narrow.bits(), wide.bits(), atol=2e-4)


def test_an_example_has_the_same_density_alone_and_among_others():
    """Step sizes, condition, probe and dequantisation are each example's own."""
    x = Seeds(0).normal((4, 1, 6), dtype=torch.float64).div(3).clamp(-1, 1).mul(127.5).round() / 127.5
    label = torch.tensor([0.0, 1.0, 2.0, 3.0])
    network = NeuralDenoiser(Wavy(), Cosine(), parametrisation.v)

    def of(rows, seeds):
        denoiser, y = network.given(Cond(vector=label[rows])), dequantised(x[rows], Seeds.pictures(seeds))
        return density(denoiser, y, probes=rademacher(y, Seeds.pictures(seeds)), rtol=1e-4).log_prob

    together, alone = of(slice(0, 4), [5, 6, 7, 8]), of(slice(2, 3), [7])
    assert torch.allclose(together[2:3], alone, rtol=1e-10) and len(set(together.flatten().tolist())) == 4


def test_what_has_no_density_is_refused():
    network = NeuralDenoiser(Wavy(), VP(), parametrisation.eps)
    x = torch.zeros(1, 1, 2)
    for guided in (guidance.clip(network), guidance.classifier_free(network, network.given(Cond()), 2.0)):
        with pytest.raises(ValueError, match="guidance makes no density"):
            density(guided, x)
    with pytest.raises(ValueError, match="alpha x0"):
        density(Counted(type("Phase", (), {"process": CLD()})()), x)
    for eps in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            density(network, x, eps=eps)


def test_a_flow_that_cannot_be_followed_is_said():
    class Broken(torch.nn.Module):
        def forward(self, x, time):
            return x / 0.0

    with pytest.raises(ArithmeticError):
        density(NeuralDenoiser(Broken(), VP(), parametrisation.eps), torch.ones(1, 1, 2))


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [256, 65536])
def test_dequantised_pictures_keep_their_level(levels):
    k = torch.randint(levels, (64, 1, 20, 20), generator=torch.Generator().manual_seed(0))
    x = (k.float() / (levels - 1)) * 2 - 1
    for dtype in (torch.float32, torch.float64):
        y = dequantised(x.to(dtype), Seeds(0), levels=levels)
        assert y.dtype == dtype and float(y.min()) >= -1 and float(y.max()) <= 1
        u = (y.double() + 1) / 2 * levels - k
        assert float(u.min()) > -1e-2 and float(u.max()) < 1 + 1e-2
    assert float(u.mean()) == pytest.approx(0.5, abs=0.01) and float(u.var()) == pytest.approx(1 / 12, rel=0.03)


def test_offsets():
    assert offset() == 7.0 and offset(low=0.0) == 8.0 and offset(levels=65536) == 15.0


def levelled(n, dimensions, std):
    """Pixels of normal data on 256 levels of [-1, 1], and the model that knows them."""
    x = (std * Seeds(4).normal((n, 1, dimensions), dtype=torch.float64)).clamp(-1, 1)
    return x.mul(127.5).add(127.5).round().sub(127.5) / 127.5


def test_bound_and_flow_of_an_oracle_lie_above_the_entropy_and_the_bound_above_the_flow():
    """Of 256 levels whose probabilities are known; paired over the pictures."""
    std, chain = 0.2, Discrete.linear()
    x, oracle = levelled(256, 16, std), Gaussian(chain, 0.0, std)
    below = torch.special.ndtr((torch.arange(257, dtype=torch.float64) - 128) / 127.5 / std)
    exact = -below.diff()[(x * 127.5 + 127.5).round().long()].log2().flatten(1).mean(1)
    y = dequantised(x, Seeds(1))
    flow = density(oracle, y, probes=rademacher(y, Seeds(2)), rtol=1e-4).bits()[:, 0] + offset()
    assert abs(mean_of(flow - exact).value) < 0.01, "exact up to the width of a level"
    grid = torch.linspace(1, 0, 1001, dtype=torch.float64)
    gaps = [
        mean_of(losses.variational_bound(oracle, x, grid, rng=Seeds(3), variance=variance).total - flow)
        for variance in (large, small)
    ]
    assert all(gap.value > 3 * gap.error > 0 for gap in gaps)
    assert gaps[0].value < 0.25 < gaps[1].value < 1, "the small variance is for data that is a point"


def test_the_bound_is_tighter_with_more_steps():
    """With the variance that suits normal data: that of each step approaches the true one."""
    x, oracle = levelled(64, 16, 0.2), Gaussian(Discrete.linear(), 0.0, 0.2)
    found = [
        losses.variational_bound(oracle, x, torch.linspace(1, 0, n + 1), rng=Seeds(3), variance=large)
        for n in (25, 100, 1000)
    ]
    totals = [float(one.total.mean()) for one in found]
    assert totals == sorted(totals, reverse=True) and totals[0] > totals[2] + 0.1


# -- the error bar -----------------------------------------------------------------------------------------------------


def test_the_error_bar_covers_the_truth_as_often_as_it_should():
    """150 experiments of 40 pictures: the cross-entropy of the oracle lies within 1.96 standard errors in 95 % of
    them."""
    process, n = VP(), 40
    oracle, x = mixture(process), drawn(150 * n)
    found = density(oracle, x, probes=rademacher(x, Seeds(1)), rtol=1e-2, atol=1e-3).bits()[:, 0]
    truth = -float(oracle.log_prob(drawn(300_000, seed=1), process.first).mean()) / math.log(2) / 2
    inside = [abs(of.value - truth) < 1.96 * of.error for of in map(mean_of, found.split(n))]
    assert 0.90 <= sum(inside) / 150 <= 0.99
    assert mean_of(found).value == pytest.approx(truth, abs=4 * mean_of(found).error)


def test_the_error_over_probes_covers_the_exact_value():
    """Of a single picture, with 16 probes: Student's t for 15 degrees is 2.13."""
    process, x = VP(), drawn(200)
    oracle = mixture(process)
    found = density(oracle, x, probes=rademacher(x, Seeds(1), 16), rtol=1e-3, atol=1e-4)
    off = (found.log_prob.mean(1) - oracle.log_prob(x, process.first)).abs()
    inside = off < 2.13 * found.error() + 2e-3  # and the error of the solver
    assert 0.9 <= float(inside.double().mean()) <= 0.99
    assert density(oracle, x[:1]).error().isnan().all(), "one estimate says nothing of its spread"


def test_mean_of():
    assert mean_of(torch.tensor([1.0, 2.0, 3.0, 6.0])) == likelihood.Mean(3.0, pytest.approx(math.sqrt(14 / 3) / 2))
    assert math.isnan(mean_of(torch.tensor([1.0])).error)
