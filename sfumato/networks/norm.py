"""Normalisation followed by SiLU: what every convolution of a U-Net is fed with."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def group_count(channels: int, groups: int) -> int:
    """The largest divisor of `channels` that is at most `groups`: every width works, usual ones are unchanged."""
    return max(n for n in range(1, min(channels, groups) + 1) if channels % n == 0)


def expand(row: Tensor, x: Tensor) -> Tensor:
    """A row (B, C) beside a picture (B, C, *S)."""
    return row.reshape(*row.shape, *(1,) * (x.ndim - 2))


class Norm(nn.Module):
    """Group normalisation (Wu & He 2018) and, by default, SiLU.

    `groups` n > 0: GroupNorm with `group_count(channels, n)` groups. `groups` 0: LayerNorm over the channels of each
    pixel (ConvNeXt, Liu et al. 2022): no statistics over space, one cheap pass in channels_last.
    forward(x (B, C, *S), row (B or 1, 2C) | None): a row modulates the result, `norm(x) (1 + scale) + shift`
    (improved-diffusion `use_scale_shift_norm`), scale being the row's first half.
    """

    def __init__(self, channels: int, *, groups: int = 32, eps: float = 1e-6, activate: bool = True) -> None:
        super().__init__()
        self.groups = group_count(channels, groups) if groups else 0
        self.eps, self.activate = eps, activate
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, groups={self.groups}, eps={self.eps}, activate={self.activate}"

    def forward(self, x: Tensor, row: Tensor | None = None) -> Tensor:
        h = F.group_norm(x, self.groups, self.weight, self.bias, self.eps) if self.groups else self._pixelwise(x)
        if row is not None:
            scale, shift = row.chunk(2, 1)
            h = torch.addcmul(expand(shift, h), h, expand(1 + scale, h))
        return F.silu(h) if self.activate else h

    def _pixelwise(self, x: Tensor) -> Tensor:
        h = F.layer_norm(x.movedim(1, -1), (x.shape[1],), self.weight, self.bias, self.eps)
        return h.movedim(-1, 1)
