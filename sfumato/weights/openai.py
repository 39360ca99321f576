"""improved-diffusion @1bc7bbbd and guided-diffusion @22e0df81 (ADM): diffusion models, upsamplers, classifiers.

An upsampler is a model with twice the channels of its pictures. A classifier is half of one, and its pooling.

Blocks are numbered through; attention and resampling share the number of the block before them, but for the encoder's
resampling, which has its own. Query, key and value are one layer, packed head by head ("legacy") or, with
`use_new_attention_order` (ADM at 64 x 64, consistency models), as ours."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.networks import UNetConfig
from sfumato.networks.attention import from_legacy
from sfumato.networks.classifier import ClassifierConfig, EncoderClassifier
from sfumato.weights.conversion import Conversion, Converted, Leaves, Place, State, unwrapped

__all__ = ["classifier", "convert"]

LEAVES = Leaves("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")


def convert(state: State, config: UNetConfig, *, new_order: bool = False) -> Converted:
    """`new_order`: `use_new_attention_order`. Raises UserError for a key that is missing, left over or of another
    shape."""
    c = Conversion(unwrapped(state, "module."), config)
    c.time("time_embed.0", "time_embed.2")
    c.copy("encoder.stem", "input_blocks.0.0")
    c.copy("decoder.norm", "out.0")
    c.copy("decoder.head", "out.2")
    halves(c, new_order)
    return c.finish(table(c))


def classifier(state: State, config: ClassifierConfig, *, new_order: bool = False) -> dict[str, Tensor]:
    """For `EncoderClassifier.load_state_dict`, of `classifier_pool` attention or adaptive (average here). Raises
    UserError for a key that is missing, left over or of another shape."""
    c = Conversion(unwrapped(state, "module."), config.encoder, lambda: EncoderClassifier(config))
    c.time("time_embed.0", "time_embed.2")
    c.copy("encoder.stem", "input_blocks.0.0")
    c.copy("norm", "out.0")
    halves(c, new_order)
    width, head = config.encoder.widths[-1], config.encoder.dims
    if config.pool == "average":
        c.put("pool.project.weight", c.take("out.3.weight", (config.classes, width, *(1,) * head)))
        c.put("pool.project.bias", c.take("out.3.bias", (config.classes,)))
        return c.finish().network
    positions = c.want["pool.position"][0]
    c.put("pool.position", c.take("out.2.positional_embedding", (width, positions)).T)
    for ours, theirs, rows in (("qkv", "qkv_proj", 3 * width), ("project", "c_proj", config.classes)):
        c.put(f"pool.{ours}.weight", c.take(f"out.2.{theirs}.weight", (rows, width, 1)))
        c.put(f"pool.{ours}.bias", c.take(f"out.2.{theirs}.bias", (rows,)))
    return c.finish().network


def halves(c: Conversion, new_order: bool) -> None:
    """Stages and attention of the encoder and, where there is one, the decoder."""
    encoder, decoder = places(c.config)
    c.stages(LEAVES, encoder, decoder)
    for name, key, channels, heads in c.mixers(encoder, decoder):
        c.copy(f"{name}.norm", f"{key}.norm")
        c.put(f"{name}.project.weight", c.take(f"{key}.proj_out.weight", (channels, channels, 1)))
        c.put(f"{name}.project.bias", c.take(f"{key}.proj_out.bias", (channels,)))
        for leaf, shape in (("weight", (3 * channels, channels, 1)), ("bias", (3 * channels,))):
            packed = c.take(f"{key}.qkv.{leaf}", shape)
            c.put(f"{name}.qkv.{leaf}", packed if new_order else from_legacy(packed, heads))


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
