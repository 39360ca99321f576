"""The diffusion transformer of Peebles & Xie 2022 (arXiv:2212.09748), in one, two or three dimensions.

    patches -> + positions -> blocks of [x + gate attend(norm x), x + gate mlp(norm x)] -> head -> pixels

Every norm is scaled and shifted, and every branch gated, by rows that are made from the time and the vector condition
(adaLN-Zero, section 3.2). The defaults are the official code's (facebookresearch/DiT @ed81ce2):

    official     DiTConfig(...)
    diffusers    DiTConfig(..., shift=1.0, eps_mlp=1e-5): `DiTTransformer2DModel`, whose features of the time and norm
                 before the MLP are not the official ones (answers differ by a hundredth)

Sizes: positions follow the picture, so every size works. Sides that are no multiple of the patch have their far edge
repeated, and what was added is cropped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sfumato.networks.attention import attend
from sfumato.networks.blocks import crop, fold, linear, unfold
from sfumato.networks.config import check
from sfumato.networks.dense import dense, dense_gelu
from sfumato.networks.embedding import Sinusoidal, TimeEmbedding

__all__ = ["DiT", "DiTConfig", "positions"]

LIMITS = (
    (1, 3, ("dims",)),
    (1, 10**13, ("channels", "out", "width", "heads")),
    (0, 10**13, ("context", "vector")),
    (1, 4096, ("depth",)),
    (1, 64, ("patch",)),
    (4, 2**16, ("features",)),
    (1e-3, 1e3, ("mlp",)),
    (1e-30, 1.0, ("eps", "eps_mlp")),
    (-1e3, 1.0, ("shift",)),
)


@dataclass(frozen=True)
class DiTConfig:
    """Plain values, fit for a paper's config; the default is S/2."""

    dims: int = 2
    channels: int = 3
    out: int = 3
    patch: int = 2  # side of the cells that become one token
    width: int = 384  # numbers of a token
    depth: int = 12  # blocks
    heads: int = 6
    mlp: float = 4.0  # width of the hidden layer, in widths
    context: int = 0  # width of further tokens to attend to; 0: none
    vector: int = 0  # width of the vector condition, which then has a linear layer; 0: `width`
    features: int = 256  # sinusoidal, of the time
    shift: float = 0.0  # see embedding.py
    eps: float = 1e-6  # of the norms
    eps_mlp: float = 1e-6  # of those before the MLPs

    def __post_init__(self) -> None:
        """Raises ValueError for what no network can be."""
        check(self, LIMITS)
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}, and must be a multiple of heads, {self.heads}")
        if self.width < 2 * self.dims:
            raise ValueError(f"width is {self.width}: positions in {self.dims} dimensions need {2 * self.dims} numbers")

    @property
    def told(self) -> int:
        """The width of the vector condition."""
        return self.vector or self.width

    @property
    def hidden(self) -> int:
        return max(1, int(self.width * self.mlp))


def positions(grid: Sequence[int], width: int) -> Tensor:
    """(N, width) float32, fixed: each axis has its share of the numbers, the last (columns) first, and in it the sines,
    then the cosines of its index times 10000^(-k / n), k = 0..n-1 (section 3.2, the code). What no share can be made of
    is 0."""
    n = width // (2 * len(grid))
    rates = 1.0 / 10_000.0 ** (torch.arange(n, dtype=torch.float64, device="cpu") / n)
    axes = torch.meshgrid([torch.arange(side, dtype=torch.float64, device="cpu") for side in grid], indexing="ij")
    angles = [axis.reshape(-1, 1) * rates for axis in reversed(axes)]
    waves = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], 1)
    return F.pad(waves, (0, width - waves.shape[1])).float()


def modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """norm(x) (1 + scale) + shift of tokens (B, N, W), for rows (B or 1, 1, W)."""
    if len(scale) == 1 and scale.dtype == x.dtype:
        return F.layer_norm(x, x.shape[-1:], 1 + scale.flatten(), shift.flatten(), eps)
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=eps), 1 + scale)


