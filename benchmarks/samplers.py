"""Which sampler, at how many network calls: exact mixtures of normals, ours against every setting of the peers.

    python benchmarks/samplers.py --dims 2 16 64 --out benchmarks/results/samplers.json --plot docs/images/samplers.png

Mixtures of 10 diagonal normals, scaled to unit variance, of which the denoiser is known in closed form (float64); the
linear table of 1,000 betas; 1,024 starts for each of three mixtures; truth by RK4 in log sigma (1,000 steps). All
samplers begin with the same x_T and may call the denoiser N times. Errors per dimension at the end: the median over
samples, and the root mean square, which those dominate that land in another component. k-diffusion and azula take part
where they are installed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from timing import machine
from torch import Tensor

from sfumato.core import times
from sfumato.core.estimate import Estimate
from sfumato.core.schedules import Discrete, betas
from sfumato.samplers.ancestral import DDIM
from sfumato.samplers.auto import Auto
from sfumato.samplers.multistep import DEIS, LMS, DPMpp2M, DPMpp3M
from sfumato.samplers.pndm import PNDM, heun
from sfumato.samplers.unipc import UniPC

CALLS = (10, 15, 20, 30, 50, 100)
PROCESS = Discrete.linear()
TOP = PROCESS.at(1.0)
COMPONENTS, STARTS, SEEDS = 10, 1024, (0, 1, 2)


class Mixture:
    """Seeded; counts how often it is asked. `x0(x, s)` is the posterior mean of x = x0 + s eps."""

    def __init__(self, seed: int, dims: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        means = torch.randn(COMPONENTS, dims, generator=draw, dtype=torch.float64)
        stds = 0.05 + 0.45 * torch.rand(COMPONENTS, dims, generator=draw, dtype=torch.float64)
        scale = ((stds**2 + means**2).mean(0) - means.mean(0) ** 2).sqrt()
        self.means, self.variances = (means - means.mean(0)) / scale, (stds / scale) ** 2
        self.calls = 0

    def x0(self, x: Tensor, s: float) -> Tensor:
        self.calls += 1
        variances = self.variances + s * s
        away = x[:, None] - self.means
        weights = (-0.5 * (away * away / variances + variances.log()).sum(-1)).softmax(-1)
        return (weights[..., None] * (self.means + self.variances / variances * away)).sum(1)

    def slope(self, x: Tensor, log_s: float) -> Tensor:
        """dx / d log s of the probability flow."""
        return x - self.x0(x, math.exp(log_s))

    def flow(self, x: Tensor, high: float, low: float = 1e-4, steps: int = 1000) -> Tensor:
        """Where x at noise level `high` comes from, by RK4."""
        h = (math.log(low) - math.log(high)) / steps
        for i in range(steps):
            u = math.log(high) + i * h
            a = self.slope(x, u)
            b = self.slope(x + h / 2 * a, u + h / 2)
            c = self.slope(x + h / 2 * b, u + h / 2)
            x = x + h / 6 * (a + 2 * b + 2 * c + self.slope(x + h * c, u + h))
        return self.x0(x, low)


class Denoiser:
    """The mixture in sfumato's terms."""

    process = PROCESS

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture

    def __call__(self, xt: Tensor, t: object) -> Estimate:
        point = PROCESS.at(t)  # type: ignore[arg-type]
        return Estimate.from_x0(PROCESS, point, xt, self.mixture.x0(xt / point.alpha, point.ratio))


Run = Callable[[Mixture, Tensor, int], Tensor]  # (mixture, x_T, calls) -> x_0


def ours() -> dict[str, Run]:
    def run(make: Callable[[int], object]) -> Run:
        return lambda mixture, x, n: make(n)(Denoiser(mixture), x)  # type: ignore[operator]

    return {
        "auto": run(lambda n: Auto(steps=n)),
        "ddim": run(lambda n: DDIM(n)),
        "dpmpp_2m, log_snr": run(lambda n: DPMpp2M(n, times.log_snr)),
        "dpmpp_2m, power": run(lambda n: DPMpp2M(n, times.power)),
        "dpmpp_3m, log_snr": run(lambda n: DPMpp3M(n, times.log_snr)),
        "unipc, log_snr": run(lambda n: UniPC(n, times.log_snr)),
        "unipc of order 3, balanced": run(lambda n: UniPC(n, times.balanced, order=3)),
        "lms, power": run(lambda n: LMS(n, times.power)),
        "deis, log_snr": run(lambda n: DEIS(n, times.log_snr)),
        "pndm (plms), uniform": run(lambda n: PNDM(n - 1, warm_up=heun)),
    }


# -- peers -------------------------------------------------------------------------------------------------------------


