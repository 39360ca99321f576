"""Euler, Heun, DPM-Solver and their noisy forms: fixtures of the spec, orders, the equality web, illegal use."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from sfumato.core import parametrisation, times
from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.estimate import Estimate
from sfumato.core.oracle import Empirical, Gaussian
from sfumato.core.random import Seeds
from sfumato.core.schedules import EDM, VE, VP, Cosine, Discrete, Flow
from sfumato.samplers.ancestral import DDIM, Ancestral
from sfumato.samplers.ode import (
    DPM2,
    DPM2Ancestral,
    DPMpp2S,
    DPMppSDE,
    DPMSolver,
    Euler,
    EulerAncestral,
    Heun,
    share,
)
from sfumato.samplers.sampler import State
from tests.samplers.tools import Counted, Draws, Pair, Replay, Rescaled, Wavy, affine, flowed, moments, ones

CHAIN = Discrete.linear()
DETERMINISTIC = [
    Euler(),
    Heun(),
    Heun(clock=share),
    DPM2(),
    DPMSolver(order=1),
    DPMSolver(order=2),
    DPMSolver(order=3),
    DPMpp2S(),
    DPMppSDE(eta=0.0),
    DPM2Ancestral(eta=0.0),
    EulerAncestral(eta=0.0),
]
NOISY = [
    EulerAncestral(),
    DPM2Ancestral(),
    DPMpp2S(eta=1.0),
    DPMppSDE(),
    DPMppSDE(eta=0.4),
    Euler(churn=20.0),
    Heun(churn=20.0),
    DPM2(churn=20.0, churn_min=0.05, churn_max=30.0, noise=1.007),
]


def named(sampler):
    return f"{type(sampler).__name__}-" + "-".join(
        f"{k}={v}" for k, v in vars(sampler).items() if k in ("order", "eta", "churn")
    )


def along(sampler, steps, spacing=times.uniform):
    return replace(sampler, steps=steps, spacing=spacing)


# -- fixtures of the spec ----------------------------------------------------------------------------------------------


def test_the_edm_levels():
    """11.2.4, as printed."""
    printed = (
        "80 57.586 40.7856 28.3746 19.3525 12.9101 8.4009 5.3152 3.2568 1.9233 1.0882 .5853 .2964 .1395 .0599 .0229"
    )
    for t, digits in zip(times.power(EDM(), 18, 1.0, 0.0), [*printed.split(), ".0075", ".002", "0"], strict=True):
        assert round(80 * float(t), len(digits.partition(".")[2])) == float(digits)


def their_levels(process, steps, start, end):
    """The grid in float32, in which the table of 11.6 was made: its last digit depends on it."""
    levels = torch.linspace(80.0 ** (1 / 7), 0.002 ** (1 / 7), steps) ** 7
    return torch.cat([levels, torch.zeros(1)]).double() / 80


@pytest.mark.parametrize(
    ("sampler", "printed"),
    [
        (Euler(), (".2696", ".1539", ".0780", ".0392")),
        (Heun(), (".2196", ".0553", ".0122", ".00287")),
        (DPM2(), (".1212", ".0316", ".00706", ".00167")),
    ],
    ids=["Euler", "Heun", "DPM2"],
)
def test_edm_on_a_gaussian(sampler, printed):
    """11.6: the relative error of x(0) from x = 80 at sigma 80."""
    oracle = Gaussian(EDM(), 0.0, 0.5)
    for steps, digits in zip((10, 18, 36, 72), printed, strict=True):
        found = abs(float(along(sampler, steps, their_levels)(oracle, ones(80.0))) / 0.499990234661 - 1)
        assert f"{found:.{len(digits) - 1}f}".lstrip("0") == digits
        exact = abs(float(along(sampler, steps, times.power)(oracle, ones(80.0))) / 0.499990234661 - 1)
        assert exact == pytest.approx(found, rel=3e-4)


class Late:
    """The velocity that the official rectified flow asks for: at t (1 - 1e-3), while x is at t (spec 12.2.13)."""

    process = Flow()

    def __call__(self, x, t):
        point = self.process.at(t)
        velocity = Gaussian(self.process, 0.0, 0.5)(x, point.t * (1 - 1e-3)).velocity
        return Estimate.exact(self.process, point, x - point.t * velocity, x + (1 - point.t) * velocity)


@pytest.mark.parametrize(("steps", "end"), [(10, 0.430896973), (100, 0.492795218), (1000, 0.499413060)])
def test_rectified_flow_on_a_gaussian(steps, end):
    """12.5, whose velocities are taken at times that are off by up to 1e-3."""
    assert float(Euler(steps)(Late(), ones())) == pytest.approx(end, abs=5e-10)


def test_slopes_of_their_own_for_predictor_and_corrector():
    """8.6, discriminator guidance with its weights for the two slopes of Heun: `second`."""
    process, x = EDM(), ones(80.0)
    model, data = Gaussian(process, 0.0, 1.0), Gaussian(process, 0.0, 0.5)

    class Guided:
        def __init__(self, w):
            self.process, self.w = process, w

        def __call__(self, x, t):
            a, b = model(x, t), data(x, t)
            return a.with_x0(a.x0 + self.w * (b.x0 - a.x0))

    def end(first, second):
        return float(Heun(18, times.power, second=lambda _: Guided(second))(Guided(first), x))

    for weights, printed in {
        (0, 0): 1.044728840,
        (1, 1): 0.527624637,
        (2, 0): 0.608031513,
        (1, 0): 0.803543470,
    }.items():
        assert end(*weights) == pytest.approx(printed, abs=5e-10)
    assert end(1, 1) == pytest.approx(float(Heun(18, times.power)(data, x)), abs=1e-14)


# -- orders ------------------------------------------------------------------------------------------------------------

VPP = VP()
PAIR = Pair(VPP)
START = torch.linspace(-1.5, 1.7, 6, dtype=torch.float64)[:, None]


@pytest.fixture(scope="module")
def end():
    return flowed(PAIR, START, 0.8, 0.2)


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=named)
def test_order(sampler, end):
    errors = []
    for n in (32, 64, 128, 256, 512):
        found = along(sampler, n)(PAIR, START, start=0.8, end=0.2)
        errors.append(float((found - end).square().mean().sqrt()))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors) if b > 1e-13]
    claimed = 1 if isinstance(sampler, EulerAncestral) else sampler.order
    assert all(slope >= claimed - 0.15 for slope in slopes), (slopes, errors)


GAUSS = Gaussian(VPP, 0.3, 0.5)


def marginal(t):
    p = VPP.at(t)
    return p.alpha * 0.3, (p.alpha * 0.5) ** 2 + p.sigma**2


@pytest.mark.parametrize("sampler", NOISY, ids=named)
def test_weak_order(sampler):
    """The variance at t = 0.2 from the exact law at 0.8; the mean is exact in every step."""
    sampler = replace(sampler, noise=1.0) if hasattr(sampler, "noise") else sampler
    errors = []
    for n in (64, 128, 256):  # churn is saturated, and so of no order, below about 50 steps
        grid = torch.linspace(0.8, 0.2, n + 1, dtype=torch.float64)
        mean, variance = moments(along(sampler, n), GAUSS, grid, *marginal(0.8))
        assert mean == pytest.approx(marginal(0.2)[0], abs=1e-12)
        errors.append(abs(variance - marginal(0.2)[1]))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(slope >= sampler.order - 0.15 for slope in slopes), (slopes, errors)


@pytest.mark.parametrize("sampler", [EulerAncestral(), DPM2Ancestral(), DPMpp2S(eta=1.0), DPMppSDE()], ids=named)
def test_with_all_the_noise_the_limit_is_the_reverse_sde(sampler):
    """Its law of x at 0.2 given x at 0.8 is known: x_t = (alpha_t / alpha_s) x_s + noise, backwards."""
    t, s = VPP.points([0.8, 0.2])
    exact = t.alpha / s.alpha * marginal(0.2)[1] / marginal(0.8)[1]
    errors = []
    for n in (32, 64):
        grid, slope = torch.linspace(0.8, 0.2, n + 1, dtype=torch.float64), 1.0
        for a, b in itertools.pairwise(VPP.points(grid)):
            slope *= affine(sampler, GAUSS, a, b)[0]
        errors.append(abs(slope - exact))
    assert errors[1] < max(0.55 * errors[0], 1e-14), errors


def test_churn_keeps_the_variance_of_the_oracle():
    """11.6. The noise alone leads from one law to the other; with Heun's steps the error is theirs, of second order."""
    oracle = Gaussian(EDM(), 0.0, 0.5)
    (t,) = EDM().points([0.01])
    state = State(ones(0.0), t)
    up = Heun(50, churn=10.0).start(EDM(), state, EDM().at(0.0), Draws(0))
    assert up.point.sigma == pytest.approx(0.8 * 1.2) and float(up.x) ** 2 == pytest.approx(0.8**2 * (1.2**2 - 1))
    errors = []
    for n in (200, 400):
        sampler, grid = Heun(n, churn=40.0, churn_min=0.05, churn_max=50.0), times.power(EDM(), n, 1.0, 0.0)
        errors.append(moments(sampler, oracle, grid, 0.0, 80.0**2 + 0.25)[1] / 0.25 - 1)
    assert errors[0] < 1e-2 and errors[0] / errors[1] > 3.6


