"""Records k-diffusion's one-step samplers. Run once, where k-diffusion is installed.

Writes k_diffusion_onestep.json beside itself: the grid, the start, the noise of each step and where every sampler ends,
in float64, for the exact denoiser of the mixture 0.5 N(-1, 0.5^2) + 0.5 N(1, 0.5^2). Noise is fed in: one draw a step,
and for `sample_dpmpp_sde` two, as increments of one Brownian motion in sigma, which is what its tree gives.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import sys
import types
from pathlib import Path

import torch

STEPS, SEED = 12, 20240601
CHURN = {"s_churn": 6.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}

# the samplers alone: neither what the package's __init__ pulls in nor torchvision, which needs its own build of torch
package = types.ModuleType("k_diffusion")
package.__path__ = list(importlib.util.find_spec("k_diffusion").submodule_search_locations)
vision = {name: types.ModuleType(name) for name in ("torchvision", "torchvision.transforms")}
vision["torchvision.transforms"].functional = None
sys.modules |= {"k_diffusion": package, **vision}
sampling = importlib.import_module("k_diffusion.sampling")


def denoiser(x, sigma):
    s2 = 0.25 + (sigma * sigma)[:, None]
    return (0.25 * x + (sigma * sigma)[:, None] * torch.tanh(x / s2)) / s2


def churned(sample, x, sigmas, noise, **settings):
    """The sampler with torch.randn_like replaced by the noise of its step: it draws one per step, needed or not."""
    rest = iter(noise)
    true, torch.randn_like = torch.randn_like, lambda _: next(rest)
    try:
        return sample(denoiser, x, sigmas, disable=True, **settings)
    finally:
        torch.randn_like = true


def brownian(sigmas, noise, again):
    """(sigma, sigma_next) -> a normal draw: increments of a motion whose value at every sigma is settled on first use.
    The first half of step i is noise[i], the second again[i]."""
    step = {float(sigma): i for i, sigma in enumerate(sigmas)}

    def drawn(sigma, sigma_next):
        i = min(step.values(), key=lambda j: abs(float(sigmas[j]) - float(sigma)))
        a, m, b = sigmas[i], (sigmas[i] * sigmas[i + 1]) ** 0.5, sigmas[i + 1]
        if abs(float(sigma_next) - float(b)) > 1e-9 * float(b):
            return noise[i]
        return ((a - m) ** 0.5 * noise[i] + (m - b) ** 0.5 * again[i]) / (a - b) ** 0.5

    return drawn


def main():
    torch.manual_seed(SEED)
    sigmas = sampling.get_sigmas_karras(STEPS, 0.002, 80.0).double()
    x = 80.0 * torch.randn(2, 4, dtype=torch.float64)
    noise, again = torch.randn(2, STEPS, 2, 4, dtype=torch.float64)
    step = {float(sigma): z for sigma, z in zip(sigmas, noise, strict=False)}
    ends = {}
    for name in ("euler", "heun", "dpm_2"):
        sample = getattr(sampling, f"sample_{name}")
        ends[name] = churned(sample, x, sigmas, noise)
        ends[f"{name} churn"] = churned(sample, x, sigmas, noise, **CHURN)
    for name in ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral"):
        for eta in (0.0, 0.5, 1.0):
            ends[f"{name} {eta:g}"] = getattr(sampling, f"sample_{name}")(
                denoiser, x, sigmas, disable=True, eta=eta, noise_sampler=lambda a, b: step[float(a)]
            )
    for eta in (0.0, 0.5, 1.0):
        ends[f"dpmpp_sde {eta:g}"] = sampling.sample_dpmpp_sde(
            denoiser, x, sigmas, disable=True, eta=eta, noise_sampler=brownian(sigmas, noise, again)
        )
    record = {
        "source": "https://github.com/crowsonkb/k-diffusion",
        "version": importlib.metadata.version("k-diffusion"),
        "torch": torch.__version__,
        "seed": SEED,
        "churn": CHURN,
        "sigmas": sigmas.tolist(),
        "x": x.tolist(),
        "noise": noise.tolist(),
        "again": again.tolist(),
        "ends": {name: end.tolist() for name, end in ends.items()},
    }
    Path(__file__).with_name("k_diffusion_onestep.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
