"""Every affine process: marginals, drift and diffusion as published, tables, inverses, Monte-Carlo paths, and all
parametrisations."""

import itertools
import math

import pytest
import torch

from sfumato.core import parametrisation
from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.estimate import Estimate
from sfumato.core.oracle import Gaussian, Mixture
from sfumato.core.posterior import eps_weight, large, small
from sfumato.core.process import Affine
from sfumato.core.schedules import EDM, VE, VP, Cosine, Discrete, Flow, Levels, SubVP, betas

T = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
PROCESSES = [
    VP(),
    VP(low=0.5, high=8.0),
    SubVP(),
    VE(),
    VE(0.02, 380.0),
    EDM(),
    Flow(),
    Cosine(),
    Cosine(shift=2.0),
    Discrete.linear(),
    Discrete.cosine(),
    Discrete.scaled_linear(),
    Levels(),
    Levels(232, 0.01, 90.0),
]
every = pytest.mark.parametrize("process", PROCESSES, ids=repr)


# -- as published ------------------------------------------------------------------------------------------------------


def published(process, t):
    """alpha, sigma, f / x and g^2 at t: Song et al. 2021 eqs. 29-34, Karras et al. 2022 table 1, flow matching."""
    if isinstance(process, VE):
        growth = math.log(process.high / process.low)
        sigma = process.low * math.exp(growth * t)
        return 1.0, sigma, 0.0, 2 * growth * sigma * sigma
    if isinstance(process, EDM):
        return 1.0, process.high * t, 0.0, 2 * process.high**2 * t
    if isinstance(process, Flow):
        return 1 - t, t, -1 / (1 - t), 2 * t / (1 - t)
    beta = process.low + t * (process.high - process.low)
    integral = process.low * t + 0.5 * (process.high - process.low) * t * t
    if isinstance(process, SubVP):
        gap = -math.expm1(-integral)
        return math.exp(-0.5 * integral), gap, -0.5 * beta, beta * -math.expm1(-2 * integral)
    return math.exp(-0.5 * integral), math.sqrt(-math.expm1(-integral)), -0.5 * beta, beta


@pytest.mark.parametrize("process", [p for p in PROCESSES if isinstance(p, VP | SubVP | VE | EDM | Flow)], ids=repr)
def test_marginals_drift_and_diffusion_are_the_published_ones(process):
    x = torch.ones(1, 1, dtype=torch.float64)
    for t in (1e-3, *T.tolist()):
        alpha, sigma, f, square = published(process, t)
        point = process.at(t)
        assert point.alpha == pytest.approx(alpha, rel=1e-12) and point.sigma == pytest.approx(sigma, rel=1e-12)
        assert float(process.drift(x, t)) == pytest.approx(f, rel=1e-12, abs=1e-12)
        assert process.diffusion(x, t) ** 2 == pytest.approx(square, rel=1e-12)


def test_known_figures():
    assert VP().at(0.5).sigma == pytest.approx(0.959654, abs=5e-7)
    assert SubVP().at(0.5).sigma == pytest.approx(0.920936, abs=5e-7)
    assert (VE().at(1.0).sigma, VE().at(1e-9).sigma) == pytest.approx((50.0, 0.01), rel=1e-7)
    assert [VE().prior_std, EDM().prior_std, Levels().prior_std] == [None] * 3
    assert VP().at(1.0).sigma / VP().at(1.0).alpha == pytest.approx(152.167, abs=5e-4)  # EDM's range for VP
    angle = math.atan(2.0 * math.tan(0.5 * math.pi * 0.9999 * 0.3))
    assert Cosine(shift=2.0).at(0.3).alpha == pytest.approx(math.cos(angle), rel=1e-14)


def test_what_networks_are_told():
    points = {p: p.at(0.25) for p in (VP(), VE(), EDM(), Flow(), Cosine())}
    told = [point.time for point in points.values()]
    sigma = 0.01 * 5000**0.25
    assert told == pytest.approx([999 * 0.25, sigma, math.log(20.0) / 4, 250.0, 250.0], rel=1e-14)
    assert EDM().at(0.0).time == math.log(0.002) / 4


def test_levels_are_evenly_spaced_in_their_logarithm_and_counted_from_the_noisiest():
    process, N = Levels(10, 0.01, 50.0), 10
    points = process.points([(k + 1) / N for k in range(N)])
    geometric = [0.01 * 5000 ** (k / (N - 1)) for k in range(N)]
    assert [p.sigma for p in points] == pytest.approx(geometric, rel=1e-13)
    assert [p.time for p in points] == list(range(N - 1, -1, -1)) and {p.alpha for p in points} == {1.0}
    half, first = process.at(0.5 / N), process.at(1 / N)
    assert half.sigma == pytest.approx(0.5 * first.sigma, rel=1e-13) and half.time == N - 1


