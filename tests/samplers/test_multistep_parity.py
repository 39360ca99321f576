"""Parity of the samplers with memory: diffusers 0.42.1, and k-diffusion as recorded under tests/reference.

diffusers rounds times to integers and keeps its levels in float32. Here an exact denoiser is asked at the levels
themselves, and both sides compute their coefficients from the same float64 levels, so that what is compared is the
method."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    LMSDiscreteScheduler,
    UniPCMultistepScheduler,
)

from sfumato.core.oracle import Mixture
from sfumato.core.random import Seeds
from sfumato.core.schedules import EDM, Discrete
from sfumato.samplers.ancestral import Ancestral
from sfumato.samplers.multistep import DEIS, LMS, DPMpp2M, DPMpp2MSDE, DPMpp3M, DPMpp3MSDE, ExponentialAB, Said
from sfumato.samplers.sampler import State
from sfumato.samplers.unipc import UniPC, bh1, bh2

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # in diffusers itself, from numpy

CHAIN = Discrete.linear()
PAIR = torch.tensor([[[[-1.0]]], [[[1.0]]]], dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64)
ORACLE = Mixture(CHAIN, *PAIR)
DPM, UNI, DEI = DPMSolverMultistepScheduler, UniPCMultistepScheduler, DEISMultistepScheduler


class Double(torch.Tensor):
    """DPMSolverMultistepScheduler.step works in float32 whatever it is given. These stay as they are."""

    def to(self, *_, **__):
        return self


class Replay:
    """Stands for Seeds: the noise of each step, in turn."""

    def __init__(self, noise):
        self.rest = iter(noise)

    def normal(self, shape, *, dtype, device):
        return next(self.rest).to(dtype).clone()


def prepared(kind, steps, **settings):
    """Their scheduler with the levels of ours, and our points there."""
    theirs = kind(1000, **settings)
    theirs.set_timesteps(steps)
    levels = theirs.sigmas.double()
    times = CHAIN.time(-2 * levels[levels > 0].log())
    points = CHAIN.points(torch.cat([times, torch.zeros(len(levels) - len(times), dtype=torch.float64)]))
    theirs.sigmas = torch.tensor([p.ratio for p in points], dtype=torch.float64)
    theirs.set_begin_index(0)
    return theirs, points


def their_chain(theirs, points, x, noise):
    """Every state of their chain, from x on."""
    yield x
    for point, time, z in zip(points, theirs.timesteps, noise, strict=False):
        scale = point.alpha if isinstance(theirs, LMSDiscreteScheduler) else 1.0  # that one walks x / alpha
        eps = ORACLE(x * scale, point).eps.to(x.dtype)
        own = {"variance_noise": z.to(x.dtype)} if "sde" in theirs.config.get("algorithm_type", "") else {}
        if x.dtype == torch.float64:
            eps, x, own = (
                eps.as_subclass(Double),
                x.as_subclass(Double),
                {k: v.as_subclass(Double) for k, v in own.items()},
            )
        if scale != 1.0:
            theirs.scale_model_input(x, time)
        x = theirs.step(eps, time, x, **own).prev_sample.as_subclass(torch.Tensor)
        yield x


def our_step(sampler, other, state, s, rng):
    """A step of `sampler`, its x taken from `other`, which is of lower order, where there is one."""
    found = sampler.step(ORACLE, state, s, rng)
    if other is None:
        return found
    memory = state.memory if isinstance(other, UniPC) else state.memory[: other.depth - 1]
    return found._replace(x=other.step(ORACLE, state._replace(memory=memory), s, rng).x)


KARRAS, MIN, OPEN = {"use_karras_sigmas": True}, {"final_sigmas_type": "sigma_min"}, {"lower_order_final": False}
SDE = {"algorithm_type": "sde-dpmsolver++"}
FIRST = ExponentialAB(order=1)
# kind, steps, their settings, ours, and ours for single steps, where theirs lower the order
AGREE = [
    (DPM, 12, {"solver_order": 1}, FIRST, {}),
    (DPM, 12, {}, DPMpp2M(), {}),
    (DPM, 12, KARRAS, DPMpp2M(), {}),
    (DPM, 12, {"timestep_spacing": "trailing", "euler_at_final": True}, DPMpp2M(), {}),
    (DPM, 12, {**MIN, **OPEN}, DPMpp2M(), {}),
    (DPM, 12, {**MIN, **OPEN, "euler_at_final": True}, DPMpp2M(), {-1: FIRST}),
    (DPM, 12, {"solver_type": "heun"}, ExponentialAB(order=2), {}),
    (DPM, 16, {"solver_order": 3, "solver_type": "heun"}, DPMpp3M(), {}),
    (DPM, 16, {"solver_order": 3}, DPMpp3M(), {1: DPMpp2M()}),
    (DPM, 12, {"solver_order": 3}, DPMpp3M(), {1: DPMpp2M(), -2: DPMpp2M()}),
    (DPM, 16, {"solver_order": 3, "solver_type": "heun", **KARRAS}, DPMpp3M(), {}),
    (DPM, 16, {"solver_order": 3, "solver_type": "heun", **MIN}, DPMpp3M(), {}),
    (DPM, 12, {**SDE, "solver_order": 1}, Ancestral(), {}),
    (DPM, 12, SDE, DPMpp2MSDE(), {}),
    (DPM, 12, {**SDE, **KARRAS}, DPMpp2MSDE(), {}),
    (DPM, 12, {**SDE, **MIN, **OPEN}, DPMpp2MSDE(), {}),
    (UNI, 12, {"solver_order": 1}, UniPC(order=1), {}),
    (UNI, 12, {}, UniPC(), {}),
    (UNI, 12, KARRAS, UniPC(), {}),
    (UNI, 12, {"solver_order": 3}, UniPC(order=3), {-2: UniPC()}),
    *(
        (UNI, 12, {"solver_order": order, "solver_type": bh.__name__, **MIN, **OPEN}, UniPC(order=order, bh=bh), {})
        for bh in (bh1, bh2)
        for order in (1, 2, 3)
    ),
    *((DEI, 12, {"solver_order": order, **OPEN}, DEIS(order=order), {}) for order in (1, 2, 3)),
    (DEI, 16, {"solver_order": 3}, DEIS(), {}),
    (LMSDiscreteScheduler, 12, {}, LMS(), {}),
    (LMSDiscreteScheduler, 12, KARRAS, LMS(), {}),
]


def named(case):
    kind, steps, settings, _, _ = case
    return "-".join([kind.__name__[:5], str(steps), *(f"{k}={v}" for k, v in settings.items())])


@pytest.mark.parametrize("case", AGREE, ids=named)
def test_a_chain_equals_diffusers_in_float64(case):
    kind, steps, settings, sampler, lower = case
    theirs, points = prepared(kind, steps, **settings)
    x, noise = (
        torch.linspace(-1.7, 1.4, 6, dtype=torch.float64).reshape(-1, 1, 1, 1),
        Seeds(1).normal((steps, 6, 1, 1, 1)),
    )
    rescaled = kind is LMSDiscreteScheduler
    chain = list(their_chain(theirs, points, x / points[0].alpha if rescaled else x, noise.double()))
    state = State(x, points[0])
    for i, s in enumerate(points[1:]):
        other = lower.get(i) or lower.get(i - steps)
        state = our_step(sampler, other, state, s, Replay(noise[i : i + 1].double()))
    end = state.x / points[-1].alpha if rescaled else state.x
    assert len(chain) == len(points) == steps + 1 and float((end - chain[-1]).abs().max()) < 1e-8


@pytest.mark.parametrize("case", AGREE, ids=named)
def test_each_step_equals_diffusers_in_float32(case):
    kind, steps, settings, sampler, lower = case
    theirs, points = prepared(kind, steps, **settings)
    noise = Seeds(1).normal((steps, 4, 1, 1, 1))
    rescaled = kind is LMSDiscreteScheduler
    x, memory = Seeds(2).normal((4, 1, 1, 1)), ()
    chain = their_chain(theirs, points, x / points[0].alpha if rescaled else x, noise)
    for i, (before, after) in enumerate(itertools.pairwise(chain)):
        t, s = points[i], points[i + 1]
        before, after = (y * p.alpha if rescaled else y for y, p in ((before, t), (after, s)))
        found = our_step(
            sampler, lower.get(i) or lower.get(i - steps), State(before, t, None, memory), s, Replay(noise[i:])
        )
        growth = sum(map(abs, sampler.weights(s, t, [said.point for said in memory]))) if memory else 0.0  # of rounding
        memory = found.memory
        assert float((found.x - after).abs().max()) <= 1e-6 * max(1.0, float(after.abs().max()), growth)


def test_the_third_order_of_their_sde_has_a_wrong_sign():
    """-1/2 for +1/2 before the curvature D2: a step differs from ours by alpha_s D2 exactly, which leaves order 1."""
    theirs, points = prepared(DPM, 16, **SDE, solver_order=3, solver_type="heun")
    x = torch.linspace(-1.7, 1.4, 6, dtype=torch.float64).reshape(-1, 1, 1, 1)
    noise = torch.zeros(16, 6, 1, 1, 1, dtype=torch.float64)
    chain = list(their_chain(theirs, points, x, noise))
    k = 13
    memory = tuple(Said.of(ORACLE(chain[i], points[i]), False) for i in (k - 1, k - 2))
    found = DPMpp3MSDE().step(ORACLE, State(chain[k], points[k], None, memory), points[k + 1], Replay(noise))
    d0, d1, d2 = (ORACLE(chain[i], points[i]).x0 for i in (k, k - 1, k - 2))
    h, h0, h1 = (points[i + 1].lam - points[i].lam for i in (k, k - 1, k - 2))
    curvature = ((d0 - d1) * h / h0 - (d1 - d2) * h / h1) * h / (h0 + h1)
    assert torch.allclose(chain[k + 1] - found.x, -points[k + 1].alpha * curvature, atol=1e-12)
    assert float(curvature.abs().max()) > 1e-3


def test_the_last_order_of_their_unipc_falls_early():
    """`lower_order_final` takes the last step but one at order 2 as well, where ours goes on at order 3."""
    theirs, points = prepared(UNI, 12, solver_order=3)
    x = torch.linspace(-1.7, 1.4, 6, dtype=torch.float64).reshape(-1, 1, 1, 1)
    chain, state, apart = list(their_chain(theirs, points, x, [None] * 12)), State(x, points[0]), []
    for s, y in zip(points[1:], chain[1:], strict=True):
        state = UniPC(order=3).step(ORACLE, state, s, None)
        apart.append(float((state.x - y).abs().max()))
    assert max(apart[:10]) < 1e-10 and apart[10] > 1e-5


def test_their_unipc_with_bh1_cannot_end_clean():
    """B(h) = h is infinite in the step to sigma = 0: theirs multiplies it by 0 and returns NaN."""
    theirs, points = prepared(UNI, 12, solver_type="bh1")
    x = torch.linspace(-1.7, 1.4, 6, dtype=torch.float64).reshape(-1, 1, 1, 1)
    sampler = UniPC(12, lambda *_: torch.tensor([p.t for p in points], dtype=torch.float64), bh=bh1)
    chain = list(their_chain(theirs, points, x, [None] * 12))
    *_, before, end = sampler.trajectory(ORACLE, x)
    assert torch.allclose(before.x, chain[-2], atol=1e-8) and chain[-1].isnan().all() and end.x.isfinite().all()


# -- k-diffusion -------------------------------------------------------------------------------------------------------

RECORD = json.loads((Path(__file__).parents[1] / "reference" / "k_diffusion_multistep.json").read_text())
OURS = {
    **{f"lms {order}": LMS(order=order) for order in (1, 2, 3, 4)},
    "2m": DPMpp2M(),
    **{f"2m sde {eta:g}": DPMpp2MSDE(eta=eta) for eta in (0.0, 0.5, 1.0)},
    **{f"3m sde {eta:g}": DPMpp3MSDE(eta=eta) for eta in (0.0, 0.5, 1.0)},
}


def recorded(name):
    return torch.tensor(RECORD[name], dtype=torch.float64)


@pytest.mark.parametrize("name", RECORD["ends"])
def test_a_chain_equals_k_diffusion(name):
    """In place of their Brownian tree the recording has independent noise; every number is a sample of its own."""
    oracle, grid = Mixture(EDM(), *(part.reshape(2, *[1] * (part.ndim > 1)) for part in PAIR)), recorded("sigmas") / 80
    sampler = type(OURS[name])(**{**vars(OURS[name]), "steps": len(grid) - 1, "spacing": lambda *_: grid})
    noise, end = recorded("noise").reshape(-1, 8, 1), torch.tensor(RECORD["ends"][name], dtype=torch.float64)
    found = sampler(oracle, recorded("x").reshape(8, 1), rng=Replay(noise))
    assert torch.allclose(found.reshape(2, 4), end, atol=1e-8)
