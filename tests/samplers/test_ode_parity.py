"""Parity of one-step samplers: diffusers 0.42.1, and k-diffusion as recorded under tests/reference.

diffusers keeps its levels in float32. Here an exact denoiser is asked at the levels themselves, and both sides compute
from the same float64 levels, so that what is compared is the method."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
)

from sfumato.core import parametrisation
from sfumato.core.estimate import Estimate
from sfumato.core.oracle import Mixture
from sfumato.core.random import Seeds
from sfumato.core.schedules import EDM, Discrete, Flow
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
from sfumato.samplers.singlestep import Singlestep, along_eps
from tests.samplers.tools import Counted, Replay

pytestmark = [  # from diffusers itself
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`algorithm_types=dpmsolver`:FutureWarning"),
]

CHAIN, FLOW = Discrete.linear(), Flow()
PAIR = torch.tensor([[[[-1.0]]], [[[1.0]]]], dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64)
STEPS = 12


class Double(torch.Tensor):
    """Their steps work in float32 whatever they are given. These stay as they are."""

    def to(self, *_, **__):
        return self


def oracle(process):
    return Mixture(process, *PAIR)


def spread(levels):
    """s0, s1, s1, ..., sN, sN, 0: as they lay out the levels of methods with two calls."""
    return torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])


def doubled(row):
    return torch.cat([row[:1], row[1:].repeat_interleave(2), row[-1:]])


def ancestral(a):
    """(up, down) of their KDPM2AncestralDiscreteScheduler, which computes them once, in float32."""
    b = torch.cat([a[1:], a.new_zeros(1)])
    up = (b**2 * (a**2 - b**2) / a.where(a > 0, 1.0) ** 2) ** 0.5
    return up, (b**2 - up**2) ** 0.5


def middle(a, b):
    """Their sigma_interpol between rows of levels; 0 where it is not used."""
    return torch.where((a > 0) & (b > 0), (a * b) ** 0.5, 0.0)


def set_levels(theirs, levels):
    """Their tables in float64: `levels` (N + 1,) of sigma / alpha, the last 0."""
    if isinstance(theirs, KDPM2AncestralDiscreteScheduler):
        up, down = ancestral(levels)
        theirs.sigmas_up, theirs.sigmas_down = doubled(up), doubled(down)
        theirs.sigmas_interpol = doubled(middle(levels, down))
        theirs.sigmas = torch.cat([levels[:1], levels[1:].repeat_interleave(2), levels[-1:]])
    elif isinstance(theirs, KDPM2DiscreteScheduler):
        mids = torch.cat([levels.new_zeros(1), middle(levels[:-1], levels[1:])])
        theirs.sigmas = torch.cat([levels[:1], levels[1:].repeat_interleave(2), levels[-1:]])
        theirs.sigmas_interpol = torch.cat([mids[:1], mids[1:].repeat_interleave(2), mids[-1:]])
    elif isinstance(theirs, HeunDiscreteScheduler | FlowMatchHeunDiscreteScheduler):
        theirs.sigmas = spread(levels)
    else:
        theirs.sigmas = levels


def prepared(kind, levels, calls, **settings):
    """Their scheduler with our levels."""
    theirs = kind(1000, **settings)
    theirs.set_timesteps(calls if kind is DPMSolverSinglestepScheduler else len(levels) - 1)
    set_levels(theirs, levels)
    theirs.set_begin_index(0)
    return theirs


def their_end(theirs, process, points, x, noise):
    """Where their chain ends from x, the exact denoiser being asked at `points`, which are ours."""
    ask, flat = oracle(process), process is FLOW or isinstance(theirs, DPMSolverSinglestepScheduler)
    y = x if flat else x / points[0].alpha  # most of them walk x / alpha
    for time, point in zip(theirs.timesteps, points, strict=True):
        if not flat:
            theirs.scale_model_input(y, time)
        guess = ask(y.double() * (1.0 if flat else point.alpha), point)
        out = (guess.velocity if process is FLOW else guess.eps).to(y.dtype).as_subclass(Double)
        y = theirs.step(out, time, y.as_subclass(Double)).prev_sample.as_subclass(torch.Tensor)
    return y


@pytest.fixture
def noise(monkeypatch):
    """What every step of theirs draws, whether it needs it or not."""
    drawn = Seeds(4).normal((STEPS + 1, 2, 1, 1, 4), dtype=torch.float64)
    rest = iter(drawn)
    for module in ("euler_ancestral_discrete", "euler_discrete", "k_dpm_2_ancestral_discrete"):
        monkeypatch.setattr(
            f"diffusers.schedulers.scheduling_{module}.randn_tensor", lambda *_, dtype, **__: next(rest).to(dtype)
        )
    return drawn


def listed(grid):
    return lambda *_: torch.as_tensor(grid, dtype=torch.float64)


def both(sampler, kind, process, grid, noise, dtype, **settings):
    """(our end, theirs, the levels) over one grid of t."""
    grid = process.points(grid)
    sampler = replace(sampler, steps=len(grid) - 1, spacing=listed([p.t for p in grid]))
    x = process.prior((2, 1, 1, 4), Seeds(0), dtype=torch.float64)
    counted = Counted(oracle(process))
    *_, last = sampler.trajectory(counted, x, rng=Replay(noise))
    asked = kind is DPMSolverSinglestepScheduler
    levels = [p.ratio if process is not FLOW else p.t for p in ([*counted.points, grid[-1]] if asked else grid)]
    theirs = prepared(kind, torch.tensor(levels, dtype=dtype), len(counted.points), **settings)
    end = their_end(theirs, process, counted.points, x.to(dtype), noise)
    return last.x, end * (1.0 if asked or process is FLOW else grid[-1].alpha)


UNIFORM = torch.linspace(1, 0, STEPS + 1, dtype=torch.float64)
TABLE = [(k + 1) / 1000 for k in (999, 930, 861, 777, 680, 555, 402, 250, 133, 60, 18, 0)] + [0.0]
MIN, OPEN = {"final_sigmas_type": "sigma_min"}, {"lower_order_final": False}


@dataclass(frozen=True)
class Third(DPMSolver):
    """DPM-Solver-3 as diffusers has it: at the second node the weights of h = 0."""

    def table(self, process, t, s):
        first, second, last = super().table(process, t, s)
        return first, along_eps(t, second.point, (0.0, 1.0)), last


AGREE = [
    (Euler(), EulerDiscreteScheduler, CHAIN, TABLE, {}),
    (Heun(), HeunDiscreteScheduler, CHAIN, TABLE, {}),
    (DPM2(), KDPM2DiscreteScheduler, CHAIN, TABLE, {}),
    (EulerAncestral(), EulerAncestralDiscreteScheduler, CHAIN, TABLE, {}),
    (DPM2Ancestral(), KDPM2AncestralDiscreteScheduler, CHAIN, TABLE, {}),
    (Euler(), FlowMatchEulerDiscreteScheduler, FLOW, UNIFORM, {}),
    (Heun(clock=share), FlowMatchHeunDiscreteScheduler, FLOW, UNIFORM, {}),
    (DPMpp2S(), DPMSolverSinglestepScheduler, CHAIN, TABLE, {"lower_order_final": True}),
    (DPMpp2S(), DPMSolverSinglestepScheduler, CHAIN, TABLE[:-1], {**MIN, **OPEN}),
    (
        DPMSolver(order=2),
        DPMSolverSinglestepScheduler,
        CHAIN,
        TABLE[:-1],
        {**MIN, **OPEN, "algorithm_type": "dpmsolver"},
    ),
    (
        Third(order=3),
        DPMSolverSinglestepScheduler,
        CHAIN,
        TABLE[:-1],
        {**MIN, **OPEN, "algorithm_type": "dpmsolver", "solver_order": 3},
    ),
]


def named(value):
    return type(value).__name__ if isinstance(value, Singlestep | EulerAncestral) else ""


@pytest.mark.parametrize(("sampler", "kind", "process", "grid", "settings"), AGREE, ids=named)
def test_a_chain_equals_diffusers_in_float64(sampler, kind, process, grid, settings, noise):
    ours, theirs = both(sampler, kind, process, grid, noise, torch.float64, **settings)
    assert theirs.dtype == torch.float64
    assert float((ours - theirs).abs().max()) < 1e-8


class Rounded:
    """The exact denoiser as a network would be: its answer in x's dtype, and with it the split."""

    def __init__(self, process):
        self.process, self.ask = process, oracle(process)

    def answer(self, x, point):
        guess = self.ask(x.double(), point)
        return (guess.velocity if self.process is FLOW else guess.eps).to(x.dtype)

    def __call__(self, x, t):
        point, view = self.process.at(t), parametrisation.velocity if self.process is FLOW else parametrisation.eps
        rows = view(self.process, point).rows(point)
        return Estimate(self.process, point, x, self.answer(x, point), *rows, x)