@pytest.mark.parametrize("table", [betas.linear(), betas.cosine(), betas.quad(100), betas.warmup(50)])
def test_a_table_is_its_cumulative_product_and_respaced_one_with_fewer_betas(table):
    """New betas are 1 - ab_k / ab_previous (Nichol & Dhariwal 2021, section 4): what `large` makes of two points."""
    process, n = Discrete(table), len(table)
    ab = torch.cumprod(1 - table, 0)
    kept = sorted({round(i * (n - 1) / 6) for i in range(7)})
    points = process.points([(k + 1) / n for k in kept])
    assert [p.alpha**2 for p in points] == pytest.approx(ab[kept].tolist(), rel=1e-12)
    assert [p.time for p in points] == kept
    fewer = [1 - float(ab[k] / ab[j]) for j, k in itertools.pairwise(kept)]
    respaced = Discrete(torch.tensor([float(table[: kept[0] + 1].sum()), *fewer], dtype=torch.float64))
    for (s, t), beta in zip(itertools.pairwise(points), fewer, strict=True):
        assert large(t, s) == pytest.approx(beta, rel=1e-11)
        tilde = beta * float(1 - s.alpha**2) / (1 - t.alpha**2)
        assert small(t, s) == pytest.approx(tilde, rel=1e-10)
        assert eps_weight(t, s) == pytest.approx(math.sqrt(1 - beta) * s.sigma**2 / t.sigma, rel=1e-11)
    shorter = respaced.points([(i + 1) / len(kept) for i in range(len(kept))])
    scale = shorter[0].alpha / points[0].alpha  # both tables go on from the same first entry
    assert [p.alpha / scale for p in shorter] == pytest.approx([p.alpha for p in points], rel=1e-12)


# -- what all have in common -------------------------------------------------------------------------------------------


@every
def test_time_zero_is_clean(process):
    point = process.at(0.0)
    assert (point.alpha, point.sigma, point.ratio, point.lam) == (1.0, 0.0, 0.0, math.inf)
    x0, eps = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.equal(process.noise(x0, 0.0, eps).xt, x0)
    assert math.isfinite(point.time)
    assert process.first == 1 / len(process) if hasattr(process, "__len__") else 0 < process.first <= 1e-3


@every
def test_noise_only_grows(process):
    ratios = [p.ratio for p in process.points(torch.linspace(0, 1, 4001, dtype=torch.float64))]
    assert all(a < b for a, b in itertools.pairwise(ratios))


@every
def test_log_snr_and_time_are_inverse(process):
    level = process.log_snr(T)
    assert torch.allclose(process.time(level), T, atol=1e-11)
    assert torch.allclose(process.log_snr(process.time(level)), level, atol=1e-9)
    assert torch.allclose(level, torch.tensor([2 * p.lam for p in process.points(T)], dtype=torch.float64), atol=1e-12)


@every
def test_closed_inverses_equal_bisection_and_reach_both_ends(process):
    level = torch.cat([process.log_snr(T), torch.linspace(-30, 30, 61, dtype=torch.float64)])
    inside = (level <= process.log_snr(1e-9)) & (level >= process.log_snr(1.0))
    assert torch.allclose(process.time(level)[inside], Affine.time(process, level)[inside], atol=1e-11)
    assert process.time(torch.tensor([math.inf, -math.inf])).tolist() == [0.0, 1.0]
    assert ((process.time(level) >= 0) & (process.time(level) <= 1)).all()


@every
def test_a_batch_of_times_is_a_grid(process):
    batch, grid = process.at(T), process.points(T)
    for name in ("alpha", "sigma", "time"):
        assert getattr(batch, name).tolist() == [getattr(point, name) for point in grid]


@every
def test_euler_paths_of_the_forward_sde_have_the_marginals(process):
    """Ten thousand paths from x_0 = 1 over an interval in which alpha stays above 0."""
    g, n, (start, end) = torch.Generator().manual_seed(0), 80, (0.02, 0.6)
    first, last = process.points([start, end])
    x = first.alpha + first.sigma * torch.randn(10_000, 1, generator=g, dtype=torch.float64)
    h = (end - start) / n
    for i in range(n):
        t = start + (i + 0.5) * h
        kick = torch.randn(x.shape, generator=g, dtype=torch.float64) * math.sqrt(h)
        x = x + h * process.drift(x, t) + kick * process.diffusion(x, t)
    assert float(x.mean()) == pytest.approx(last.alpha, abs=0.005 + 0.03 * last.sigma)
    assert float(x.std()) == pytest.approx(last.sigma, rel=0.02)


