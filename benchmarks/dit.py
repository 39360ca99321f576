"""DiT: ours beside the official modules, same weights, alternately in one process.

    python benchmarks/dit.py DIT [--only train forward] [--rounds 5] [--shared] [--out benchmarks/results/dit.json]

DIT is a checkout of facebookresearch/DiT. timm's three pieces that it needs are taken from timm where that is
installed, else from the stand-ins below, which compute what timm 1.0 computes, in the same operations. Measured are the
training step of S/2 at 8 latents of 32 x 32 (theirs: the loop of its train.py, AdamW as it comes, the average parameter
by parameter; ours: fused AdamW, the average in one call) and the answer of XL/2 to 2 of them. Theirs is in float32.
`--shared` counts the processor's seconds of one thread instead of the clock's: the only sound measure while others use
the machine, though their share of memory and core still narrows the ratios. `multiply` is what oneDNN and bfloat16 gain
on one product of the same process: no network of products can gain much more."""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
import sys
import time
import types
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from timing import alternate, ratios, report

from sfumato.networks.dense import dense
from sfumato.networks.dit import DiT
from sfumato.weights.dit import config_of, convert

Step = Callable[[], object]


class PatchEmbed(nn.Module):
    """timm.layers.PatchEmbed, of what DiT asks for."""

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, bias: bool = True) -> None:
        super().__init__()
        self.patch_size, self.num_patches = (patch_size, patch_size), (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """timm.layers.Attention with its fused product."""

    def __init__(self, dim: int, num_heads: int = 8, qkv_bias: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=qkv_bias), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, -1)
        y = F.scaled_dot_product_attention(*packed.permute(2, 0, 3, 1, 4).unbind())
        return self.proj(y.transpose(1, 2).reshape(x.shape))


