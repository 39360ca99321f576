"""AdamW, clipping and EMA of one step: sfumato against torch.optim.AdamW, clip_grad_norm_ and diffusers' EMAModel.

    python benchmarks/optimiser.py [--rounds 20] [--out result.json]

Both take gradients as autograd leaves them. Alternated in one process; the ratio of each round, then the median.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from torch import nn

from sfumato.engine.ema import EMA, constant
from sfumato.engine.optim import AdamW
from sfumato.recipe import Training

NETWORKS = {
    "DDPM CIFAR-10 U-Net": {
        "block_out_channels": (128, 256, 256, 256),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
    "tiny U-Net": {
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    },
}


def parameters(settings: dict[str, object]) -> dict[str, nn.Parameter]:
    network = UNet2DModel(sample_size=32, in_channels=3, out_channels=3, **settings)
    draw = torch.Generator().manual_seed(0)
    live = dict(network.named_parameters())
    for p in live.values():
        p.grad = 1e-3 * torch.randn(p.shape, generator=draw)
    return live


def usual(live: dict[str, nn.Parameter]) -> Callable[[], None]:
    """The loop that training scripts write."""
    optimiser = torch.optim.AdamW(live.values(), lr=2e-4)
    average = EMAModel(live.values(), decay=0.9999)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(live.values(), 1.0)
        optimiser.step()
        average.step(live.values())

    return step


def ours(live: dict[str, nn.Parameter]) -> Callable[[], None]:
    optimiser = AdamW(live, Training(weight_decay=0.01))
    average = EMA(live, 0.9999, constant)

    def step() -> None:
        norm = optimiser.norm()
        optimiser.step(2e-4, norm, (~torch.isfinite(norm)).float())
        average.update(0, 64)

    return step


def clocked(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def compare(settings: dict[str, object], rounds: int) -> dict[str, float]:
    live = parameters(settings)
    variants = usual(live), ours(parameters(settings))
    for work in variants:
        work()
    rows = [tuple(clocked(work) for work in variants) for _ in range(rounds)]
    return {
        "parameters": sum(p.numel() for p in live.values()),
        "tensors": len(live),
        "usual_ms": statistics.median(a for a, _ in rows),
        "sfumato_ms": statistics.median(b for _, b in rows),
        "ratio": statistics.median(a / b for a, b in rows),
    }


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--rounds", type=int, default=20)
    ask.add_argument("--out", type=Path)
    given = ask.parse_args()
    results = {name: compare(settings, given.rounds) for name, settings in NETWORKS.items()}
    for name, r in results.items():
        print(
            f"{name}: {r['parameters'] / 1e6:.1f}M in {r['tensors']} tensors: usual {r['usual_ms']:.2f} ms, "
            f"sfumato {r['sfumato_ms']:.2f} ms, {r['ratio']:.2f} x"
        )
    if given.out:
        given.out.write_text(
            json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "results": results}, indent=1)
        )


if __name__ == "__main__":
    main()
