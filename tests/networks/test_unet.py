"""The U-Net against diffusers with the same weights, against itself in other dimensions, and its promises."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.networks import HO_256, HO_CIFAR10, UNet, UNetConfig
from sfumato.networks.blocks import fold, unfold
from tests.networks.to_diffusers import randomise, state_dict, twin

HO = UNetConfig(widths=(32, 64, 64), blocks=2, attention=(1,))
OPENAI = {"pad": (1, 1), "eps": 1e-5, "shift": 0.0, "cosine_first": True}
CONFIGS = {
    "ddpm": HO,
    "ddpm, attention at two levels": replace(HO, widths=(32, 32, 64, 64), blocks=1, attention=(1, 3)),
    "ddpm, no attention in the middle, 16 groups": replace(HO, attend_middle=False, groups=16),
    "symmetric padding": replace(HO, **OPENAI, blocks=1),
    "improved, additive": replace(HO, **OPENAI, head_width=32),
    "improved, scale and shift": replace(HO, **OPENAI, scale_shift=True, head_width=16, out=6, attention=(1, 2)),
    "adm": replace(HO, **OPENAI, scale_shift=True, resample_blocks=True, head_width=16, attention=(1, 2)),
    "adm, additive": replace(HO, **OPENAI, resample_blocks=True, blocks=1, attention=()),
    "own time width": replace(HO, embed=96, blocks=1),
}


def network(config: UNetConfig, seed: int = 0, scale: float = 0.05) -> UNet:
    net = UNet(config).eval()
    randomise(net, scale, seed)
    return net


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    """Relative to the greatest entry of b."""
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_diffusers_with_the_same_weights(name: str) -> None:
    net = network(CONFIGS[name])
    other = twin(net, 32).eval()
    x = noise(2, 3, 32, 32)
    for t in (0, 3, 777, 999):
        with torch.no_grad():
            truth = other(x, t).sample
            assert close(net(x, torch.tensor([float(t)])), truth)
    with torch.no_grad():
        assert not close(net(x, torch.tensor([3.0])), truth, 1e-3)  # or the times above proved nothing


@pytest.mark.parametrize("name", ["ddpm", "improved, scale and shift", "adm"])
def test_gradients_equal_those_of_diffusers(name: str) -> None:
    net = network(CONFIGS[name])
    other = twin(net, 32)
    x, t = noise(2, 3, 32, 32), torch.tensor([3.0, 777.0])
    target = noise(2, net.config.out, 32, 32, seed=2)
    F.mse_loss(net(x, t), target).backward()
    F.mse_loss(other(x, t).sample, target).backward()
    for parameter in net.parameters():  # the map then carries gradients as it carried weights
        assert parameter.grad is not None
        parameter.data = parameter.grad
    theirs = dict(other.named_parameters())
    scale = max(p.grad.abs().max() for p in theirs.values())
    for key, gradient in state_dict(net).items():
        assert (gradient - theirs[key].grad).abs().max() <= 1e-5 * scale, key


def test_a_class_embedding_is_a_vector() -> None:
    net = network(replace(HO, blocks=1))
    other = twin(net, 16, classes=10).eval()
    x, t, labels = noise(2, 3, 16, 16), torch.tensor([5.0, 500.0]), torch.tensor([3, 9])
    vector = other.class_embedding(labels)
    with torch.no_grad():
        assert close(net(x, t, vector=vector), other(x, t, labels).sample)
        assert not close(net(x, t), other(x, t, labels).sample, 1e-3)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (HO_CIFAR10, 35_746_307),
        (HO_256, 113_673_219),
        # improved-diffusion's CIFAR-10 (official: 52.546M) and guided-diffusion's 256 x 256 network (552.814M)
        (replace(HO_CIFAR10, blocks=3, out=6, scale_shift=True, heads=4, attention=(1, 2)), 52_546_438),
        (
            UNetConfig(
                widths=(256, 256, 512, 512, 1024, 1024),
                attention=(3, 4, 5),
                out=6,
                scale_shift=True,
                resample_blocks=True,
                head_width=64,
            ),
            552_814_086,
        ),
    ],
)
def test_parameters_of_the_official_networks(config: UNetConfig, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet(config).parameters()) == parameters


def test_one_time_serves_the_batch() -> None:
    for config in (HO, replace(HO, scale_shift=True, resample_blocks=True)):
        net, x = network(config), noise(3, 3, 16, 16)
        with torch.no_grad():
            assert close(net(x, torch.tensor([7.0])), net(x, torch.full((3,), 7.0)))


def test_encoder_then_decoder_is_the_whole() -> None:
    net, x, t = network(HO), noise(2, 3, 16, 16), torch.tensor([1.0, 900.0])
    with torch.no_grad():
        features = copy.deepcopy(net.encoder)(x, t)  # a copy stands by itself: ControlNet
        assert torch.equal(net.decoder(features), net(x, t))
    assert [s.shape[1] for s in features.skips] == net.config.skips


def _outer(plane: Tensor, axis: int) -> Tensor:
    """A 3 x 3 kernel as a 3 x 3 x 3 one that acts only across `axis`."""
    zero = torch.zeros_like(plane)
    return torch.stack([zero, plane, zero], axis)


def _lift(small: UNet, big: UNet, axis: int) -> None:
    """`small`'s weights in `big`, one dimension more, acting only across `axis` (counted in the big weight)."""
    for (name, a), b in zip(small.named_parameters(), big.parameters(), strict=True):
        if a.shape == b.shape:
            b.data = a.data
        else:
            b.data = a.data.unsqueeze(axis) if b.shape[-1] == 1 else _outer(a.data, axis)
        assert b.shape == b.data.shape, name


