"""Looking at a run without touching it: the loss of held-out examples, and grids of pictures."""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfumato.core.random import Seeds
from sfumato.engine.backward import Backward, reproducible
from sfumato.engine.order import Data, share
from sfumato.recipe import Ask, Recipe

__all__ = ["grid", "held_loss", "preview", "write_grid"]


@torch.no_grad()
def held_loss(backward: Backward, held: Data, step: int, *, limit: int = 512) -> dict[str, float]:
    """The mean loss of each phase over (at most `limit`) held-out examples.

    t and eps of an example depend on the seed and on the example only, so that values compare over time and runs.
    """
    recipe, world, n = backward.recipe, backward.world, min(len(held), limit)
    mine = np.arange(n)[share(n, world.rank, world.size)]
    chunk = max(1, backward.batch // world.size // backward.accumulate)
    backward.buffers.keep()
    was_training = recipe.training
    recipe.eval()
    try:
        with reproducible(backward.device, backward.seed, "held"), backward.autocast(), backward.eager():
            sums = {
                name: sum(_chunk(backward, held, name, step, mine[i : i + chunk]) for i in range(0, len(mine), chunk))
                for name in recipe.phases()
            }
    finally:
        recipe.train(was_training)
        backward.buffers.restore()
    return {name: total / n for name, total in zip(sums, world.sum(list(sums.values())), strict=True)}


def _chunk(backward: Backward, held: Data, phase: str, step: int, indices: np.ndarray) -> float:
    content = {k: v.to(backward.device) if isinstance(v, Tensor) else v for k, v in held.batch(indices, None).items()}
    at = backward.at(step, phase, Seeds.at(backward.seed, indices.tolist(), "held"))
    return float(backward.recipe.loss(content, at).value) * len(indices)


@torch.no_grad()
def preview(recipe: Recipe, ask: Ask, seed: int, device: torch.device) -> Tensor:
    """Pictures (n, C, *S) in [0, 1] by the recipe's sampler; the same seeds every time."""
    was_training = recipe.training
    recipe.eval()
    try:
        with reproducible(device, seed, "preview"):
            last = deque(recipe.sample(ask, rng=Seeds(seed)), maxlen=1).pop()
            return recipe.picture(last, quick=True).float().cpu()
    finally:
        recipe.train(was_training)


def grid(pictures: Tensor) -> Tensor:
    """(n, C, *S) in [0, 1] as one uint8 picture (H, W, C); of volumes and videos the middle slice."""
    while pictures.dim() > 4:
        pictures = pictures[:, :, pictures.shape[2] // 2]
    n, c, h, w = pictures.shape
    across = math.ceil(math.sqrt(n))
    down = math.ceil(n / across)
    sheet = torch.ones(down * across, c, h, w)
    sheet[:n] = pictures
    return (
        sheet.view(down, across, c, h, w)
        .permute(0, 3, 1, 4, 2)
        .reshape(down * h, across * w, c)
        .mul(255)
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
    )


def write_grid(pictures: Tensor, path: Path) -> Path:
    """A PNG with all pictures side by side."""
    from PIL import Image

    pixels = grid(pictures).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., :3] if pixels.shape[-1] > 2 else pixels[..., 0]).save(path)
    return path
