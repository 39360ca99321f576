"""EDM's networks, NVlabs/edm @008a4e53: SongUNet (its DDPM++ and NCSN++) and DhariwalUNet (its ADM), alone or as the
`model.` of a preconditioner.

Names carry the side of the picture; attention is part of its block and packed with q, k, v innermost. SongUNet is told
classes as a one-hot vector times the root of their number, through a layer with bias: "not told" is the bias. Both
codes' filters are buffers, and must be what the config says."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.networks import UNetConfig
from sfumato.networks.attention import from_interleaved
from sfumato.weights.conversion import Conversion, Converted, Leaves, Place, State, unwrapped

__all__ = ["convert"]

LEAVES = Leaves("norm0", "conv0", "affine", "norm1", "conv1", "skip")
FILTER = ".resample_filter"


def convert(state: State, config: UNetConfig) -> Converted:
    """Raises UserError for a key that is missing, left over or of another shape."""
    c = Conversion(unwrapped(state, "model."), config)
    sides = _sides(c)
    _filters(c)
    if config.fourier:
        c.put("encoder.time.features.frequencies", c.take("map_noise.freqs", (config.features // 2,)))
    c.time("map_layer0", "map_layer1")
    c.copy("encoder.stem", f"enc.{sides[0]}_conv")
    for level, side in enumerate(sides[1:]):
        if config.pyramid != "none":
            leaf = "aux_residual" if config.pyramid == "residual" else "aux_skip"
            c.copy(f"encoder.inlets.{level}.conv", f"enc.{side}_{leaf}")
        if config.output_skip:
            last = len(sides) - 2 - level
            c.copy(f"decoder.outlets.{last}.norm", f"dec.{side}_aux_norm")
            c.copy(f"decoder.outlets.{last}.conv", f"dec.{side}_aux_conv")
    dhariwal = "out_conv.weight" in c.rest
    c.copy("decoder.norm", "out_norm" if dhariwal else f"dec.{sides[0]}_aux_norm")
    c.copy("decoder.head", "out_conv" if dhariwal else f"dec.{sides[0]}_aux_conv")
    encoder, decoder = places(config, sides)
    c.stages(LEAVES, encoder, decoder)
    for name, key, channels, heads in c.mixers(encoder, decoder):
        c.copy(f"{name}.norm", f"{key}.norm2")
        c.copy(f"{name}.project", f"{key}.proj")
        for part, shape in (("weight", (3 * channels, channels, 1, 1)), ("bias", (3 * channels,))):
            c.put(f"{name}.qkv.{part}", from_interleaved(c.take(f"{key}.qkv.{part}", shape), heads))
    return c.finish(_labels(c, dhariwal), _augment(c))


def places(config: UNetConfig, sides: list[str]) -> tuple[list[Place], list[Place]]:
    """Where the stages are, in the order of computation."""
    encoder, decoder = [], []
    for level, side in enumerate(sides):
        encoder += [Place(f"enc.{side}_down")] if level else []
        encoder += [Place(f"enc.{side}_block{i}", f"enc.{side}_block{i}") for i in range(config.blocks)]
    encoder += [Place(f"dec.{sides[-1]}_in0", f"dec.{sides[-1]}_in0"), Place(f"dec.{sides[-1]}_in1")]
    for level in range(len(sides) - 1, -1, -1):
        side = sides[level]
        decoder += [Place(f"dec.{side}_block{i}", f"dec.{side}_block{i}") for i in range(config.blocks + 1)]
        decoder += [Place(f"dec.{sides[level - 1]}_up")] if level else []
    return encoder, decoder


def _sides(c: Conversion) -> list[str]:
    """Of every level, as the names have it: 32x32, 16x16..."""
    found = [match[1] for key in c.rest if (match := re.fullmatch(r"enc\.(\d+)x\1_conv\.weight", key))]
    if len(found) != 1:
        raise UserError("The weights have no first layer named like 'enc.32x32_conv.weight': not a network of EDM.")
    return [f"{int(found[0]) >> level}x{int(found[0]) >> level}" for level in range(len(c.config.widths))]


def _filters(c: Conversion) -> None:
    line = torch.tensor([1.0, 3.0, 3.0, 1.0] if c.config.fir else [1.0, 1.0])
    true = torch.outer(line, line)[None, None] / line.sum().square()
    for key in [key for key in c.rest if key.endswith(FILTER)]:
        if not torch.allclose(c.take(key, true.shape).float().cpu(), true):
            raise UserError(f"{key!r} is another filter than the config's (fir {c.config.fir}).")


def _labels(c: Conversion, dhariwal: bool) -> Tensor | None:
    """(classes + 1, config.told), the last row "not told"."""
    found = c.rest.get("map_label.weight")
    if found is None:
        return None
    weight = c.take("map_label.weight", (c.config.told, *found.shape[1:])).T
    if dhariwal:
        return torch.cat([weight, torch.zeros_like(weight[:1])])
    bias = c.take("map_label.bias", (c.config.told,))
    return torch.cat([weight * math.sqrt(len(weight)) + bias, bias[None]])


def _augment(c: Conversion) -> Tensor | None:
    """(config.told, numbers)."""
    found = c.rest.get("map_augment.weight")
    if found is not None and not c.config.early:
        raise UserError("An ADM with augmentation is told classes late and augmentation early; ours has one place.")
    return None if found is None else c.take("map_augment.weight", (c.config.told, *found.shape[1:]))