@pytest.mark.parametrize("dims", [1, 2])
def test_a_signal_repeated_along_a_new_axis_gives_the_same_picture(dims: int) -> None:
    """Kernels that act only across the new axis: every slice is the answer of the smaller network. Down and up blocks
    average and repeat along the new axis, so nothing but the dimension of the code differs. Attention sees every
    position as often as before: a softmax over repeated keys is unchanged."""
    config = replace(HO, **OPENAI, dims=dims, resample_blocks=True, blocks=1, head_width=16)
    small, big = network(config), UNet(replace(config, dims=dims + 1)).eval()
    _lift(small, big, 2)
    x, t = noise(2, 3, *(8, 12)[:dims]), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        truth = small(x, t)
        repeated = big(x.unsqueeze(2).expand(-1, -1, 4, *x.shape[2:]), t)
    assert close(repeated, truth.unsqueeze(2).expand_as(repeated))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions_resample_every_axis(dims: int) -> None:
    """With strided convolutions too: moving the axes of a cubic signal about moves the answer about."""
    net = network(replace(HO, dims=dims, widths=(8, 16), blocks=1, groups=4))
    x, t = noise(1, 3, *(8,) * dims), torch.tensor([9.0])
    turned = copy.deepcopy(net)
    axes = (0, 1, *reversed(range(2, 2 + dims)))
    for parameter in turned.parameters():
        if parameter.ndim == 2 + dims:
            parameter.data = parameter.data.permute(axes)
    with torch.no_grad():
        assert close(turned(x.permute(axes), t), net(x, t).permute(axes))


@pytest.mark.parametrize("size", [(33, 47), (28, 28), (7, 5), (16, 18)])
@pytest.mark.parametrize("resample", [True, False])
def test_any_size_works_and_depends_on_every_pixel(size: tuple[int, int], resample: bool) -> None:
    net = network(replace(HO, resample_blocks=resample, blocks=1, widths=(8, 8, 16, 16), groups=4))
    x = noise(1, 3, *size).requires_grad_()
    y = net(x, torch.tensor([10.0]))
    assert y.shape == x.shape
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert (gradient.abs().amin((0, 1)) > 0).all()


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_fold_is_pixel_unshuffle(patch: int) -> None:
    """Channels in its order: (C, rows of the cell, columns of the cell)."""
    x = noise(2, 3, 12, 18)
    assert torch.equal(fold(x, patch), F.pixel_unshuffle(x, patch))


@pytest.mark.parametrize("patch", [2, 3])
@pytest.mark.parametrize("size", [(12,), (17,), (12, 18), (13, 15), (6, 12, 6), (6, 8, 5)])
def test_unfold_inverts_fold_and_far_edges_repeat(patch: int, size: tuple[int, ...]) -> None:
    x = noise(2, 3, *size)
    truth = x
    for axis, n in enumerate(size, 2):
        truth = truth.index_select(axis, torch.arange(-n % patch + n).clamp(max=n - 1))
    assert torch.equal(unfold(fold(x, patch), patch), truth)
    assert truth.shape == x.shape or any(n % patch for n in size)  # whole cells: x itself


