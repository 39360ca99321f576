"""The pieces of a U-Net, in one, two or three dimensions: convolutions, resampling, the residual block.

Initialisation is Ho et al. 2020 (`tf_util` / `nn.py`: variance scaling, fan average, uniform, zero bias): scale 1, and
1e-10 for the last layer of every branch, so that a fresh network is nearly the identity and outputs nearly zero.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.networks.norm import Norm, expand

LAST = 1e-10  # initial scale of the last layer of a branch
CONVS: tuple[type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
DECONVS = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
TRANSPOSED = 16  # from this size on a CPU upsamples by a transposed convolution
POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def initialise(weight: Tensor, scale: float = 1.0, parts: Sequence[int] | None = None) -> None:
    """Variance scaling, fan average, uniform: U(-b, b), b^2 = 3 scale / mean(fan in, fan out). `parts` are the output
    rows of layers that were packed into one weight: each keeps its own fan."""
    area = weight[0, 0].numel()
    for part in torch.split(weight.data, list(parts) if parts else [len(weight)]):
        bound = math.sqrt(3 * scale / max(1.0, area * (part.shape[0] + part.shape[1]) / 2))
        part.uniform_(-bound, bound)


def linear(inp: int, out: int, *, scale: float = 1.0, parts: Sequence[int] | None = None) -> nn.Linear:
    layer = nn.Linear(inp, out)
    initialise(layer.weight, scale, parts)
    nn.init.zeros_(layer.bias)
    return layer


def conv(
    dims: int, inp: int, out: int, size: int = 3, *, stride: int = 1, pad: int | None = None, scale: float = 1.0
) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    """A convolution over `dims` axes; `pad` is size // 2 unless given."""
    layer = CONVS[dims - 1](inp, out, size, stride, size // 2 if pad is None else pad)
    initialise(layer.weight, scale)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def halve(x: Tensor) -> Tensor:
    """Mean of every 2 x 2 cell: n -> ceil(n / 2); a cell at an odd edge averages what it has."""
    half: Tensor = POOLS[x.ndim - 3](x, 2, ceil_mode=True)
    return half


def double(x: Tensor) -> Tensor:
    """Nearest neighbour: n -> 2n."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The leading `size` of the spatial axes; x itself where nothing is to be cut."""
    for axis, n in enumerate(size, 2):
        if x.shape[axis] != n:
            x = x.narrow(axis, 0, n)
    return x


class Downsample(nn.Module):
    """Strided 3 x 3 convolution, n -> ceil(n / 2). `pad` (before, after) for even n: (0, 1) is TensorFlow's SAME (Ho,
    Score-SDE), (1, 1) OpenAI's. Odd n are padded (1, 1), which is what SAME does there."""

    width = 0  # needs no time row

    def __init__(self, dims: int, channels: int, pad: tuple[int, int] = (0, 1)) -> None:
        super().__init__()
        self.conv = conv(dims, channels, channels, stride=2, pad=1 if pad == (1, 1) else 0)
        self.pad = pad

    def forward(self, x: Tensor, row: Tensor | None = None) -> Tensor:
        if self.pad != (1, 1):
            x = F.pad(x, [p for n in reversed(x.shape[2:]) for p in ((1, 1) if n % 2 else self.pad)])
        h: Tensor = self.conv(x)
        return h


class Upsample(nn.Module):
    """Nearest neighbour, then a 3 x 3 convolution: n -> 2n."""

    width = 0

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.conv = conv(dims, channels, channels)

    def forward(self, x: Tensor, row: Tensor | None = None) -> Tensor:
        if x.device.type == "cpu" and min(x.shape[2:]) >= TRANSPOSED:
            h: Tensor = DECONVS[x.ndim - 3](x, doubling(self.conv.weight), self.conv.bias, stride=2, padding=1)
        else:
            h = self.conv(double(x))
        return h


def doubling(weight: Tensor) -> Tensor:
    """The transposed convolution (stride 2, padding 1) equal to `double` then `weight`: (O, I, 3...) -> (I, O, 4...).

    Taps that read the same input cell are summed, 6 to 4 for every axis: (4/6)^dims of the multiplications, no doubled
    input in memory, and the same result but for rounding.
    """
    for axis in range(2, weight.ndim):
        nothing = torch.zeros_like(weight.narrow(axis, 0, 1))
        weight = torch.cat([weight, nothing], axis) + torch.cat([nothing, weight], axis)
    return weight.flip(list(range(2, weight.ndim))).transpose(0, 1)


class Dropout(nn.Dropout):
    """`nn.Dropout`, with sixteen random bits a number on CPU, where `bernoulli_` draws sixty-four and takes as long as
    a normalisation: the probability is a multiple of 2^-16, and the scale is that of the probability used."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        threshold = round(self.p * 2**16)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        keep = (bits[: x.numel()] >= threshold - 2**15).to(x.dtype).mul_(1 / (1 - threshold / 2**16))
        return x * keep.as_strided(x.shape, torch.empty_like(x, device="meta").stride())


class ResBlock(nn.Module):
    """`shortcut(x) + conv(drop(act(norm(conv(act(norm x)) + row))))` (DDPM appendix B; BigGAN's order).

    row: this block's projection of the time embedding, (B or 1, width): added before the second norm (width = out), or
    its scale and shift (`scale_shift`, width = 2 out). `resample`: `halve` or `double`, after the first activation
    and on the shortcut (ADM's resblock_updown). `project`: a 1 x 1 shortcut even where the width stays (Score-SDE, when
    resampling). `rescale` multiplies the sum (1 / sqrt 2 in Score-SDE).
    """

    def __init__(
        self,
        dims: int,
        inp: int,
        out: int,
        norm: Callable[[int], Norm] = Norm,
        *,
        dropout: float = 0.0,
        scale_shift: bool = False,
        rescale: float = 1.0,
        resample: Callable[[Tensor], Tensor] | None = None,
        project: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = norm(inp)
        self.conv1 = conv(dims, inp, out)
        self.norm2 = norm(out)
        self.drop = Dropout(dropout)
        self.conv2 = conv(dims, out, out, scale=LAST)
        self.shortcut = conv(dims, inp, out, 1) if project or inp != out else None
        self.scale_shift, self.rescale, self.resample = scale_shift, rescale, resample
        self.width = 2 * out if scale_shift else out

    def forward(self, x: Tensor, row: Tensor) -> Tensor:
        h: Tensor = self.norm1(x)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        h = self.norm2(h, row) if self.scale_shift else self.norm2(h.add_(expand(row, h)))
        h = self.conv2(self.drop(h)).add_(x if self.shortcut is None else self.shortcut(x))
        return h if self.rescale == 1 else h.mul_(self.rescale)


def best_memory_format(device: torch.device, dtype: torch.dtype, dims: int, group: int) -> torch.memory_format:
    """The layout in which a U-Net runs fastest; results differ by rounding only. `group`: the fewest channels that
    share a statistic in a norm, 0 where no statistic spans space.

    CPU (measured block by block): float32 convolutions gain about 10 % from channels last, but there torch's GroupNorm
    is slow for less than four channels a group, and always in bfloat16. CUDA (not measured): channels last, as tensor
    cores want. Elsewhere, and in one dimension: contiguous.
    """
    last = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)[dims - 1]
    if device.type == "cpu" and group and (group < 4 or dtype != torch.float32):
        return torch.contiguous_format
    return last if device.type in ("cpu", "cuda") else torch.contiguous_format


def fold(x: Tensor, patch: int) -> Tensor:
    """Cells of patch^dims positions become channels, (B, C, *S) -> (B, C patch^dims, *ceil(S / patch)):
    `pixel_unshuffle` in any dimension, the far edges repeated to a multiple first."""
    sizes, dims = x.shape[2:], x.ndim - 2
    if any(n % patch for n in sizes):
        x = F.pad(x, [p for n in reversed(sizes) for p in (0, -n % patch)], mode="replicate")
    cells = [part for n in x.shape[2:] for part in (n // patch, patch)]
    inner, outer = range(3, 3 + 2 * dims, 2), range(2, 2 + 2 * dims, 2)
    return x.reshape(*x.shape[:2], *cells).permute(0, 1, *inner, *outer).flatten(1, 1 + dims)


def unfold(x: Tensor, patch: int) -> Tensor:
    """The inverse of `fold`: (B, C patch^dims, *S) -> (B, C, *patch S)."""
    sizes, dims = x.shape[2:], x.ndim - 2
    order = [axis for d in range(dims) for axis in (2 + dims + d, 2 + d)]
    x = x.reshape(len(x), -1, *(patch,) * dims, *sizes).permute(0, 1, *order)
    return x.reshape(*x.shape[:2], *(patch * n for n in sizes))
