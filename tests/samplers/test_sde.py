"""Samplers of the reverse SDE: figures of the spec (13.2), weak orders, parity, and what seeds promise."""

import itertools
import math

import pytest
import torch
from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler

from sfumato.core import times
from sfumato.core.oracle import Empirical, Gaussian, Mixture, PhaseGaussian, PhaseMixture
from sfumato.core.phase import CLD
from sfumato.core.posterior import large, small
from sfumato.core.process import Affine
from sfumato.core.random import Seeds
from sfumato.core.schedules import EDM, VE, VP, Cosine, Discrete, Flow, Levels, SubVP
from sfumato.samplers.ancestral import DDIM, Ancestral
from sfumato.samplers.langevin import PredictorCorrector, annealed
from sfumato.samplers.sampler import State
from sfumato.samplers.sde import SSCS, EulerMaruyama, ReverseDiffusion, Still, quadratic_striding, striding
from tests.samplers.orthogonal import Bulk, Fixed, Noise, covariance, slopes, std

EXACT = CLD(numerical_eps=0.0)
MOVING = PhaseGaussian(EXACT, 0.0, 0.5)


# -- figures of the spec -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "figures"),
    [(EulerMaruyama, (0.511223, 0.505036, 0.502398)), (SSCS, (0.489073, 0.494552, 0.497276))],
)
def test_final_deviation_of_cld_on_a_gaussian(sampler, figures):
    """Spec 13.2: beta 4, to t = 1e-3 without the denoising step; 0.499987 is true there."""
    found = [std(sampler(n, times.uniform), MOVING, 2 + 4 * n, end=1e-3) for n in (100, 200, 400)]
    assert found == pytest.approx(figures, abs=6e-7)
    assert math.sqrt(float(MOVING.covariance(1e-3)[0, 0])) == pytest.approx(0.499987, abs=5e-7)


# -- steps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(), Cosine(), EDM(), Discrete.linear(), CLD()], ids=repr)
def test_euler_maruyama_is_one_euler_step_of_the_reverse_sde(process):
    moving = isinstance(process, CLD)
    oracle = (PhaseGaussian if moving else Gaussian)(process, 0.3, 0.5)
    x, z = Seeds(0).normal((3, 4, 5), dtype=torch.float64), Seeds(1).normal((3, 2 if moving else 4, 5)).double()
    t, s = process.points([0.6, 0.55])
    found = EulerMaruyama().step(oracle, State(x, t), s, Fixed(z)).x
    kick = float(process.diffusion(x, t)) * math.sqrt(0.05) * z
    kick = torch.cat([torch.zeros_like(kick), kick], 1) if moving else kick
    expected = x - 0.05 * process.reverse(x, t, oracle(x, t).score) + kick
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_reverse_diffusion_is_the_discretisation_of_the_official_code():
    """x - f + G^2 score + G z with f = sqrt(1 - beta) x - x, G^2 = beta (VP), f = 0, G^2 = s_i^2 - s_{i-1}^2 (VE);
    and the ancestral predictors are `Ancestral`."""
    x, z = Seeds(0).normal((3, 4), dtype=torch.float64), Seeds(1).normal((3, 4), dtype=torch.float64)
    for process, k in itertools.product((Discrete.linear(), Levels(1000)), (1, 400, 999)):
        oracle, (t, s) = Gaussian(process, 0.3, 0.5), process.points([(k + 1) / 1000, k / 1000])
        score = oracle(x, t).score
        if isinstance(process, Discrete):
            beta = float(process.betas[k])
            mean, added = x - (math.sqrt(1 - beta) - 1) * x + beta * score, beta
            step, var, rule = (x + beta * score) / math.sqrt(1 - beta), beta, large
        else:
            added = t.sigma**2 - s.sigma**2
            mean = step = x + added * score
            var, rule = s.sigma**2 * added / t.sigma**2, small
        found = ReverseDiffusion().step(oracle, State(x, t), s, Fixed(z)).x
        assert torch.allclose(found, mean + math.sqrt(added) * z, rtol=1e-9, atol=1e-9)
        found = Ancestral(variance=rule).step(oracle, State(x, t), s, Fixed(z)).x
        assert torch.allclose(found, step + math.sqrt(var) * z, rtol=1e-9, atol=1e-9)


