"""What samplers cost outside the network and the random generator, against diffusers' schedulers and against one
addition of the same size. python benchmarks/sampler_overhead.py --out samplers_cost

Both get the same stored tensors as the network's answer and as noise. All are timed in turn in one process, many times;
a figure is the median over rounds of microseconds per network call of a whole trajectory of 30 steps (a trajectory's
grid is made outside the time, on either side), less what the stored network takes."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from timing import report

from sfumato.core import parametrisation
from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.phase import CLD, mixed
from sfumato.core.schedules import Discrete, Flow
from sfumato.samplers.ancestral import DDIM, Ancestral
from sfumato.samplers.auto import Auto
from sfumato.samplers.langevin import PredictorCorrector
from sfumato.samplers.multistep import DEIS, LMS, DPMpp2M, DPMpp2MSDE, DPMpp3M
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
from sfumato.samplers.pndm import PNDM, heun
from sfumato.samplers.restart import Restart
from sfumato.samplers.sde import SSCS, EulerMaruyama
from sfumato.samplers.unipc import UniPC

N, SHAPE = 30, (1, 3, 32, 32)
SCHEDULERS = [
    "ddim",
    "ddpm",
    "pndm",
    "euler_discrete",
    "euler_ancestral_discrete",
    "heun_discrete",
    "k_dpm_2_discrete",
    "k_dpm_2_ancestral_discrete",
    "lms_discrete",
    "dpmsolver_multistep",
    "dpmsolver_singlestep",
    "deis_multistep",
    "unipc_multistep",
    "flow_match_euler_discrete",
    "flow_match_heun_discrete",
]

x, answer = torch.randn(SHAPE), torch.randn(SHAPE)


@lru_cache
def drawn(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape)


class Stored(torch.nn.Module):
    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return answer


class Noise:
    """The generator, for nothing."""

    def normal(self, shape, *, dtype, device) -> torch.Tensor:
        return answer if shape == answer.shape else drawn(tuple(shape))


NET = Stored()
DENOISER = NeuralDenoiser(NET, Discrete.linear(), parametrisation.eps)
FLOW = NeuralDenoiser(NET, Flow(), parametrisation.velocity)
Run = Callable[[], float]  # seconds per network call


def theirs(name: str, kind: str, **settings: Any) -> Run:
    scheduler = getattr(import_module(f"diffusers.schedulers.scheduling_{name}"), kind)(1000, **settings)
    flow = name.startswith("flow")

    def run() -> float:
        scheduler.set_timesteps(N)
        y, begin = x, time.perf_counter()
        for t in scheduler.timesteps:
            y = scheduler.step(NET(y if flow else scheduler.scale_model_input(y, t), t), t, y).prev_sample
        return (time.perf_counter() - begin) / len(scheduler.timesteps)

    return run


def ours(sampler: Any, denoiser: Any = DENOISER, start: torch.Tensor = x) -> Run:
    def run() -> float:
        begin = time.perf_counter()
        sampler(denoiser, start, rng=Noise())
        return (time.perf_counter() - begin) / sampler.calls()

    return run


def many(work: Callable[[], object], n: int = 100) -> Run:
    def run() -> float:
        begin = time.perf_counter()
        for _ in range(n):
            work()
        return (time.perf_counter() - begin) / n

    return run


def pairs() -> dict[str, tuple[Run, Run | None]]:
    """Ours, and diffusers' counterpart where there is one."""
    multistep = ("dpmsolver_multistep", "DPMSolverMultistepScheduler")
    return {
        "DDIM": (ours(DDIM(N)), theirs("ddim", "DDIMScheduler", clip_sample=False)),
        "Ancestral": (ours(Ancestral(N)), theirs("ddpm", "DDPMScheduler", clip_sample=False)),
        "Euler": (ours(Euler(N)), theirs("euler_discrete", "EulerDiscreteScheduler")),
        "EulerAncestral": (
            ours(EulerAncestral(N)),
            theirs("euler_ancestral_discrete", "EulerAncestralDiscreteScheduler"),
        ),
        "Heun": (ours(Heun(N)), theirs("heun_discrete", "HeunDiscreteScheduler")),
        "DPM2": (ours(DPM2(N)), theirs("k_dpm_2_discrete", "KDPM2DiscreteScheduler")),
        "DPM2Ancestral": (
            ours(DPM2Ancestral(N)),
            theirs("k_dpm_2_ancestral_discrete", "KDPM2AncestralDiscreteScheduler"),
        ),
        "DPM-Solver-3": (
            ours(DPMSolver(N, order=3)),
            theirs("dpmsolver_singlestep", "DPMSolverSinglestepScheduler", solver_order=3),
        ),
        "DPM++(2S)": (ours(DPMpp2S(N)), theirs("dpmsolver_singlestep", "DPMSolverSinglestepScheduler")),
        "DPM++(SDE)": (ours(DPMppSDE(N)), None),
        "flow Euler": (
            ours(Euler(N), FLOW),
            theirs("flow_match_euler_discrete", "FlowMatchEulerDiscreteScheduler"),
        ),
        "flow Heun": (
            ours(Heun(N, clock=share), FLOW),
            theirs("flow_match_heun_discrete", "FlowMatchHeunDiscreteScheduler"),
        ),
        "LMS-4": (ours(LMS(N)), theirs("lms_discrete", "LMSDiscreteScheduler")),
        "DPM++(2M)": (ours(DPMpp2M(N)), theirs(*multistep)),
        "DPM++(3M)": (ours(DPMpp3M(N)), theirs(*multistep, solver_order=3)),
        "DPM++(2M) SDE": (ours(DPMpp2MSDE(N)), theirs(*multistep, algorithm_type="sde-dpmsolver++")),
        "DEIS-3": (ours(DEIS(N)), theirs("deis_multistep", "DEISMultistepScheduler", solver_order=3)),
        "UniPC-2": (ours(UniPC(N)), theirs("unipc_multistep", "UniPCMultistepScheduler")),
        "UniPC-3": (ours(UniPC(N, order=3)), theirs("unipc_multistep", "UniPCMultistepScheduler", solver_order=3)),
        "PNDM (skip PRK)": (
            ours(PNDM(N, warm_up=heun)),
            theirs("pndm", "PNDMScheduler", skip_prk_steps=True),
        ),
        "auto": (ours(Auto(N)), None),
        "Restart": (ours(Restart(base=Heun(N))), None),
        "Langevin corrector": (ours(PredictorCorrector(N)), None),
        "CLD, EM": (ours(EulerMaruyama(N), *phase()), None),
        "CLD, SSCS": (ours(SSCS(N), *phase()), None),
    }


