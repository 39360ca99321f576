"""ADM at 64 x 64: ours beside the official module, same weights, alternately in one process.

    python benchmarks/adm.py CHECKOUT [--rounds 5] [--batch 1] [--shared] [--out benchmarks/results/adm.json]

CHECKOUT is one of openai/guided-diffusion. Measured is a training step of the 296 M-parameter class-conditional network
(theirs: AdamW as it comes and the average parameter by parameter, as train_util.py has them, in float32 without
checkpointing; ours: fused AdamW, the average in one call), and that two answers at once, of a class and of none, cost
what one of twice the batch costs (classifier-free guidance, `guided`). `--shared` counts the processor's seconds of one
thread instead of the clock's, for a machine that others use."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import alternate, ratios, report
from torch import Tensor, nn

from sfumato.conditioning.label import Label
from sfumato.core import guidance
from sfumato.core.denoiser import NeuralDenoiser
from sfumato.core.parametrisation import eps
from sfumato.core.schedules import Discrete
from sfumato.networks import UNet
from sfumato.networks.config import ADM_64
from sfumato.weights.openai import convert

Step = Callable[[], object]
CONFIG = replace(ADM_64, out=6, vector=0)


def official(checkout: Path) -> nn.Module:
    """As `create_model` makes it with the README's flags for 64 x 64."""
    sys.path.insert(0, str(checkout))
    return importlib.import_module("guided_diffusion.unet").UNetModel(
        image_size=64,
        in_channels=3,
        model_channels=192,
        out_channels=6,
        num_res_blocks=3,
        attention_resolutions=(2, 4, 8),
        dropout=0.1,
        channel_mult=(1, 2, 3, 4),
        num_classes=1000,
        num_head_channels=64,
        use_scale_shift_norm=True,
        resblock_updown=True,
        use_new_attention_order=True,
    )


def batch(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, target = torch.randn(n, 3, 64, 64, generator=g), torch.randn(n, 6, 64, 64, generator=g)
    return x, torch.randint(0, 1000, (n,), generator=g), torch.randint(0, 1000, (n,), generator=g), target


def theirs(net: nn.Module, n: int) -> Step:
    x, t, y, target = batch(n)
    parameters = list(net.parameters())
    average = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, foreach=False)

    def step() -> None:
        optimiser.zero_grad()
        F.mse_loss(net(x, t, y=y), target).backward()
        optimiser.step()
        for kept, p in zip(average, parameters, strict=True):
            kept.mul_(0.9999).add_(p.detach(), alpha=1e-4)

    return step


def ours(net: nn.Module, label: Label, n: int) -> Callable[[AbstractContextManager[object]], Step]:
    """One network, one optimiser, in whatever precision."""
    x, t, y, target = batch(n)
    parameters = [*net.parameters(), *label.parameters()]
    average = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True)

    def of(precision: AbstractContextManager[object]) -> Step:
        def step() -> None:
            with precision:
                out = net(x, t.float(), vector=label(y).vector)
            F.mse_loss(out.float(), target).backward()
            optimiser.step()
            optimiser.zero_grad()
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1e-4)

        return step

    return of


def pair(other: nn.Module) -> tuple[UNet, Label, float]:
    """Ours with the weights of theirs, none of them 0, and how far apart their answers are, as a share of the largest
    number."""
    g = torch.Generator().manual_seed(1)
    for p in other.parameters():
        if not p.detach().any():
            p.data.copy_(0.02 * torch.randn(p.shape, generator=g))
    made = convert(other.state_dict(), CONFIG, new_order=True)
    net, label = UNet(CONFIG), Label(1000, CONFIG.told)
    net.load_state_dict(made.network)
    assert made.label is not None
    label.embedding.weight.data.copy_(made.label)
    x, t, y, _ = batch(1)
    with torch.no_grad():
        truth, found = other.eval()(x, t, y=y), net.eval()(x, t.float(), vector=label(y).vector)
    return net, label, float((truth - found).abs().max() / truth.abs().max())


def guided(net: UNet, label: Label, n: int) -> dict[str, Step]:
    """Two answers by classifier-free guidance, and one of twice the batch."""
    x, _, y, _ = batch(n)
    denoiser = NeuralDenoiser(net, Discrete.linear(), eps, learn_variance=True)
    led = guidance.classifier_free(denoiser.given(label(y)), denoiser.given(label.null(n)), 3.0)
    both, vector = torch.cat([x, x]), torch.cat([label(y).vector, label.null(n).vector])
    calls: dict[str, Step] = {
        "twice the batch": lambda: net(both, torch.full((2 * n,), 500.0), vector=vector),
        "guided": lambda: led(x, 0.5).x0,
        "two calls": lambda: [net(x, torch.full((n,), 500.0), vector=v) for v in vector.split(n)],
    }
    return {name: torch.inference_mode()(call) for name, call in calls.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--out")
    options = parser.parse_args()
    if options.shared:
        torch.set_num_threads(1)
    clock = time.process_time if options.shared else time.perf_counter
    other = official(options.checkout)
    net, label, error = pair(other)
    rows: dict[str, object] = {"shared": options.shared, "batch": options.batch, "rounds": options.rounds}
    rows["difference"] = error

    def told(kind: str, rivals: dict[str, Step], base: str) -> None:
        seconds = alternate(rivals, rounds=options.rounds, clock=clock)
        for name in rivals:
            median, low, high = ratios(seconds, base, name)
            best = min(seconds[base]) / min(seconds[name])
            row = {"ms": 1e3 * min(seconds[name]), "ratio": median, "low": low, "high": high, "best": best}
            rows[f"{kind} {name}"] = {key: round(value, 3) for key, value in row.items()}

    told("sampling", guided(net, label, options.batch), "twice the batch")
    of = ours(net.train(), label, options.batch)
    bf16 = torch.autocast("cpu", torch.bfloat16)
    told(
        "train",
        {"official": theirs(other.train(), options.batch), "fp32": of(nullcontext()), "bf16": of(bf16)},
        "official",
    )
    report("adm", rows, options.out)


if __name__ == "__main__":
    main()
