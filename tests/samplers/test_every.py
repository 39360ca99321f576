"""What every sampler must do, whatever its method: count its calls, keep its hands off others' tensors, hold seeds."""

from __future__ import annotations

import gc
import math
from dataclasses import replace

import pytest
import torch

from sfumato.cli.samplers import SAMPLERS
from sfumato.core import times
from sfumato.core.estimate import Estimate
from sfumato.core.oracle import Gaussian, Mixture, PhaseGaussian
from sfumato.core.phase import CLD
from sfumato.core.process import Process
from sfumato.core.random import Seeds
from sfumato.core.schedules import EDM, VE, VP, Cosine, Discrete, Flow, Levels, SubVP
from sfumato.samplers.sampler import Sampler, State

AFFINE = [VP(), SubVP(), VE(), EDM(), Flow(), Cosine(), Discrete.linear(), Levels()]
NAMES = [name for name in SAMPLERS if name != "sscs"]
EULER_IN_TIME = ("em", "pc")  # their drift is taken by Euler's rule in t, which no rescaling leaves alone


def short(name: str, steps: int = 12) -> Sampler:
    """Few steps, except where the sampler counts trials."""
    return SAMPLERS[name] if name == "ode45" else replace(SAMPLERS[name], steps=steps)


class Watched:
    """Counts calls, and keeps what was said with a copy, to see whether anybody writes into it."""

    def __init__(self, inner) -> None:
        self.inner, self.process, self.calls, self.said = inner, inner.process, 0, []

    def __call__(self, x, t):
        self.calls += 1
        guess: Estimate = self.inner(x, t)
        self.said.append((x, x.clone(), guess.x0, guess.x0.clone(), guess.eps, guess.eps.clone()))
        return guess

    def untouched(self) -> bool:
        return all(torch.equal(a, b) for row in self.said for a, b in zip(row[::2], row[1::2], strict=True))


def mixture(process: Process) -> Mixture:
    means = torch.tensor([[-0.8, 0.4, 0.1], [0.7, -0.2, 0.5]], dtype=torch.float64)
    return Mixture(process, means, torch.tensor([0.3, 0.4], dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("process", AFFINE, ids=lambda p: type(p).__name__)
def test_calls_states_and_the_end(name: str, process: Process) -> None:
    """As many calls as it says; every state has tensors of its own; it ends at t = 0, near the data."""
    sampler = short(name, 60)
    if name in EULER_IN_TIME and isinstance(process, EDM):
        sampler = replace(sampler, spacing=times.power)  # equal steps in t are equal steps in sigma there
    try:
        next(sampler.trajectory(watched := Watched(mixture(process)), torch.zeros(2, 3).double(), rng=Seeds(0)))
    except ValueError as refusal:
        assert "use " in str(refusal) and not watched.calls  # before the first call, and with what would work
        return
    denoiser = Watched(mixture(process))
    x1 = process.prior((64, 3), Seeds(0), dtype=torch.float64)
    before, states, copies = x1.clone(), list[State](), []
    for state in sampler.trajectory(denoiser, x1, rng=Seeds(0)):
        states.append(state)
        copies.append(state.x.clone())
    assert torch.equal(x1, before) and denoiser.untouched()
    assert all(torch.equal(state.x, copy) for state, copy in zip(states, copies, strict=True))
    assert len({state.x.data_ptr() for state in states}) == len(states)
    assert sampler.calls() in (None, denoiser.calls)
    assert float(states[-1].t) == 0.0
    off = (states[-1].x[:, None] - denoiser.inner.means).square().mean(-1).sqrt().amin(1)
    assert off.median() < 0.8, "it ends where no data are"


@pytest.mark.parametrize("name", NAMES)
def test_memory_does_not_grow_with_the_steps(name: str) -> None:
    """Tensors alive while a walk goes on, whose states nobody keeps."""
    denoiser, alive = mixture(VP()), []
    sampler = replace(short(name, 48), rtol=1e-9, atol=1e-9) if name == "ode45" else short(name, 48)
    for i, _ in enumerate(
        sampler.trajectory(denoiser, denoiser.process.prior((2, 3), Seeds(0)).double(), rng=Seeds(0))
    ):
        if i % 12 != 11:
            continue
        gc.collect(0)
        alive.append(sum(type(thing) is torch.Tensor and thing.shape == (2, 3) for thing in gc.get_objects()))
    assert len(alive) > 1 and max(alive[1:]) <= alive[0] + 1, "it keeps what it should forget"


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_does_not_depend_on_its_neighbours(name: str) -> None:
    denoiser, sampler = mixture(VP()), short(name)
    if name == "pndm":
        denoiser = mixture(Discrete.linear())
    x1 = denoiser.process.prior((5, 3), Seeds(3), dtype=torch.float64)
    together = sampler(denoiser, x1, rng=Seeds(3))
    alone = sampler(denoiser, x1[3:4], rng=Seeds(6))
    assert torch.allclose(together[3:4], alone, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_and_its_rescaling_give_the_same_samples(name: str) -> None:
    """VP and x / alpha are the same flow and the same noise: on the same levels the samples are the same."""

    class Rescaled(VP):
        prior_std = None

        def alpha(self, t):
            return torch.ones_like(t)

        def sigma(self, t):
            return VP.sigma(self, t) / VP.alpha(self, t)

    vp, ve = VP(), Rescaled()
    x1 = vp.prior((4, 3), Seeds(1), dtype=torch.float64)
    a = short(name)(mixture(vp), x1, rng=Seeds(2))
    b = short(name)(mixture(ve), x1 / vp.at(1.0).alpha, rng=Seeds(2))
    gap = float((a - b).abs().max())
    if name in EULER_IN_TIME:
        assert gap > 1e-3  # said in their docstrings
    else:
        assert gap < (1e-4 if name == "ode45" else 1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_samplers_without_noise_follow_the_flow(name: str) -> None:
    sampler = short(name, 200)
    if sampler.stochastic:
        pytest.skip("adds noise")
    denoiser = Gaussian(VP(), 0.2, 0.5)
    x1 = torch.linspace(-2, 2, 11, dtype=torch.float64)[:, None]
    off = float((sampler(denoiser, x1) - denoiser.flow(x1, 1.0)).abs().max())
    assert off < (2e-2 if sampler.order == 1 else 2e-3)


def test_phase_space_has_its_own() -> None:
    process = CLD()
    denoiser = Watched(PhaseGaussian(process, 0.0, 0.5))
    u = process.prior((4000, 1), Seeds(0), dtype=torch.float64)
    x = process.project(short("sscs", 100)(denoiser, u, rng=Seeds(0)))
    assert float(x.std()) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(2 * 4000) + 0.01)
    for name in NAMES:
        if name not in ("em", "ode45"):
            with pytest.raises(ValueError, match="sscs"):
                next(SAMPLERS[name].trajectory(denoiser, u, rng=Seeds(0)))
    with pytest.raises(ValueError, match=r"use "):
        next(SAMPLERS["sscs"].trajectory(mixture(VP()), torch.zeros(1, 3), rng=Seeds(0)))
