"""Samplers with memory: closed forms, the equality web, orders, ends of the interval, what a State holds."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from scipy.integrate import quad, solve_ivp

from sfumato.core import parametrisation, times
from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.estimate import Estimate
from sfumato.core.oracle import Empirical, Gaussian, Mixture
from sfumato.core.process import Affine
from sfumato.core.random import Seeds
from sfumato.core.schedules import EDM, VE, VP, Cosine, Discrete, Flow, betas
from sfumato.samplers.ancestral import DDIM, Ancestral
from sfumato.samplers.multistep import (
    DEIS,
    LMS,
    DPMpp2M,
    DPMpp2MSDE,
    DPMpp3M,
    DPMpp3MSDE,
    ExponentialAB,
    Said,
    lagrange,
    moments,
)
from sfumato.samplers.pndm import PNDM, heun, plain
from sfumato.samplers.sampler import Sampler, State
from sfumato.samplers.unipc import UniPC, bh1

PROCESS = VP()
DETERMINISTIC = [
    *(LMS(order=k) for k in (1, 2, 3, 4)),
    *(ExponentialAB(order=k) for k in (2, 3, 4)),
    *(DEIS(order=k) for k in (2, 3, 4)),
    DPMpp2M(),
    DPMpp3M(),
    *(UniPC(order=k) for k in (1, 2, 3)),
    UniPC(order=1, bh=bh1),
    UniPC(bh=bh1),
    PNDM(),
    PNDM(depth=2, warm_up=heun),
]
NOISY = [DPMpp2MSDE(), DPMpp3MSDE(), DPMpp2MSDE(eta=0.5)]


def named(value):
    """A short id: DPMpp2M, LMS-4, UniPC-2-bh1."""
    if isinstance(value, Sampler):
        fields = {k: v for k, v in vars(value).items() if k not in ("steps", "spacing", "warm_up")}
        return "-".join([type(value).__name__, *(getattr(v, "__name__", str(v)) for v in fields.values())])
    return None


def along(sampler, steps, spacing=times.uniform):
    """The same sampler with other steps."""
    return type(sampler)(**{**vars(sampler), "steps": steps, "spacing": spacing})


def ones(value=1.0):
    return torch.full((1, 1), value, dtype=torch.float64)


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("z", [0.0, 1e-8, 0.3, -0.999, 1.0, 1.001, -7.0, 40.0])
def test_moments_are_the_integrals(z):
    for i, found in enumerate(moments(z, 4)):
        expected = quad(lambda u, i=i: math.exp(-z * (1 - u)) * u**i, 0, 1, epsabs=0, epsrel=1e-13)[0]
        assert found == pytest.approx(expected, rel=1e-11)


def test_weights_integrate_cubics_on_any_nodes():
    nodes, z = [-0.7, -1.9, 1.0], 0.8
    weights = lagrange(nodes, moments(z, 4))
    for power in (1, 2, 3):
        assert sum(w * u**power for w, u in zip(weights, nodes, strict=True)) == pytest.approx(moments(z, 4)[power])


def test_equal_steps_give_the_classical_weights():
    three = lagrange([-1.0, -2.0, -3.0], moments(0.0, 4))
    assert three == pytest.approx((-59 / 24, 37 / 24, -9 / 24), rel=1e-14) and 1 - sum(three) == pytest.approx(55 / 24)
    assert lagrange([-1.0, -2.0], moments(0.0, 3)) == pytest.approx((-16 / 12, 5 / 12), rel=1e-14)
    assert lagrange([-1.0], moments(0.0, 2)) == pytest.approx((-0.5,))


# -- fixtures ----------------------------------------------------------------------------------------------------------


def karras(process, steps, start, end):
    """EDM 11.2.4: `steps` levels with rho 7, then 0."""
    i = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    levels = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    return torch.cat([levels / 80, torch.zeros(1, dtype=torch.float64)])


def test_the_edm_levels():
    printed = [80, 57.586, 40.7856, 28.3746, 19.3525, 12.9101, 8.4009, 5.3152, 3.2568, 1.9233, 1.0882, 0.5853]
    assert (karras(None, 18, 1, 0)[:12] * 80).tolist() == pytest.approx(printed, rel=1e-4)


@pytest.mark.parametrize(
    ("sampler", "printed"),
    [
        (DDIM(), [".2696", ".1539", ".0780", ".0392"]),
        (LMS(), [".1735", ".0457", ".00558", ".000479"]),
        (DPMpp2M(), [".1588", ".0623", ".0131", ".00297"]),
        (DPMpp3M(), [".3017", ".0204", ".00127", ".000555"]),
    ],
    ids=named,
)
def test_edm_on_a_gaussian(sampler, printed):
    """Table 11.6 of the spec: data of deviation 0.5, x = 80 at sigma = 80, relative error at sigma = 0."""
    oracle = Gaussian(EDM(), 0.0, 0.5)
    assert float(oracle.flow(ones(80.0), 1.0)) == pytest.approx(0.499990234661, abs=1e-12)
    for steps, digits in zip((10, 18, 36, 72), printed, strict=True):
        found = float(along(sampler, steps, karras)(oracle, ones(80.0))) / 0.499990234661 - 1
        assert f"{abs(found):.{len(digits) - 1}f}".lstrip("0") == digits


# -- orders ------------------------------------------------------------------------------------------------------------


class Pair:
    """The exact denoiser of 0.5 N(-0.7, 0.6^2) + 0.5 N(0.7, 0.6^2), as one closed form."""

    process = PROCESS

    def __call__(self, x, t):
        p = PROCESS.at(t)
        variance = 0.36 * p.alpha**2 + p.sigma**2
        x0 = (0.36 * p.alpha * x + 0.7 * p.sigma**2 * torch.tanh(0.7 * p.alpha * x / variance)) / variance
        return Estimate.from_x0(PROCESS, p, x, x0)


PAIR, STEPS = Pair(), (32, 64, 128, 256, 512)


@pytest.fixture(scope="module")
def flow():
    """{t: x_t} of the probability flow of `Pair` through 0.8 .. 0.2 and the points before 0.8 that memories begin with,
    by an adaptive method of order 8: d(x / alpha) = eps d(sigma / alpha)."""
    grid = sorted({0.8 + 0.6 * k / n for n in STEPS for k in range(4)} | {0.2}, reverse=True)

    def slope(t, y):
        p, (da, ds) = PROCESS.at(t), PROCESS.rates(t)
        return (ds * p.alpha - da * p.sigma) / p.alpha**2 * PAIR(torch.from_numpy(y) * p.alpha, p).eps.numpy()

    start = torch.linspace(-1.5, 1.7, 6, dtype=torch.float64) / PROCESS.at(grid[0]).alpha
    found = solve_ivp(slope, (grid[0], 0.2), start.numpy(), "DOP853", grid, rtol=1e-13, atol=1e-14).y.T
    return {t: torch.from_numpy(y).clone()[:, None] * PROCESS.at(t).alpha for t, y in zip(grid, found, strict=True)}


def errors(sampler, flow):
    """RMS error at t = 0.2 for each number of steps from 0.8, beginning with exact memory."""
    for n in STEPS:
        before = [0.8 + 0.6 * k / n for k in range(1, sampler.depth)]
        memory = tuple(Said.of(PAIR(flow[t], t), sampler.of_eps) for t in before)
        grid = PROCESS.points([0.8 - 0.6 * k / n for k in range(n)] + [0.2])
        state = State(flow[0.8], grid[0], None, memory)
        for s in grid[1:]:
            state = sampler.step(PAIR, state, s, None)
        yield float((state.x - flow[0.2]).square().mean().sqrt())


def slope(errors):
    """Of log error against log steps, by least squares; the errors here are above the rounding floor."""
    middle = (len(errors) - 1) / 2
    rows = [(k - middle, -math.log2(e)) for k, e in enumerate(errors)]
    return sum(k * y for k, y in rows) / sum(k * k for k, _ in rows)


def test_the_pair_is_a_mixture():
    means, stds = torch.tensor([[-0.7], [0.7]], dtype=torch.float64), torch.full((2,), 0.6, dtype=torch.float64)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    assert torch.allclose(PAIR(x, 0.4).x0, Mixture(PROCESS, means, stds)(x, 0.4).x0, atol=1e-14)


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=named)
def test_order(sampler, flow):
    found = list(errors(sampler, flow))
    claimed = sampler.order + 1 if isinstance(sampler, UniPC) else sampler.order
    assert found[-1] > 1e-11 and slope(found) >= claimed - 0.15, found


def test_the_third_term_of_3m_is_halved(flow):
    """All publish it so; it leaves order 2, with a small constant. In full the order is 3."""
    published, whole, second = (list(errors(s, flow)) for s in (DPMpp3M(), ExponentialAB(order=3), DPMpp2M()))
    assert math.log2(published[-2] / published[-1]) < 2.1 < 2.9 < slope(whole)
    assert whole[-1] < published[-1] < second[-1] / 4


def variance_error(sampler, steps):
    """How far the variance of x at t = 0.2 is off for N(0, 0.5^2), from the exact marginal at 0.8. A step is linear in
    (x, what is remembered, z): its matrix is read off unit vectors, and the joint covariance carried through."""
    oracle, remembered = Gaussian(PROCESS, 0.0, 0.5), []
    grid = PROCESS.points([0.8 - 0.6 * k / steps for k in range(steps)] + [0.2])

    def marginal(p):
        return (0.5 * p.alpha) ** 2 + p.sigma**2

    covariance = ones(marginal(grid[0]))
    for t, s in itertools.pairwise(grid):
        unit = torch.eye(len(remembered) + 2, dtype=torch.float64)
        memory = tuple(Said(p, unit[:, 1 + j : 2 + j]) for j, p in enumerate(remembered))

        class Unit:
            def normal(self, shape, *, dtype, device, unit=unit):
                return unit[:, -1:].clone()

        state = sampler.step(oracle, State(unit[:, :1], t, None, memory), s, Unit())
        matrix = torch.stack([state.x[:, 0], *(said.tensor[:, 0] * said.scale for said in state.memory)])
        covariance = matrix @ torch.block_diag(covariance, ones()) @ matrix.T
        remembered = [said.point for said in state.memory]
    return float(covariance[0, 0]) - marginal(grid[-1])


@pytest.mark.parametrize("sampler", NOISY, ids=named)
def test_weak_order(sampler):
    assert sampler.stochastic and slope([abs(variance_error(sampler, n)) for n in STEPS]) >= sampler.order - 0.15


# -- the equality web --------------------------------------------------------------------------------------------------

X = Seeds(3).normal((3, 2), dtype=torch.float64)


@pytest.mark.parametrize("process", [VP(), Discrete.linear(), Cosine(), Flow(), EDM()], ids=repr)
@pytest.mark.parametrize("first", [LMS(7, order=1), ExponentialAB(7, order=1), DEIS(7, order=1)], ids=named)
def test_order_one_is_ddim(process, first):
    oracle = Gaussian(process, 0.3, 0.5)
    assert torch.equal(first(oracle, X), DDIM(7)(oracle, X))


def test_ddim_is_euler_in_sigma_over_alpha():
    oracle, points = Gaussian(PROCESS, 0.3, 0.5), PROCESS.points(torch.linspace(1, 0, 8, dtype=torch.float64))
    y = X / points[0].alpha
    for t, s in itertools.pairwise(points):
        y = y + (s.ratio - t.ratio) * oracle(y * t.alpha, t).eps
    assert torch.allclose(LMS(7, order=1)(oracle, X), y, atol=1e-12)


def test_the_noisy_forms_without_noise_are_the_others():
    for noisy, quiet in ((DPMpp2MSDE(9, eta=0.0), DPMpp2M(9)), (DPMpp3MSDE(9, eta=0.0), DPMpp3M(9))):
        assert not noisy.stochastic and torch.equal(noisy(PAIR, X), quiet(PAIR, X))


def test_the_predictors_of_unipc():
    t, s, *others = PROCESS.points([0.5, 0.4, 0.62, 0.7])
    predict = super(UniPC, UniPC()).weights
    assert predict(s, t, others[:1]) == DPMpp2M().weights(s, t, others[:1])
    assert predict(s, t, others) == ExponentialAB().weights(s, t, others)
    states = [sampler.step(PAIR, State(X, t), s, None).x for sampler in (UniPC(order=1), DDIM())]
    assert torch.equal(*states)


def test_a_step_with_all_the_noise_and_no_memory_is_ancestral():
    t, s = PROCESS.points([0.5, 0.4])
    noisy, ancestral = (sampler.step(PAIR, State(X, t), s, Seeds(5)).x for sampler in (DPMpp2MSDE(), Ancestral()))
    assert torch.allclose(noisy, ancestral, atol=1e-14)


@dataclass(frozen=True)
class Rescaled(Affine):
    """The same process in x / alpha."""

    constant = True

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return PROCESS.sigma(t) / PROCESS.alpha(t)


@pytest.mark.parametrize("sampler", [*DETERMINISTIC, *NOISY], ids=named)
def test_a_rescaled_process_gives_the_same_samples(sampler):
    sampler, other = along(sampler, 9), Rescaled()
    a = sampler(Gaussian(PROCESS, 0.3, 0.5), X, rng=Seeds(1))
    b = sampler(Gaussian(other, 0.3, 0.5), X / PROCESS.at(1.0).alpha, rng=Seeds(1))
    assert torch.allclose(a, b, atol=1e-10)


# -- ends --------------------------------------------------------------------------------------------------------------

ENDS = [s for s in DETERMINISTIC if s.order > 1 or isinstance(s, UniPC)]


@pytest.mark.parametrize("process", [Flow(), Discrete(betas.jsd(200))], ids=repr)
@pytest.mark.parametrize("sampler", [*ENDS, PNDM(warm_up=plain)], ids=named)
def test_a_start_without_signal(process, sampler):
    """The first step is DDIM's; what it says is not remembered. From there on better than DDIM."""
    assert process.at(1.0).alpha == 0.0
    oracle, x = Gaussian(process, 0.3, 0.5), torch.tensor([[-1.0], [0.4], [1.9]], dtype=torch.float64)
    first = next(along(sampler, 40).trajectory(oracle, x))
    assert torch.equal(first.x, next(DDIM(40).trajectory(oracle, x)).x) and first.memory == ()
    error, ddim = (
        float((s(oracle, x, end=0.1) - oracle_at(oracle, x)).abs().max()) for s in (along(sampler, 40), DDIM(40))
    )
    assert error < ddim / 3


