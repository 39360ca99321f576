"""The weights, inputs and conditions that the recordings of official networks and the tests that read them share: every
tensor from its own generator, seeded by its place among the sorted names."""

import torch
from torch import Tensor

STD = 0.07
FOURIER = (".W", "freqs")  # one-dimensional: the frequencies


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def fill(shapes: dict[str, list[int]], seed: int) -> dict[str, Tensor]:
    """N(0, 0.07^2), around 1 for the weights of norms, 16 times a normal for frequencies; filters as they must be."""
    state = {}
    for index, key in enumerate(sorted(shapes)):
        value = STD * normal(1000 * seed + index, *shapes[key])
        if key.endswith("resample_filter"):
            line = torch.tensor([1.0, 3.0, 3.0, 1.0] if shapes[key][-1] == 4 else [1.0, 1.0])
            value = torch.outer(line, line)[None, None] / line.sum() ** 2
        elif len(shapes[key]) == 1 and key.endswith(FOURIER):
            value = value * (16 / STD)
        elif len(shapes[key]) == 1 and key.endswith("weight"):
            value = value + 1
        state[key] = value
    return state


def pictures(seed: int, channels: int, size: int) -> Tensor:
    """Four, of which two and two go through the network together."""
    return normal(1000 * seed + 999, 4, channels, size, size)


def told(classes: int) -> Tensor:
    """The classes of the four."""
    return torch.tensor([classes - 1, 0, classes // 2, 1])


def augmentation(seed: int, numbers: int) -> Tensor:
    return normal(1000 * seed + 998, 4, numbers)
