"""What a U-Net is made of, as plain values."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

from torch import Tensor, nn

from sfumato.networks.blocks import double, halve
from sfumato.networks.embedding import Fourier, Sinusoidal
from sfumato.networks.norm import Norm, group_count
from sfumato.networks.pyramid import Double, Halve

LIMITS = (  # (lowest, highest, fields)
    (1, 3, ("dims",)),
    (1, 10**13, ("channels", "out", "widths")),
    (0, 10**13, ("stem", "context", "vector", "time_width", "embed")),
    (1, 64, ("blocks", "patch")),
    (0, 1024, ("attention", "pad")),
    (1, 2**16, ("heads",)),
    (0, 2**16, ("head_width", "groups", "group_width")),
    (0.0, 1.0, ("dropout",)),
    (1e-30, 1.0, ("eps",)),
    (-1e6, 1e6, ("rescale", "shift")),
    (0.0, 1e6, ("fourier",)),
)


def check(config: object, limits: Iterable[tuple[float, float, Iterable[str]]]) -> None:
    """Raises ValueError for a field that is not within its (lowest, highest, fields), as every number of it must be."""
    for low, high, names in limits:
        for name in names:
            value = getattr(config, name)
            for number in value if isinstance(value, tuple) else (value,):
                if not low <= number <= high:
                    raise ValueError(f"{name} is {number}, and must be from {low:g} to {high:g}")


@dataclass(frozen=True)
class UNetConfig:
    """Plain values, fit for a paper's config; the default is Ho's CIFAR-10 network (35,746,307 parameters)."""

    dims: int = 2
    channels: int = 3
    out: int = 3
    widths: tuple[int, ...] = (128, 256, 256, 256)  # channels of each level
    stem: int = 0  # channels of the first convolution; 0: widths[0]
    blocks: int = 2  # residual blocks per encoder level; the decoder has one more
    attention: tuple[int, ...] = (1,)  # levels with attention, 0 = full resolution
    attend_middle: bool = True
    attend_last: bool = False  # decoder: only after the last block of a level (Score-SDE, EDM)
    heads: int = 1
    head_width: int = 0  # channels per head; > 0 overrides heads
    context: int = 0  # width of the tokens; 0: none
    vector: int = 0  # width of the vector condition, which then has a linear layer; 0: that of what it is added to
    early: bool = False  # the vector is added to the features of the time instead of their embedding (EDM's SongUNet)
    groups: int = 32  # of GroupNorm; 0: a LayerNorm over the channels of each pixel
    group_width: int = 0  # fewest channels of a group, where `groups` would make them narrower
    eps: float = 1e-6
    dropout: float = 0.0
    scale_shift: bool = False  # the time embedding scales and shifts the second norm instead of being added before it
    resample_blocks: bool = False  # residual blocks that resample instead of convolutions
    project_resampled: bool = False  # their shortcut has a 1 x 1 convolution
    fir: bool = False  # they resample with the filter (1, 3, 3, 1)
    pyramid: Literal["none", "residual", "skip"] = "none"  # how the halved picture joins the encoder; see pyramid.py
    output_skip: bool = False  # every level of the decoder adds to the picture
    pad: tuple[int, int] = (0, 1)  # of the strided convolution, (before, after)
    rescale: float = 1.0  # of every residual sum
    time_width: int = 0  # sinusoidal features; 0: widths[0]
    embed: int = 0  # time embedding; 0: 4 times the features
    shift: float = 1.0  # see embedding.py
    cosine_first: bool = False
    fourier: float = 0.0  # scale of random Fourier features; 0: sinusoidal
    patch: int = 1  # side of the cells folded into channels at the input and back at the output

    def __post_init__(self) -> None:
        """Raises ValueError for what no network can be. Widths may be of any size: what is too large is counted."""
        check(self, LIMITS)
        if not 1 <= len(self.widths) <= 16 or len(self.attention) > 16 or len(self.pad) != 2:
            raise ValueError("widths and attention are for 1 to 16 levels, and pad is two numbers")
        if self.pyramid not in ("none", "residual", "skip"):
            raise ValueError(f"pyramid is {self.pyramid!r}, and must be 'none', 'residual' or 'skip'")
        if (self.fir and not self.resample_blocks) or (self.pyramid == "residual" and not self.fir):
            raise ValueError("fir needs resample_blocks, and a residual pyramid needs fir")
        if not self.fourier and self.features // 2 == self.shift:
            raise ValueError(f"{self.features} features of the time are too few: a wider widths[0], or time_width")

    @property
    def embedding(self) -> int:
        return self.embed or 4 * self.features

    @property
    def features(self) -> int:
        return self.time_width or self.widths[0]

    @property
    def told(self) -> int:
        """The width of the vector condition."""
        return self.vector or (self.features if self.early else self.embedding)

    def clock(self) -> nn.Module:
        """The features of the time."""
        if self.fourier:
            return Fourier(self.features, scale=self.fourier)
        return Sinusoidal(self.features, shift=self.shift, cosine_first=self.cosine_first)

    def norm(self, channels: int, activate: bool = True) -> Norm:
        return Norm(channels, groups=self.groups_of(channels), eps=self.eps, activate=activate)

    def groups_of(self, channels: int) -> int:
        """The most groups that a norm of so many channels may have; 0: LayerNorm."""
        if not (self.groups and self.group_width):
            return self.groups
        return max(1, min(self.groups, channels // self.group_width))

    def halver(self) -> Callable[[Tensor], Tensor]:
        """What halves a feature map."""
        return Halve(self.dims) if self.fir else halve

    def doubler(self) -> Callable[[Tensor], Tensor]:
        """What doubles it."""
        return Double(self.dims) if self.fir else double

    def heads_of(self, channels: int) -> int:
        if channels % (self.head_width or self.heads):
            raise ValueError(f"{channels} channels cannot be shared by heads: {self.heads=} {self.head_width=}")
        return channels // self.head_width if self.head_width else self.heads

    @property
    def group(self) -> int:
        """The fewest channels that share a statistic of a norm; 0 if none spans space."""
        return min(w // group_count(w, self.groups_of(w)) for w in self.widths) if self.groups else 0

    @property
    def skips(self) -> list[int]:
        """Channels of every skip, in the encoder's order."""
        last = len(self.widths) - 1
        levels = [[w] * (self.blocks + (i < last)) for i, w in enumerate(self.widths)]
        return [self.stem or self.widths[0], *chain(*levels)]