def oracle_at(oracle, x, t=0.1):
    p = oracle.process.at(t)
    return p.alpha * 0.3 + math.sqrt((0.5 * p.alpha) ** 2 + p.sigma**2) * x


@pytest.mark.parametrize("process", [VP(), Flow(), VE(), EDM(), Discrete.linear()], ids=repr)
@pytest.mark.parametrize("sampler", [*ENDS, *NOISY], ids=named)
def test_a_single_point_is_returned(process, sampler):
    point = torch.tensor([0.3, -0.8], dtype=torch.float64)
    x = along(sampler, 7)(
        Empirical(process, point[None]), process.prior((4, 2), Seeds(0), dtype=torch.float64), rng=Seeds(1)
    )
    assert torch.allclose(x, point.expand(4, 2), atol=1e-11)


@pytest.mark.parametrize("sampler", ENDS, ids=named)
def test_encoding_then_decoding_returns(sampler):
    oracle, x0 = Gaussian(PROCESS, 0.3, 0.5), torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    sampler = along(sampler, 60)
    x1 = sampler(oracle, x0, start=0.1, end=0.9)
    assert float((sampler(oracle, x1, start=0.9, end=0.1) - x0).abs().max()) < 5e-3


def test_noise_cannot_encode():
    with pytest.raises(ValueError, match="cannot encode"):
        DPMpp2MSDE(4)(PAIR, X, start=0.1, end=0.9, rng=Seeds(0))


