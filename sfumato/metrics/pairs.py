"""Pictures, volumes or masks compared one with one: PSNR, SSIM, Dice. All give (B,), a figure for each pair."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.errors import UserError

__all__ = ["dice", "psnr", "ssim"]

CONVS = (F.conv1d, F.conv2d, F.conv3d)


def _alike(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape:
        raise UserError(f"Pairs must be of one shape: {tuple(x.shape)} and {tuple(y.shape)} here.")


def psnr(x: Tensor, y: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio 10 log10(data_range^2 / mean squared error) in dB; inf for equal pictures.
    `data_range` is 1 for pictures in [0, 1], 2 for [-1, 1], 255 for levels."""
    _alike(x, y)
    error = (x.double() - y.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(data_range**2 / error)


def ssim(x: Tensor, y: Tensor, *, data_range: float = 1.0, sigma: float = 1.5) -> Tensor:
    """Structural similarity (Wang et al. 2004) of (B, C, *S) in two or three dimensions, as torchmetrics computes it:
    a Gaussian window of 11 pixels, k = 0.01 and 0.03, reflected borders, population variances, averaged over pixels
    and channels."""
    _alike(x, y)
    reach, dims = int(3.5 * sigma + 0.5), x.ndim - 2
    if min(x.shape[2:]) <= reach:
        raise UserError(f"SSIM needs more than {reach} pixels a side, here {min(x.shape[2:])}.")
    x, y = x.double(), y.double()
    weights = torch.exp(-torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device).square() / (2 * sigma**2))
    weights = weights / weights.sum()

    def blur(of: Tensor) -> Tensor:
        planes = F.pad(of.flatten(0, 1)[:, None], [reach] * (2 * dims), mode="reflect")
        for axis in range(dims):
            line = weights.reshape([1, 1] + [-1 if i == axis else 1 for i in range(dims)])
            planes = CONVS[dims - 1](planes, line)
        return planes.reshape(of.shape)

    a, b = blur(x), blur(y)
    xx, yy, xy = (blur(x * x) - a * a).clamp(min=0), (blur(y * y) - b * b).clamp(min=0), blur(x * y) - a * b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similar = (2 * a * b + c1) * (2 * xy + c2) / ((a * a + b * b + c1) * (xx + yy + c2))
    return similar.flatten(1).mean(1)


def dice(x: Tensor, y: Tensor) -> Tensor:
    """2 |x and y| / (|x| + |y|) of masks (B, ...), which are true where above 1/2; 1 where both are empty."""
    _alike(x, y)
    one, two = (mask if mask.dtype == torch.bool else mask > 0.5 for mask in (x.flatten(1), y.flatten(1)))
    both, either = 2.0 * (one & two).sum(1), (one.sum(1) + two.sum(1)).double()
    return torch.where(either > 0, both.double() / either.clamp(min=1), 1.0)