@pytest.mark.parametrize(("sampler", "kind", "process", "grid", "settings"), AGREE, ids=named)
@pytest.mark.parametrize("part", [0, 5, 9])
def test_each_step_equals_diffusers_in_float32(sampler, kind, process, grid, settings, noise, part):
    t, s = process.points(list(grid)[part : part + 2])
    counted, x = Counted(Rounded(process)), float(t.sigma) * Seeds(7).normal((2, 1, 1, 4))
    ours = sampler.step(counted, State(x, t), s, Replay(noise)).x
    alone = kind is DPMSolverSinglestepScheduler
    points = [*counted.points, s] if alone else [t, s]
    levels = [p.t if process is FLOW else p.ratio for p in points] + [0.0] * settings.get("lower_order_final", True)
    theirs = prepared(kind, torch.tensor(levels), len(levels) - 1, **settings)
    flat = alone or process is FLOW
    y = x if flat else x / t.alpha
    for time, point in zip(theirs.timesteps, counted.points, strict=False):
        if not flat:
            theirs.scale_model_input(y, time)
        out = counted.denoiser.answer(y if flat else y * point.alpha, point)
        y = theirs.step(out, time, y).prev_sample
    expected = y if flat else y * s.alpha
    assert float((ours - expected).abs().max()) <= 1e-6 * max(1.0, float(expected.abs().max()))


