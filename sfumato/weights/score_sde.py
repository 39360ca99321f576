"""score_sde_pytorch @cb1f359f: its networks `ncsnpp` (NCSN++ and DDPM++, blocks of type "biggan") and `ddpm`; and the
NCSN++ of CLD-SGM @43dc5681, which has the same names.

Modules are one flat list in the order of their creation, numbered through. A 1 x 1 layer named NIN multiplies from the
right: its weight is (in, out). The noise levels in the buffer `sigmas` are the process's, not the network's; what their
networks do around the layers (2 x - 1 for data in [0, 1], division by sigma, log sigma as the time) is the caller's."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from torch import Tensor

from sfumato.networks import UNetConfig
from sfumato.networks.attention import from_separate
from sfumato.networks.blocks import ResBlock
from sfumato.networks.unet import Stage
from sfumato.weights.conversion import Conversion, Converted, Leaves, Place, State, unwrapped

__all__ = ["convert"]

BIGGAN = Leaves("GroupNorm_0", "Conv_0", "Dense_0", "GroupNorm_1", "Conv_1", "Conv_2")


def convert(state: State, config: UNetConfig) -> Converted:
    """Raises UserError for a key that is missing, left over or of another shape."""
    c = Conversion(unwrapped(state, "module."), config)
    c.rest.pop("sigmas", None)
    numbers = (f"all_modules.{n}" for n in count())
    if config.fourier:
        c.put("encoder.time.features.frequencies", c.take(f"{next(numbers)}.W", (config.features // 2,)))
    c.time(next(numbers), next(numbers))
    c.copy("encoder.stem", next(numbers))
    encoder = list(_encoder(c, numbers))
    decoder = list(_decoder(c, numbers))
    if not config.output_skip:
        c.copy("decoder.norm", next(numbers))
        c.copy("decoder.head", next(numbers))
    _shortcuts(c, encoder, decoder)
    c.stages(BIGGAN, encoder, decoder)
    for name, key, channels, _ in c.mixers(encoder, decoder):
        _attention(c, name, key, channels)
    return c.finish()


def _place(stage: Stage, numbers: Iterator[str]) -> Place:
    """A stage's names; their numbers are used up."""
    key = next(numbers) if isinstance(stage.block, ResBlock) else f"{next(numbers)}.Conv_0"
    return Place(key, next(numbers) if stage.mixer is not None else "")


def _encoder(c: Conversion, numbers: Iterator[str]) -> Iterator[Place]:
    """The encoder's places; what joins the pyramid is copied on the way."""
    leaf = "Conv2d_0" if c.config.pyramid == "residual" else "Conv_0"
    for i, stage in enumerate(c.halves()[0][1]):
        yield _place(stage, numbers)
        level, inside = divmod(i, c.config.blocks + 1)
        if inside == c.config.blocks and level < len(c.net.encoder.inlets):
            c.copy(f"encoder.inlets.{level}.conv", f"{next(numbers)}.{leaf}")


def _decoder(c: Conversion, numbers: Iterator[str]) -> Iterator[Place]:
    """The decoder's places; each level's share of the picture is copied on the way."""
    outlets = len(c.net.decoder.outlets)
    for i, stage in enumerate(c.halves()[1][1]):
        yield _place(stage, numbers)
        level, inside = divmod(i, c.config.blocks + 2)
        if c.config.output_skip and inside == c.config.blocks:
            norm, head = ("norm", "head") if level == outlets else (f"outlets.{level}.norm", f"outlets.{level}.conv")
            c.copy(f"decoder.{norm}", next(numbers))
            c.copy(f"decoder.{head}", next(numbers))


def _shortcuts(c: Conversion, encoder: list[Place], decoder: list[Place]) -> None:
    """The shortcuts of the blocks of `ddpm` are NINs: renamed and turned to what those of `ncsnpp` are."""
    for place in (*encoder, *decoder):
        key = f"{place.block}.NIN_0"
        if (found := c.rest.get(f"{key}.W")) is not None:
            weight = c.take(f"{key}.W", found.shape[:2])
            c.rest[f"{place.block}.Conv_2.weight"] = weight.T[:, :, None, None]
            c.rest[f"{place.block}.Conv_2.bias"] = c.take(f"{key}.b", weight.shape[1:])


def _attention(c: Conversion, name: str, key: str, channels: int) -> None:
    c.copy(f"{name}.norm", f"{key}.GroupNorm_0")
    *qkv, project = (_nin(c, f"{key}.NIN_{i}", channels) for i in range(4))
    for i, leaf in enumerate(("weight", "bias")):
        c.put(f"{name}.qkv.{leaf}", from_separate(*(part[i] for part in qkv)))
        c.put(f"{name}.project.{leaf}", project[i])


def _nin(c: Conversion, key: str, channels: int) -> tuple[Tensor, Tensor]:
    return c.take(f"{key}.W", (channels, channels)).T, c.take(f"{key}.b", (channels,))
