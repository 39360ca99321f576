"""What tests of papers share."""

import torch
from torch import nn

from sfumato.core.random import Seeds
from sfumato.networks import UNetConfig
from sfumato.recipe import At

SMALL = UNetConfig(widths=(32, 64), blocks=1, attention=(1,), groups=8)
LEAST = UNetConfig(widths=(16,), blocks=1, attention=(), attend_middle=False, groups=0)
NAMES = ("a", "b", "c")


def at(positions, step=0, total=10):
    return At(step, 0, total, "model", Seeds.at(0, positions, "loss"))


def loud(recipe):
    """Every parameter overwritten: zero-initialised outputs would let any wiring pass."""
    with torch.no_grad():
        for i, p in enumerate(recipe.parameters()):
            p.copy_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    return recipe.eval()


class Oracle(nn.Module):
    """An exact denoiser in the place of a base."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.label = denoiser, None
