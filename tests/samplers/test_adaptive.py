"""ODE45: error control of one's own, on every process, up and down."""

import math

import pytest
import torch

from sfumato.core import guidance, parametrisation, solve
from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.oracle import Gaussian, Mixture, PhaseGaussian
from sfumato.core.phase import CLD
from sfumato.core.random import Seeds
from sfumato.core.schedules import EDM, VE, VP, Cosine, Discrete, Flow, Levels, SubVP
from sfumato.samplers.adaptive import ODE45
from tests.samplers.tools import Counted, Pair, Rescaled, flowed

PROCESSES = [VP(), SubVP(), VE(), EDM(), Flow(), Cosine(), Discrete.linear(), Levels()]


def prior(process, n=4, dtype=torch.float64):
    return process.prior((n, 3), Seeds(0), dtype=dtype)


def rested(process, x0, std):
    """What the last step makes of x0: at noise level r the posterior mean is short by sqrt(1 + r^2 / std^2)."""
    return x0 / math.sqrt(1 + (process.at(process.first).ratio / std) ** 2)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_samples_are_those_of_the_flow(process):
    oracle, x = Gaussian(process, 0.0, 0.5), prior(process)
    for tolerance in (1e-4, 1e-7):
        found = ODE45(rtol=tolerance, atol=tolerance)(oracle, x)
        assert float((found - rested(process, oracle.flow(x, 1.0), 0.5)).abs().max()) < 10 * tolerance


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_encoding_then_decoding_returns(process):
    """5.6: 1e-4, here on a mixture, with less than 90 calls each way."""
    oracle, sampler = Counted(Pair(process)), ODE45()
    x0 = torch.linspace(-1.5, 1.5, 8, dtype=torch.float64)[:, None]
    *_, up = sampler.trajectory(oracle, x0, start=0.0, end=1.0)
    assert up.t == 1.0 and up.memory[0].calls == oracle.calls < 90
    *_, down = sampler.trajectory(oracle, up.x)
    assert down.t == 0.0 and up.memory[0].calls + down.memory[0].calls == oracle.calls
    assert float((down.x - x0).abs().max()) < 1e-4


@pytest.mark.parametrize("process", [VP(), EDM(), Cosine()], ids=repr)
def test_an_independent_solver_agrees(process):
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None] * float(process.at(0.9).sigma)
    found = ODE45(rtol=1e-9, atol=1e-9)(Pair(process), x, start=0.9, end=0.1)
    assert torch.allclose(found, flowed(Pair(process), x, 0.9, 0.1), atol=1e-6)


def test_every_sample_goes_its_own_way_to_the_very_end():
    process, x = VP(), torch.tensor([[0.01], [2.0], [-0.3], [9.0]], dtype=torch.float64)
    states = list(ODE45().trajectory(Pair(process), x, end=0.25))
    on_the_way = torch.stack([torch.as_tensor(s.t, dtype=torch.float64).expand(4) for s in states[:-1]])
    assert (on_the_way.diff(dim=0) <= 0).all() and (on_the_way >= 0.25).all()
    assert len({tuple(column) for column in on_the_way.T.tolist()}) == 4, "steps of their own"
    assert states[-1].t == 0.25 and states[-1].memory[0].calls == 2 + 6 * len(states)
    assert all(s.estimate is not None and s.estimate.x0.shape == x.shape for s in states)