def test_their_third_order_differs_at_its_second_node():
    """0.5 (e^h - 1) where the paper, and the official code, has (e^h - 1) / h - 1: `Third` above is theirs."""
    process, x = CHAIN, CHAIN.prior((2, 1, 1, 4), Seeds(0), dtype=torch.float64)
    paper, other = (
        kind(len(TABLE) - 2, listed(TABLE[:-1]), order=3)(oracle(process), x) for kind in (DPMSolver, Third)
    )
    assert 1e-4 < float((paper - other).abs().max()) < 0.1


def test_their_churn_asks_the_network_before_it_adds_the_noise(noise):
    """EulerDiscreteScheduler.step(s_churn) steps from x_hat with eps of x at the lower level; EDM's algorithm 2, and
    k-diffusion, ask at x_hat. So it cannot agree, unless nothing is churned."""
    t, s, end = CHAIN.points([0.6, 0.5, 0.0])
    x, churn = Seeds(0).normal((2, 1, 1, 4), dtype=torch.float64), 0.4
    theirs = prepared(EulerDiscreteScheduler, torch.tensor([t.ratio, s.ratio, end.ratio], dtype=torch.float64), 2)
    theirs.scale_model_input(x / t.alpha, theirs.timesteps[0])
    eps = oracle(CHAIN)(x, t).eps
    found = theirs.step(eps, theirs.timesteps[0], x / t.alpha, s_churn=churn).prev_sample * s.alpha
    hat = t.ratio * (1 + churn / 2)
    raised = x / t.alpha + noise[0] * math.sqrt(hat**2 - t.ratio**2)
    assert torch.allclose(found, s.alpha * (raised + (s.ratio - hat) * eps), atol=1e-6)
    ours = Euler(2, churn=churn).step(oracle(CHAIN), State(x, t), s, Replay(noise)).x
    assert float((ours - found).abs().max()) > 1e-2


# -- k-diffusion -------------------------------------------------------------------------------------------------------

RECORD = json.loads((Path(__file__).parents[1] / "reference" / "k_diffusion_onestep.json").read_text())
CHURN = {
    name: RECORD["churn"][f"s_{other}"]
    for name, other in {"churn": "churn", "churn_min": "tmin", "churn_max": "tmax", "noise": "noise"}.items()
}
OURS = {
    "euler": Euler(),
    "euler churn": Euler(**CHURN),
    "heun": Heun(),
    "heun churn": Heun(**CHURN),
    "dpm_2": DPM2(),
    "dpm_2 churn": DPM2(**CHURN),
    **{f"euler_ancestral {eta:g}": EulerAncestral(eta=eta) for eta in (0.0, 0.5, 1.0)},
    **{f"dpm_2_ancestral {eta:g}": DPM2Ancestral(eta=eta) for eta in (0.0, 0.5, 1.0)},
    **{f"dpmpp_2s_ancestral {eta:g}": DPMpp2S(eta=eta) for eta in (0.0, 0.5, 1.0)},
    **{f"dpmpp_sde {eta:g}": DPMppSDE(eta=eta) for eta in (0.0, 0.5, 1.0)},
}


def recorded(name):
    return torch.tensor(RECORD[name], dtype=torch.float64)


@pytest.mark.parametrize("name", RECORD["ends"])
def test_a_chain_equals_k_diffusion(name):
    """Every number of the recording is a sample of its own."""
    process, levels = EDM(), recorded("sigmas")
    sampler = replace(OURS[name], steps=len(levels) - 1, spacing=listed(levels / 80))
    noise = recorded("noise").reshape(-1, 8, 1)
    if "churn" in name:
        noise = noise[(levels[:-1] >= CHURN["churn_min"]) & (levels[:-1] <= CHURN["churn_max"])]
    if "sde" in name:
        noise = torch.stack([noise, recorded("again").reshape(-1, 8, 1)], dim=1).flatten(0, 1)
    ask = Mixture(process, *(part.reshape(2, *[1] * (part.ndim > 1)) for part in PAIR))
    found = sampler(ask, recorded("x").reshape(8, 1), rng=Replay(noise), start=float(levels[0] / 80))
    assert torch.allclose(found.reshape(2, 4), torch.tensor(RECORD["ends"][name], dtype=torch.float64), atol=1e-8)
