"""DiT with official weights: as the official module answers (recorded), as diffusers answers, there and back."""

import json
import math
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.networks.dit import DiT, DiTConfig, positions
from sfumato.weights.conversion import Converted
from sfumato.weights.dit import config_of, convert, to_diffusers, to_official
from tests.weights.filling import fill, normal, pictures

HERE = Path(__file__).parent.parent / "reference"
ABOUT = json.loads((HERE / "dit.json").read_text())
CASES = ("latents", "pixels")
TIMES, LABELS = [0.0, 999.0, 17.0, 500.25], [0, 9, 10, 4]


@cache
def recorded() -> dict[str, np.ndarray]:
    with np.load(HERE / "dit.npz") as file:
        return dict(file)


class Exact(nn.Module):
    """The features of the time in float64, which ours are in float32."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, time: Tensor) -> Tensor:
        k = torch.arange(128, dtype=torch.float64)
        angle = time.double()[:, None] * 10_000 ** (-k / (128 - self.shift))
        return torch.cat([angle.cos(), angle.sin()], 1)


def weights(name: str) -> dict[str, Tensor]:
    about = ABOUT[name]
    shapes = {key: shape for key, shape in about["shapes"].items() if key != "pos_embed"}
    return {key: value.double() for key, value in fill(shapes, about["seed"]).items()}


def network(config: DiTConfig, tables: Converted) -> DiT:
    net = DiT(config).eval().double()
    net.load_state_dict(tables.network)
    net.time.features = Exact(config.shift)
    return net


def config(name: str) -> DiTConfig:
    return replace(config_of(weights(name)), heads=ABOUT[name]["settings"]["num_heads"])


@pytest.mark.parametrize("name", CASES)
def test_equals_the_official_module(name: str) -> None:
    """In float64 to 1e-12 of the greatest number, which no wrong wire would pass."""
    tables = convert(weights(name), config(name))
    assert tables.label is not None
    net, x = network(config(name), tables), pictures(ABOUT[name]["seed"], config(name).channels, 16).double()
    with torch.no_grad():
        out = net(x, torch.tensor(TIMES, dtype=torch.float64), vector=tables.label[LABELS])
    truth = torch.from_numpy(recorded()[name])
    assert (out[..., 3:9, 5:13] - truth).abs().max().item() < 1e-12 * ABOUT[name]["scale"]
    side, width = 16 // config(name).patch, config(name).width
    ours = positions((side, side), width)[::5, ::7].numpy()
    assert np.array_equal(ours, recorded()[f"{name} positions"]), "positions are the same to the last bit"


def diffusers(net: DiT, label: Tensor, *, patched: bool) -> nn.Module:
    """`DiTTransformer2DModel` with our weights; `patched`: without its two deviations from the official model."""
    c = net.config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import DiTTransformer2DModel
    other: nn.Module = DiTTransformer2DModel(
        num_attention_heads=c.heads,
        attention_head_dim=c.width // c.heads,
        in_channels=c.channels,
        out_channels=c.out,
        num_layers=c.depth,
        sample_size=16,
        patch_size=c.patch,
        num_embeds_ada_norm=len(label) - 1,
    )
    other = other.eval().double()
    found = other.load_state_dict(to_diffusers(net.state_dict(), label, c), strict=False)
    assert not found.unexpected_keys and set(found.missing_keys) <= {"pos_embed.pos_embed"}
    for block in other.transformer_blocks:
        block.norm1.emb.time_proj = Exact(0.0 if patched else 1.0)
        block.norm3.eps = 1e-6 if patched else block.norm3.eps
    return other


@pytest.mark.parametrize("patched", [True, False])
def test_equals_diffusers(patched: bool) -> None:
    """Either as the official model is, or with diffusers' deviations as values of our config."""
    shape = config("latents") if patched else replace(config("latents"), shift=1.0, eps_mlp=1e-5)
    tables = convert(weights("latents"), shape)
    assert tables.label is not None
    net, x = network(shape, tables), normal(5, 4, 4, 16, 16).double()
    other, t = diffusers(net, tables.label, patched=patched), torch.tensor([0, 999, 17, 500])
    with torch.no_grad():
        truth = other(x, timestep=t, class_labels=torch.tensor(LABELS)).sample
        ours = net(x, t.double(), vector=tables.label[LABELS])
        official = network(config("latents"), tables)(x, t.double(), vector=tables.label[LABELS])
    assert (ours - truth).abs().max().item() < 1e-6 * truth.abs().max().item()
    apart = (official - truth).abs().max() / truth.abs().max().item()
    assert apart < 1e-6 if patched else apart > 1e-4, apart


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name: str) -> None:
    state, shape = weights(name), config(name)
    tables = convert(state, shape)
    back = to_official(tables.network, tables.label, shape, side=16)
    assert {key: list(value.shape) for key, value in back.items()} == ABOUT[name]["shapes"]
    assert all(torch.equal(back[key], value) for key, value in state.items())
    again = convert(back, shape)
    assert all(torch.equal(again.network[key], value) for key, value in tables.network.items())
    assert again.label is not None and torch.equal(again.label, state["y_embedder.embedding_table.weight"])


def test_of_a_training_checkpoint_the_average_is_taken() -> None:
    state = weights("latents")
    worse = {f"module.{key}": value + 1 for key, value in state.items()}
    found = {"model": worse, "ema": state, "opt": {"state": {}, "param_groups": []}, "args": None}
    assert config_of(found) == config_of(state)
    plain = convert(state, config("latents")).network
    assert all(torch.equal(value, plain[key]) for key, value in convert(found, config("latents")).network.items())
    del found["ema"]
    assert torch.equal(convert(found, config("latents")).network["stem.bias"], plain["stem.bias"] + 1)


@pytest.mark.parametrize("width", [384, 768, 1024, 1152])
def test_what_weights_are_of_is_read_from_them(width: int) -> None:
    heads = {384: 6, 768: 12, 1024: 16, 1152: 16}[width]
    shape = DiTConfig(patch=4, channels=4, out=8, width=width, depth=2, heads=heads)
    with torch.device("meta"):
        state = to_official(DiT(shape).state_dict(), None, shape)
    assert config_of(state) == shape


def test_weights_that_do_not_fit_are_refused() -> None:
    state, shape = weights("latents"), config("latents")
    with pytest.raises(UserError, match="no weights of a DiT"):
        config_of({"conv_in.weight": torch.zeros(3)})
    with pytest.raises(UserError, match=r"blocks\.2\.attn"):
        convert({key: value for key, value in state.items() if "blocks.2.attn" not in key}, shape)
    with pytest.raises(UserError, match="no place"):
        convert(state | {"extra": torch.zeros(1)}, shape)
    with pytest.raises(UserError, match="shape"):
        convert(state, replace(shape, width=128))
    learned = torch.full((1, 64, 64), math.pi)
    with pytest.raises(UserError, match="positions"):
        convert(state | {"pos_embed": learned}, shape)
