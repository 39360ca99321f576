"""DiT: facebookresearch/DiT @ed81ce2, its released weights and the checkpoints of its training; and diffusers'
`DiTTransformer2DModel`.

Official rows of the last layer are pixel by pixel of a patch, ours channel by channel. The table of the classes has a
last row for "not told", unless the model was trained without dropping them. diffusers has a copy of the time's and the
classes' embedding in every block, and no positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.networks.dit import DiT, DiTConfig, positions
from sfumato.weights.conversion import Conversion, Converted, State, unwrapped

__all__ = ["config_of", "convert", "to_diffusers", "to_official"]

BLOCK = (("qkv", "attn.qkv"), ("project", "attn.proj"), ("first", "mlp.fc1"), ("second", "mlp.fc2"))
ENDS = (("time.first", "t_embedder.mlp.0"), ("time.second", "t_embedder.mlp.2"), ("stem", "x_embedder.proj"))
ROW = "adaLN_modulation.1"
TABLE = "y_embedder.embedding_table.weight"
WIDE_HEADS = {1152: 16}  # XL; the others have a head for every 64 numbers


def weights_of(found: Mapping[str, Any]) -> State:
    """The average of a training checkpoint {model, ema, opt, args}; of released weights those themselves."""
    return unwrapped(found["ema"] if "ema" in found else found.get("model", found), "module.")


def config_of(found: Mapping[str, Any]) -> DiTConfig:
    """The network that official weights are of; the released ones are of latents, as papers.dit's preset XL/2-256 says.
    Raises UserError for weights of another kind."""
    state = weights_of(found)
    try:
        width, channels, patch, _ = state["x_embedder.proj.weight"].shape
        hidden, out = len(state["blocks.0.mlp.fc1.weight"]), len(state["final_layer.linear.weight"])
    except (KeyError, ValueError, TypeError) as error:
        raise UserError("These are no weights of a DiT: its patches or blocks are not there.") from error
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    heads = WIDE_HEADS.get(width, max(1, width // 64))
    return DiTConfig(2, channels, out // patch**2, patch, width, depth, heads, hidden / width)


def convert(found: Mapping[str, Any], config: DiTConfig) -> Converted:
    """Official weights, or a training checkpoint's average. Raises UserError for a key that is missing, left over or of
    another shape, and for positions that are not the paper's."""
    c = Conversion(weights_of(found), config, lambda: DiT(config))
    _check_positions(c)
    width, rows = config.width, [f"blocks.{i}" for i in range(config.depth)]
    shape = (width, config.channels, config.patch, config.patch)
    c.put("stem.weight", c.take("x_embedder.proj.weight", shape))
    c.put("stem.bias", c.take("x_embedder.proj.bias", (width,)))
    for ours, theirs in ENDS[:2]:
        c.copy(ours, theirs)
    for i in range(config.depth):
        for ours, theirs in BLOCK:
            c.copy(f"blocks.{i}.{ours}", f"blocks.{i}.{theirs}")
    sizes = [(name, 6 * width) for name in rows] + [("final_layer", 2 * width)]
    for leaf, end in (("weight", (width,)), ("bias", ())):
        c.put(f"rows.{leaf}", torch.cat([c.take(f"{name}.{ROW}.{leaf}", (n, *end)) for name, n in sizes]))
        head = c.take(f"final_layer.linear.{leaf}", c.want[f"head.{leaf}"])
        c.put(f"head.{leaf}", _by_channel(head, config))
    return c.finish(_table(c, config))


def _check_positions(c: Conversion) -> None:
    found = c.rest.pop("pos_embed", None)
    if found is not None:
        side = round(found.shape[1] ** 0.5)
        ours = positions((side, side), c.config.width).to(found)
        if found.shape != (1, *ours.shape) or not torch.allclose(found[0], ours, atol=1e-3):
            raise UserError("The weights' positions are not DiT's fixed ones: they are another model's.")


def _table(c: Conversion, config: DiTConfig) -> Tensor | None:
    found = c.rest.get(TABLE)
    return None if found is None else c.take(TABLE, (len(found), config.told))


def _by_channel(rows: Tensor, config: DiTConfig) -> Tensor:
    """(p p C, ...) -> (C p p, ...)."""
    return rows.reshape(-1, config.out, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)


def _by_pixel(rows: Tensor, config: DiTConfig) -> Tensor:
    return rows.reshape(config.out, -1, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)


def to_official(network: State, label: Tensor | None, config: DiTConfig, side: int | None = None) -> dict[str, Tensor]:
    """The inverse of `convert`, for a 2-D network of ours without tokens; with `side`, that of the pictures, the
    positions too."""
    shape = (config.width, config.channels, config.patch, config.patch)
    state = {"x_embedder.proj.weight": network["stem.weight"].reshape(shape)}
    state |= {"x_embedder.proj.bias": network["stem.bias"]}
    names = [*ENDS[:2], *((f"blocks.{i}.{a}", f"blocks.{i}.{b}") for i in range(config.depth) for a, b in BLOCK)]
    for leaf in ("weight", "bias"):
        state |= {f"{theirs}.{leaf}": network[f"{ours}.{leaf}"] for ours, theirs in names}
        *rows, last = torch.split(network[f"rows.{leaf}"], [6 * config.width] * config.depth + [2 * config.width])
        state |= {f"blocks.{i}.{ROW}.{leaf}": row for i, row in enumerate(rows)}
        state |= {f"final_layer.{ROW}.{leaf}": last}
        state |= {f"final_layer.linear.{leaf}": _by_pixel(network[f"head.{leaf}"], config)}
    if label is not None:
        state[TABLE] = label
    if side is not None:
        state["pos_embed"] = positions((-(-side // config.patch),) * 2, config.width).unsqueeze(0)
    return state


def to_diffusers(network: State, label: Tensor, config: DiTConfig) -> dict[str, Tensor]:
    """For `DiTTransformer2DModel`, of as many classes as `label` has rows but one."""
    official, state = to_official(network, label, config), {}
    heads = (("x_embedder.proj", "pos_embed.proj"), (f"final_layer.{ROW}", "proj_out_1"))
    names = [*heads, ("final_layer.linear", "proj_out_2")]
    for i in range(config.depth):
        ours, theirs = f"blocks.{i}", f"transformer_blocks.{i}"
        names += [(f"t_embedder.mlp.{2 * k}", f"{theirs}.norm1.emb.timestep_embedder.linear_{k + 1}") for k in (0, 1)]
        names += [(f"{ours}.{ROW}", f"{theirs}.norm1.linear"), (f"{ours}.attn.proj", f"{theirs}.attn1.to_out.0")]
        names += [(f"{ours}.mlp.fc1", f"{theirs}.ff.net.0.proj"), (f"{ours}.mlp.fc2", f"{theirs}.ff.net.2")]
        state[f"{theirs}.norm1.emb.class_embedder.embedding_table.weight"] = label
        for leaf in ("weight", "bias"):
            packed = official[f"{ours}.attn.qkv.{leaf}"].chunk(3)
            state |= {f"{theirs}.attn1.to_{w}.{leaf}": part for w, part in zip("qkv", packed, strict=True)}
    return state | {f"{b}.{leaf}": official[f"{a}.{leaf}"] for a, b in names for leaf in ("weight", "bias")}
