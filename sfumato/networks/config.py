"""What a U-Net is made of, as plain values."""

from dataclasses import dataclass
from itertools import chain

from torch import nn

from sfumato.networks.embedding import Fourier, Sinusoidal
from sfumato.networks.norm import Norm, group_count

LIMITS = (  # (lowest, highest, fields)
    (1, 3, ("dims",)),
    (1, 10**13, ("channels", "out", "widths")),
    (0, 10**13, ("stem", "context", "vector", "time_width", "embed")),
    (1, 64, ("blocks", "patch")),
    (0, 1024, ("attention", "pad")),
    (1, 2**16, ("heads",)),
    (0, 2**16, ("head_width", "groups")),
    (0.0, 1.0, ("dropout",)),
    (1e-30, 1.0, ("eps",)),
    (-1e6, 1e6, ("rescale", "shift")),
    (0.0, 1e6, ("fourier",)),
)


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
    vector: int = 0  # width of the vector condition; 0: that of the time embedding
    groups: int = 32  # of GroupNorm; 0: a LayerNorm over the channels of each pixel
    eps: float = 1e-6
    dropout: float = 0.0
    scale_shift: bool = False  # the time embedding scales and shifts the second norm instead of being added before it
    resample_blocks: bool = False  # residual blocks that resample instead of convolutions
    project_resampled: bool = False  # their shortcut has a 1 x 1 convolution
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
        for low, high, names in LIMITS:
            for name in names:
                value = getattr(self, name)
                for number in value if isinstance(value, tuple) else (value,):
                    if not low <= number <= high:
                        raise ValueError(f"{name} is {number}, and must be from {low:g} to {high:g}")
        if not 1 <= len(self.widths) <= 16 or len(self.attention) > 16 or len(self.pad) != 2:
            raise ValueError("widths and attention are for 1 to 16 levels, and pad is two numbers")
        if not self.fourier and self.features // 2 == self.shift:
            raise ValueError(f"{self.features} features of the time are too few: a wider widths[0], or time_width")

    @property
    def embedding(self) -> int:
        return self.embed or 4 * self.features

    @property
    def features(self) -> int:
        return self.time_width or self.widths[0]

    def clock(self) -> nn.Module:
        """The features of the time."""
        if self.fourier:
            return Fourier(self.features, scale=self.fourier)
        return Sinusoidal(self.features, shift=self.shift, cosine_first=self.cosine_first)

    def norm(self, channels: int, activate: bool = True) -> Norm:
        return Norm(channels, groups=self.groups, eps=self.eps, activate=activate)

    def heads_of(self, channels: int) -> int:
        if channels % (self.head_width or self.heads):
            raise ValueError(f"{channels} channels cannot be shared by heads: {self.heads=} {self.head_width=}")
        return channels // self.head_width if self.head_width else self.heads

    @property
    def group(self) -> int:
        """The fewest channels that share a statistic of a norm; 0 if none spans space."""
        return min(w // group_count(w, self.groups) for w in self.widths) if self.groups else 0

    @property
    def skips(self) -> list[int]:
        """Channels of every skip, in the encoder's order."""
        last = len(self.widths) - 1
        levels = [[w] * (self.blocks + (i < last)) for i, w in enumerate(self.widths)]
        return [self.stem or self.widths[0], *chain(*levels)]


HO_CIFAR10 = UNetConfig(dropout=0.1)
HO_256 = UNetConfig(widths=(128, 128, 256, 256, 512, 512), attention=(4,))
