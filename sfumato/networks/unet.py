"""The U-Net of Ho, Jain & Abbeel 2020 (appendix B) and of those who came after, in one, two or three dimensions.

    stem -> levels of [stage x blocks, down] -> middle of [stage with attention, stage]
         -> levels of [stage x (blocks + 1), up] -> head

A stage is a residual block and, at the attention levels, attention. What the official codes differ in are values of
`UNetConfig`; its defaults are Ho's:

    Ho (hojonathanho/diffusion @1e0dceb3, ermongroup/ddim, pesser/pytorch_diffusion)    UNetConfig()
    OpenAI (improved-diffusion @1bc7bbbd)    pad (1, 1), eps 1e-5, shift 0, cosine_first, scale_shift, heads 4
    ADM (guided-diffusion @22e0df81)         as OpenAI, with resample_blocks and head_width 64
    DDPM++ (yang-song/score_sde_pytorch @cb1f359f)    resample_blocks, project_resampled, attend_last, rescale 2^-1/2
    NCSN++ (the same)        as DDPM++, with fir, pyramid and Fourier features (output_skip from 256 x 256 on)
    EDM (NVlabs/edm @008a4e53)               as DDPM++, NCSN++ (`early` vector) and ADM

Sizes: a level of size n continues at ceil(n / 2) and the decoder crops what it doubled to the size of its skip, so
every size works; sizes divisible by 2^(levels - 1) are never padded or cropped and give exactly the official results.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sfumato.networks.attention import SelfAttention
from sfumato.networks.blocks import (
    LAST,
    Downsample,
    ResBlock,
    Upsample,
    best_memory_format,
    conv,
    crop,
    fold,
    linear,
    unfold,
)
from sfumato.networks.config import UNetConfig
from sfumato.networks.embedding import TimeEmbedding
from sfumato.networks.pyramid import Outlet, ResidualInlet, SkipInlet

Mixer = Callable[[int, bool], nn.Module | None]


class Features(NamedTuple):
    """What an encoder saw: the middle (B, C, *S), the skips from fine to coarse, the time embedding (B or 1, E)."""

    middle: Tensor
    skips: tuple[Tensor, ...]
    embedding: Tensor

    def plus(self, control: Sequence[Tensor]) -> "Features":
        """Residuals for the skips and, last, the middle (ControlNet)."""
        if len(control) != len(self.skips) + 1:
            raise ValueError(f"control: {len(self.skips)} skips and a middle are needed, not {len(control)} tensors")
        *skips, middle = control
        added = tuple(a + b for a, b in zip(self.skips, skips, strict=True))
        return Features(self.middle + middle, added, self.embedding)


class Stage(nn.Module):
    """A block `(h, row)`, then what mixes positions `(h, tokens, mask)`."""

    def __init__(self, block: ResBlock | Downsample | Upsample, mixer: nn.Module | None = None) -> None:
        super().__init__()
        self.block, self.mixer = block, mixer

    def forward(self, h: Tensor, row: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        h = self.block(h, row)
        return h if self.mixer is None else self.mixer(h, tokens, mask)


class Rows(nn.Module):
    """Every stage's projection of the time embedding in one matrix product: (B, E) -> a row (B, width) for each."""

    def __init__(self, embedding: int, stages: Iterable[nn.Module]) -> None:
        super().__init__()
        self.widths = [stage.block.width for stage in stages if isinstance(stage, Stage)]
        self.linear = linear(embedding, sum(self.widths), parts=self.widths)

    def forward(self, embedding: Tensor) -> tuple[Tensor, ...]:
        rows: tuple[Tensor, ...] = self.linear(F.silu(embedding)).split(self.widths, 1)
        return rows


def residual(c: UNetConfig, inp: int, out: int, resample: Callable[[Tensor], Tensor] | None = None) -> ResBlock:
    """The config's residual block."""
    project = c.project_resampled and resample is not None
    return ResBlock(
        c.dims,
        inp,
        out,
        c.norm,
        dropout=c.dropout,
        scale_shift=c.scale_shift,
        rescale=c.rescale,
        resample=resample,
        project=project,
    )


def halving(c: UNetConfig, width: int) -> ResBlock | Downsample:
    return residual(c, width, width, c.halver()) if c.resample_blocks else Downsample(c.dims, width, c.pad)


def doubling(c: UNetConfig, width: int) -> ResBlock | Upsample:
    return residual(c, width, width, c.doubler()) if c.resample_blocks else Upsample(c.dims, width)


def attention(c: UNetConfig, channels: int, attend: bool) -> SelfAttention | None:
    """The config's mixer."""
    if not attend:
        return None
    return SelfAttention(c.dims, channels, c.norm, c.heads_of(channels), context=c.context, rescale=c.rescale)


def inlet(c: UNetConfig, inp: int, out: int) -> nn.Module:
    """What joins the config's pyramid of the picture to the encoder."""
    if c.pyramid == "residual":
        return ResidualInlet(c.dims, inp, out, c.rescale)
    return SkipInlet(c.dims, inp, out, c.halver())


