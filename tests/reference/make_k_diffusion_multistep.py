"""Records k-diffusion's samplers with memory. Run once, where k-diffusion is installed.

Writes k_diffusion_multistep.json beside itself: the grid, the start, the noise of each step and where every sampler
ends, in float64, for the exact denoiser of the mixture 0.5 N(-1, 0.5^2) + 0.5 N(1, 0.5^2).
"""

import importlib
import importlib.metadata
import importlib.util
import json
import sys
import types
from pathlib import Path

import torch

STEPS, SEED = 12, 20240531

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


def main():
    torch.manual_seed(SEED)
    sigmas = sampling.get_sigmas_karras(STEPS, 0.002, 80.0).double()
    x = 80.0 * torch.randn(2, 4, dtype=torch.float64)
    noise = torch.randn(STEPS, 2, 4, dtype=torch.float64)
    step = {float(sigma): z for sigma, z in zip(sigmas, noise, strict=False)}

    def drawn(sigma, sigma_next):
        return step[float(sigma)]

    runs = {
        f"lms {order}": lambda order=order: sampling.sample_lms(denoiser, x, sigmas, disable=True, order=order)
        for order in (1, 2, 3, 4)
    }
    runs["2m"] = lambda: sampling.sample_dpmpp_2m(denoiser, x, sigmas, disable=True)
    for name, sample in (("2m sde", sampling.sample_dpmpp_2m_sde), ("3m sde", sampling.sample_dpmpp_3m_sde)):
        for eta in (0.0, 0.5, 1.0):
            runs[f"{name} {eta:g}"] = lambda sample=sample, eta=eta: sample(
                denoiser, x, sigmas, disable=True, eta=eta, noise_sampler=drawn
            )
    record = {
        "source": "https://github.com/crowsonkb/k-diffusion",
        "version": importlib.metadata.version("k-diffusion"),
        "torch": torch.__version__,
        "seed": SEED,
        "sigmas": sigmas.tolist(),
        "x": x.tolist(),
        "noise": noise.tolist(),
        "ends": {name: run().tolist() for name, run in runs.items()},
    }
    Path(__file__).with_name("k_diffusion_multistep.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
