"""Our networks with converted weights against what the official modules said of the same (tests/reference)."""

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfumato.networks import UNet, UNetConfig
from sfumato.weights import Converted, ddpm, edm, openai, score_sde
from tests.weights.filling import augmentation, fill, pictures, told

HERE = Path(__file__).parent.parent / "reference"
ABOUT = json.loads((HERE / "networks.json").read_text())
CASES = sorted(ABOUT.keys() - {"torch"})
CONVERT = {
    "pytorch_diffusion": ddpm.convert,
    "improved-diffusion": openai.convert,
    "guided-diffusion": openai.convert,
    "score_sde_pytorch": score_sde.convert,
    "CLD-SGM": score_sde.convert,
    "edm": edm.convert,
}


@cache
def recorded() -> dict[str, np.ndarray]:
    with np.load(HERE / "networks.npz") as file:
        return dict(file)


def config(about: dict) -> UNetConfig:
    return UNetConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in about["config"].items()})


def convert(about: dict, state: dict[str, Tensor]) -> Converted:
    order = {"new_order": True} if about["settings"].get("use_new_attention_order") else {}
    return CONVERT[about["repository"]](state, config(about), **order)


def vector(about: dict, tables: Converted) -> Tensor | None:
    """What the four are told: the last of EDM's not its class."""
    vector = None
    if tables.label is not None:
        labels = told(about["classes"])
        if about["repository"] == "edm":
            labels[3] = about["classes"]
        vector = tables.label[labels]
    if tables.augment is not None:
        done = augmentation(about["seed"], 9).to(tables.augment) @ tables.augment.T
        vector = done if vector is None else vector + done
    return vector


def answers(about: dict, net: nn.Module, tables: Converted, dtype: torch.dtype) -> Tensor:
    x, t = (
        pictures(about["seed"], net.config.channels, about["size"]).to(dtype),
        torch.tensor(about["times"], dtype=torch.float64),
    )
    v = vector(about, tables)
    with torch.no_grad():
        parts = slice(0, 2), slice(2, 4)
        out = [net(x[p], t.to(dtype)[p], vector=None if v is None else v[p].to(dtype)) for p in parts]
    return torch.cat(out)[..., 0:8, 8:16]


class Exact(nn.Module):
    """The features of the time in float64, which ours are in float32."""

    def __init__(self, net: UNet) -> None:
        super().__init__()
        self.config, self.old = net.config, net.encoder.time.features

    def forward(self, time: Tensor) -> Tensor:
        c, half = self.config, self.config.features // 2
        k = torch.arange(half, dtype=torch.float64)
        frequencies = 2 * math.pi * self.old.frequencies if c.fourier else 10_000 ** (-k / (half - c.shift))
        angle = time[:, None] * frequencies
        return torch.cat([angle.cos(), angle.sin()] if c.cosine_first else [angle.sin(), angle.cos()], 1)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_official_module(name: str) -> None:
    """In float64 to 1e-12 of the greatest number (2e-14 measured), which no wrong wire would pass; in float32 about as
    near to that as theirs is (0.4 to 2 times as far measured: 1e-6 to 8e-6)."""
    about = ABOUT[name]
    tables = convert(about, fill(about["shapes"], about["seed"]))
    net = UNet(config(about)).eval()
    net.load_state_dict(tables.network)
    truth = torch.from_numpy(recorded()[name])
    rough = (answers(about, net, tables, torch.float32) - truth).abs().max() / about["scale"]
    net.double()
    net.encoder.time.features = Exact(net)
    tables = convert(about, {k: v.double() for k, v in fill(about["shapes"], about["seed"]).items()})
    true = (answers(about, net, tables, torch.float64) - truth).abs().max() / about["scale"]
    assert true < 1e-12
    assert rough < 3 * about["rounding"]
