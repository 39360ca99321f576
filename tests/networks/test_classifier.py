"""The half U-Net that reads noised pictures, against the official module's answers, and its parameters."""

import json
import math
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from sfumato.errors import UserError
from sfumato.networks import UNetConfig, config
from sfumato.networks.classifier import AttentionPool, ClassifierConfig, EncoderClassifier
from sfumato.weights import openai
from tests.weights.filling import fill, pictures
from tests.weights.test_official import Exact

HERE = Path(__file__).parent.parent / "reference"
ABOUT = json.loads((HERE / "classifier.json").read_text())
CASES = sorted(ABOUT.keys() - {"torch"})
CLASSES = 7


@cache
def recorded() -> dict[str, np.ndarray]:
    with np.load(HERE / "classifier.npz") as file:
        return dict(file)


def config_of(about: dict) -> ClassifierConfig:
    encoder = UNetConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in about["encoder"].items()})
    return ClassifierConfig(encoder, (about["size"],) * 2, CLASSES, about["pool"])


def converted(about: dict, **change: torch.Tensor) -> dict[str, torch.Tensor]:
    new_order = bool(about["settings"].get("use_new_attention_order"))
    state = {**fill(about["shapes"], about["seed"]), **change}
    return openai.classifier(state, config_of(about), new_order=new_order)


def answers(net: nn.Module, about: dict, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (4, 7), and a corner of the gradient of log p of class i of picture i."""
    x = pictures(about["seed"], 3, about["size"]).to(dtype).requires_grad_()
    logits = net(x, torch.tensor(about["times"], dtype=dtype))
    (gradient,) = torch.autograd.grad(logits.log_softmax(1)[range(4), range(4)].sum(), x)
    return logits.detach(), gradient[..., 0:8, 8:16]


@pytest.mark.parametrize("name", CASES)
def test_logits_and_their_gradient_equal_the_official_modules(name: str) -> None:
    """In float64 to 1e-11 of the greatest number; in float32 about as near to that as theirs is."""
    about = ABOUT[name]
    net = EncoderClassifier(config_of(about)).eval()
    net.load_state_dict(converted(about))
    rough = answers(net, about, torch.float32)
    net.double().encoder.time.features = Exact(SimpleNamespace(config=net.config.encoder, encoder=net.encoder))
    net.load_state_dict({k: v.double() for k, v in converted(about).items()})
    true = answers(net, about, torch.float64)
    for i, part in enumerate(("logits", "gradient")):
        truth = torch.from_numpy(recorded()[f"{name}/{part}"])
        assert (true[i] - truth).abs().max() < 1e-11 * about["scale"][i]
        assert (rough[i] - truth).abs().max() < max(4 * about["rounding"][i], 2e-6) * about["scale"][i]


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [
        ("READ_64", 64, 65_438_568),
        ("READ_128", 128, 42_568_040),
        ("READ_256", 256, 54_096_360),
        ("READ_512", 512, 54_448_360),
    ],
)
def test_parameters_of_the_official_classifiers(name: str, size: int, count: int) -> None:
    """As counted in guided-diffusion's create_classifier."""
    with torch.device("meta"):
        net = EncoderClassifier(ClassifierConfig(getattr(config, name), (size, size), 1000))
    assert sum(p.numel() for p in net.parameters()) == count


def test_another_codes_weights_are_refused_by_name() -> None:
    about = ABOUT["attention"]
    state = fill(about["shapes"], about["seed"])
    del state["out.2.c_proj.bias"]
    with pytest.raises(UserError, match=r"no 'out\.2\.c_proj\.bias'"):
        openai.classifier(state, config_of(about))
    with pytest.raises(UserError, match="no place"):
        converted(about, surplus=torch.zeros(3))
    with pytest.raises(UserError, match=r"positional_embedding.*is of shape"):
        converted(about, **{"out.2.positional_embedding": torch.zeros(64, 5)})


def test_attention_pooling_is_the_means_row_of_plain_attention() -> None:
    """Against torch's multi-head attention over all tokens."""
    pool = AttentionPool(24, 6, 5, heads=3).double()
    h = torch.randn(4, 24, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = h.flatten(2).transpose(1, 2)
    tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + pool.position
    whole = nn.MultiheadAttention(24, 3, batch_first=True).double()
    with torch.no_grad():
        whole.in_proj_weight.copy_(pool.qkv.weight)
        whole.in_proj_bias.copy_(pool.qkv.bias)
        whole.out_proj.weight.copy_(torch.eye(24))
        whole.out_proj.bias.zero_()
        expected = pool.project(whole(tokens, tokens, tokens)[0][:, 0])
        assert torch.allclose(pool(h), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("size", [(28, 28), (9, 14), (17,), (6, 7, 5)])
def test_any_size_is_pooled_and_no_other_than_that(size: tuple[int, ...]) -> None:
    encoder = UNetConfig(dims=len(size), channels=2, widths=(8, 16, 16), blocks=1, attention=(2,), groups=0, patch=2)
    made = ClassifierConfig(encoder, size, 3)
    net = EncoderClassifier(made)
    x, time = torch.randn(2, 2, *size), torch.tensor([3.0, 700.0])
    assert net.features(x, time).shape[2:] == made.coarse and len(net.pool.position) == 1 + math.prod(made.coarse)
    assert net(x, time).shape == (2, 3)
    with pytest.raises(ValueError, match="another size"):
        net(torch.randn(2, 2, *(4 * side for side in size)), time)
    average = EncoderClassifier(ClassifierConfig(encoder, size, 3, "average"))
    assert average(torch.randn(2, 2, *(4 * side for side in size)), time).abs().max() < 1e-2  # begins undecided


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="2 sides"):
        ClassifierConfig(UNetConfig(), (8,), 3)
    with pytest.raises(ValueError, match="0 classes"):
        ClassifierConfig(UNetConfig(), (8, 8), 0)
