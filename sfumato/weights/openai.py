"""improved-diffusion @1bc7bbbd and guided-diffusion @22e0df81 (ADM), the diffusion models.

Blocks are numbered through; attention and resampling share the number of the block before them, but for the encoder's
resampling, which has its own. Query, key and value are one layer, packed head by head ("legacy") or, with
`use_new_attention_order` (ADM at 64 x 64, consistency models), as ours."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.networks import UNetConfig
from sfumato.networks.attention import from_legacy
from sfumato.weights.conversion import Conversion, Converted, Leaves, Place, State, unwrapped

__all__ = ["convert"]

LEAVES = Leaves("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")


def convert(state: State, config: UNetConfig, *, new_order: bool = False) -> Converted:
    """`new_order`: `use_new_attention_order`. Raises UserError for a key that is missing, left over or of another
    shape."""
    c = Conversion(unwrapped(state, "module."), config)
    c.time("time_embed.0", "time_embed.2")
    c.copy("encoder.stem", "input_blocks.0.0")
    c.copy("decoder.norm", "out.0")
    c.copy("decoder.head", "out.2")
    encoder, decoder = places(config)
    c.stages(LEAVES, encoder, decoder)
    for name, key, channels, heads in c.mixers(encoder, decoder):
        c.copy(f"{name}.norm", f"{key}.norm")
        c.put(f"{name}.project.weight", c.take(f"{key}.proj_out.weight", (channels, channels, 1)))
        c.put(f"{name}.project.bias", c.take(f"{key}.proj_out.bias", (channels,)))
        for leaf, shape in (("weight", (3 * channels, channels, 1)), ("bias", (3 * channels,))):
            packed = c.take(f"{key}.qkv.{leaf}", shape)
            c.put(f"{name}.qkv.{leaf}", packed if new_order else from_legacy(packed, heads))
    return c.finish(table(c))


def table(c: Conversion) -> Tensor | None:
    """The embedding of the classes, with a row of zeros for "not told", which these models never are."""
    found = c.rest.get("label_emb.weight")
    if found is None:
        return None
    rows = c.take("label_emb.weight", (len(found), c.config.told))
    return torch.cat([rows, torch.zeros_like(rows[:1])])


def places(config: UNetConfig) -> tuple[list[Place], list[Place]]:
    """Where the stages are, in the order of computation."""
    last, encoder, decoder = len(config.widths) - 1, [], []
    for level in range(last + 1):
        start = 1 + level * (config.blocks + 1)
        encoder += [Place(f"input_blocks.{start + i}.0", f"input_blocks.{start + i}.1") for i in range(config.blocks)]
        resampled = "0" if config.resample_blocks else "0.op"
        encoder += [Place(f"input_blocks.{start + config.blocks}.{resampled}")] if level < last else []
    encoder += [Place("middle_block.0", "middle_block.1"), Place("middle_block.2")]
    for done, level in enumerate(range(last, -1, -1)):
        numbers = range(done * (config.blocks + 1), (done + 1) * (config.blocks + 1))
        decoder += [Place(f"output_blocks.{n}.0", f"output_blocks.{n}.1") for n in numbers]
        after = f"output_blocks.{numbers[-1]}.{2 if level in config.attention else 1}"
        decoder += [Place(after if config.resample_blocks else f"{after}.conv")] if level else []
    return encoder, decoder