class Mlp(nn.Module):
    """timm.layers.Mlp."""

    def __init__(self, in_features: int, hidden_features: int, act_layer: Callable[[], nn.Module], drop: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(in_features, hidden_features), nn.Linear(hidden_features, in_features)
        self.act, self.drop = act_layer(), nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


def official(checkout: Path) -> types.ModuleType:
    """models.py of the checkout."""
    if importlib.util.find_spec("timm") is None:
        pieces = types.ModuleType("timm.models.vision_transformer")
        vars(pieces).update(PatchEmbed=PatchEmbed, Attention=Attention, Mlp=Mlp)
        sys.modules |= {name: types.ModuleType(name) for name in ("timm", "timm.models")} | {pieces.__name__: pieces}
    sys.path.insert(0, str(checkout))
    return importlib.import_module("models")


def pair(models: types.ModuleType, name: str) -> tuple[nn.Module, DiT, Tensor]:
    """The official model with random weights, ours with the same, and the table of the classes. Nothing is copied that
    need not be."""
    with torch.device("meta"):
        other = models.DiT_models[name](input_size=32)
    other.to_empty(device="cpu")
    bank = 0.02 * torch.randn(2**20 + 7)
    for parameter in other.parameters():  # drawing 675 million numbers would take longer than the measurement
        flat = parameter.data.view(-1)
        flat.copy_(bank.repeat(-(-len(flat) // len(bank)))[: len(flat)])
    grid = models.get_2d_sincos_pos_embed(other.pos_embed.shape[-1], 16)
    other.pos_embed.data.copy_(torch.from_numpy(grid).float())
    state = other.state_dict()
    config = config_of(state)
    made = convert(state, config)
    with torch.device("meta"):
        net = DiT(config)
    net.load_state_dict({key: value.detach() for key, value in made.network.items()}, assign=True)
    assert made.label is not None
    return other.eval(), net.eval(), made.label


def agreed(other: nn.Module, net: DiT, label: Tensor) -> float:
    """Relative to the greatest number: the rounding of float32."""
    x, t, y = batch(1)
    with torch.no_grad():
        truth, found = other(x, t, y), net(x, t, vector=label[y])
    return float((truth - found).abs().max() / truth.abs().max())


def batch(n: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, 32, 32, generator=generator)
    return x, torch.rand(n, generator=generator) * 999, torch.randint(1000, (n,), generator=generator)


def theirs(net: nn.Module, n: int) -> Step:
    """One step of train.py, without diffusion and workers."""
    (x, t, y), average = batch(n), copy.deepcopy(net).requires_grad_(False)
    target, optimiser = torch.randn(n, 8, 32, 32), torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0)

    def step() -> None:
        loss = F.mse_loss(net(x, t, y), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        copies = dict(average.named_parameters())
        for name, parameter in net.named_parameters():
            copies[name].mul_(0.9999).add_(parameter.data, alpha=1e-4)

    return step


def ours(net: DiT, label: Tensor, n: int, precision: AbstractContextManager[object]) -> Step:
    (x, t, y), table = batch(n), nn.Parameter(label.clone())
    parameters, target = [*net.parameters(), table], torch.randn(n, 8, 32, 32)
    average = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0, fused=True)

    def step() -> None:
        with precision:
            out = net(x, t, vector=table[y])
        F.mse_loss(out.float(), target).backward()
        optimiser.step()
        optimiser.zero_grad()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1e-4)

    return step


def training(models: types.ModuleType, n: int) -> tuple[dict[str, Step], float]:
    other, net, label = pair(models, "DiT-S/2")
    error, again = agreed(other, net, label), copy.deepcopy(net)
    bf16 = torch.autocast("cpu", torch.bfloat16)
    rivals = {
        "official": theirs(copy.deepcopy(other), n),
        "fp32": ours(copy.deepcopy(net), label, n, nullcontext()),
        "bf16": ours(again, label, n, bf16),
    }
    return rivals, error


def forward(models: types.ModuleType, n: int) -> tuple[dict[str, Step], float]:
    other, net, label = pair(models, "DiT-XL/2")
    x, t, y = batch(n)
    error, told = agreed(other, net, label), label[y]
    half = copy.deepcopy(net).bfloat16()
    calls: dict[str, Step] = {
        "official": lambda: other(x, t, y),
        "fp32": lambda: net(x, t, vector=told),
        "bf16": lambda: half(x.bfloat16(), t, vector=told.bfloat16()),
    }
    return {name: torch.inference_mode()(call) for name, call in calls.items()}, error


def multiply(models: types.ModuleType, n: int) -> tuple[dict[str, Step], float]:
    a, layer = torch.randn(2048, 1152), nn.Linear(1152, 1152, bias=False)
    half, low = copy.deepcopy(layer).bfloat16(), a.bfloat16()
    calls: dict[str, Step] = {"official": lambda: layer(a), "fp32": lambda: dense(a, layer), "bf16": lambda: half(low)}
    return {name: torch.inference_mode()(call) for name, call in calls.items()}, 0.0


KINDS = {"multiply": multiply, "train": training, "forward": forward}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--only", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs=2, default=(8, 2), help="of training, of the forward pass")
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--out")
    options = parser.parse_args()
    if options.shared:
        torch.set_num_threads(1)
    models = official(options.checkout)
    rows: dict[str, object] = {"shared": options.shared, "batch": list(options.batch), "rounds": options.rounds}
    for kind in options.only:
        rivals, error = KINDS[kind](models, options.batch[kind == "forward"])
        clock = time.process_time if options.shared else time.perf_counter
        seconds = alternate(rivals, rounds=options.rounds, clock=clock)
        least = {name: min(times) for name, times in seconds.items()}
        for name in rivals:
            median, low, high = ratios(seconds, "official", name)
            row = {"ms": 1e3 * least[name], "ratio": median, "low": low, "high": high}
            rows[f"{kind} {name}"] = row | {"best": least["official"] / least[name], "difference": error}
    report("dit", rows, options.out)


if __name__ == "__main__":
    main()