class Block(nn.Module):
    """Attention between the tokens x (B, N, W), then an MLP on each; forward(x, row (B or 1, 6 W), tokens, mask).

    The row is shift, scale and gate of the attention, then of the MLP. With `context` D, tokens (B, L, D) give further
    keys and values under the same softmax; mask (B, L) bool says which of them are words."""

    def __init__(self, c: DiTConfig) -> None:
        super().__init__()
        self.heads, self.eps, self.eps_mlp = c.heads, c.eps, c.eps_mlp
        self.qkv = linear(c.width, 3 * c.width)
        self.tokens = linear(c.context, 2 * c.width) if c.context else None
        self.project = linear(c.width, c.width)
        self.first, self.second = linear(c.width, c.hidden), linear(c.hidden, c.width)

    def forward(self, x: Tensor, row: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        shift, scale, gate, *rest = row.unsqueeze(1).chunk(6, 2)
        x = torch.addcmul(x, gate, self.mix(modulated(x, shift, scale, self.eps), tokens, mask))
        shift, scale, gate = rest
        h = dense_gelu(modulated(x, shift, scale, self.eps_mlp), self.first)
        return torch.addcmul(x, gate, dense(h, self.second))

    def mix(self, x: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        q, k, v = self._split(dense(x, self.qkv), 3)
        if tokens is not None:
            if self.tokens is None:
                raise ValueError("tokens were given to a network built without context")
            more = self._split(dense(tokens, self.tokens), 2)
            mask = None if mask is None else F.pad(mask[:, None, None], (k.shape[2], 0), value=True)
            k, v = torch.cat([k, more[0]], 2), torch.cat([v, more[1]], 2)
        return dense(attend(q, k, v, mask).transpose(1, 2).flatten(2), self.project)

    def _split(self, packed: Tensor, n: int) -> tuple[Tensor, ...]:
        """(B, N, n W) -> n times (B, heads, N, d)."""
        return packed.reshape(*packed.shape[:2], n, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()


class DiT(nn.Module):
    """forward(x (B, C, *S), time (B,) or (1,) float, ...) -> (B, out, *S), contiguous.

    vector (B, D) is added to the time embedding; tokens (B, L, context) with mask (B, L) bool (True = a word) join the
    attention; spatial (B, C2, *S) is concatenated to x (C + C2 = config.channels). A time (1,) serves the whole batch:
    where nothing else is told, the rows of all blocks are made for it once. There are no skips to add `control` to.
    Setting `checkpointing` trades a second forward pass for the memory of the activations inside blocks.
    """

    def __init__(self, config: DiTConfig = DiTConfig()) -> None:
        super().__init__()
        self.config, self.checkpointing = config, False
        c, cell = config, config.patch**config.dims
        clock = Sinusoidal(c.features, shift=c.shift, cosine_first=True)
        self.time = TimeEmbedding(clock, c.features, c.width, vector=c.vector)
        for layer in (self.time.first, self.time.second):
            nn.init.normal_(layer.weight, std=0.02)
        self.stem = linear(c.channels * cell, c.width)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.rows = linear(c.width, (6 * c.depth + 2) * c.width)  # of all blocks and, last, of the head
        self.head = linear(c.width, c.out * cell)
        for layer in (self.rows, self.head):
            nn.init.zeros_(layer.weight)
        self._places: tuple[object, Tensor] | None = None

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        *,
        vector: Tensor | None = None,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        spatial: Tensor | None = None,
        control: Sequence[Tensor] | None = None,
    ) -> Tensor:
        if control is not None:
            raise ValueError("control was given to a transformer, which has no skips to add it to")
        c, size = self.config, x.shape[2:]
        cells = fold(x if spatial is None else torch.cat([x, spatial], 1), c.patch)
        h = dense(cells.flatten(2).transpose(1, 2), self.stem)
        h = h + self.places(cells.shape[2:], x)
        rows = self.rows(F.silu(self.time(time, vector)))
        *each, last = rows.split([6 * c.width] * c.depth + [2 * c.width], 1)
        for block, row in zip(self.blocks, each, strict=True):
            h = self._call(block)(h, row, tokens, mask)
        shift, scale = last.unsqueeze(1).chunk(2, 2)
        h = dense(modulated(h, shift, scale, c.eps), self.head).transpose(1, 2)
        return crop(unfold(h.reshape(*h.shape[:2], *cells.shape[2:]), c.patch), size).contiguous()

    def places(self, grid: Sequence[int], x: Tensor) -> Tensor:
        """The positions of a grid of patches in x's type and on its device, kept for the next call."""
        key = (*grid, x.dtype, x.device)
        if self._places is None or self._places[0] != key:
            with torch.inference_mode(False):
                self._places = key, positions(grid, self.config.width).to(x.device, x.dtype)
        return self._places[1]

    def _call(self, block: nn.Module) -> Callable[..., Tensor]:
        if self.checkpointing and torch.is_grad_enabled():
            return partial(checkpoint, block, use_reentrant=False)
        return block
