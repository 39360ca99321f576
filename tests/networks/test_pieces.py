"""Embeddings, attention, resampling, dropout and norms against closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.networks import attention
from sfumato.networks.attention import SelfAttention, attend
from sfumato.networks.blocks import Downsample, Dropout, Upsample, double, doubling, fold, halve, initialise, unfold
from sfumato.networks.embedding import Fourier, sinusoidal
from sfumato.networks.norm import Norm, group_count


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("cosine_first", [True, False])
def test_sinusoidal_is_its_formula(shift: float, cosine_first: bool) -> None:
    times, half = [0.0, 0.5, 3.0, 777.0, 999.0], 16
    got = sinusoidal(torch.tensor(times, dtype=torch.float64), 2 * half, shift=shift, cosine_first=cosine_first)
    for t, row in zip(times, got.tolist(), strict=True):
        angles = [t * 10_000 ** (-k / (half - shift)) for k in range(half)]
        sines, cosines = [math.sin(a) for a in angles], [math.cos(a) for a in angles]
        # float32 angles up to 999 are known to 6e-5
        assert row == pytest.approx(cosines + sines if cosine_first else sines + cosines, abs=1e-4)


def test_an_odd_width_ends_in_zero() -> None:
    got = sinusoidal(torch.tensor([3.0]), 9)
    assert got.shape == (1, 9)
    assert got[0, -1] == 0
    assert torch.equal(got[:, :-1], sinusoidal(torch.tensor([3.0]), 8))


def test_fourier_is_its_formula() -> None:
    torch.manual_seed(0)
    features = Fourier(64, scale=16.0)
    assert 10 < features.frequencies.std() < 22
    assert "frequencies" in features.state_dict()
    t = 0.37
    angles = 2 * math.pi * features.frequencies.double() * t
    truth = torch.cat([angles.sin(), angles.cos()])
    assert torch.allclose(features(torch.tensor([t]))[0].double(), truth, atol=1e-4)


def softmax_einsum(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.einsum("bhnm,bhmd->bhnd", scores.softmax(-1), v)


@pytest.mark.parametrize("n", [5, 300])  # both ways of computing it
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_attention_is_a_softmax(n: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3))
    truth = softmax_einsum(q.double(), k.double(), v.double())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    assert (attend(q, k, v).double() - truth).abs().max() < tolerance
    mask = torch.rand(2, 1, 1, n, generator=generator) < 0.5
    mask[..., 0] = True
    masked = softmax_einsum(q.double(), k.double(), v.double(), mask)
    assert (attend(q, k, v, mask).double() - masked).abs().max() < tolerance


def test_heads_and_tokens_of_the_module() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(2, 12, lambda c, activate: Norm(c, groups=3, activate=activate), 3, context=5).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, tokens = torch.randn(2, 12, 4, 6, dtype=torch.float64), torch.randn(2, 7, 5, dtype=torch.float64)
    h = F.group_norm(x, 3, layer.norm.weight, layer.norm.bias, 1e-6).flatten(2)
    q, k, v = (
        torch.einsum("oc,bcn->bno", w.flatten(1), h) + b
        for w, b in zip(layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3), strict=True)
    )
    more_k, more_v = layer.tokens(tokens).chunk(2, 2)
    k, v = torch.cat([k, more_k], 1), torch.cat([v, more_v], 1)
    q, k, v = (a.reshape(2, -1, 3, 4).transpose(1, 2) for a in (q, k, v))
    out = softmax_einsum(q, k, v).transpose(1, 2).reshape(2, 24, 12)
    truth = x + (out @ layer.project.weight.flatten(1).T + layer.project.bias).transpose(1, 2).reshape(x.shape)
    assert torch.allclose(layer(x, tokens), truth, atol=1e-12)
    with pytest.raises(ValueError, match="without context"):
        SelfAttention(2, 12, lambda c, activate: Norm(c, groups=3, activate=activate))(x.float(), tokens.float())


@pytest.mark.parametrize("trailing", [(), (6,), (6, 1), (6, 1, 1)])
def test_packings_are_their_index_formulas_and_round_trip(trailing: tuple[int, ...]) -> None:
    heads, d = 3, 2
    c = heads * d
    ours = torch.arange(3 * c).reshape(-1, *(1,) * len(trailing)).expand(3 * c, *trailing)
    legacy, interleaved = attention.to_legacy(ours, heads), attention.to_interleaved(ours, heads)
    for w in range(3):
        for h in range(heads):
            for i in range(d):
                value = w * c + h * d + i
                assert (legacy[h * 3 * d + w * d + i] == value).all()
                assert (interleaved[h * 3 * d + i * 3 + w] == value).all()
    assert torch.equal(attention.from_legacy(legacy, heads), ours)
    assert torch.equal(attention.from_interleaved(interleaved, heads), ours)
    assert torch.equal(attention.from_separate(*ours.chunk(3)), ours)


@pytest.mark.parametrize("size", [(17,), (16, 19), (16, 17, 18)])
def test_the_transposed_convolution_is_doubling_then_convolving(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = Upsample(len(size), 3).double()
    torch.nn.init.normal_(layer.conv.bias)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    fast, plain = layer(x), layer.conv(double(x))
    assert torch.allclose(fast, plain, atol=1e-12)
    weights = (x, layer.conv.weight, layer.conv.bias)
    g = torch.randn_like(plain)
    for a, b in zip(torch.autograd.grad(fast, weights, g), torch.autograd.grad(plain, weights, g), strict=True):
        assert torch.allclose(a, b, atol=1e-10)
    assert doubling(layer.conv.weight).shape == (3, 3, *(4,) * len(size))


def test_strided_convolution_pads_as_tensorflow() -> None:
    """SAME: ceil(n / 2) outputs, the padding n needs for that, the odd one at the end."""
    layer = Downsample(1, 1)
    layer.conv.weight.data = torch.tensor([[[1.0, 10.0, 100.0]]])
    for n in (6, 7):
        x = torch.arange(1.0, n + 1)
        total = (math.ceil(n / 2) - 1) * 2 + 3 - n
        padded = F.pad(x, (total // 2, total - total // 2))
        truth = [float(padded[i : i + 3] @ torch.tensor([1.0, 10.0, 100.0])) for i in range(0, len(padded) - 2, 2)]
        assert layer(x[None, None])[0, 0].tolist() == truth
    assert Downsample(2, 1, (1, 1))(torch.ones(1, 1, 7, 8)).shape == (1, 1, 4, 4)


def test_halving_is_a_mean_of_what_is_there() -> None:
    assert halve(torch.tensor([[[1.0, 3.0, 5.0]]])).tolist() == [[[2.0, 5.0]]]
    x = torch.randn(1, 2, 4, 6, 8)
    assert torch.allclose(halve(double(x)), x)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_fold_and_unfold(dims: int) -> None:
    x = torch.randn(2, 3, *(6, 4, 8)[:dims])
    assert torch.equal(unfold(fold(x, 2), 2), x)
    if dims == 2:
        assert torch.equal(fold(x, 2), F.pixel_unshuffle(x, 2))
    odd = torch.randn(2, 3, *(5, 3, 7)[:dims])
    back = unfold(fold(odd, 2), 2)
    assert torch.equal(back[(..., *(slice(n) for n in odd.shape[2:]))], odd)


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dropout(p: float, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer, x = Dropout(p), torch.ones(31, 33, 17, 19).contiguous(memory_format=layout).requires_grad_()
    y = layer(x)
    n = x.numel()
    dropped = int((y == 0).sum())
    assert abs(dropped - n * p) < 5 * math.sqrt(n * p * (1 - p))
    assert y[y != 0].unique().numel() == 1
    assert y.max().item() == pytest.approx(1 / (1 - p), rel=2**-14)
    assert y.stride() == x.stride()
    y.sum().backward()
    assert torch.equal(x.grad, y)
    assert not torch.equal(layer(x), y)
    torch.manual_seed(0)
    assert torch.equal(layer(x), y)
    neighbours = (y == 0).float().flatten()
    assert abs(torch.corrcoef(torch.stack([neighbours[1:], neighbours[:-1]]))[0, 1]) < 5 / math.sqrt(n)
    assert torch.equal(layer.eval()(x), x)


def test_norms() -> None:
    assert [group_count(c, 32) for c in (16, 32, 48, 100, 128, 31)] == [16, 32, 24, 25, 32, 31]
    x, row = torch.randn(2, 12, 5, 6), torch.randn(2, 24)
    layer = Norm(12, groups=5)
    assert layer.groups == 4
    scale, shift = row[:, :12, None, None], row[:, 12:, None, None]
    plain = F.group_norm(x, 4, eps=1e-6)
    assert torch.allclose(layer(x, row), F.silu(plain * (1 + scale) + shift), atol=1e-5)
    pixel = Norm(12, groups=0, activate=False)(x)
    assert torch.allclose(pixel.mean(1), torch.zeros(2, 5, 6), atol=1e-5)
    assert torch.allclose(pixel.var(1, unbiased=False), torch.ones(2, 5, 6), atol=1e-4)


def test_initialisation_is_fan_average_uniform_for_each_packed_part() -> None:
    torch.manual_seed(0)
    weight = torch.empty(300, 100, 3, 3)
    initialise(weight, parts=(100, 200))
    for part, out in zip(weight.split((100, 200)), (100, 200), strict=True):
        bound = math.sqrt(3 / (9 * (100 + out) / 2))
        assert 0.99 * bound < part.abs().max() <= bound
        assert float(part.var()) == pytest.approx(bound**2 / 3, rel=0.02)