# -- the equality web --------------------------------------------------------------------------------------------------

PROCESSES = [VP(), VE(), EDM(), Flow(), Cosine(), CHAIN]


def trained(process, view=parametrisation.v):
    return NeuralDenoiser(Wavy(), process, view)


def prior(process, n=3):
    return process.prior((n, 2, 3), Seeds(0), dtype=torch.float64)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_euler_is_ddim_is_dpm_solver_1(process):
    x, network = prior(process), trained(process)
    expected = DDIM(7)(network, x)
    for sampler in (Euler(7), EulerAncestral(7, eta=0.0), DPMSolver(7, order=1)):
        assert torch.equal(sampler(network, x), expected)


def test_ddim_is_euler_in_sigma():
    """x / alpha moves by eps times the change of sigma / alpha."""
    x, network = prior(CHAIN), trained(CHAIN)
    y = x / CHAIN.at(1.0).alpha
    for t, s in itertools.pairwise(CHAIN.points(times.uniform(CHAIN, 9, 1.0, 0.0))):
        y = y + (s.ratio - t.ratio) * network(y * t.alpha, t).eps
    assert torch.allclose(y, Euler(9)(network, x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("steps", [1, 10, 37])
def test_euler_of_rectified_flow_is_ddim_at_t_over_1_minus_t(steps):
    """12.5: x moves by the velocity times dt, begins at alpha = 0, and is DDIM with sigma = t / (1 - t)."""
    process, x = Flow(), prior(Flow())
    network, y = trained(process, parametrisation.velocity), x
    for t, s in itertools.pairwise(process.points(times.uniform(process, steps, 1.0, 0.0))):
        y = y + (s.t - t.t) * network(y, t).velocity
        assert s.t == 0.0 or s.ratio == s.t / (1 - s.t)
    assert torch.allclose(y, DDIM(steps)(network, x), rtol=0, atol=1e-14)
    assert torch.equal(DDIM(steps)(network, x), Euler(steps)(network, x))


def test_heun_of_rectified_flow_is_heun_against_share():
    process, x = Flow(), prior(Flow())
    network, y = trained(process, parametrisation.velocity), x
    for t, s in itertools.pairwise(process.points(times.uniform(process, 9, 1.0, 0.0))):
        first = network(y, t).velocity
        second = network(y + (s.t - t.t) * first, s).velocity if s.t else first
        y = y + (s.t - t.t) * (first + second) / 2
    assert torch.allclose(Heun(9, clock=share)(network, x), y, atol=1e-13)
    assert not torch.allclose(Heun(9)(network, x), y, atol=1e-3), "the two clocks are different methods"


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_dpm2_is_dpm_solver_2(process):
    x, network = prior(process), trained(process)
    expected = DPMSolver(6, order=2)(network, x)
    assert torch.equal(DPM2(6)(network, x), expected)
    assert torch.allclose(DPM2Ancestral(6, eta=0.0)(network, x), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_noisy_forms_without_noise_are_the_others(process):
    x, network = prior(process), trained(process)
    assert torch.equal(DPMppSDE(6, eta=0.0)(network, x), DPMpp2S(6)(network, x))
    for sampler in (Euler(6), Heun(6), DPM2(6)):
        assert torch.equal(replace(sampler, churn=9.0, churn_max=0.0)(network, x), sampler(network, x))


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_the_ancestral_step_of_the_peers_is_ddim(eta):
    """up = eta b sqrt(1 - b^2 / a^2), down = sqrt(b^2 - up^2) (spec 12.2.1), with eta 1 DDPM's."""
    x, network, z = prior(CHAIN), trained(CHAIN), Seeds(3).normal((3, 2, 3), dtype=torch.float64)
    for t, s in itertools.pairwise(CHAIN.points([1.0, 0.6, 0.25, 0.002, 0.001])):
        a, b = t.ratio, s.ratio
        up = min(b, eta * math.sqrt(b**2 * (a**2 - b**2) / a**2))
        down = math.sqrt(b**2 - up**2)
        expected = s.alpha * (x / t.alpha + (down - a) * network(x, t).eps + up * z)
        found = EulerAncestral(eta=eta).step(network, State(x, t), s, Replay([z])).x
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)
        if eta == 1.0:
            assert torch.allclose(Ancestral().step(network, State(x, t), s, Replay([z])).x, expected, rtol=1e-9)


@pytest.mark.parametrize("sampler", DETERMINISTIC + NOISY, ids=named)
def test_a_rescaled_process_gives_the_same_samples(sampler):
    x = prior(CHAIN)

    def scaled(process, point):
        return parametrisation.eps(process, point)._replace(inp=1 / math.hypot(1.0, point.ratio))

    a = along(sampler, 8)(trained(CHAIN, parametrisation.eps), x, rng=Seeds(2))
    b = along(sampler, 8)(trained(Rescaled(CHAIN), scaled), x / CHAIN.at(1.0).alpha, rng=Seeds(2))
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


# -- where alpha is 0, ends, calls, seeds ------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [Flow(), Discrete(torch.tensor([0.2, 0.3, 0.5, 0.7, 1.0]))], ids=repr)
@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=named)
def test_a_start_without_signal_keeps_the_order(process, sampler):
    """From t = 1 to the flow at t = 0.4, with half and a quarter of the steps."""
    oracle, x = Gaussian(process, 0.3, 0.5), ones(0.7)
    p = process.at(0.4)
    expected = p.alpha * 0.3 + math.hypot(p.alpha * 0.5, p.sigma) * 0.7  # alpha = 0 at the start: x is noise alone
    if isinstance(process, Flow):
        errors = [abs(float(along(sampler, n)(oracle, x, end=0.4)) - expected) for n in (20, 40, 80)]
        claimed = 1 if isinstance(sampler, EulerAncestral) else min(sampler.order, 2)
        assert all(math.log2(a / b) > claimed - 0.3 for a, b in itertools.pairwise(errors)), errors
    else:
        assert math.isfinite(float(along(sampler, 5)(oracle, x)))


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("sampler", DETERMINISTIC + NOISY, ids=named)
def test_calls_are_as_declared_and_the_end_is_clean(process, sampler):
    point = torch.tensor([0.3, -0.8], dtype=torch.float64)
    for steps in (1, 4):
        counted = Counted(Empirical(process, point[None]))
        x = process.prior((4, 2), Seeds(0), dtype=torch.float64)
        *_, last = along(sampler, steps).trajectory(counted, x, rng=Seeds(1))
        assert counted.calls == along(sampler, steps).calls()
        assert last.t == 0.0 and last.x.dtype == x.dtype
        assert torch.allclose(last.x, point.expand(4, 2), rtol=0, atol=1e-14)


@pytest.mark.parametrize("sampler", DETERMINISTIC + NOISY, ids=named)
def test_a_seed_is_the_same_picture_alone_and_among_others(sampler):
    oracle = Gaussian(CHAIN, 0.2, 0.5)
    many, one = (
        along(sampler, 6)(oracle, CHAIN.prior((n, 3, 4, 4), Seeds(s)), rng=Seeds(s + 100)) for s, n in ((5, 8), (8, 1))
    )
    assert torch.equal(many[3:4], one)


@pytest.mark.parametrize("sampler", DETERMINISTIC + NOISY, ids=named)
def test_states_hold_tensors_of_their_own(sampler):
    states = list(along(sampler, 4).trajectory(trained(CHAIN), prior(CHAIN), rng=Seeds(0)))
    kept = states[-1].x.clone()
    for state in states[:-1]:
        state.x.zero_()
    assert torch.equal(states[-1].x, kept)
    states[-1].estimate.x0.zero_()
    assert torch.equal(states[-1].x, kept)


@pytest.mark.parametrize("sampler", [s for s in DETERMINISTIC if not isinstance(s, EulerAncestral)], ids=named)
@pytest.mark.parametrize("process", [VP(), Flow(), EDM()], ids=repr)
def test_encoding_then_decoding_returns(process, sampler):
    """But for the last step down, which ends at x0: at noise level r it shrinks x by r^2 / (2 std^2)."""
    oracle, x0 = Gaussian(process, 0.0, 0.5), torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    errors, last = [], process.at(process.first).ratio ** 2 / (2 * 0.25)
    for steps in (50, 100):
        walk = along(sampler, steps, times.power)
        errors.append(float((walk(oracle, walk(oracle, x0, start=0.0, end=1.0)) - x0).abs().max()))
    assert errors[1] < errors[0] / 1.8 + 1.05 * last, (errors, last)


def test_what_cannot_be_is_refused():
    oracle, x = Gaussian(CHAIN), ones()
    for sampler in (Heun(3, churn=1.0), DPM2Ancestral(3), DPMppSDE(3), DPMpp2S(3, eta=0.2)):
        with pytest.raises(ValueError, match="cannot encode"):
            sampler(oracle, x, start=0.2, end=0.9, rng=Seeds(0))
        with pytest.raises(ValueError, match="rng"):
            sampler(oracle, x)
    with pytest.raises(ValueError, match="order 1, 2 or 3"):
        DPMSolver(order=4)
    for kind in (EulerAncestral, DPM2Ancestral, DPMpp2S, DPMppSDE):
        with pytest.raises(ValueError, match="eta lies between"):
            kind(eta=1.5)
    with pytest.raises(ValueError, match="churn and noise"):
        Heun(churn=-1.0)


def test_churn_never_leaves_the_process():
    """At t = 1 there is nothing above: the first step is not churned, and no call lies beyond."""
    counted = Counted(Gaussian(EDM(), 0.0, 0.5))
    Heun(9, times.power, churn=9.0)(counted, ones(80.0), rng=Seeds(0))
    assert counted.points[0].t == 1.0 and all(p.t <= 1.0 for p in counted.points)
    levels = [p.sigma for p in counted.points]
    assert levels[2] == pytest.approx(levels[1] * math.sqrt(2), rel=1e-12), "gamma is at most sqrt(2) - 1"