@pytest.mark.parametrize(("dims", "size"), [(1, (17,)), (2, (12, 15)), (3, (6, 8, 5))])
def test_patches(dims: int, size: tuple[int, ...]) -> None:
    """A network of patches is a network of the folded picture."""
    config = replace(HO, dims=dims, widths=(16, 16), blocks=1, groups=4)
    net = network(replace(config, patch=2))
    plain = network(replace(config, channels=3 * 2**dims, out=3 * 2**dims))
    plain.load_state_dict(net.state_dict())
    x, t = noise(2, 3, *size), torch.tensor([10.0])
    with torch.no_grad():
        whole = unfold(plain(fold(x, 2), t), 2)
        assert close(net(x, t), whole[(..., *(slice(n) for n in size))])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_no_gradient(dropout: float) -> None:
    net, x, t = network(replace(HO, dropout=dropout)).train(), noise(2, 3, 16, 16), torch.tensor([1.0, 900.0])
    gradients = []
    for on in (False, True):
        net.checkpointing = on
        torch.manual_seed(0)
        net.zero_grad()
        net(x, t).square().mean().backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_bfloat16_is_near_float32() -> None:
    net, x, t = network(HO), noise(4, 3, 32, 32), torch.tensor([500.0])
    with torch.no_grad():
        truth = net(x, t)
        with torch.autocast("cpu", torch.bfloat16):
            rough = net(x, t).float()
        native = copy.deepcopy(net).bfloat16()(x.bfloat16(), t).float()
    # bfloat16 keeps 8 bits; some thirty layers in a row lose a few of them
    assert (rough - truth).norm() < 0.03 * truth.norm()
    assert (native - truth).norm() < 0.06 * truth.norm()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_memory_format_changes_nothing(layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, t = network(HO), noise(2, 3, 32, 32), torch.tensor([3.0, 4.0])
    with torch.no_grad():
        truth = net(x, t)
        monkeypatch.setattr("sfumato.networks.unet.best_memory_format", lambda *_: layout)
        moved = net.to(memory_format=layout)(x.to(memory_format=layout), t)
    assert close(moved, truth)
    assert moved.is_contiguous()


def test_every_condition_is_heard() -> None:
    net = network(replace(HO, channels=5, context=12, vector=7, blocks=1))
    x, t, spatial = noise(2, 3, 16, 16), torch.tensor([3.0, 4.0]), noise(2, 2, 16, 16)
    tokens, vector = noise(2, 6, 12), noise(2, 7)
    with torch.no_grad():
        base = net(x, t, spatial=spatial, tokens=tokens, vector=vector)
        for changed in (
            net(x, t, spatial=-spatial, tokens=tokens, vector=vector),
            net(x, t, spatial=spatial, tokens=-tokens, vector=vector),
            net(x, t, spatial=spatial, tokens=tokens, vector=-vector),
            net(x, t, spatial=spatial, tokens=tokens),
            net(x, t, spatial=spatial, vector=vector),
        ):
            assert not close(changed, base, 1e-4)


def test_masked_tokens_are_as_if_they_were_not_there() -> None:
    net = network(replace(HO, context=12, blocks=1))
    x, t, tokens = noise(2, 3, 16, 16), torch.tensor([3.0, 4.0]), noise(2, 6, 12)
    mask = torch.tensor([[True] * 4 + [False] * 2] * 2)
    with torch.no_grad():
        assert close(net(x, t, tokens=tokens, mask=mask), net(x, t, tokens=tokens[:, :4]))
        assert close(net(x, t, tokens=tokens, mask=torch.zeros_like(mask)), net(x, t))


def test_control_is_added_to_skips_and_middle() -> None:
    net, x, t = network(HO), noise(2, 3, 16, 16), torch.tensor([3.0, 4.0])
    with torch.no_grad():
        features = net.encoder(x, t)
        nothing = tuple(torch.zeros_like(s) for s in (*features.skips, features.middle))
        assert torch.equal(net(x, t, control=nothing), net(x, t))
        for i in range(len(nothing)):
            some = (*nothing[:i], noise(*nothing[i].shape), *nothing[i + 1 :])
            assert not close(net(x, t, control=some), net(x, t), 1e-4)
        with pytest.raises(ValueError, match="skips and a middle"):
            net(x, t, control=nothing[1:])


def test_a_new_network_answers_nearly_zero_and_every_parameter_learns() -> None:
    torch.manual_seed(0)
    net, x = UNet(replace(HO, blocks=1)), noise(2, 3, 16, 16)
    assert net(x, torch.tensor([5.0])).abs().max() < 1e-3
    net(x, torch.tensor([5.0])).sub(x).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_mixer_of_ones_own() -> None:
    class Twice(nn.Module):
        def forward(self, h: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
            return 2 * h

    plain = replace(HO, attention=(), attend_middle=False, blocks=1)
    asked: list[tuple[int, bool]] = []
    net = UNet(
        replace(plain, attention=(1,)), mixer=lambda channels, attend: asked.append((channels, attend)) or Twice()
    )
    assert asked == [
        (32, False),
        (64, True),
        (64, False),
        (64, False),
        (64, False),
        *[(64, False)] * 2,
        *[(64, True)] * 2,
        *[(32, False)] * 2,
    ]
    reference = UNet(plain)
    reference.load_state_dict(net.state_dict())
    x, t = noise(1, 3, 16, 16), torch.tensor([2.0])
    assert not close(net(x, t), reference(x, t), 1e-2)


def test_it_compiles_without_a_break_in_the_graph() -> None:
    net, x, t = network(replace(HO, blocks=1, context=4)), noise(2, 3, 16, 16), torch.tensor([3.0, 4.0])
    tokens = noise(2, 5, 4)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x, t, tokens=tokens), net(x, t, tokens=tokens))