def diffusers() -> dict[str, Run]:
    """Each scheduler in the settings that people use, asked at its own noise levels."""
    import diffusers as d

    table = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    karras, exponential, lu = {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_lu_lambdas": True}
    multi, unipc = d.DPMSolverMultistepScheduler, d.UniPCMultistepScheduler
    settings: dict[str, tuple[type, dict[str, object]]] = {
        "DDIM": (d.DDIMScheduler, {"clip_sample": False}),
        "DDIM trailing": (d.DDIMScheduler, {"clip_sample": False, "timestep_spacing": "trailing"}),
        "PNDM (as Stable Diffusion)": (d.PNDMScheduler, {"skip_prk_steps": True, "steps_offset": 1}),
        "Euler": (d.EulerDiscreteScheduler, {}),
        "Euler karras": (d.EulerDiscreteScheduler, karras),
        "Heun": (d.HeunDiscreteScheduler, {}),
        "Heun karras": (d.HeunDiscreteScheduler, karras),
        "LMS": (d.LMSDiscreteScheduler, {}),
        "LMS karras": (d.LMSDiscreteScheduler, karras),
        "DEIS": (d.DEISMultistepScheduler, {}),
        "DEIS order 3": (d.DEISMultistepScheduler, {"solver_order": 3}),
    }
    for name, kind in (("DPM++2M", multi), ("UniPC", unipc)):
        for suffix, extra in (("", {}), (" karras", karras), (" exponential", exponential)):
            settings[name + suffix] = (kind, dict(extra))
            settings[f"{name} order 3{suffix}"] = (kind, {"solver_order": 3, **extra})
    settings["DPM++2M lu, euler at final"] = (multi, {**lu, "euler_at_final": True})
    settings["DPM++3M lu, euler at final"] = (multi, {**lu, "euler_at_final": True, "solver_order": 3})

    def run(kind: type, changes: dict[str, object]) -> Run:
        return lambda mixture, x, n: _scheduled(kind(**table, **changes), mixture, x, n)

    return {f"diffusers {name}": run(*setting) for name, setting in settings.items()}


def _scheduled(scheduler, mixture: Mixture, x: Tensor, n: int) -> Tensor:
    twice = "Heun" in type(scheduler).__name__
    scheduler.set_timesteps((n + 1) // 2 if twice else n)
    ve = "Discrete" in type(scheduler).__name__
    x = x * scheduler.init_noise_sigma if ve else x.clone()
    alpha_bar = torch.cumprod(1 - betas.linear(), 0)
    for i, t in enumerate(scheduler.timesteps):
        if mixture.calls >= n:
            break  # PNDM repeats a step: the last one is not taken
        if ve:
            scheduler.scale_model_input(x, t)
            s = float(scheduler.sigmas[scheduler.step_index])
        elif hasattr(scheduler, "sigmas"):
            s = float(scheduler.sigmas[i])
        else:
            s = float((1 / alpha_bar[int(t)] - 1).sqrt())
        plain = x if ve else x * math.sqrt(1 + s * s)
        x = scheduler.step((plain - mixture.x0(plain, s)) / s, t, x).prev_sample
    return x


def k_diffusion() -> dict[str, Run]:
    found = importlib.util.find_spec("k_diffusion")
    if found is None:
        return {}
    package = types.ModuleType("k_diffusion")  # without what its __init__ pulls in
    package.__path__ = list(found.submodule_search_locations or ())
    package.__spec__ = found
    utils = types.ModuleType("k_diffusion.utils")  # its own needs torchvision
    utils.append_dims = lambda x, dims: x.reshape(x.shape + (1,) * (dims - x.ndim))  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    k = importlib.import_module("k_diffusion.sampling")
    low, high = PROCESS.at(PROCESS.first).ratio, TOP.ratio

    def run(sample: Callable, grid: Callable, per: int) -> Run:
        def go(mixture: Mixture, x: Tensor, n: int) -> Tensor:
            sigmas = grid(n if per == 1 else (n + 1) // 2, low, high).double()
            model = lambda y, s: mixture.x0(y, float(s[0]))  # noqa: E731
            return sample(model, x / TOP.alpha, sigmas, disable=True)

        return go

    named = {"euler": 1, "heun": 2, "dpm_2": 2, "lms": 1, "dpmpp_2m": 1}
    grids = {"karras": k.get_sigmas_karras, "exponential": k.get_sigmas_exponential}
    return {
        f"k-diffusion {name}, {grid}": run(getattr(k, f"sample_{name}"), make, per)
        for name, per in named.items()
        for grid, make in grids.items()
    }


def azula() -> dict[str, Run]:
    if importlib.util.find_spec("azula") is None:
        return {}
    from azula.noise import VESchedule
    from azula.sample import xEABSampler, zEABSampler

    schedule = VESchedule(PROCESS.at(PROCESS.first).ratio, TOP.ratio)

    def run(kind: type, order: int) -> Run:
        def go(mixture: Mixture, x: Tensor, n: int) -> Tensor:
            def denoise(y: Tensor, t: Tensor) -> types.SimpleNamespace:
                return types.SimpleNamespace(mean=mixture.x0(y, float(schedule.sigma(t))))

            denoise.schedule = schedule  # type: ignore[attr-defined]
            return kind(denoise, order=order, steps=n, silent=True, dtype=torch.float64)(x / TOP.alpha)

        return go

    kinds = {"zEAB": zEABSampler, "xEAB": xEABSampler}
    return {f"azula {name} of order {o}": run(kind, o) for name, kind in kinds.items() for o in (2, 3)}


# -- measuring ---------------------------------------------------------------------------------------------------------


def errors(run: Run, problems: list[tuple[Mixture, Tensor, Tensor]], calls: int) -> tuple[float, float] | None:
    """Geometric means over the mixtures of (median, root mean square); None where a peer fails."""
    medians, squares = [], []
    for mixture, x, truth in problems:
        mixture.calls = 0
        try:
            off = run(mixture, x, calls) - truth
        except (RuntimeError, ValueError, IndexError, AssertionError):
            return None
        assert mixture.calls <= calls, (mixture.calls, calls)
        medians.append(off.square().mean(-1).sqrt().median().item())
        squares.append(off.square().mean().sqrt().item())
    return tuple(math.exp(sum(map(math.log, row)) / len(row)) for row in (medians, squares))  # type: ignore[return-value]


def table(dims: int) -> dict[str, list[tuple[float, float] | None]]:
    problems = []
    for seed in SEEDS:
        mixture = Mixture(seed, dims)
        x = torch.randn(STARTS, dims, generator=torch.Generator().manual_seed(100 + seed), dtype=torch.float64)
        problems.append((mixture, x, mixture.flow(x / TOP.alpha, TOP.ratio)))
    out = {}
    for name, run in {**ours(), **diffusers(), **k_diffusion(), **azula()}.items():
        out[name] = [errors(run, problems, n) for n in CALLS]
        cells = [f"{e[0]:8.1e} {e[1]:6.4f}" if e else "       -      -" for e in out[name]]
        print(f"{dims:3d}-D {name:40s}", *cells, flush=True)
    return out


def verdict(rows: dict[str, list[tuple[float, float] | None]]) -> dict[str, object]:
    """auto against each peer in the mean over the columns, and against the best peer in each column."""
    peers = {n: r for n, r in rows.items() if n.split()[0] in ("diffusers", "k-diffusion", "azula") and all(r)}
    mean = lambda row, k: math.exp(sum(math.log(e[k]) for e in row) / len(row))  # noqa: E731
    out: dict[str, object] = {}
    for k, what in enumerate(("median", "rms")):
        best = min(peers, key=lambda n: mean(peers[n], k))
        columns = [rows["auto"][i][k] / min(r[i][k] for r in peers.values()) for i in range(len(CALLS))]
        out[what] = {
            "auto": mean(rows["auto"], k),
            "best peer": [best, mean(peers[best], k)],
            "auto / best peer of each column": [round(c, 3) for c in columns],
        }
    return {**out, "peer settings": len(peers)}


def plot(rows: dict[str, list[tuple[float, float] | None]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), sharex=True)
    for k, (axis, what) in enumerate(zip(axes, ("median error", "root mean square error"), strict=True)):
        for name, row in rows.items():
            peer = name.split()[0] in ("diffusers", "k-diffusion", "azula")
            values = [e[k] if e else math.nan for e in row]
            if name == "auto" or peer:
                axis.plot(
                    CALLS, values, color="#c4472b" if name == "auto" else "#9aa3ad", lw=2.4 if name == "auto" else 0.7
                )
        axis.set(xscale="log", yscale="log", xlabel="network calls", title=what, xticks=CALLS, xticklabels=CALLS)
        axis.set_ylim(top=2)
        axis.minorticks_off()
    axes[0].plot([], [], color="#c4472b", lw=2.4, label="sfumato auto")
    axes[0].plot([], [], color="#9aa3ad", lw=0.7, label="settings of diffusers, k-diffusion, azula")
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[16])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = {}
    for dims in asked.dims:
        rows = table(dims)
        results[str(dims)] = {"verdict": verdict(rows), "rows": rows}
        print(json.dumps(results[str(dims)]["verdict"], indent=1))
        if asked.out:
            asked.out.write_text(json.dumps({"machine": machine(), "calls": CALLS, "dims": results}, indent=1) + "\n")
        if asked.plot and dims == 16:
            plot(rows, asked.plot)


if __name__ == "__main__":
    main()
