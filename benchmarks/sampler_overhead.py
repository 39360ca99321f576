"""What a DDIM step costs outside the network, against diffusers' and against one addition. python
benchmarks/sampler_overhead.py

Both get the same stored tensor as the network's answer. Cost per step of a 50-step trajectory, alternated in one
process."""

from __future__ import annotations

import argparse

import torch
from diffusers import DDIMScheduler
from timing import alternate, ratios, report

from sfumato.core import parametrisation
from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.schedules import Discrete
from sfumato.samplers.ancestral import DDIM

SHAPES = [(1, 3, 32, 32), (64, 3, 32, 32), (1, 4, 64, 64), (4, 4, 128, 128)]


class Stored(torch.nn.Module):
    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.answer


def rivals(shape: tuple[int, ...]):
    x, answer = torch.randn(shape), torch.randn(shape)
    ours, sampler = NeuralDenoiser(Stored(answer), Discrete.linear(), parametrisation.eps), DDIM(50)
    theirs = DDIMScheduler(1000, clip_sample=False)
    theirs.set_timesteps(50)

    def diffusers() -> None:
        y = x
        for t in theirs.timesteps:
            y = theirs.step(answer, t, y).prev_sample

    def add() -> None:
        for _ in range(50):
            torch.add(x, answer)

    return {"sfumato": lambda: sampler(ours, x), "diffusers": diffusers, "one add": add}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    rows = {}
    for shape in SHAPES:
        with torch.no_grad():
            seconds = alternate(rivals(shape), rounds=options.rounds, calls=4)
        rows["x".join(map(str, shape))] = {
            "us per step": {name: round(sorted(s)[len(s) // 2] / 50 * 1e6, 2) for name, s in seconds.items()},
            "times cheaper than diffusers (median, low, high)": [
                round(r, 2) for r in ratios(seconds, "diffusers", "sfumato")
            ],
            "adds (median, low, high)": [round(r, 2) for r in ratios(seconds, "sfumato", "one add")],
        }
    report("sampler_overhead", rows, options.out)


if __name__ == "__main__":
    main()