def test_sscs_splits_the_reverse_sde():
    """Against matrix exponentials: exp of the turned drift for half a step, an Euler step of the rest, and again."""
    for process in (EXACT, CLD(beta=0.5, slope=6.9, mass=0.4, numerical_eps=0.0)):
        oracle, u = PhaseGaussian(process, 0.3, 0.5), Seeds(0).normal((5, 2), dtype=torch.float64)
        t, s = process.points([0.5, 0.42])
        spent = float((process.tau(torch.tensor(0.5)) - process.tau(torch.tensor(0.42))) * math.sqrt(process.mass))
        a = torch.tensor([[0, -1 / process.mass], [1, -process.friction / process.mass]], dtype=torch.float64)
        half = torch.matrix_exp(a * spent / 2)
        middle = u @ half.T
        push = 2 * process.friction * spent
        middle[:, 1:] += push * (oracle(middle, t).score + middle[:, 1:] / process.mass)
        found = SSCS().step(oracle, State(u, t), s, Fixed(0.0)).x
        assert torch.allclose(found, middle @ half.T, atol=1e-12)
        # the noise of a half: the law N(0, I) x N(0, M I) is kept
        one = SSCS().step(PhaseGaussian(process), State(torch.zeros(1, 2, dtype=torch.float64), t), s, Fixed(1.0)).x
        assert not torch.equal(one, torch.zeros_like(one))


def test_the_stationary_law_is_kept_exactly_by_sscs_and_to_first_order_by_euler():
    oracle = PhaseGaussian(CLD(gamma=1.0, numerical_eps=0.0), 0.0, 1.0)  # already at rest at t = 0
    law, gaps = torch.diag(torch.tensor([1.0, 0.25], dtype=torch.float64)), []
    assert torch.allclose(oracle.covariance(0.1), law, atol=1e-14)
    assert torch.allclose(covariance(SSCS(7), oracle, 40, end=1e-3), law, atol=1e-13)
    for n in (50, 100, 200):
        found = covariance(EulerMaruyama(n, times.uniform), oracle, 3 + n, end=0.5)
        gaps.append(float((found - law).abs().max()))
    assert all(1.7 < a / b < 2.3 for a, b in itertools.pairwise(gaps)), gaps


# -- orders ------------------------------------------------------------------------------------------------------------

AFFINE = [VP(), SubVP(), VE(), Cosine()]


@pytest.mark.parametrize("process", AFFINE, ids=repr)
@pytest.mark.parametrize(
    "kind", [EulerMaruyama, ReverseDiffusion, lambda n, grid: PredictorCorrector(n, grid, corrector_steps=0)]
)
def test_weak_order_one_on_affine_processes(process, kind):
    """Error of the deviation between t 0.8 and 0.2 from the exact law at 0.8."""
    oracle, (start, end) = Gaussian(process, 0.0, 0.5), process.points([0.8, 0.2])
    root, true = (math.sqrt(p.alpha**2 * 0.25 + p.sigma**2) for p in (start, end))
    errors = [
        abs(std(kind(n, times.uniform), oracle, 2 + n, start=0.8, end=0.2, root=torch.tensor([[root]]).double()) - true)
        for n in (32, 64, 128, 256, 512)[: 5 if type(process) is VP else 4]
    ]
    found = slopes(errors)
    assert min(found) > 0.85 and found[-1] < 1.6, found


@pytest.mark.parametrize("process", [EXACT, CLD(beta=0.5, slope=7.0, numerical_eps=0.0)], ids=repr)
@pytest.mark.parametrize("kind", [EulerMaruyama, SSCS])
def test_weak_order_one_in_phase_space(process, kind):
    """All three entries of the covariance."""
    oracle = PhaseGaussian(process, 0.0, 0.5)
    root, true = torch.linalg.cholesky(oracle.covariance(0.8)), oracle.covariance(0.2)
    errors = [
        covariance(kind(n, times.uniform), oracle, 4 + 4 * n, start=0.8, end=0.2, root=root) - true
        for n in (32, 64, 128, 256)
    ]
    for i, j in ((0, 0), (0, 1), (1, 1)):
        found = slopes([abs(float(e[i, j])) for e in errors])
        assert min(found) > 0.85 and found[-1] < 1.6, (i, j, found)
    assert kind.order == 1 and kind.stochastic


class Rescaled(Affine):
    """VP seen as x_t / alpha: the VE process of the same noise levels."""

    constant, first = True, VP.first

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return VP().sigma(t) / VP().alpha(t)


@pytest.mark.parametrize("kind", [EulerMaruyama, ReverseDiffusion])
def test_vp_and_its_rescaling_agree_in_the_limit_only(kind):
    """Unlike ancestral steps and DDIM: the drift of x_t is integrated by Euler's rule, that of x_t / alpha is 0."""
    gaps = []
    for n in (200, 400, 800):
        vp, ve = (std(kind(n), Gaussian(p, 0.0, 0.5), 2 + n) for p in (VP(), Rescaled()))
        gaps.append(abs(vp - ve))
    assert 1e-5 < gaps[-1] < 5e-3 and all(1.7 < a / b < 2.4 for a, b in itertools.pairwise(gaps)), gaps


