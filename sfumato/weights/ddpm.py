"""DDPM's networks in torch: pesser/pytorch_diffusion @304bdff2, ermongroup/ddim @e8df66cf and what PNDM has of them.

Levels are numbered from full resolution, in `up` too; attention is a list beside the blocks of its level; query, key
and value are three 1 x 1 convolutions."""

from __future__ import annotations

from sfumato.networks import UNetConfig
from sfumato.networks.attention import from_separate
from sfumato.weights.conversion import Conversion, Converted, Leaves, Place, State, unwrapped

__all__ = ["convert"]

LEAVES = Leaves("norm1", "conv1", "temb_proj", "norm2", "conv2", "nin_shortcut")


def convert(state: State, config: UNetConfig) -> Converted:
    """Raises UserError for a key that is missing, left over or of another shape."""
    c = Conversion(unwrapped(state, "module."), config)
    c.time("temb.dense.0", "temb.dense.1")
    c.copy("encoder.stem", "conv_in")
    c.copy("decoder.norm", "norm_out")
    c.copy("decoder.head", "conv_out")
    encoder, decoder = places(config)
    c.stages(LEAVES, encoder, decoder)
    for name, key, channels, _ in c.mixers(encoder, decoder):
        c.copy(f"{name}.norm", f"{key}.norm")
        c.copy(f"{name}.project", f"{key}.proj_out")
        parts = [[c.take(f"{key}.{w}.{leaf}", shape) for w in "qkv"] for leaf, shape in shapes(channels)]
        c.put(f"{name}.qkv.weight", from_separate(*parts[0]))
        c.put(f"{name}.qkv.bias", from_separate(*parts[1]))
    return c.finish()


def shapes(channels: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return ("weight", (channels, channels, 1, 1)), ("bias", (channels,))


def places(config: UNetConfig) -> tuple[list[Place], list[Place]]:
    """Where the stages are, in the order of computation."""
    last, encoder, decoder = len(config.widths) - 1, [], []
    for level in range(last + 1):
        encoder += [Place(f"down.{level}.block.{i}", f"down.{level}.attn.{i}") for i in range(config.blocks)]
        encoder += [Place(f"down.{level}.downsample.conv")] if level < last else []
    encoder += [Place("mid.block_1", "mid.attn_1"), Place("mid.block_2")]
    for level in range(last, -1, -1):
        decoder += [Place(f"up.{level}.block.{i}", f"up.{level}.attn.{i}") for i in range(config.blocks + 1)]
        decoder += [Place(f"up.{level}.upsample.conv")] if level else []
    return encoder, decoder
