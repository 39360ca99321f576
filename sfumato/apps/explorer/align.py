"""Are two small pictures the same one? Laid over each other as well as they go, in colour.

A copy that was cropped by a few per cent is no longer where it was: compared pixel by pixel it differs more than two
different pictures do. So one is stretched and shifted (four numbers, found by Gauss-Newton on the squared difference;
Lucas and Kanade 1981) until it lies on the other, and only then they are compared.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Difference", "compare"]

COARSE, FINE = 6, 3  # steps at half the size, and at the whole
REACH = 0.12  # the most that a side moves, of half the picture's side
AT_ONCE = 1024  # pairs
PATCH = 4  # pixels a side of the patches whose worst is `peak`
HOPELESS = 0.6  # relative difference at half the size that no further step mends


class Difference(NamedTuple):
    """Of each pair, once the one lies on the other, where they overlap, in levels of 255 over the three colours."""

    rms: NDArray[np.float32]
    peak: NDArray[np.float32]  # root mean square of the worst patch
    contrast: NDArray[np.float32]  # standard deviation of the paler one: a faint picture is not its faint neighbour


def compare(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> Difference:
    """(B, S, S, 3) and (B, S, S, 3), both uint8, S even."""
    found = [_compare(first[i : i + AT_ONCE], second[i : i + AT_ONCE]) for i in range(0, len(first), AT_ONCE)]
    if not found:
        return Difference(*(np.empty(0, np.float32) for _ in range(3)))
    return Difference(*(np.concatenate(columns) for columns in zip(*found, strict=True)))


@torch.no_grad()
def _compare(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> Difference:
    a, b = _planes(first), _planes(second)
    contrast = torch.minimum(_contrast(a), _contrast(b))
    small_a, small_b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    move, error = _aligned(small_a, small_b, torch.zeros(len(a), 4), COARSE)
    near = (error < HOPELESS * (contrast + 5)).nonzero().squeeze(1)
    rms, peak = error.clone(), torch.full_like(error, float("inf"))
    if len(near):
        fine, _ = _aligned(a[near], b[near], move[near], FINE)
        rms[near], peak[near] = _judged(a[near], b[near], fine)
    return Difference(rms.numpy(), peak.numpy(), contrast.numpy())


def _planes(signs: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(signs)).permute(0, 3, 1, 2).float().contiguous()


def _contrast(x: Tensor) -> Tensor:
    return x.var((2, 3)).mean(1).sqrt()


def _aligned(a: Tensor, b: Tensor, move: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """(the best move of those tried (B, 4), its root mean square). A move takes x to x + m0 + m1 x and y to
    y + m2 + m3 y, in halves of a side."""
    n, _, side, _ = a.shape
    x, y = _axes(side)
    a, b = _soft(a), _soft(b)
    both = torch.cat([a, *_slopes(a)], 1)
    best, least = move, torch.full((n,), float("inf"))
    for step in range(steps + 1):
        grid, inside = _grid(move, x, y)
        warped, dx, dy = F.grid_sample(both, grid, "bilinear", "border", False).chunk(3, 1)
        gap = (b - warped) * inside
        error = (gap.square().sum((1, 2, 3)) / (3 * inside.sum((1, 2, 3))).clamp(min=1)).sqrt()
        better = error < least
        least, best = torch.where(better, error, least), torch.where(better.unsqueeze(1), move, best)
        if step == steps:
            break
        columns = torch.stack([dx, dx * x, dy, dy * y], 1).mul(inside.unsqueeze(1)).flatten(2)  # (B, 4, 3 S S)
        normal = columns @ columns.transpose(1, 2)
        # a picture without structure in some direction does not move in it
        damp = normal.diagonal(dim1=1, dim2=2).mean(1).mul(1e-3).add(side * side)
        normal = normal + torch.diag_embed(damp.unsqueeze(1).expand(n, 4))
        change = torch.linalg.solve(normal, columns @ gap.flatten(1).unsqueeze(2)).squeeze(2)
        move = (move + change.clamp(-0.06, 0.06)).clamp(-REACH, REACH)
    return best, least


def _judged(a: Tensor, b: Tensor, move: Tensor) -> tuple[Tensor, Tensor]:
    """(root mean square, that of the worst patch), not blurred."""
    grid, inside = _grid(move, *_axes(a.shape[-1]))
    gap = (b - F.grid_sample(a, grid, "bilinear", "border", False)).square().mean(1, keepdim=True) * inside
    rms = (gap.sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp(min=1)).sqrt()
    return rms, F.avg_pool2d(gap, PATCH, stride=PATCH // 2).flatten(1).amax(1).sqrt()


def _axes(side: int) -> tuple[Tensor, Tensor]:
    axis = (torch.arange(side, dtype=torch.float32) + 0.5) * 2 / side - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def _grid(move: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Where to look (B, S, S, 2), and which places lie inside of the picture (B, 1, S, S)."""
    m = move.reshape(-1, 4, 1, 1)
    u, v = x + m[:, 0] + m[:, 1] * x, y + m[:, 2] + m[:, 3] * y
    inside = (u.abs() <= 1) & (v.abs() <= 1)
    return torch.stack([u, v], -1), inside.unsqueeze(1).float()


def _soft(x: Tensor) -> Tensor:
    """A little blurred: steps are found from further away."""
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)


def _slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Per half of a side, along x and along y."""
    side = x.shape[-1]
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    along_x = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) * (side / 4)
    along_y = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) * (side / 4)
    return along_x, along_y