@every
@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_densities_of_the_oracles_are_the_marginals(process, kind):
    """log_prob integrates to one, its gradient is the score, and its variance is alpha^2 var(x_0) + sigma^2."""
    means, stds, shares = (torch.tensor(c, dtype=torch.float64) for c in ([-0.6, 0.9], [0.2, 0.5], [0.3, 0.7]))
    mean, variance = float((shares * means).sum()), float((shares * (means**2 + stds**2)).sum())
    oracle = Mixture(process, means[:, None], stds, shares)
    if kind == "gaussian":
        oracle, mean, variance = Gaussian(process, 0.4, 0.5), 0.4, 0.4**2 + 0.25
    for t in (0.0, 0.1, 0.6):
        point = process.at(t)
        wide = 4 * point.alpha + 9 * point.sigma
        x = torch.linspace(-wide, wide, 4001, dtype=torch.float64)[:, None].requires_grad_()
        log = oracle.log_prob(x, torch.full((4001,), t, dtype=torch.float64))
        assert torch.equal(log, oracle.log_prob(x, t))
        (gradient,) = torch.autograd.grad(log.sum(), x)
        p, x = log.detach().exp(), x.detach()[:, 0]
        assert float(torch.trapezoid(p, x)) == pytest.approx(1.0, abs=1e-9)
        assert float(torch.trapezoid(p * x, x)) == pytest.approx(point.alpha * mean, abs=1e-8 * wide)
        expected = point.alpha**2 * variance + point.sigma**2
        assert float(torch.trapezoid(p * x * x, x)) == pytest.approx(expected, rel=1e-8)
        if t:
            assert torch.allclose(oracle(x[:, None], t).score, gradient, rtol=1e-8, atol=1e-10)


# -- parametrisations --------------------------------------------------------------------------------------------------


def targets(process, truth, predict):
    """What the network must answer: x0 = skip x_t + out F solved for F, from its definition in the literature."""
    alpha, sigma = truth.point.alpha, truth.point.sigma
    if predict == "edm":
        x, s, data = truth.xt / alpha, sigma / alpha, 0.5
        return (truth.x0 - data**2 / (s**2 + data**2) * x) * math.sqrt(s**2 + data**2) / (s * data)
    da, ds = process.rates(truth.point.t)
    return {
        "eps": truth.eps,
        "x0": truth.x0,
        "v": alpha * truth.eps - sigma * truth.x0,
        "score": -truth.eps / sigma,
        "velocity": da * truth.x0 + ds * truth.eps,
    }[predict]


PREDICT = {name: getattr(parametrisation, name) for name in ("eps", "x0", "v", "score", "velocity")} | {
    "edm": parametrisation.edm(0.5)
}


def guess(process, truth, predict, t):
    point = process.at(t)
    rows = PREDICT[predict](process, point).rows(point)
    return Estimate(process, point, truth.xt, targets(process, truth, predict), *rows, truth.xt)


def data(n=3):
    g = torch.Generator().manual_seed(0)
    return (torch.randn(n, 2, 4, 4, generator=g, dtype=torch.float64) for _ in range(2))


@every
@pytest.mark.parametrize("predict", PREDICT)
def test_every_parametrisation_means_the_same_estimate(process, predict):
    """To 1e-12 of the size of each view, times how much x_t magnifies rounding where x0 (or eps) is a small part of
    it."""
    x0, eps = data()
    for t in (0.02, 0.3, 0.7, 0.97):
        truth = process.noise(x0, t, eps)
        alpha, sigma = truth.point.alpha, truth.point.sigma
        for moment in (t, torch.tensor([t] * 3, dtype=torch.float64)):
            found = guess(process, truth, predict, moment)
            for view, lost in (("x0", sigma / alpha), ("eps", alpha / sigma), ("score", alpha / sigma)):
                a, b = getattr(found, view), getattr(truth, view)
                assert float((a - b).abs().max() / b.abs().max()) < 1e-12 * max(1.0, 0.02 * lost), (view, t)


@pytest.mark.parametrize("process", [p for p in PROCESSES if not isinstance(p, VE)], ids=repr)  # VE has a least sigma
@pytest.mark.parametrize("predict", [name for name in PREDICT if name != "x0"])
def test_rows_stay_exact_as_the_noise_vanishes(process, predict):
    """At sigma / alpha near 1e-7 all but x0-prediction still say eps to a relative 1e-7 or better: no difference of
    nearly equal numbers is taken."""
    x0, eps = data()
    t = float(process.time(torch.tensor(2 * 7 * math.log(10.0))))
    truth = process.noise(x0, t, eps)
    assert 0 < truth.point.sigma < 2e-7
    found = guess(process, truth, predict, t)
    assert float((found.x0 - x0).abs().max()) < 1e-13
    assert float((found.eps - eps).abs().max()) < (1e-13 if predict in ("eps", "score") else 1e-8)


@every
def test_rows_at_clean_data(process):
    """At t = 0 exactly: x0 is x_t under every parametrisation that knows it, and eps what the network says."""
    clean = process.at(0.0)
    for predict in ("eps", "v", "score", "edm"):
        c = PREDICT[predict](process, clean)
        (skip, out), (p, q) = c.rows(clean)
        assert (skip, float(out)) == (1.0, 0.0) and all(math.isfinite(w) for w in (p, q, c.inp, c.time)), predict
        if predict in ("eps", "v"):
            assert (p, q) == (0.0, 1.0)


@pytest.mark.parametrize("predict", ["eps", "score", "edm"])
def test_a_network_that_cannot_say_x0_where_there_is_no_signal_is_refused(predict):
    for process in (Flow(), Discrete(betas.jsd())):
        with pytest.raises(ValueError, match="predict x0 or v"):
            NeuralDenoiser(torch.nn.Identity(), process, PREDICT[predict])
        for fine in ("x0", "v", "velocity"):
            NeuralDenoiser(torch.nn.Identity(), process, PREDICT[fine])
