"""LPIPS (Zhang et al. 2018, arXiv:1801.03924): how different two pictures look, by the features of a classifier.

d(x, y) = sum_l mean_hw w_l . (f_l(x) - f_l(y))^2 with features of unit length along the channels. Version 0.1, the one
that everybody reports: pictures in [-1, 1] are first scaled to the statistics of ImageNet.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPS = 1e-10


class Fire(nn.Module):
    """SqueezeNet's block: few channels, then twice as many branches of 1 x 1 and 3 x 3."""

    def __init__(self, inp: int, few: int, out: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inp, few, 1)
        self.expand1x1 = nn.Conv2d(few, out // 2, 1)
        self.expand3x3 = nn.Conv2d(few, out // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


def alex() -> tuple[list[nn.Module], tuple[int, ...]]:
    """Layers in the order, and so with the numbers, of torchvision, and which of them are looked at."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for inp, out in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(inp, out, 3, padding=1), nn.ReLU()]
    return layers, (1, 4, 7, 9, 11)


def vgg() -> tuple[list[nn.Module], tuple[int, ...]]:
    """VGG-16 up to relu5_3."""
    layers: list[nn.Module] = []
    seen, width = [], 3
    for out, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers += [nn.MaxPool2d(2)] if layers else []
        for _ in range(count):
            layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU()]
            width = out
        seen.append(len(layers) - 1)
    return layers, tuple(seen)


def squeeze() -> tuple[list[nn.Module], tuple[int, ...]]:
    """SqueezeNet 1.1."""

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool(), Fire(64, 16, 128), Fire(128, 16, 128)]
    layers += [pool(), Fire(128, 32, 256), Fire(256, 32, 256), pool(), Fire(256, 48, 384), Fire(384, 48, 384)]
    return [*layers, Fire(384, 64, 512), Fire(512, 64, 512)], (1, 4, 7, 9, 10, 11, 12)


TRUNKS: dict[str, Callable[[], tuple[list[nn.Module], tuple[int, ...]]]] = {
    "alex": alex,
    "vgg": vgg,
    "squeeze": squeeze,
}
WIDTHS = {
    "alex": (64, 192, 384, 256, 256),
    "vgg": (64, 128, 256, 512, 512),
    "squeeze": (64, 128, 256, 384, 384, 512, 512),
}


class LPIPS(nn.Module):
    """forward(x, y): (B, 3, H, W) in [-1, 1] each, differentiable, to (B,).

    Fresh weights mean nothing: load a trunk trained on ImageNet and the linear layers that belong to it.
    """

    def __init__(self, trunk: str = "alex") -> None:
        super().__init__()
        layers, self.seen = TRUNKS[trunk]()
        self.features = nn.Sequential(*layers)
        self.heads = nn.ParameterList([nn.Parameter(torch.ones(width)) for width in WIDTHS[trunk]])
        self.register_buffer("mean", torch.tensor(MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).reshape(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def load_trunk(self, state: Mapping[str, Tensor]) -> None:
        """Weights under torchvision's names (features.0.weight ...); the classifier and what comes after the last
        layer looked at are left out."""
        wanted = self.features.state_dict()
        self.features.load_state_dict({name: state[f"features.{name}"] for name in wanted})

    def load_heads(self, state: Mapping[str, Tensor]) -> None:
        """Linear layers as the package lpips stores them (lin0.model.1.weight (1, C, 1, 1) ...)."""
        with torch.no_grad():
            for i, head in enumerate(self.heads):
                head.copy_(state[f"lin{i}.model.1.weight"].reshape(head.shape))

    def looks(self, x: Tensor) -> list[Tensor]:
        """Features of unit length, layer by layer."""
        out, h = [], (x - self.mean) / self.std
        for i, layer in enumerate(self.features):
            h = layer(h)
            if i in self.seen:
                out.append(h / (h.square().sum(1, keepdim=True).sqrt() + EPS))
        return out

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        total = x.new_zeros(len(x))
        for a, b, head in zip(self.looks(x), self.looks(y), self.heads, strict=True):
            total = total + ((a - b).square().mean((2, 3)) @ head)
        return total