def phase() -> tuple[Any, torch.Tensor]:
    return NeuralDenoiser(NET, CLD(), mixed), torch.cat([x, x], 1)


def quiet() -> None:
    """diffusers draws its noise through one function; its warnings are of settings that we mean."""
    warnings.filterwarnings("ignore")
    for name in SCHEDULERS:
        module = import_module(f"diffusers.schedulers.scheduling_{name}")
        if hasattr(module, "randn_tensor"):
            module.randn_tensor = lambda *args, **named: answer
    from diffusers.utils import logging

    logging.set_verbosity_error()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out")
    parser.add_argument("--rounds", type=int, default=41)
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    rivals = pairs()
    runs: dict[str, Run] = {"add": many(lambda: x + answer), "net": many(lambda: NET(x, x))}
    runs |= {name: pair[0] for name, pair in rivals.items()}
    runs |= {f"diffusers {name}": pair[1] for name, pair in rivals.items() if pair[1]}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for run in runs.values():
            run()
        for _ in range(options.rounds):
            for name, run in runs.items():
                seconds[name].append(run())
    middle = {name: sorted(s)[len(s) // 2] for name, s in seconds.items()}
    rows: dict[str, Any] = {"us of one add": round(middle["add"] * 1e6, 2), "shape": list(SHAPE)}
    for name in rivals:
        mine = middle[name] - middle["net"]
        rows[name] = {"us per call": round(mine * 1e6, 2), "adds": round(mine / middle["add"], 1)}
        if f"diffusers {name}" in middle:
            rows[name]["times cheaper than diffusers"] = round((middle[f"diffusers {name}"] - middle["net"]) / mine, 1)
    report("samplers_cost", rows, options.out)


if __name__ == "__main__":
    main()
