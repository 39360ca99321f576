"""The diffusion transformer: its positions, what it starts as, what it may be told, and products by oneDNN."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.networks import dense as products
from sfumato.networks.dense import dense, dense_gelu
from sfumato.networks.dit import DiT, DiTConfig, positions
from sfumato.papers.dit import PATCHES, SIZES
from tests.networks.to_diffusers import randomise

ABOUT = json.loads((Path(__file__).parent.parent / "reference" / "dit.json").read_text())
SMALL = DiTConfig(width=48, depth=2, heads=3)


def made(config: DiTConfig = SMALL, **changes: object) -> DiT:
    net = DiT(replace(config, **changes)).eval()
    randomise(net, 0.1)
    return net


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- positions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "high", "wide"), [(64, 4, 4), (384, 16, 16), (1152, 32, 32), (48, 5, 9)])
def test_positions_are_the_papers_to_the_last_bit(width: int, high: int, wide: int) -> None:
    """Columns first, sines before cosines; numpy in float64, rounded once."""
    n = width // 4
    rates = 1.0 / 10000 ** (np.arange(n, dtype=np.float64) / n)
    rows, columns = (grid.reshape(-1, 1) * rates for grid in np.mgrid[:high, :wide].astype(np.float64))
    truth = np.concatenate([np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)], 1).astype(np.float32)
    assert np.array_equal(positions((high, wide), width).numpy(), truth)


def test_positions_in_one_and_three_dimensions() -> None:
    line = positions((7,), 24)
    assert torch.equal(line[:, 0], torch.arange(7, dtype=torch.float64).sin().float())
    box = positions((2, 3, 7), 100).reshape(2, 3, 7, 100)
    for i, axis in enumerate(itertools.chain(box[0, 0, :, None], box[0, :, 0, None], box[:, 0, 0, None])):
        assert axis.shape == (1, 100) and i < 12
    assert torch.equal(box[1, 2, :, :32], box[0, 0, :, :32]), "the last axis comes first"
    assert torch.equal(box[1, :, 3, 32:64], box[0, :, 0, 32:64])
    assert torch.equal(box[:, 1, 5, 64:96], box[:, 0, 0, 64:96])
    assert (box[..., 96:] == 0).all(), "what is left over of the width"
    assert len(box.flatten(0, 2).unique(dim=0)) == 42


# -- what it starts as -------------------------------------------------------------------------------------------------


def test_a_new_network_answers_zero_and_is_drawn_as_in_the_code() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = DiT(DiTConfig(width=128, depth=2, heads=2, channels=4, out=8))
    out = net(noise(2, 4, 8, 8), torch.tensor([3.0, 700.0]), vector=noise(2, 128))
    assert out.shape == (2, 8, 8, 8) and not out.any()
    for name, weight in net.state_dict().items():
        if name.startswith(("rows", "head")) or name.endswith("bias"):
            assert not weight.any(), name
        elif name.startswith("time"):
            assert weight.std().item() == pytest.approx(0.02, rel=0.03), name
        else:  # xavier: uniform in +- sqrt(6 / (in + out)), of the packed qkv and the flattened patch too
            bound = (6 / sum(weight.shape)) ** 0.5
            assert 0.98 * bound < weight.abs().max().item() <= bound, name
            assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03), name


@pytest.mark.parametrize(("size", "patch"), list(itertools.product(SIZES, PATCHES)))
def test_parameters_of_the_published_networks(size: str, patch: int) -> None:
    """Of 4-channel latents of 32 x 32, with learned variance, 1000 classes and "not told"; the official count includes
    the fixed positions."""
    config = replace(SIZES[size], patch=patch, channels=4, out=8)
    with torch.device("meta"):
        net = DiT(config)
    counted = sum(p.numel() for p in net.parameters()) + (1001 + (32 // patch) ** 2) * config.width
    assert counted == ABOUT["parameters"][f"{size}/{patch}"]
    if patch == 2:
        assert round(counted / 1e6, 1) == {"S": 33.0, "B": 130.5, "L": 458.1, "XL": 675.1}[size]


# -- what it is told ---------------------------------------------------------------------------------------------------


def test_a_time_for_all_is_projected_once() -> None:
    net, seen, x = made(), [], noise(3, 3, 8, 8)
    net.rows.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    net.requires_grad_(False)
    one, each = net(x, torch.tensor([250.0])), net(x, torch.full((3,), 250.0))
    assert seen == [1, 3]
    assert torch.allclose(one, each, atol=1e-5 * each.abs().max().item())
    assert not torch.allclose(one, net(x, torch.tensor([251.0])), atol=1e-4)


def test_a_vector_is_for_its_own_example() -> None:
    net, x, v = made(), noise(3, 3, 8, 8), noise(3, 48, seed=1)
    time = torch.tensor([250.0])
    out = net(x, time, vector=v)
    for i in range(3):
        assert torch.allclose(out[i : i + 1], net(x[i : i + 1], time, vector=v[i : i + 1]), atol=1e-4)
    wide = made(vector=5)
    told = wide.time.vector(noise(3, 5))
    plain = made()
    plain.load_state_dict({k: t for k, t in wide.state_dict().items() if not k.startswith("time.vector")})
    assert torch.equal(wide(x, time, vector=noise(3, 5)), plain(x, time, vector=told))


@pytest.mark.parametrize(("shape", "patch"), [((9, 14), 4), ((7,), 2), ((5, 4, 6), 2), ((8, 8), 2), ((3, 3), 8)])
def test_every_size_and_number_of_dimensions(shape: tuple[int, ...], patch: int) -> None:
    """Sides that are no multiple of the patch have their edge repeated, and the answer cropped."""
    net = made(dims=len(shape), patch=patch, width=60, heads=3, out=2)
    x, time = noise(2, 3, *shape), torch.tensor([4.0, 900.0])
    out = net(x, time)
    assert out.shape == (2, 2, *shape) and out.is_contiguous()
    padded = x
    for axis, side in enumerate(shape, 2):
        last = padded.narrow(axis, side - 1, 1)
        padded = torch.cat([padded, *[last] * (-side % patch)], axis)
    whole = net(padded, time)
    for axis, side in enumerate(shape, 2):
        whole = whole.narrow(axis, 0, side)
    assert torch.equal(out, whole)


def test_positions_follow_the_picture() -> None:
    net, time = made(), torch.tensor([4.0])
    first, other = noise(1, 3, 8, 8), noise(1, 3, 12, 4)
    before = net(first, time)
    net(other, time)
    assert torch.equal(net(first, time), before)
    alone = made()
    with torch.inference_mode():
        alone(first, time)
    alone(first, time).sum().backward()  # positions kept from inference are no obstacle
    assert net.double()(first.double(), time).dtype == torch.float64


def test_further_tokens_and_their_mask() -> None:
    net, x, time = made(context=7), noise(2, 3, 8, 8), torch.tensor([30.0])
    tokens, mask = noise(2, 4, 7), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    out = net(x, time, tokens=tokens, mask=mask)
    changed = tokens.clone()
    changed[0, 2:] = 9.0
    assert torch.equal(net(x, time, tokens=changed, mask=mask), out)
    short = net(x[:1], time, tokens=tokens[:1, :2])
    assert torch.allclose(out[:1], short, atol=1e-5 * short.abs().max().item())
    nothing = net(x, time, tokens=tokens, mask=torch.zeros_like(mask))
    assert torch.allclose(nothing, net(x, time), atol=1e-5)
    assert not torch.allclose(out, nothing, atol=1e-4)
    with pytest.raises(ValueError, match="without context"):
        made()(x, time, tokens=tokens)
    with pytest.raises(ValueError, match="no skips"):
        made()(x, time, control=(x,))


def test_spatial_conditions_are_further_channels() -> None:
    net, x, more, time = made(channels=5, out=3), noise(2, 3, 8, 8), noise(2, 2, 8, 8, seed=1), torch.tensor([30.0])
    assert torch.equal(net(x, time, spatial=more), net(torch.cat([x, more], 1), time))


def test_checkpointing_changes_no_gradient() -> None:
    net, x, time = made(), noise(2, 3, 8, 8), torch.tensor([30.0, 4.0])
    grads = []
    for net.checkpointing in (False, True):
        grads.append(torch.autograd.grad(net(x, time).square().mean(), list(net.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.slow
def test_it_is_one_graph() -> None:
    """Nothing in it stops the compiler."""
    net, x, time = made(), noise(2, 3, 8, 8), torch.tensor([30.0])
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(x, time), net(x, time), atol=1e-4)


def test_bfloat16_is_near() -> None:
    net, x, time = made(), noise(2, 3, 16, 16), torch.tensor([30.0])
    with torch.no_grad():
        truth = net(x, time)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = net(x, time)
        half = net.bfloat16()(x.bfloat16(), time)
    for out in (mixed, half):
        assert out.dtype == torch.bfloat16
        assert (out.float() - truth).abs().max().item() < 0.05 * truth.abs().max().item()


@pytest.mark.parametrize(
    ("field", "value"), [("width", 50), ("patch", 0), ("dims", 4), ("mlp", 0.0), ("depth", 0), ("eps", 0.0)]
)
def test_impossible_settings_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        replace(SMALL, **{field: value})
    with pytest.raises(ValueError, match="positions"):
        DiTConfig(dims=3, width=4, heads=2)


# -- products by oneDNN ------------------------------------------------------------------------------------------------


@pytest.fixture
def detour(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an AMD processor."""
    if products._multiply() is None:
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "_slow_mkl", lambda: True)