class Conv(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x, time):
        return self.two(torch.tanh(self.one(x) + torch.sin(time / 100).to(x.dtype).reshape(-1, 1, 1, 1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("process", [VP(), Flow()], ids=repr)
def test_a_sample_does_not_depend_on_the_others(process, dtype):
    """At equal batch shape bit for bit, whatever the others are; alone, its very steps but for the network's last
    bits, of which a step size that is chosen from differences of slopes feels thousands in float32."""
    network = NeuralDenoiser(Conv().to(dtype), process, parametrisation.v)
    x = process.prior((4, 3, 8, 8), Seeds(0), dtype=dtype)
    other = torch.cat([x[:1], 3 * process.prior((3, 3, 8, 8), Seeds(50), dtype=dtype)])

    def steps(x):
        states = list(ODE45().trajectory(network, x))
        rows = [round(s.t if isinstance(s.t, float) else s.t[0].item(), 12) for s in states]
        return list(dict.fromkeys(rows)), states[-1].x[:1]

    (ours, a), (theirs, b), (alone, c) = steps(x), steps(other), steps(x[:1])
    assert ours == theirs and torch.equal(a, b)
    assert ours == pytest.approx(alone, rel=1e-2 if dtype == torch.float32 else 1e-9)
    assert torch.allclose(a, c, atol=1e-4 if dtype == torch.float32 else 1e-12)


def test_a_rescaled_process_gives_the_same_samples():
    for process in (VP(), Discrete.linear()):
        x = prior(process)
        a = ODE45()(Pair(process), x)
        b = ODE45()(Pair(Rescaled(process)), x / process.at(1.0).alpha)
        assert torch.allclose(a, b, atol=1e-9)


def test_phase_space_is_walked_in_t():
    process = CLD()
    oracle = PhaseGaussian(process, 0.2, 0.5)
    u = process.prior((4, 3, 2, 2), Seeds(0), dtype=torch.float64)
    counted = Counted(oracle)
    *_, last = ODE45().trajectory(counted, u)
    assert last.t == 0.0 and last.memory[0].calls == counted.calls
    back = ODE45()(oracle, ODE45()(oracle, last.x, start=0.0, end=1.0))
    assert float((back - last.x).abs().max()) < 1e-4
    x = process.project(ODE45()(oracle, process.prior((4000, 1, 1), Seeds(0), dtype=torch.float64)))
    assert float(x.mean()) == pytest.approx(0.2, abs=0.03) and float(x.std()) == pytest.approx(0.5, abs=0.02)


def test_pictures_are_float32_and_guidance_composes():
    process = VP()
    network = NeuralDenoiser(Conv(), process, parametrisation.v)
    x = process.prior((2, 3, 8, 8), Seeds(0))
    found = ODE45()(guidance.clip(network), x)
    assert found.dtype == torch.float32 and float(found.abs().max()) <= 1.0 + 1e-6
    assert not found.requires_grad


def test_the_angle_takes_the_fewest_calls():
    """Against t, where the official code integrates, and log(sigma / alpha): mixture in 16 dimensions, 1e-5."""
    g = torch.Generator().manual_seed(0)
    means = torch.randn(10, 16, generator=g, dtype=torch.float64)
    stds = torch.rand(10, generator=g, dtype=torch.float64) * 0.45 + 0.05
    for process, least in ((VP(), 1.1), (EDM(), 1.8)):
        oracle = Mixture(process, means, stds)
        x = process.prior((8, 16), Seeds(0), dtype=torch.float64)
        *_, last = ODE45().trajectory(oracle, x, end=process.first)
        _, in_t = solve.integrate(lambda t, y, ask=oracle: ask(y, t).velocity, x, 1.0, process.first)

        def by_log(u, y, ask=oracle, process=process):
            point = process.at(process.time(-2 * u))
            return ask(y * torch.as_tensor(point.alpha)[:, None], point).mix(0.0, point.sigma / point.alpha)

        start, end = process.points([1.0, process.first])
        _, in_log = solve.integrate(by_log, x / start.alpha, -start.lam, -end.lam)
        assert last.memory[0].calls * least < in_t and last.memory[0].calls * 1.5 < in_log


def test_below_the_first_level_steps_are_straight():
    process = VP()
    oracle, x = Gaussian(process, 0.0, 0.5), torch.ones(1, 1, dtype=torch.float64)
    assert torch.equal(ODE45()(oracle, x, start=process.first), oracle(x, process.first).x0)
    up = ODE45()(oracle, x, start=0.0, end=process.first)
    assert torch.allclose(oracle(up, process.first).x0, x, atol=1e-10)


def test_what_cannot_be_is_refused():
    oracle, x = Gaussian(VP(), 0.0, 0.5), torch.ones(2, 1, dtype=torch.float64)
    with pytest.raises(ArithmeticError, match="3 trial steps did not reach"):
        ODE45(3, rtol=1e-9, atol=1e-9)(oracle, x)
    with pytest.raises(ValueError, match="tolerances"):
        ODE45(atol=0.0)
    with pytest.raises(ArithmeticError, match="vanished"):
        ODE45()(Gaussian(VP(), 0.0, math.nan), x)
    assert ODE45().calls() is None