def test_coincident_times_are_steps_of_first_order():
    def repeated(process, steps, start, end):
        return torch.tensor([1.0, 0.7, 0.4, 0.4, 0.4, 0.2, 0.2, 0.0], dtype=torch.float64)

    for sampler in [*DETERMINISTIC, *NOISY]:
        assert along(sampler, 7, repeated)(PAIR, X, rng=Seeds(0)).isfinite().all(), sampler


# -- what everybody holds ----------------------------------------------------------------------------------------------


class Wavy(torch.nn.Module):
    """A nonlinear stand-in for a network, which counts its calls."""

    asked = 0

    def forward(self, x, time):
        self.asked += 1
        return torch.sin(1.7 * x + 0.01 * time.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))) * 0.9


@pytest.mark.parametrize("sampler", [*DETERMINISTIC, PNDM(warm_up=plain), PNDM(warm_up=heun), *NOISY], ids=named)
@pytest.mark.parametrize("view", [parametrisation.eps, parametrisation.x0, parametrisation.v], ids=lambda v: v.__name__)
def test_calls_memory_and_states_of_their_own(sampler, view):
    sampler, network = along(sampler, 12), Wavy()
    denoiser = NeuralDenoiser(network, PROCESS, view)
    x = Seeds(0).normal((2, 3, 4, 4))
    states = list(sampler.trajectory(denoiser, x, rng=Seeds(0)))
    assert network.asked == sampler.calls() and max(len(s.memory) for s in states) == sampler.depth - 1
    end = states[-1].x.clone()
    for state in states:
        held = [said.tensor for said in state.memory] + [state.estimate.x0, state.estimate.eps, x]
        assert all(state.x.data_ptr() != y.data_ptr() for y in held)
    for state in states[:-1]:
        state.x.zero_()
    assert torch.equal(states[-1].x, end)


def test_what_is_remembered_is_the_view():
    """Kept up to a factor, which spares a pass."""
    for view in (parametrisation.eps, parametrisation.x0, parametrisation.v, parametrisation.edm()):
        guess = NeuralDenoiser(Wavy(), PROCESS, view)(X, 0.4)
        for of_eps, expected in ((False, guess.x0), (True, guess.eps)):
            said = Said.of(guess, of_eps)
            assert torch.allclose(said.tensor * said.scale, expected, atol=1e-13)


@pytest.mark.parametrize("sampler", [*DETERMINISTIC, *NOISY], ids=named)
def test_a_seed_is_the_same_picture_alone_and_among_others(sampler):
    sampler, oracle = along(sampler, 6), Gaussian(PROCESS, 0.3, 0.5)
    many, one = (sampler(oracle, PROCESS.prior((n, 2), Seeds(s)), rng=Seeds(s + 100)) for s, n in ((5, 8), (8, 1)))
    assert torch.equal(many[3:4], one)


def test_impossible_orders_are_refused():
    for make in (lambda: LMS(order=5), lambda: ExponentialAB(order=0), lambda: UniPC(order=4)):
        with pytest.raises(ValueError, match="order 1 to"):
            make()
