"""Samplers that go back: Restart and RePaint, on denoisers whose law is known."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from sfumato.core import guidance, times
from sfumato.core.estimate import Estimate
from sfumato.core.oracle import Empirical, Gaussian
from sfumato.core.posterior import large
from sfumato.core.random import Seeds
from sfumato.core.schedules import EDM, VP, Cosine, Discrete, Flow
from sfumato.samplers.ancestral import DDIM, Ancestral
from sfumato.samplers.multistep import DPMpp2M
from sfumato.samplers.ode import DPM2, DPMSolver, Heun
from sfumato.samplers.restart import Loop, RePaint, Restart
from sfumato.samplers.sampler import State
from tests.samplers.tools import Counted, Draws, Pair, Replay, ones

EDM18 = Heun(18, times.power)


def walked(sampler, oracle, x, **settings):
    """(end, noise levels in order, stages)."""
    states = list(sampler.trajectory(oracle, x, **settings))
    return states[-1].x, [s.point.ratio for s in states], [s.stage for s in states]


# -- Restart -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [EDM(), VP(), Flow(), Discrete.linear()], ids=repr)
def test_without_turns_it_is_the_base_bit_for_bit(process):
    x = process.prior((3, 2), Seeds(0), dtype=torch.float64)
    expected = EDM18(Pair(process), x)
    assert torch.equal(Restart(base=EDM18, loops=(Loop(0.14, 0.3, times=0),))(Pair(process), x), expected)
    assert torch.equal(Restart(base=EDM18, loops=())(Pair(process), x), expected)
    once = RePaint(base=Ancestral(30), passes=1)(Pair(process), x, rng=Seeds(1))
    assert torch.equal(once, Ancestral(30)(Pair(process), x, rng=Seeds(1)))


@pytest.mark.parametrize(
    ("loops", "calls"),
    [
        ((Loop(0.14, 0.30, times=2, points=3),), 43),
        ((Loop(0.06, 0.30, 2, 3),), 43),
        ((Loop(19.35, 40.79, 1, 4), Loop(1.09, 1.92, 4, 4), Loop(0.06, 0.30, 5, 3)), 35 + 6 + 24 + 20),
    ],
)
def test_calls_are_those_of_the_paper(loops, calls):
    """2 N - 1 + 2 sum K (Nr - 1); 43 for the CIFAR settings (spec 12.3)."""
    sampler = Restart(base=EDM18, loops=loops)
    assert sampler.calls() == calls
    counted = Counted(Gaussian(EDM(), 0.0, 0.5))
    sampler(counted, ones(80.0), rng=Seeds(0))
    assert counted.calls == calls


def test_it_turns_at_the_level_of_the_grid_nearest_to_low():
    _, levels, stages = walked(
        Restart(base=EDM18, loops=(Loop(0.13, 0.5, 2, 4),)), Gaussian(EDM(), 0.0, 0.5), ones(80.0), rng=Seeds(0)
    )
    here = levels.index(min(levels, key=lambda v: abs(v - 0.13)))
    again = levels[here + 1 : here + 7]
    low = (80 ** (1 / 7) + 13 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    grid = [(0.5 ** (1 / 7) + j / 3 * (low ** (1 / 7) - 0.5 ** (1 / 7))) ** 7 for j in (1, 2, 3)]
    assert again == pytest.approx(grid * 2, rel=1e-6) and stages[here : here + 8] == ["", *["again"] * 6, ""]
    assert levels[here + 3] == levels[here], "it comes back to the very point"


def by_hand(x, z, low, high):
    """One turn of algorithm 2 with Heun, in sigma, for data N(0, 0.5^2): eps = sigma x / (0.25 + sigma^2)."""

    def eps(x, s):
        return s * x / (0.25 + s * s)

    x = x + math.sqrt(high**2 - low**2) * 1.003 * z
    middle = ((high ** (1 / 7) + low ** (1 / 7)) / 2) ** 7
    for a, b in ((high, middle), (middle, low)):
        euler = x + (b - a) * eps(x, a)
        x = x + (b - a) * (eps(x, a) + eps(euler, b)) / 2
    return x


def test_a_turn_is_algorithm_2():
    oracle, noise = Gaussian(EDM(), 0.0, 0.5), [0.7, -1.1]
    sampler = Restart(base=EDM18, loops=(Loop(0.14, 0.30, 2, 3),), noise=1.003)
    states = list(sampler.trajectory(oracle, ones(80.0), rng=Replay([ones(z) for z in noise])))
    (first,) = [i for i, s in enumerate(states) if s.stage == "again"][:1]
    x, low = float(states[first - 1].x), states[first - 1].point.ratio
    for z, state in zip(noise, (states[first + 1], states[first + 3]), strict=True):
        x = by_hand(x, z, low, 0.30)
        assert float(state.x) == pytest.approx(x, rel=1e-8)


def test_the_law_of_the_data_is_kept_and_errors_are_mended():
    """What arrives with too little variance leaves with less error: noise forgets it (their theorem 1)."""
    oracle = Gaussian(EDM(), 0.0, 0.5)

    def std(sampler):
        x = sampler(oracle, ones(0.0), rng=Draws())
        bends = [float(sampler(oracle, ones(0.0), rng=Draws(k)) - x) for k in range(8)]
        return math.sqrt(
            float(sampler(oracle, ones(), rng=Draws()) - x) ** 2 * (0.9 * 80.0) ** 2 + sum(b * b for b in bends)
        )

    plain, again = (
        std(Heun(100, times.power)),
        std(Restart(base=Heun(100, times.power), loops=(Loop(0.1, 3.0, 8, 40),))),
    )
    assert plain == pytest.approx(0.45, abs=3e-3), "nine tenths of the prior's deviation, carried to the end"
    assert again == pytest.approx(0.5, abs=3e-3)


def test_any_base_and_any_process():
    for process in (VP(), Flow(), Cosine()):
        point = torch.tensor([0.3, -0.8], dtype=torch.float64)
        x = process.prior((4, 2), Seeds(0), dtype=torch.float64)
        for base in (DDIM(20), DPM2(20), DPMSolver(20, order=3), Ancestral(20), DPMpp2M(20)):
            for sampler in (Restart(base=base, loops=(Loop(0.2, 0.9),)), RePaint(base=base, passes=2, length=3)):
                counted = Counted(Empirical(process, point[None]))
                assert torch.allclose(sampler(counted, x, rng=Seeds(1)), point.expand(4, 2), rtol=0, atol=1e-14)
                assert counted.calls == sampler.calls()
                assert sampler.steps == 20 and replace(sampler, steps=9).base.steps == 9
                assert replace(sampler, spacing=times.power).base.spacing is times.power
                assert sampler.order == base.order


def test_upwards_it_is_the_base():
    x0 = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    oracle = Gaussian(VP(), 0.0, 0.5)
    assert torch.equal(Restart(base=EDM18)(oracle, x0, start=0.0, end=1.0), EDM18(oracle, x0, start=0.0, end=1.0))


def test_a_seed_is_the_same_picture_alone_and_among_others():
    process = VP()
    for sampler in (Restart(base=EDM18), RePaint(base=Ancestral(12), passes=3, length=2)):
        many, one = (
            sampler(Gaussian(process, 0.2, 0.5), process.prior((n, 3, 4, 4), Seeds(s)), rng=Seeds(s + 100))
            for s, n in ((5, 8), (8, 1))
        )
        assert torch.equal(many[3:4], one)


def test_what_cannot_be_is_refused_before_the_first_call():
    def never(*_):
        raise AssertionError("called")

    oracle = Gaussian(EDM(), 0.0, 0.5)
    never.process = oracle.process
    for loops, message in (
        ((Loop(0.1, 90.0),), "does not reach"),
        ((Loop(0.0003, 0.001),), "take more steps"),
    ):
        with pytest.raises(ValueError, match=message):
            Restart(base=EDM18, loops=loops)(never, ones(80.0), rng=Seeds(0))
    with pytest.raises(ValueError, match="a loop has"):
        Restart(loops=(Loop(0.3, 0.1),))
    with pytest.raises(ValueError, match="passes and length"):
        RePaint(passes=0)
    with pytest.raises(ValueError, match="rng"):
        Restart(base=EDM18)(oracle, ones(80.0))


# -- RePaint -----------------------------------------------------------------------------------------------------------


class Correlated:
    """Two numbers of unit variance and correlation 0.9: the exact denoiser."""

    def __init__(self, process):
        self.process, self.law = process, torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)

    def __call__(self, x, t):
        p = self.process.at(t)
        gain = torch.linalg.solve(p.alpha**2 * self.law + p.sigma**2 * torch.eye(2, dtype=torch.float64), self.law)
        return Estimate.from_x0(self.process, p, x, p.alpha * x @ gain)


def known(x0):
    return torch.stack([torch.ones_like(x0[:, 0]), x0[:, 1]], dim=1)


class Silent:
    def normal(self, shape, *, dtype, device):
        return torch.zeros(shape, dtype=dtype)


def mean(sampler, process):
    """Of the unknown number, exactly: everything is affine in x and in the noise."""
    return float(
        sampler(guidance.project(Correlated(process), known), torch.zeros(1, 2, dtype=torch.float64), rng=Silent())[
            0, 1
        ]
    )


@pytest.mark.parametrize("process", [VP(), Discrete.linear()], ids=repr)
def test_pasting_is_biased_and_passes_mend_it(process):
    """The truth is 0.9 (DESIGN, lesson vii: 0.61 by pasting, 0.87 with ten passes)."""
    base = Ancestral(100)
    assert mean(base, process) == pytest.approx(0.615, abs=1e-3)
    assert mean(RePaint(base=base, passes=10, length=1), process) == pytest.approx(0.874, abs=1e-3)
    assert mean(DDIM(100), process) == pytest.approx(0.446, abs=1e-3), "without noise it cannot mend itself at all"
    bias = [0.9 - mean(RePaint(base=Ancestral(250), passes=n), process) for n in (1, 2, 4, 8)]
    assert all(b < 0.72 * a for a, b in itertools.pairwise(bias)), bias


def test_the_schedule_is_the_official_one():
    """jump_length 10, jump_n_sample 10 of 250 steps: 250 + 24 x 9 x 10 steps, in the order of `get_schedule_jump`."""
    theirs, t, jumps = [], 250, dict.fromkeys(range(0, 240, 10), 9)
    while t >= 1:
        t -= 1
        theirs.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            t += 10
            theirs.append(t)
    theirs.append(-1)
    sampler = RePaint()
    points = {p.t: 249 - i for i, p in enumerate(VP().points(times.uniform(VP(), 250, 1.0, 0.0)))}
    ours = [points[s.t] for s in sampler.trajectory(Gaussian(VP()), ones(), rng=Seeds(0))]
    # theirs lists where x is, with t = 249 for the start and the tops of jumps; ours where every step leads
    assert ours == [b for a, b in itertools.pairwise(theirs) if b < a]
    assert len(ours) == sampler.calls() == 250 + 24 * 9 * 10


def test_noising_back_is_the_forward_process():
    """x at the top of a turn has the law of x_t given x_s, and Gaussian data stay so."""
    process = VP()
    t, s = process.points([0.5, 0.3])
    law = (s.alpha * 0.5) ** 2 + s.sigma**2
    assert (t.alpha / s.alpha) ** 2 * law + large(t, s) == pytest.approx((t.alpha * 0.5) ** 2 + t.sigma**2, rel=1e-12)
    sampler = RePaint(base=Ancestral(40), passes=3, length=4)
    state = State(ones(), process.at(1.0))
    assert sampler.step(Gaussian(process, 0.0, 0.5), state, process.at(0.9), Silent()).t == 0.9