def test_smaller_steps_near_the_data_pay():
    """From the prior to t = 0 in 100 steps: errors of the deviation, at most 0.012, at least halved by squares."""
    for kind in (EulerMaruyama, SSCS):
        even, squared = (abs(std(kind(100, grid), MOVING, 402) - 0.5) for grid in (striding, quadratic_striding))
        assert even < 0.012 and squared < 0.7 * even


# -- other data --------------------------------------------------------------------------------------------------------

TWO = torch.tensor([[[-1.0]], [[0.8]]], dtype=torch.float64)
WIDTHS, SHARES = torch.tensor([0.1, 0.3], dtype=torch.float64), torch.tensor([0.3, 0.7], dtype=torch.float64)


@pytest.mark.parametrize(
    "sampler",
    [
        EulerMaruyama(120),
        ReverseDiffusion(120),
        PredictorCorrector(150, corrector=annealed),
        SSCS(60, quadratic_striding),
    ],
    ids=lambda s: type(s).__name__,
)
def test_two_modes_are_drawn_in_their_proportion(sampler):
    process = EXACT if isinstance(sampler, SSCS) else VP()
    oracle = (PhaseMixture if isinstance(sampler, SSCS) else Mixture)(process, TWO, WIDTHS, SHARES)

    start = process.prior((12_000, 1, 1), Bulk(), dtype=torch.float64)
    x = process.project(sampler(oracle, start, rng=Bulk())).flatten()
    left = x < -0.4
    assert float(left.double().mean()) == pytest.approx(0.3, abs=0.025)
    for part, mean, width in ((left, -1.0, 0.1), (~left, 0.8, 0.3)):
        assert float(x[part].mean()) == pytest.approx(mean, abs=0.03)
        assert float(x[part].std()) == pytest.approx(width, abs=0.025)


ALL = [
    EulerMaruyama(9),
    ReverseDiffusion(9),
    PredictorCorrector(9),
    PredictorCorrector(9, predictor=EulerMaruyama(), corrector=annealed, corrector_steps=2),
    PredictorCorrector(9, predictor=Still()),
    PredictorCorrector(9, predictor=Ancestral(variance=large)),
]
BOTH = [*((s, p) for s in ALL for p in (VP(), VE(), Discrete.linear())), (EulerMaruyama(9), EXACT), (SSCS(9), EXACT)]
named = pytest.mark.parametrize(("sampler", "process"), BOTH, ids=lambda x: type(x).__name__)


def oracle_of(process, data):
    return (
        PhaseMixture(process, data, torch.zeros(len(data)).double()) if process is EXACT else Empirical(process, data)
    )


@named
def test_a_single_point_is_returned(sampler, process):
    """Exactly by affine processes; by CLD up to the rounding of its relation between x_0 and eps."""
    point = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(1, 3, 4)
    start = process.prior((4, 3, 4), Seeds(0), dtype=torch.float64)
    x = process.project(sampler(oracle_of(process, point), start, rng=Seeds(1)))
    assert torch.allclose(x, point.expand(4, 3, 4), atol=1e-11 if process is EXACT else 0.0, rtol=0.0)


@named
def test_calls_are_counted_and_states_are_their_own(sampler, process):
    oracle, calls = oracle_of(process, torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0)).double()), []

    class Counted:
        def __init__(self):
            self.process = process

        def __call__(self, x, t):
            calls.append(t.t)
            return oracle(x, t)

    start = process.prior((3, 1, 8), Seeds(0), dtype=torch.float64)
    kept, states = start.clone(), []
    for state in sampler.trajectory(Counted(), start, rng=Seeds(1)):
        states.append((state, state.x.clone(), state.estimate and state.estimate.xt.clone()))
    assert len(calls) == sampler.calls() and min(calls) > 0 and len(states) == 9
    assert torch.equal(start, kept) and states[-1][0].t == 0.0 and states[-1][0].memory == ()
    for state, x, xt in states:  # nothing wrote into what an earlier State holds
        assert torch.equal(state.x, x) and (xt is None or torch.equal(state.estimate.xt, xt))
    assert len({state.x.data_ptr() for state, _, _ in states}) == 9


