"""Critically-damped Langevin diffusion: kernel, estimates, losses and flows against closed forms (spec 9)."""

import itertools
import math
from decimal import Decimal, getcontext

import pytest
import torch

from sfumato.core import guidance, losses, parametrisation, phase
from sfumato.core.cond import Cond
from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.oracle import PhaseGaussian, PhaseMixture
from sfumato.core.phase import CLD, PhaseEstimate, halves, mixed
from sfumato.core.random import Seeds

EXACT = CLD(numerical_eps=0.0)
PROCESSES = [EXACT, CLD(), CLD(beta=0.1, slope=6.9), CLD(mass=0.7, gamma=0.3, hybrid=False)]
TIMES = (1e-5, 1e-3, 0.02, 0.3, 1.0)


def matrices(kernel):
    """Mean map and noise covariance, (2, 2) float64."""
    mean = torch.tensor([[kernel.xx, kernel.xv], [kernel.vx, kernel.vv]], dtype=torch.float64)
    root = torch.tensor([[kernel.l11, 0.0], [kernel.l21, kernel.l22]], dtype=torch.float64)
    return mean, root @ root.T


def force(process):
    """The matrix A of du = A u beta dt."""
    return torch.tensor([[0.0, 1 / process.mass], [-1.0, -process.friction / process.mass]], dtype=torch.float64)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# -- kernel ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("t", "mean_x", "mean_v", "sxx", "sxv", "svv", "level"),
    [
        (0.01, ".9970", "-.036925", "8.2391e-4", "6.7081e-3", ".0755355", "6.9138"),
        (0.1, ".8088", "-.17973", ".2218101", ".1298598", ".2157584", "2.6752"),
        (0.5, ".0916", "-.036631", ".9864607", ".0052869", ".2479336", "2.0084"),
        (1.0, ".0030", "-.0013419", ".999984", "7.08e-6", ".249997", "2.0000"),
    ],
)
def test_kernel_table(t, mean_x, mean_v, sxx, sxv, svv, level):
    point = EXACT.at(t)
    k = point.kernel
    found = (k.xx, k.vx, k.l11**2, k.l11 * k.l21, point.momentum_variance, 1 / point.sigma)
    for value, text in zip(found, (mean_x, mean_v, sxx, sxv, svv, level), strict=True):
        unit = 10.0 ** Decimal(text).as_tuple().exponent
        assert abs(value - float(text)) <= 0.501 * unit, (text, value)


@pytest.mark.parametrize(("eps", "at"), [(0.0, (193.717, 19.937)), (1e-9, (11.1634, 19.918)), (1e-6, (9.9626, 12.800))])
def test_numerical_eps_tempers_the_score_near_the_data(eps, at):
    found = [1 / CLD(numerical_eps=eps).at(t).sigma for t in (1e-5, 1e-3)]
    assert found[0] == pytest.approx(at[0], abs=6e-4) and found[1] == pytest.approx(at[1], abs=6e-4)


def published(t, c, jitter, process):
    """Sxx, Sxv, Svv and L22 of spec 9.2.2 in 60 digits."""
    getcontext().prec = 60
    m, b, j = Decimal(process.mass), Decimal(process.beta) * Decimal(t), Decimal(jitter)
    f = 2 * m.sqrt()
    g, c = 1 / f, Decimal(c)
    k = (-4 * g * b).exp()
    sxx = 1 - k * (1 + 4 * g * b + 8 * g * g * b * b) + k * (4 * g * g * b) ** 2 * c + j
    sxv = k * 4 * g * b * b + k * 4 * g * g * b * (1 - 2 * g * b) * c
    svv = f * f * (1 - k) / 4 + k * (f * b - 2 * b * b) + k * (1 - 2 * g * b) ** 2 * c + j
    return sxx, sxv, svv, (svv - sxv * sxv / sxx).sqrt()