HO_CIFAR10 = UNetConfig(dropout=0.1)
HO_256 = UNetConfig(widths=(128, 128, 256, 256, 512, 512), attention=(4,))
HO_CELEBA = UNetConfig(widths=(128, 256, 256, 256, 512), attention=(2,), dropout=0.1)  # 64 x 64, of DDIM

OPENAI = UNetConfig(out=6, eps=1e-5, pad=(1, 1), shift=0.0, cosine_first=True, scale_shift=True)
IMPROVED_CIFAR10 = replace(OPENAI, blocks=3, heads=4, attention=(1, 2), dropout=0.3)
IMPROVED_64 = replace(OPENAI, widths=(128, 256, 384, 512), blocks=3, heads=4, attention=(2, 3))
IMPROVED_64_CLASSES = replace(IMPROVED_64, widths=(192, 384, 576, 768))
IMPROVED_UP_256 = replace(OPENAI, channels=6, widths=(192, 192, 384, 384, 768, 768), heads=4, attention=(4, 5))
IMPROVED_LSUN = replace(OPENAI, widths=HO_256.widths, attention=(4,), scale_shift=False)

ADM = replace(OPENAI, resample_blocks=True, head_width=64)
ADM_64 = replace(ADM, widths=(192, 384, 576, 768), blocks=3, attention=(1, 2, 3), dropout=0.1)
ADM_128 = replace(ADM, widths=(256, 256, 512, 768, 1024), attention=(2, 3, 4), heads=4, head_width=0)
ADM_256 = replace(ADM, widths=(256, 256, 512, 512, 1024, 1024), attention=(3, 4, 5))
ADM_512 = replace(ADM, widths=(128, 256, 256, 512, 512, 1024, 1024), attention=(4, 5, 6), time_width=256)
ADM_UP_256 = replace(ADM, channels=6, widths=(192, 192, 384, 384, 768, 768), attention=(3, 4, 5), heads=4, head_width=0)
ADM_UP_512 = replace(ADM, channels=6, widths=(192, 192, 384, 384, 768, 768), attention=(4, 5))
READ_64 = replace(ADM, widths=(128, 256, 384, 512), blocks=4, attention=(1, 2, 3))  # classifiers' encoders
READ_128 = replace(ADM, widths=(128, 128, 256, 384, 512), attention=(2, 3, 4))
READ_256 = replace(ADM, widths=(128, 128, 256, 256, 512, 512), attention=(3, 4, 5))
READ_512 = replace(ADM, widths=(64, 128, 128, 256, 256, 512, 512), attention=(4, 5, 6), time_width=128)

SONG_DDPM = UNetConfig(attend_last=True, dropout=0.1)
DDPMPP = replace(SONG_DDPM, blocks=4, group_width=4, resample_blocks=True, project_resampled=True, rescale=0.5**0.5)
DDPMPP_DEEP = replace(DDPMPP, blocks=8)
NCSNPP = replace(DDPMPP, fir=True, pyramid="residual", fourier=16.0, time_width=256, embed=512)
NCSNPP_DEEP = replace(NCSNPP, blocks=8)
NCSNPP_256 = replace(
    NCSNPP,
    widths=(128, 128, 256, 256, 256, 256, 256),
    blocks=2,
    attention=(4,),
    dropout=0.0,
    pyramid="skip",
    output_skip=True,
)
NCSNPP_1024 = replace(
    NCSNPP_256,
    widths=(16, 32, 64, 128, 256, 512, 512, 512),
    blocks=1,
    attention=(6,),
    time_width=32,
    embed=64,
)
CLD_CIFAR10 = replace(NCSNPP_DEEP, channels=6)
CLD_CELEBA = replace(DDPMPP, channels=6, widths=(128, 128, 256, 256, 256, 256, 256), blocks=2, attention=(4,))

EDM_DDPMPP = replace(DDPMPP, widths=(256, 256, 256), stem=128, time_width=128, early=True, dropout=0.13)
EDM_NCSNPP = replace(NCSNPP, widths=(256, 256, 256), stem=128, early=True, dropout=0.13)
EDM_DDPMPP_64 = replace(DDPMPP, attention=(2,), early=True, dropout=0.05)
EDM_ADM_64 = replace(ADM_64, out=3, group_width=4)
