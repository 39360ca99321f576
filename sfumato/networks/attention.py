"""Self-attention between the pixels of a feature map, optionally with text tokens among the keys.

The query, key and value projections are one 1 x 1 convolution (in float32 on AMD processors oneDNN convolves twice as
fast as MKL multiplies) whose output channel is `w C + h d + c` (w in q, k, v; head h; d = C / heads): the "new order"
of guided-diffusion. `from_separate`, `from_legacy` and `from_interleaved` turn the packings of other codes into it, for
weights (3C, C, ...) and biases (3C,) alike.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.networks.blocks import LAST, conv, initialise, linear
from sfumato.networks.norm import Norm

SMALL = 256 * 256  # queries x keys
WIDE = 128  # numbers of a head


def from_separate(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Three layers (Ho, DDIM, Score-SDE, diffusers)."""
    return torch.cat([q, k, v])


def from_legacy(packed: Tensor, heads: int) -> Tensor:
    """Index `h 3d + w d + c`: improved-diffusion, and guided-diffusion without `use_new_attention_order`."""
    return packed.reshape(heads, 3, -1, *packed.shape[1:]).transpose(0, 1).reshape(packed.shape)


def to_legacy(packed: Tensor, heads: int) -> Tensor:
    return packed.reshape(3, heads, -1, *packed.shape[1:]).transpose(0, 1).reshape(packed.shape)


def from_interleaved(packed: Tensor, heads: int) -> Tensor:
    """Index `h 3d + 3c + w`: EDM."""
    return packed.reshape(heads, -1, 3, *packed.shape[1:]).movedim(2, 0).reshape(packed.shape)


def to_interleaved(packed: Tensor, heads: int) -> Tensor:
    return packed.reshape(3, heads, -1, *packed.shape[1:]).movedim(0, 2).reshape(packed.shape)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt d) v for (B, heads, N, d); mask (B, 1, 1, M) bool, True = may be looked at.

    Small maps on a CPU go through two plain products where that is faster than the fused kernel: in bfloat16 (1.1 to
    4 times; slower from about 500 x 500 on) and, in float32, for wide heads. The softmax is in float32 either way. The
    fused kernel wants numbers of a head side by side.
    """
    small = q.shape[2] * k.shape[2] <= SMALL and (q.dtype != torch.float32 or q.shape[3] >= WIDE)
    if mask is None and q.device.type == "cpu" and small:
        scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
        weights = scores.softmax(3, torch.promote_types(v.dtype, torch.float32)).to(v.dtype)
        return torch.matmul(weights, v)
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class SelfAttention(nn.Module):
    """`x + project(attend(norm x))` over the positions of x (B, C, *S).

    With `context` D, `tokens` (B, L, D) give further keys and values under the same softmax (GLIDE's
    `AttentionBlock(encoder_channels)`; Imagen section 2.4); `mask` (B, L) bool says which tokens are words. A network
    built with a context may be called without tokens. `norm(channels, activate)` builds its normalisation.
    """

    def __init__(
        self,
        dims: int,
        channels: int,
        norm: Callable[[int, bool], Norm],
        heads: int = 1,
        *,
        context: int = 0,
        rescale: float = 1.0,
    ) -> None:
        super().__init__()
        self.heads, self.rescale = heads, rescale
        self.norm = norm(channels, False)
        self.qkv = conv(dims, channels, 3 * channels, 1)
        initialise(self.qkv.weight, parts=(channels,) * 3)
        self.tokens = linear(context, 2 * channels, parts=(channels,) * 2) if context else None
        self.project = conv(dims, channels, channels, 1, scale=LAST)

    def forward(self, x: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        q, k, v = self._split(self.qkv(self.norm(x)).flatten(2).transpose(1, 2), 3)
        if tokens is not None:
            k, v, mask = self._join(k, v, tokens, mask)
        h = attend(q, k, v, mask).transpose(1, 2).flatten(2).transpose(1, 2)
        y: Tensor = self.project(h.reshape(x.shape)).add_(x)
        return y if self.rescale == 1 else y.mul_(self.rescale)

    def _split(self, packed: Tensor, n: int) -> tuple[Tensor, ...]:
        """(B, N, n C) -> n times (B, heads, N, d)."""
        return packed.reshape(*packed.shape[:2], n, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()

    def _join(self, k: Tensor, v: Tensor, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.tokens is None:
            raise ValueError("tokens were given to a network built without context")
        more = self._split(self.tokens(tokens), 2)
        if mask is not None:
            mask = F.pad(mask[:, None, None], (k.shape[2], 0), value=True)
        return torch.cat([k, more[0]], 2), torch.cat([v, more[1]], 2), mask