@pytest.mark.parametrize("process", [CLD(), CLD(beta=3.0, mass=0.7, gamma=0.3)], ids=repr)
@pytest.mark.parametrize("hybrid", [True, False])
@pytest.mark.parametrize("jitter", [0.0, 1e-9])
def test_kernel_is_exact_down_to_the_smallest_times(process, hybrid, jitter):
    c = process.gamma * process.mass if hybrid else 0.0
    for t in [10 ** (-8 + 0.1 * i) for i in range(81)]:
        k = process.kernel(process.tau(torch.tensor(t, dtype=torch.float64)), c, jitter)
        l11, l21, l22 = (Decimal(float(x)) for x in (k.l11, k.l21, k.l22))
        for found, true in zip(
            (l11 * l11, l11 * l21, l21 * l21 + l22 * l22, l22), published(t, c, jitter, process), strict=True
        ):
            assert abs(found / true - 1) < Decimal("1e-12"), t


@pytest.mark.parametrize("process", [EXACT, CLD(beta=0.5, slope=6.9, mass=0.4, gamma=0.2, numerical_eps=0.0)], ids=repr)
def test_moments_obey_the_lyapunov_equation(process):
    """mean' = beta A mean and S' = beta (A S + S A^T + 2 Gamma e_v e_v^T), by central differences."""
    a, h = force(process), 1e-5
    source = torch.diag(torch.tensor([0.0, 2 * process.friction], dtype=torch.float64))
    for t in (0.01, 0.1, 0.4, 0.9):
        (before, s0), (mean, s), (after, s1) = (matrices(process.at(t + d).kernel) for d in (-h, 0.0, h))
        beta = process.rate(t)
        assert torch.allclose((after - before) / (2 * h), beta * a @ mean, rtol=1e-6, atol=1e-8)
        assert torch.allclose((s1 - s0) / (2 * h), beta * (a @ s + s @ a.T + source), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_two_kernels_in_a_row_are_one(process):
    for one, two in itertools.product((1e-4, 0.03, 0.5, 2.0), repeat=2):
        (f1, s1), (f2, s2), (f, s) = (
            matrices(process.kernel(torch.tensor(x, dtype=torch.float64))) for x in (one, two, one + two)
        )
        assert torch.allclose(f2 @ f1, f, atol=1e-14) and torch.allclose(f2 @ s1 @ f2.T + s2, s, atol=1e-14)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_stationary_law_is_kept(process):
    law = torch.diag(torch.tensor([1.0, process.mass], dtype=torch.float64))
    for tau in (1e-6, 0.1, 3.0):
        f, s = matrices(process.kernel(torch.tensor(tau, dtype=torch.float64)))
        assert torch.allclose(f @ law @ f.T + s, law, atol=1e-14)
    u = process.prior((4000, 1, 2), Seeds(0), dtype=torch.float64)
    x, v = halves(u)
    assert u.shape == (4000, 2, 2) and torch.equal(process.project(u), x)
    assert float(x.std()) == pytest.approx(1.0, abs=0.03)
    assert float(v.std()) == pytest.approx(math.sqrt(process.mass), abs=0.03)


def test_euler_steps_of_the_forward_sde_have_the_moments_of_the_kernel():
    """Ten thousand paths from x_0 = 1."""
    n, end = 150, 0.3
    for process in (EXACT, CLD(beta=0.5, slope=8.0, numerical_eps=0.0)):
        g = torch.Generator().manual_seed(0)
        v0 = torch.randn(10_000, 1, generator=g, dtype=torch.float64) * math.sqrt(process.gamma * process.mass)
        u = torch.cat([torch.ones_like(v0), v0], 1)
        for i in range(n):
            t = (i + 0.5) * end / n
            u = u + process.drift(u, t) * (end / n)
            kick = torch.randn(v0.shape, generator=g, dtype=torch.float64) * math.sqrt(end / n)
            halves(u)[1].add_(kick * process.diffusion(u, t))
        k = process.at(end).kernel
        _, s = matrices(k)
        assert torch.allclose(u.mean(0), torch.tensor([k.xx, k.vx], dtype=torch.float64), atol=0.02)
        assert torch.allclose(torch.cov(u.T), s, atol=0.015)


# -- points and estimates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_a_batch_of_times_gives_the_same_points_as_a_grid(process):
    batch, grid = process.at(torch.tensor(TIMES)), process.points(torch.tensor(TIMES))
    for name in ("t", "time", "alpha", "sigma", "position", "momentum", "momentum_variance"):
        rows = torch.as_tensor(getattr(batch, name), dtype=torch.float64).expand(len(TIMES)).tolist()
        assert rows == pytest.approx([getattr(p, name) for p in grid], rel=1e-14), name
    assert [row.tolist() for row in batch.kernel] == [
        pytest.approx(list(c), rel=1e-14) for c in zip(*(p.kernel for p in grid), strict=True)
    ]


def test_noise_has_the_covariance_of_the_kernel():
    """One unit of each noise in turn: u = mean + L e."""
    for process in PROCESSES:
        n = 2 if process.hybrid else 3
        for t in TIMES:
            k = process.at(t).kernel
            u = process.noise(torch.ones(1 + n, 1, dtype=torch.float64), t, torch.zeros(1 + n, n, dtype=torch.float64))
            assert torch.allclose(u.xt, torch.tensor([[k.xx, k.vx]], dtype=torch.float64), atol=1e-15)
            moved = process.noise(torch.zeros(n, 1, dtype=torch.float64), t, torch.eye(n, dtype=torch.float64)).xt
            spread = math.sqrt(process.gamma * process.mass)
            rows = [[k.l11, k.l21], [0.0, k.l22], [k.xv * spread, k.vv * spread]][:n]
            assert torch.allclose(moved, torch.tensor(rows, dtype=torch.float64), atol=1e-15)


def answers(process, point, truth):
    """What a network must answer under each parametrisation to mean `truth`."""
    sheared = point.momentum * truth.momentum + point.position * truth.position
    return {
        parametrisation.eps: truth.eps,
        parametrisation.x0: truth.x0,
        parametrisation.score: -truth.eps / point.sigma,
        parametrisation.v: point.alpha * truth.eps - point.sigma * truth.x0,
        mixed: truth.eps - point.sigma / point.momentum_variance * truth.momentum,
    }, sheared


@pytest.mark.parametrize("shared", [True, False])
def test_every_parametrisation_gives_the_same_estimate(shared):
    x0, eps = normal(3, 2, 4, 4), normal(3, 4, 4, 4, seed=1)
    for process, t in itertools.product((EXACT, CLD(), CLD(beta=0.1, slope=6.9, numerical_eps=1e-6)), (1e-3, 0.1, 0.9)):
        truth = process.noise(x0, t, eps)
        targets, sheared = answers(process, truth.point, truth)
        split = truth.point.alpha * truth.x0 + truth.point.sigma * truth.eps
        assert torch.allclose(sheared, split, rtol=1e-12, atol=1e-11)

        for predict, answer in targets.items():

            class Net(torch.nn.Module):
                def forward(self, u, time, answer=answer):
                    return answer

            moment = t if shared else torch.tensor([t] * 3, dtype=torch.float64)
            guess = NeuralDenoiser(Net(), process, predict)(truth.xt, moment)
            assert isinstance(guess, PhaseEstimate)
            for view in ("x0", "eps", "score", "velocity"):
                a, b = getattr(guess, view), getattr(truth, view)
                assert float((a - b).abs().max() / b.abs().max()) < 2e-11, (view, t, predict)
            assert torch.equal(guess.xt, truth.xt) and torch.equal(guess.momentum, truth.xt[:, 2:])


def test_replacing_one_half_moves_the_other():
    truth = EXACT.noise(normal(3, 2, 4), 0.2, normal(3, 4, 4, seed=1))
    changed = truth.with_x0(truth.x0 * 0.5)
    assert isinstance(changed, PhaseEstimate) and torch.allclose(changed.with_eps(changed.eps).x0, truth.x0 * 0.5)
    assert torch.allclose(truth.mix(0.3, -2.0), 0.3 * truth.x0 - 2.0 * truth.eps, atol=1e-14)
    truth.mix(0.0, 1.0).zero_(), truth.mix(1.0, 0.0).zero_()
    assert float(truth.eps.abs().min()) > 0 and float(truth.x0.abs().min()) > 0
    with pytest.raises(AttributeError, match="momentum"):
        _ = truth.v


def test_networks_are_told_the_time_of_their_clock():
    told = []

    class Net(torch.nn.Module):
        def forward(self, u, time):
            told.append(time.tolist())
            return u[:, : u.shape[1] // 2]

    for clock in (phase.log_time, phase.raw_time):
        NeuralDenoiser(Net(), CLD(clock=clock), mixed)(normal(2, 2, 3), 0.25)
    assert told == [[pytest.approx(math.log(0.25))], [0.25]]
    assert math.isfinite(CLD().at(0.0).time)


def test_float32_keeps_the_data_near_the_data():
    x0, eps = normal(3, 2, 4, dtype=torch.float32), normal(3, 4, 4, seed=1, dtype=torch.float32)
    for t in (1e-5, 1e-3, 0.1):
        truth = EXACT.noise(x0, t, eps)
        guess = PhaseEstimate.from_eps(EXACT, truth.point, truth.xt, truth.eps)
        assert float((guess.x0 - x0).abs().max()) < 5e-6


# -- oracles -----------------------------------------------------------------------------------------------------------

MEANS = torch.tensor([[[-1.0, 0.5]], [[0.7, -0.2]], [[0.1, 1.4]]], dtype=torch.float64)
STDS = torch.tensor([0.3, 0.6, 0.1], dtype=torch.float64)
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize(
    "make", [lambda p: PhaseGaussian(p, 0.4, 0.5), lambda p: PhaseMixture(p, MEANS, STDS, WEIGHTS)]
)
def test_score_is_the_gradient_of_the_log_density_in_the_momentum(process, make):
    oracle, times = make(process), torch.tensor([0.01, 0.1, 0.3, 0.6, 1.0], dtype=torch.float64)
    u = normal(5, 2, 2).requires_grad_()
    gradient = torch.autograd.grad(oracle.log_prob(u, times).sum(), u)[0]
    guess = oracle(u.detach(), times)
    assert torch.allclose(guess.score, halves(gradient)[1], rtol=1e-9, atol=1e-10)
    one = oracle(u.detach()[2:3], 0.3)
    assert torch.allclose(one.score, guess.score[2:3], atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_x0_that_follows_from_eps_is_the_posterior_mean(process):
    """E[x_0 | u] = mean + std^2 a^T Sigma^-1 (u - a mean), a = (xx, vx): nothing but v's noise was estimated."""
    oracle, u = PhaseGaussian(process, 0.4, 0.5), normal(6, 2)
    for t in (0.01, 0.1, 0.5, 1.0):
        k, covariance = process.at(t).marginal, oracle.covariance(t)
        a = torch.tensor([k.xx, k.vx], dtype=torch.float64)
        expected = 0.4 + 0.25 * (u - a * 0.4) @ torch.linalg.solve(covariance, a)
        assert torch.allclose(oracle(u, t).x0[:, 0], expected, rtol=1e-9, atol=1e-9)


def test_a_mixture_of_one_is_a_gaussian_and_a_sharp_one_finds_its_point():
    one = PhaseMixture(EXACT, MEANS[:1], STDS[:1])
    gaussian, u = PhaseGaussian(EXACT, MEANS[0], 0.3), normal(5, 2, 2)
    assert torch.allclose(one(u, 0.4).x0, gaussian(u, 0.4).x0, atol=1e-12)
    assert torch.allclose(one.log_prob(u, 0.4), gaussian.log_prob(u, 0.4), atol=1e-12)
    truth = EXACT.noise(MEANS, 0.01, normal(3, 2, 2) * 0.3)
    sharp = PhaseMixture(EXACT, MEANS, torch.full((3,), 1e-9, dtype=torch.float64))(truth.xt, 0.01)
    assert torch.allclose(sharp.x0, MEANS, atol=1e-9) and torch.allclose(sharp.eps, truth.eps, atol=1e-7)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_both_reverse_drifts_carry_the_exact_marginals(process):
    """u' = R u turns the covariance by R S + S R^T (+ the noise of the SDE, backwards in time): what the forward
    process says."""
    oracle, unit = PhaseGaussian(process, 0.0, 0.5), torch.eye(2, dtype=torch.float64)
    for t in (0.05, 0.4, 0.9):
        s, g = oracle.covariance(t), float(process.diffusion(unit, t))
        noise = torch.diag(torch.tensor([0.0, g * g], dtype=torch.float64))
        a = process.drift(unit, t).T
        assert torch.allclose(a, process.rate(t) * force(process), atol=1e-14)
        forward = a @ s + s @ a.T + noise
        flow, sde = (process.reverse(unit, t, oracle(unit, t).score, ode=ode).T for ode in (True, False))
        assert torch.allclose(flow @ s + s @ flow.T, forward, atol=1e-10)
        assert torch.allclose(sde @ s + s @ sde.T - noise, forward, atol=1e-10)
        assert torch.allclose(oracle(unit, t).velocity.T, flow, atol=1e-12)


# -- losses and guidance -----------------------------------------------------------------------------------------------


class Linear(torch.nn.Module):
    """eps = a x + b v + c."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([0.3, -0.7, 0.1], dtype=torch.float64))

    def forward(self, u, time):
        x, v = halves(u)
        return self.w[0] * x + self.w[1] * v + self.w[2]


def expected(process, predict, view, t, std=0.5):
    """E[loss] and its gradient, exactly: the mean over the 2 n points +- sqrt(n) e_i of n normal variables is that of
    any square."""
    n = 3 if process.hybrid else 4
    points = math.sqrt(n) * torch.cat([torch.eye(n), -torch.eye(n)]).double()
    denoiser = NeuralDenoiser(Linear(), process, predict)
    each = losses.denoising(denoiser, points[:, :1] * std, t, rng=Seeds(0), eps=points[:, 1:], view=view)
    value = each.mean()
    return float(value.detach()), torch.autograd.grad(value, denoiser.network.w)[0]


@pytest.mark.parametrize("t", [0.01, 0.1, 0.5, 1.0])
def test_hybrid_and_denoising_score_matching_have_one_gradient(t):
    """As losses of the score they differ by a constant: what v_0 adds to the target's variance."""
    for settings in ({}, {"beta": 0.1, "slope": 6.9}, {"mass": 0.6, "gamma": 0.5}):
        hybrid, plain = (CLD(numerical_eps=0.0, hybrid=kind, **settings) for kind in (True, False))
        (loss, gradient), (other, same) = (
            expected(p, parametrisation.score, losses.views.score, t) for p in (hybrid, plain)
        )
        assert torch.allclose(gradient, same, rtol=1e-9) and other > loss


def test_the_loss_of_the_exact_score_is_that_of_nothing_better():
    """The best linear eps is the oracle's: its gradient is 0, its loss the variance of e_v given u."""
    t, process = 0.2, EXACT
    oracle = PhaseGaussian(process, 0.0, 0.5)
    rows = oracle(torch.eye(2, dtype=torch.float64), t).eps[:, 0]
    denoiser = NeuralDenoiser(Linear(), process, parametrisation.eps)
    denoiser.network.w.data = torch.tensor([*rows, 0.0])
    points = math.sqrt(3) * torch.cat([torch.eye(3), -torch.eye(3)]).double()
    loss = losses.denoising(denoiser, points[:, :1] * 0.5, t, rng=Seeds(0), eps=points[:, 1:]).mean()
    assert torch.autograd.grad(loss, denoiser.network.w)[0].abs().max() < 1e-12
    k = process.at(t).kernel
    cross = torch.tensor([0.0, k.l22], dtype=torch.float64)  # E[e_v u]
    unexplained = 1 - float(cross @ torch.linalg.solve(oracle.covariance(t), cross))
    assert float(loss.detach()) == pytest.approx(unexplained, rel=1e-10)


def test_the_likelihood_weight_is_gamma_beta_on_the_score():
    x0, eps, t = normal(4, 2, 3), normal(4, 4, 3, seed=1), torch.tensor([0.01, 0.1, 0.5, 1.0])
    for process in (CLD(), CLD(beta=0.1, slope=6.9, mass=0.5)):
        denoiser = NeuralDenoiser(torch.nn.Sequential(), process, mixed)
        denoiser.network.forward = lambda u, time: 0.3 * u[:, :2]
        plain, weighted = (
            losses.denoising(denoiser, x0, t, rng=Seeds(0), eps=eps, view=view, weight=weight)
            for view, weight in ((losses.views.score, None), (losses.views.eps, phase.likelihood))
        )
        assert torch.allclose(weighted, plain * process.friction * process.rate(t.double()), rtol=1e-9)


def test_draws_have_one_number_per_noise():
    x0 = torch.zeros(2, 3, 4, 4)
    assert CLD().draw(x0, Seeds(0)).shape == (2, 6, 4, 4) and CLD(hybrid=False).draw(x0, Seeds(0)).shape == (2, 9, 4, 4)
    denoiser = NeuralDenoiser(torch.nn.Sequential(), CLD(), mixed)
    denoiser.network.forward = lambda u, time: u[:, :3]
    assert losses.denoising(denoiser, x0, torch.tensor([0.1, 0.7]), rng=Seeds(0)).shape == (2,)


def test_guidance_composes_in_phase_space():
    class Net(torch.nn.Module):
        def forward(self, u, time, vector=None):
            return torch.sin(u[:, :2]) * time.to(u.dtype).exp().reshape(-1, 1, 1) + vector.mean(1).reshape(-1, 1, 1)

    denoiser, u = NeuralDenoiser(Net(), CLD(), mixed), normal(3, 4, 5)
    a, b = (denoiser.given(Cond(vector=normal(3, 7, seed=seed))) for seed in (1, 2))
    one, two, both = a(u, 0.3), b(u, 0.3), guidance.classifier_free(a, b, 2.5)(u, 0.3)
    for view in ("x0", "eps", "score"):
        mixture = 2.5 * getattr(one, view) - 1.5 * getattr(two, view)
        assert torch.allclose(getattr(both, view), mixture, rtol=1e-9, atol=1e-9), view
    clipped = guidance.clip(a)(u, 0.3)
    assert isinstance(clipped, PhaseEstimate) and torch.equal(clipped.x0, one.x0.clamp(-1, 1))
    assert torch.allclose(clipped.with_eps(clipped.eps).x0, clipped.x0, atol=1e-9)


@pytest.mark.parametrize(
    "bad", [{"beta": -1.0}, {"beta": 0.0}, {"mass": 0.0}, {"gamma": 0.0}, {"beta": math.nan}, {"slope": math.inf}]
)
def test_impossible_processes_are_refused(bad):
    with pytest.raises(ValueError, match=r"positive|finite"):
        CLD(**bad)


def test_a_parametrisation_of_scaled_inputs_is_refused():
    with pytest.raises(ValueError, match="predict eps, x0, score or mixed"):
        NeuralDenoiser(torch.nn.Identity(), CLD(), parametrisation.edm())(normal(2, 2, 3), 0.5)