@named
def test_a_seed_is_the_same_picture_alone_and_among_others(sampler, process):
    oracle = oracle_of(process, torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    start = [process.prior((n, 3, 4, 4), Seeds(s)) for s, n in ((5, 8), (8, 1))]
    many, one = (sampler(oracle, x, rng=Seeds(s + 100)) for s, x in zip((5, 8), start, strict=True))
    assert torch.allclose(many[3:4], one, atol=1e-5)


# -- grids and refusals ------------------------------------------------------------------------------------------------


def test_striding_ends_with_a_step_from_the_least_time():
    assert striding(VP(), 4, 1.0, 0.0).tolist() == pytest.approx([1, 0.667, 0.334, 0.001, 0], abs=1e-12)
    assert (
        striding(VP(), 4, 1.0, 0.5).tolist() == [1, 0.875, 0.75, 0.625, 0.5] and len(striding(VP(), 1, 1.0, 0.0)) == 2
    )
    assert torch.equal(striding(Levels(50), 50, 1.0, 0.0), times.uniform(Levels(50), 50, 1.0, 0.0))
    ve = [p.sigma for p in VE().points(striding(VE(), 50, 1.0, 0.0))]
    table = [p.sigma for p in Levels(50).points(times.uniform(Levels(50), 50, 1.0, 0.0))]
    assert ve == pytest.approx(table, rel=1e-6)  # the continuous grid is the discrete table
    n, last = 10, 1 - 1e-3  # Dockhorn's code in its reverse time, flip(t_f (1 - (t / t_f)^2))
    reverse = [last - last * ((n - i) / n) ** 2 for i in range(n + 1)]
    found = quadratic_striding(CLD(), n + 1, 1.0, 0.0)
    assert [1 - t for t in found[:-1].tolist()] == pytest.approx(reverse, abs=1e-12) and float(found[-1]) == 0.0


class Untouched:
    def __init__(self, process):
        self.process = process

    def __call__(self, x, t):
        raise AssertionError("the network was called")


@pytest.mark.parametrize(
    ("sampler", "process", "words"),
    [
        (SSCS(5), VP(), "em, pc or ddim"),
        (SSCS(5), Discrete.linear(), "phase space of CLD"),
        (ReverseDiffusion(5), CLD(), "sscs, em or ode45"),
        (PredictorCorrector(5), CLD(), "sscs, em or ode45"),
        (PredictorCorrector(5, predictor=SSCS()), VP(), "em, pc or ddim"),
        (DDIM(5), CLD(), "sscs, em or ode45"),
        (EulerMaruyama(5), Flow(), "no signal at t = 1"),
        (PredictorCorrector(5), Flow(), "start below it"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_what_cannot_run_is_refused_before_the_first_call(sampler, process, words):
    x = torch.zeros(1, 2, 4)
    with pytest.raises(ValueError, match=words):
        sampler(Untouched(process), x, rng=Seeds(0))


def test_noise_needs_an_rng_and_time_runs_towards_the_data():
    x = torch.ones(1, 2, 3)
    for sampler, oracle in (
        (EulerMaruyama(3), Gaussian(VP())),
        (PredictorCorrector(3), Gaussian(VP())),
        (SSCS(3), PhaseGaussian(CLD())),
        (EulerMaruyama(3), PhaseGaussian(CLD())),
    ):
        with pytest.raises(ValueError, match="rng=Seeds"):
            sampler(oracle, x)
        with pytest.raises(ValueError, match="cannot encode"):
            sampler(oracle, x, rng=Seeds(0), start=0.1, end=1.0)
    for settings in ({"corrector_steps": -1}, {"snr": -0.1}, {"snr": math.nan}, {"steps": 0}):
        with pytest.raises(ValueError, match=r"negative|at least 1"):
            PredictorCorrector(**settings)


def test_flow_models_are_sampled_from_below_their_end():
    """With the exact law at t = 0.99 to begin with, and no drift at t = 1 to divide by."""
    oracle = Gaussian(Flow(), 0.0, 0.5)
    root = torch.tensor([[math.hypot(0.01 * 0.5, 0.99)]]).double()
    grid = lambda process, steps, start, end: 1 - torch.linspace((1 - start) ** 0.5, 1 - end, steps + 1).double() ** 2  # noqa: E731
    assert std(EulerMaruyama(800, grid), oracle, 802, start=0.99, root=root) == pytest.approx(0.5, abs=0.01)


# -- parity with diffusers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [1.0, 0.5, 0.02])
def test_each_step_of_the_vp_scheduler(t):
    theirs, process = ScoreSdeVpScheduler(200), VP()
    theirs.set_timesteps(200)
    oracle, x = Gaussian(process, 0.2, 0.5), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    a, b = process.points([t, t - 1 / 200])
    found = EulerMaruyama().step(oracle, State(x, a), b, Noise(1, torch.float32)).x
    moment = torch.tensor([t])
    expected, _ = theirs.step_pred(oracle(x, t).eps, x, moment, generator=torch.Generator().manual_seed(1))
    assert float((found - expected).abs().max()) <= 1e-6 * max(1.0, float(expected.abs().max()))