@pytest.mark.parametrize("bias", [True, False])
def test_dense_is_a_linear_layer(detour: None, bias: bool) -> None:
    """Values and gradients to the rounding of float32, which float64 tells; and differentiable twice."""
    layer, x, weights = nn.Linear(40, 24, bias=bias), noise(3, 50, 40), noise(3, 50, 24, seed=2)
    exact = nn.Linear(40, 24, bias=bias).double()
    exact.load_state_dict(layer.state_dict())
    found: list[tuple[Tensor, ...]] = []
    for net, kind, apply in ((layer, torch.float32, dense), (exact, torch.float64, lambda x, net: net(x))):
        inputs = x.to(kind).requires_grad_()
        out = apply(inputs, net)
        wanted = [inputs, *net.parameters()]
        first = torch.autograd.grad((out.sin() * weights.to(kind)).sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted[:2])
        found.append((out, *first, *second))
    assert "_Product" in type(dense(x.requires_grad_(), layer).grad_fn.next_functions[0][0]).__name__
    for ours, truth in zip(*found, strict=True):
        assert (ours.double() - truth).abs().max().item() < 3e-6 * truth.abs().max().item()


@pytest.mark.parametrize(("kind", "near"), [(torch.float32, 3e-6), (torch.bfloat16, 2e-2)])
def test_dense_and_gelu_at_once(detour: None, kind: torch.dtype, near: float) -> None:
    layer, x = nn.Linear(40, 24).to(kind), noise(3, 50, 40).to(kind)
    truth = F.gelu(F.linear(x.double(), layer.weight.double(), layer.bias.double()), approximate="tanh")
    with torch.no_grad():
        fused = dense_gelu(x, layer)
    assert fused.dtype == kind and not fused.requires_grad
    for out in (fused, dense_gelu(x, layer)):
        assert (out.double() - truth).abs().max().item() < near * truth.abs().max().item()


def test_few_rows_and_other_types_take_the_usual_way(detour: None) -> None:
    layer, x = nn.Linear(40, 24), noise(2, 40)
    assert torch.equal(dense(x, layer), layer(x))
    assert torch.equal(dense(x.double(), layer.double()), layer(x.double()))
    empty = dense(noise(0, 40), nn.Linear(40, 24))
    assert empty.shape == (0, 24)
