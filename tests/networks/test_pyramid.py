"""Filtered resampling and the picture's pyramids, against plain sums; what they promise inside a U-Net."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sfumato.networks import UNet, UNetConfig
from sfumato.networks.pyramid import Double, Filter, Halve
from tests.networks.to_diffusers import randomise

SMALL = UNetConfig(
    widths=(16, 32, 32),
    blocks=1,
    attend_last=True,
    group_width=4,
    resample_blocks=True,
    project_resampled=True,
    rescale=0.5**0.5,
    fir=True,
    pyramid="residual",
    fourier=16.0,
)
SKIPS = replace(SMALL, pyramid="skip", output_skip=True)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(n: int, positions: list[float], gain: float) -> Tensor:
    """(positions, n): at each position, half way between two pixels, the taps of the four nearest."""
    rows = torch.zeros(len(positions), n, dtype=torch.float64)
    for row, at in zip(rows, positions, strict=True):
        for tap, offset in zip((1, 3, 3, 1), (-1.5, -0.5, 0.5, 1.5), strict=True):
            if 0 <= (i := round(at + offset)) < n:
                row[i] += gain * tap / 8
    return rows


def doubling(n: int) -> Tensor:
    """(2n, n): the taps on the signal with zeros in between."""
    spread = torch.zeros(2 * n, n, dtype=torch.float64)
    spread[::2] = torch.eye(n, dtype=torch.float64)
    return matrix(2 * n, [i - 0.5 for i in range(2 * n)], 2.0) @ spread


def along(x: Tensor, maps: list[Tensor]) -> Tensor:
    for axis, m in enumerate(maps, 2):
        x = torch.tensordot(x, m, ([axis], [1])).movedim(-1, axis)
    return x


@pytest.mark.parametrize("size", [(8,), (7,), (8, 6), (5, 4), (4, 6, 5)])
def test_filters_are_their_sums(size: tuple[int, ...]) -> None:
    x, dims = noise(2, 3, *size), len(size)
    halved = [matrix(n, [2 * i + 0.5 for i in range(-(-n // 2))], 1.0) for n in size]
    assert torch.allclose(Halve(dims).double()(x), along(x, halved), atol=1e-12)
    assert torch.allclose(Double(dims).double()(x), along(x, [doubling(n) for n in size]), atol=1e-12)
    full = [matrix(n, [i - 0.5 for i in range(n + 1)], 1.0) for n in size]
    assert torch.allclose(Filter(dims, stride=1, pad=2).double()(x), along(x, full), atol=1e-12)


def test_doubling_is_four_times_the_transpose_of_halving() -> None:
    x, y = noise(1, 2, 8, 6), noise(1, 2, 4, 3, seed=2)
    left, right = (Halve(2).double()(x) * y).sum(), (x * Double(2).double()(y)).sum() / 4
    assert torch.allclose(left, right)


@pytest.mark.parametrize("config", [SMALL, SKIPS], ids=["residual", "skips"])
@pytest.mark.parametrize("size", [(16, 16), (13, 10), (7, 5)])
def test_any_size_works_and_depends_on_every_pixel(config: UNetConfig, size: tuple[int, int]) -> None:
    net = UNet(config).eval()
    randomise(net)
    x = noise(1, 3, *size).float().requires_grad_()
    y = net(x, torch.tensor([0.3]))
    assert y.shape == x.shape
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert (gradient.abs().amin((0, 1)) > 0).all()


@pytest.mark.parametrize("dims", [1, 3])
def test_other_dimensions(dims: int) -> None:
    for config in (SMALL, SKIPS):
        net = UNet(replace(config, dims=dims)).eval()
        x = noise(2, 3, *(8,) * dims).float()
        with torch.no_grad():
            assert net(x, torch.tensor([0.3])).shape == x.shape


@pytest.mark.parametrize("config", [SMALL, SKIPS], ids=["residual", "skips"])
def test_every_parameter_learns_and_checkpointing_changes_no_gradient(config: UNetConfig) -> None:
    net, x = UNet(config), noise(2, 3, 16, 16).float()
    randomise(net)
    gradients = []
    for on in (False, True):
        net.checkpointing = on
        net.zero_grad()
        net(x, torch.tensor([0.3, 2.0])).square().mean().backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
    assert all(torch.equal(a, b) and a.abs().max() > 0 for a, b in zip(*gradients, strict=True))


def test_filters_are_no_weights() -> None:
    assert not [key for key in UNet(SKIPS).state_dict() if "taps" in key]


def test_an_early_vector_joins_the_features() -> None:
    """A linear first layer: moving the features by v is moving its output by W v."""
    late = UNet(replace(SMALL, vector=0)).eval()
    randomise(late)
    early = UNet(replace(SMALL, early=True)).eval()
    early.load_state_dict(late.state_dict())
    assert (late.config.told, early.config.told) == (64, 16)
    x, t, v = noise(2, 3, 16, 16).float(), torch.tensor([0.3, 2.0]), noise(2, 16).float()
    with torch.no_grad():
        got = early(x, t, vector=v)
        early.encoder.time.first.bias.data = early.encoder.time.first.bias + early.encoder.time.first.weight @ v[0]
        assert torch.allclose(early(x, t)[0], got[0], atol=1e-5)
        assert not torch.allclose(early(x, t)[1], got[1], atol=1e-4)


def test_narrow_layers_have_fewer_groups() -> None:
    config = replace(SMALL, groups=32, group_width=4)
    assert [config.norm(c).groups for c in (2, 16, 48, 128, 256)] == [1, 4, 12, 32, 32]
    assert config.group == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pyramid": "cone"}, "pyramid is 'cone'"),
        ({"resample_blocks": False}, "fir needs resample_blocks"),
        ({"fir": False}, "a residual pyramid needs fir"),
    ],
)
def test_a_config_that_no_network_can_be(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)
