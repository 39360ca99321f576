"""The Inception network of FID: the TensorFlow graph of 2015-12-05, in torch, from weights that the user has.

Szegedy et al. 2015, arXiv:1512.00567. It is not torchvision's network: 1,008 classes; average pools that do not count
the border; a max pool in the last block, where the paper has an average; normalisation with 1e-3. The names are those
of pytorch-fid's and torch-fidelity's files (pt_inception-2015-12-05-6726825d.pth).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.metrics.features import Extractor, Read, file_digest, read_weights

__all__ = ["Inception", "InceptionNet", "Mixed"]

Pair = int | tuple[int, int]
Layer = tuple[str, int, Pair, int]  # name, channels out, kernel, stride
Pool = Callable[[Tensor], Tensor]
Step = Layer | tuple[Layer, Layer] | Pool  # two layers: both upon the same input, side by side
SPATIAL = 7  # channels of mixed_6/conv that make sFID's features: 7 x 17 x 17 = 2,023


def average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 1, 1)


def shrink(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2)


class Unit(nn.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, inp: int, out: int, kernel: Pair, stride: int = 1, pad: Pair = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inp, out, kernel, stride, pad, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _padding(kernel: Pair, stride: int) -> Pair:
    """In the mixed blocks: none where a layer shrinks, else the size is kept."""
    if stride > 1:
        return 0
    return kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)


class Mixed(nn.Module):
    """Branches side by side, each a row of steps."""

    def __init__(self, inp: int, *branches: Sequence[Step]) -> None:
        super().__init__()
        self.branches = [[self._add(step, width) for step, width in _widths(inp, branch)] for branch in branches]

    def _add(self, step: Step, inp: int) -> tuple[str, ...] | Pool:
        """The layers of a step become submodules; their names stay."""
        if callable(step):
            return step
        layers: tuple[Layer, ...] = step if isinstance(step[0], tuple) else (step,)
        for name, out, kernel, stride in layers:
            self.add_module(name, Unit(inp, out, kernel, stride, _padding(kernel, stride)))
        return tuple(layer[0] for layer in layers)

    def forward(self, x: Tensor) -> Tensor:
        out = []
        for branch in self.branches:
            h = x
            for step in branch:
                h = step(h) if callable(step) else torch.cat([self.get_submodule(name)(h) for name in step], 1)
            out.append(h)
        return torch.cat(out, 1)


def _widths(inp: int, branch: Sequence[Step]) -> list[tuple[Step, int]]:
    """Each step with the channels that come to it."""
    out = []
    for step in branch:
        out.append((step, inp))
        if not callable(step):
            inp = sum(layer[1] for layer in step) if isinstance(step[0], tuple) else step[1]
    return out


def block_a(inp: int, pool: int) -> Mixed:
    return Mixed(
        inp,
        [("branch1x1", 64, 1, 1)],
        [("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 1)],
        [("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 1)],
        [average, ("branch_pool", pool, 1, 1)],
    )


def block_b(inp: int) -> Mixed:
    return Mixed(
        inp,
        [("branch3x3", 384, 3, 2)],
        [("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 2)],
        [shrink],
    )


def block_c(inp: int, c: int) -> Mixed:
    wide, tall = (1, 7), (7, 1)
    double: list[Step] = [("branch7x7dbl_1", c, 1, 1), ("branch7x7dbl_2", c, tall, 1), ("branch7x7dbl_3", c, wide, 1)]
    return Mixed(
        inp,
        [("branch1x1", 192, 1, 1)],
        [("branch7x7_1", c, 1, 1), ("branch7x7_2", c, wide, 1), ("branch7x7_3", 192, tall, 1)],
        [*double, ("branch7x7dbl_4", c, tall, 1), ("branch7x7dbl_5", 192, wide, 1)],
        [average, ("branch_pool", 192, 1, 1)],
    )


def block_d(inp: int) -> Mixed:
    long: list[Step] = [("branch7x7x3_1", 192, 1, 1), ("branch7x7x3_2", 192, (1, 7), 1)]
    return Mixed(
        inp,
        [("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 2)],
        [*long, ("branch7x7x3_3", 192, (7, 1), 1), ("branch7x7x3_4", 192, 3, 2)],
        [shrink],
    )


def block_e(inp: int, pool: Pool) -> Mixed:
    def fork(name: str) -> tuple[Layer, Layer]:
        return (f"{name}a", 384, (1, 3), 1), (f"{name}b", 384, (3, 1), 1)

    return Mixed(
        inp,
        [("branch1x1", 320, 1, 1)],
        [("branch3x3_1", 384, 1, 1), fork("branch3x3_2")],
        [("branch3x3dbl_1", 448, 1, 1), ("branch3x3dbl_2", 384, 3, 1), fork("branch3x3dbl_3")],
        [pool, ("branch_pool", 192, 1, 1)],
    )


class InceptionNet(nn.Module):
    """(B, 3, 299, 299), (x - 128) / 128 -> features (B, 2048), logits without bias (B, 1008), as torch-fidelity and
    ADM use for the Inception score, and spatial (B, 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3, pad=1)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = block_a(192, 32), block_a(256, 64), block_a(288, 64)
        self.Mixed_6a = block_b(288)
        self.Mixed_6b, self.Mixed_6c = block_c(768, 128), block_c(768, 160)
        self.Mixed_6d, self.Mixed_6e = block_c(768, 160), block_c(768, 192)
        self.Mixed_7a = block_d(768)
        self.Mixed_7b, self.Mixed_7c = block_e(1280, average), block_e(2048, maximum)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = shrink(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        h = shrink(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(h)))
        h = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(h))))
        h = self.Mixed_6c(self.Mixed_6b(h))
        spatial: Tensor = self.Mixed_6d.get_submodule("branch1x1")(h)  # TensorFlow's mixed_6/conv
        h = self.Mixed_7a(self.Mixed_6e(self.Mixed_6d(h)))
        features = self.Mixed_7c(self.Mixed_7b(h)).mean((2, 3))
        rows = spatial[:, :SPATIAL].permute(0, 2, 3, 1).flatten(1)  # in ADM's order
        return features, features @ self.fc.weight.T, rows


class Inception(Extractor):
    """`inception:FILE` from a state dict: with mode tf1 the FID of torch-fidelity and ADM, with `clean` clean-fid's,
    with `bilinear` near pytorch-fid's (which scales by 255 / 2, not 128)."""

    def __init__(self, path: Path, *, resize: str = "tf1") -> None:
        super().__init__()
        digest = file_digest(path)
        self.net = InceptionNet()
        state = read_weights(path)
        known = self.net.state_dict()
        if state.keys() - known.keys() or any("tracked" not in name for name in known.keys() - state.keys()):
            raise UserError(
                f"{path} is not the Inception of FID: its layers have other names. torchvision's is another."
            )
        try:
            self.net.load_state_dict(state, strict=False)
        except RuntimeError:
            raise UserError(f"{path} is not the Inception of FID: its layers have other shapes.") from None
        self.describe("inception", digest, 2048, 299, resize)

    def read(self, x: Tensor) -> Read:
        return Read(*self.net((x - 128) / 128))
