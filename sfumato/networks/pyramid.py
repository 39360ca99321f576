"""What NCSN++ adds to a U-Net: resampling with the filter (1, 3, 3, 1) of StyleGAN2, the picture itself as a pyramid
beside the encoder, and a picture that every level of the decoder adds to (Song et al. 2021, appendix H)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.networks.blocks import DECONVS, LAST, conv, crop
from sfumato.networks.norm import Norm

CONVOLVE = (F.conv1d, F.conv2d, F.conv3d)
TAPS = (1.0, 3.0, 3.0, 1.0)


def even(x: Tensor) -> Tensor:
    """Zeros at the far edges of odd axes."""
    if any(n % 2 for n in x.shape[2:]):
        x = F.pad(x, [p for n in reversed(x.shape[2:]) for p in (0, n % 2)])
    return x


class Filter(nn.Module):
    """The separable filter (1, 3, 3, 1), its sum `gain` for every axis, on each channel by itself; zeros outside."""

    taps: Tensor

    def __init__(self, dims: int, *, stride: int, pad: int, gain: float = 1.0) -> None:
        super().__init__()
        self.stride, self.pad = stride, pad
        line = torch.tensor(TAPS) * (gain / sum(TAPS))
        taps = line
        for _ in range(dims - 1):
            taps = taps.unsqueeze(-1) * line
        self.register_buffer("taps", taps[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        taps = self.taps.expand(x.shape[1], *self.taps.shape[1:])
        y: Tensor = CONVOLVE[x.ndim - 3](x, taps, None, self.stride, self.pad, 1, len(taps))
        return y


class Halve(Filter):
    """n -> ceil(n / 2)."""

    def __init__(self, dims: int) -> None:
        super().__init__(dims, stride=2, pad=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(even(x))


class Double(Filter):
    """n -> 2n: zeros in between, then the filter."""

    def __init__(self, dims: int) -> None:
        super().__init__(dims, stride=2, pad=1, gain=2.0)

    def forward(self, x: Tensor) -> Tensor:
        taps = self.taps.expand(x.shape[1], *self.taps.shape[1:])
        y: Tensor = DECONVS[x.ndim - 3](x, taps, None, self.stride, self.pad, 0, len(taps))
        return y


class ResidualInlet(nn.Module):
    """`(conv(filtered side) + h) rescale`, which is the next side and the next h (`progressive_input = residual`)."""

    def __init__(self, dims: int, inp: int, out: int, rescale: float) -> None:
        super().__init__()
        self.filter = Filter(dims, stride=1, pad=2)
        self.conv = conv(dims, inp, out, stride=2, pad=0)
        self.rescale = rescale

    def forward(self, side: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.conv(self.filter(even(side))).add_(h).mul_(self.rescale)
        return h, h


class SkipInlet(nn.Module):
    """`h + conv(halved side)`, a 1 x 1 convolution; the next side is the halved one (`input_skip`)."""

    def __init__(self, dims: int, inp: int, out: int, downsample: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.downsample, self.conv = downsample, conv(dims, inp, out, 1)

    def forward(self, side: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        side = self.downsample(side)
        return side, self.conv(side).add_(h)


class Outlet(nn.Module):
    """A level's share of the picture: `conv(norm h) + doubled picture` of the coarser levels (`output_skip`)."""

    def __init__(
        self, dims: int, inp: int, out: int, norm: Callable[[int], Norm], upsample: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.norm, self.conv, self.upsample = norm(inp), conv(dims, inp, out, scale=LAST), upsample

    def forward(self, h: Tensor, picture: Tensor | None) -> Tensor:
        y: Tensor = self.conv(self.norm(h))
        return y if picture is None else y.add_(crop(self.upsample(picture), y.shape[2:]))