class _Half(nn.Module):
    """What encoder and decoder share: stages, one after another, with or without checkpointing."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config, self.checkpointing = config, False
        self.levels = nn.ModuleList()

    def _call(self, stage: nn.Module, *inputs: Tensor | None) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            output: Tensor = checkpoint(stage, *inputs, use_reentrant=False)
        else:
            output = stage(*inputs)
        return output


class UNetEncoder(_Half):
    """Half of a U-Net, whole in itself: stem, time embedding, levels, middle. Copy it for a ControlNet.

    forward(x (B, channels, *S), time (B,) or (1,), vector (B, D), tokens (B, L, context), mask (B, L)) -> Features
    """

    def __init__(self, config: UNetConfig, mixer: Mixer | None = None) -> None:
        super().__init__(config)
        c, mixer = config, mixer or partial(attention, config)
        self.time = TimeEmbedding(c.clock(), c.features, c.embedding, vector=c.vector, early=c.early)
        self.stem = conv(c.dims, side := c.channels * c.patch**c.dims, before := c.skips[0])
        self.inlets = nn.ModuleList()
        for level, width in enumerate(c.widths):
            for _ in range(c.blocks):
                self.levels.append(Stage(residual(c, before, width), mixer(width, level in c.attention)))
                before = width
            if level < len(c.widths) - 1:
                self.levels.append(Stage(halving(c, width)))
                if c.pyramid != "none":
                    self.inlets.append(inlet(c, side, width))
                    side = width if c.pyramid == "residual" else side
        pair = (Stage(residual(c, before, before), mixer(before, attend)) for attend in (c.attend_middle, False))
        self.middle = nn.ModuleList(pair)
        self.rows = Rows(c.embedding, (*self.levels, *self.middle))

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        vector: Tensor | None = None,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Features:
        x = x.contiguous(
            memory_format=best_memory_format(x.device, _compute_dtype(x), self.config.dims, self.config.group)
        )
        embedding = self.time(time, vector)
        rows = self.rows(embedding)
        side = x if self.config.patch == 1 else fold(x, self.config.patch)
        h = self.stem(side)
        skips = [h]
        period = self.config.blocks + 1  # stages of a level, of which the last one halves and may be joined
        joined = period * len(self.inlets)
        for i, (stage, row) in enumerate(zip(self.levels, rows, strict=False), 1):
            h = self._call(stage, h, row, tokens, mask)
            if i <= joined and i % period == 0:
                side, h = self.inlets[i // period - 1](side, h)
            skips.append(h)
        for stage, row in zip(self.middle, rows[len(self.levels) :], strict=True):
            h = self._call(stage, h, row, tokens, mask)
        return Features(h, tuple(skips), embedding)


class UNetDecoder(_Half):
    """The other half: forward(features, tokens, mask) -> (B, out, *S)."""

    def __init__(self, config: UNetConfig, mixer: Mixer | None = None) -> None:
        super().__init__(config)
        c, skips, mixer = config, config.skips, mixer or partial(attention, config)
        before = c.widths[-1]
        for level, width in reversed(list(enumerate(c.widths))):
            for block in range(c.blocks + 1):
                attend = level in c.attention and (block == c.blocks or not c.attend_last)
                self.levels.append(Stage(residual(c, before + skips.pop(), width), mixer(width, attend)))
                before = width
            if level:
                self.levels.append(Stage(doubling(c, width)))
        self.rows = Rows(c.embedding, self.levels)
        self.norm, out = c.norm(before), c.out * c.patch**c.dims
        self.head = conv(c.dims, before, out, scale=LAST)
        self.upsample, coarse = c.doubler(), c.widths[:0:-1] if c.output_skip else ()
        self.outlets = nn.ModuleList(Outlet(c.dims, width, out, c.norm, c.doubler()) for width in coarse)

    def forward(self, features: Features, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        h, skips = features.middle, list(features.skips)
        picture: Tensor | None = None
        period = self.config.blocks + 2  # stages of a level, of which the last one only doubles
        for i, (stage, row) in enumerate(zip(self.levels, self.rows(features.embedding), strict=True)):
            if i % period < period - 1:
                skip = skips.pop()
                h = torch.cat([crop(h, skip.shape[2:]), skip], 1)
            elif self.config.output_skip:
                picture = self.outlets[i // period](h, picture)
            h = self._call(stage, h, row, tokens, mask)
        h = self.head(self.norm(h))
        if picture is not None:
            h = h.add_(crop(self.upsample(picture), h.shape[2:]))
        return h if self.config.patch == 1 else unfold(h, self.config.patch)


class UNet(nn.Module):
    """forward(x (B, C, *S), time (B,) or (1,) float, ...) -> (B, out, *S), contiguous, in x's layout of axes.

    vector (B, D) is added to the time embedding; tokens (B, L, context) with mask (B, L) bool (True = a word) join the
    attention; spatial (B, C2, *S) is concatenated to x (C + C2 = config.channels); control, a tensor for each skip and
    one for the middle, is added to them. A time (1,) serves the whole batch and is projected once.
    `mixer(channels, attend)` builds what follows every residual block, called `(h, tokens, mask)`: by default
    SelfAttention where `attend`.
    Setting `checkpointing` trades a second forward pass for the memory of the activations inside stages.
    """

    def __init__(self, config: UNetConfig = UNetConfig(), *, mixer: Mixer | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = UNetEncoder(config, mixer), UNetDecoder(config, mixer)

    @property
    def checkpointing(self) -> bool:
        return self.encoder.checkpointing

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self.encoder.checkpointing = self.decoder.checkpointing = on

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
        size = x.shape[2:]
        x = x if spatial is None else torch.cat([x, spatial], 1)
        features = self.encoder(x, time, vector, tokens, mask)
        h = self.decoder(features if control is None else features.plus(control), tokens, mask)
        return crop(h, size).contiguous()


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
