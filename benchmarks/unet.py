"""Training step of a U-Net: ours beside diffusers' `UNet2DModel`, same weights, alternately in one process.

    python benchmarks/unet.py --rounds 7 --out benchmarks/results/unet.json

diffusers runs the plain loop of its own training examples: fp32, AdamW as it comes, `clip_grad_norm_`, `EMAModel`,
`loss.item()`. Ours: fused AdamW, one norm over all gradients, EMA by one `_foreach_lerp_`, no `.item()`. Prints for
each variant the median time, the median, least and greatest per-round ratio to the baseline (> 1 is faster), and the
ratio of the best times, which a noisy machine disturbs least. `--shared` counts the processor's seconds of one thread
instead of the clock's: the only sound measure while others use the machine.
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import machine
from torch import Tensor, nn

from sfumato.networks import HO_CIFAR10, UNet, UNetConfig

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.networks.to_diffusers import twin

Step = Callable[[], None]
NETWORKS: dict[str, tuple[UNetConfig, int, int]] = {  # config, side, batch
    "ddpm": (HO_CIFAR10, 32, 16),
    "small": (UNetConfig(widths=(64, 128, 128), dropout=0.1), 32, 32),
    "tiny": (UNetConfig(widths=(32, 64, 64), blocks=1, channels=1, out=1, attention=(2,)), 28, 64),
}


def batch_of(config: UNetConfig, side: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, config.channels, side, side, generator=generator)
    return x, torch.randint(1000, (n,), generator=generator), torch.randn(x.shape, generator=generator)


def theirs(net: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Step:
    """The loop of diffusers' examples/unconditional_image_generation, without accelerate."""
    from diffusers.training_utils import EMAModel

    x, t, eps = batch
    optimiser, ema = torch.optim.AdamW(net.parameters(), lr=1e-4), EMAModel(net.parameters(), decay=0.9999)

    def step() -> None:
        loss = F.mse_loss(net(x, t).sample, eps)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        ema.step(net.parameters())
        loss.item()

    return step


def ours(net: nn.Module, batch: tuple[Tensor, Tensor, Tensor], precision: AbstractContextManager[object]) -> Step:
    x, t, eps = batch
    parameters = list(net.parameters())
    average = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> None:
        with precision:
            out = net(x, t.float())
        F.mse_loss(out.float(), eps).backward()
        grads = [p.grad for p in parameters if p.grad is not None]
        scale = (1.0 / (torch.stack(torch._foreach_norm(grads)).norm() + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(grads, scale)
        optimiser.step()
        optimiser.zero_grad()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1e-4)

    return step


def variants(config: UNetConfig, side: int, n: int) -> dict[str, Step]:
    torch.manual_seed(0)
    first = UNet(config)
    nets = {"fp32": first, "bf16": UNet(config)}
    nets["bf16"].load_state_dict(first.state_dict())
    other, batch = twin(first, side), batch_of(config, side, n)
    bf16 = torch.autocast("cpu", torch.bfloat16)
    return {
        "diffusers fp32": theirs(other.train(), batch),
        "ours fp32": ours(nets["fp32"], batch, nullcontext()),
        "ours bf16": ours(nets["bf16"], batch, bf16),
    }


def alternate(steps: dict[str, Step], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every round; the order turns round by round, and one round is thrown away first."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name in list(steps)[:: 1 if turn % 2 else -1]:
            start = clock()
            steps[name]()
            if turn:
                seconds[name].append(clock() - start)
    return seconds


def summary(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    base = next(iter(seconds.values()))
    rows = {}
    for name, times in seconds.items():
        ratios = [b / t for b, t in zip(base, times, strict=True)]
        rows[name] = {
            "ms": 1e3 * statistics.median(times),
            "ratio": statistics.median(ratios),
            "low": min(ratios),
            "high": max(ratios),
            "best": min(base) / min(times),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["ddpm"], choices=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.shared:
        torch.set_num_threads(1)
    clock = time.process_time if options.shared else time.perf_counter
    warnings.simplefilter("ignore")
    here = machine("diffusers")
    report: dict[str, object] = {"machine": here, "rounds": options.rounds, "shared": options.shared}
    print(*(f"{key} {value}" for key, value in here.items()), sep=", ")
    for name in options.networks:
        config, side, n = NETWORKS[name]
        rows = summary(alternate(variants(config, side, n), options.rounds, clock))
        report[name] = {"batch": n, "side": side, "variants": rows}
        for variant, row in rows.items():
            print(
                f"{name:6} {variant:15} {row['ms']:8.1f} ms   {row['ratio']:.2f}x [{row['low']:.2f}, {row['high']:.2f}]"
                f"   best {row['best']:.2f}x"
            )
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
