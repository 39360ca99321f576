"""Our U-Net as a diffusers `UNet2DModel` with the same weights: the independent implementation to compare with."""

import os
import warnings

import torch
from torch import Tensor, nn

from sfumato.networks import UNet, UNetConfig

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def twin(net: UNet, size: int, classes: int | None = None) -> nn.Module:
    """The same network, built by diffusers. `classes`: its class embedding is left as diffusers drew it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import UNet2DModel
    other: nn.Module = UNet2DModel(**keywords(net.config), sample_size=size, num_class_embeds=classes)
    missing, unexpected = other.load_state_dict(state_dict(net), strict=False)
    assert not unexpected and set(missing) <= {"class_embedding.weight"}, (missing, unexpected)
    return other


def keywords(c: UNetConfig) -> dict[str, object]:
    """`UNet2DModel`'s arguments for a config it can express."""
    last = len(c.widths) - 1
    attend = [level in c.attention for level in range(last + 1)]
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if c.resample_blocks else ("DownBlock2D", "UpBlock2D")
    return {
        "in_channels": c.channels,
        "out_channels": c.out,
        "block_out_channels": c.widths,
        "layers_per_block": c.blocks,
        "down_block_types": tuple("AttnDownBlock2D" if a else plain[0] for a in attend),
        "up_block_types": tuple("AttnUpBlock2D" if a else plain[1] for a in reversed(attend)),
        "downsample_type": "resnet" if c.resample_blocks else "conv",
        "upsample_type": "resnet" if c.resample_blocks else "conv",
        "downsample_padding": c.pad[0],
        "attention_head_dim": c.head_width or None,
        "add_attention": c.attend_middle,
        "norm_num_groups": c.groups,
        "attn_norm_num_groups": c.groups,
        "norm_eps": c.eps,
        "resnet_time_scale_shift": "scale_shift" if c.scale_shift else "default",
        "flip_sin_to_cos": c.cosine_first,
        "freq_shift": c.shift,
        "dropout": c.dropout,
        "time_embedding_dim": c.embed or None,
    }


def state_dict(net: UNet) -> dict[str, Tensor]:
    """diffusers' names for our weights: packed rows and qkv split, 1 x 1 convolutions of the attention made linear."""
    c, state = net.config, {}
    encoder, decoder = net.encoder, net.decoder
    for ours, theirs in (("first", "linear_1"), ("second", "linear_2")):
        state |= _named(f"time_embedding.{theirs}", getattr(encoder.time, ours))
    state |= _named("conv_in", encoder.stem) | _named("conv_norm_out", decoder.norm) | _named("conv_out", decoder.head)
    last = len(c.widths) - 1
    down = [(f"down_blocks.{level}", c.blocks, level < last, "downsamplers") for level in range(last + 1)]
    up = [(f"up_blocks.{level}", c.blocks + 1, level < last, "upsamplers") for level in range(last + 1)]
    stages = [*encoder.levels, *encoder.middle]
    state |= _stages(
        stages,
        encoder.rows,
        [*_names(down), ("mid_block.resnets.0", "mid_block.attentions.0"), ("mid_block.resnets.1", "")],
    )
    state |= _stages(list(decoder.levels), decoder.rows, _names(up))
    return state


def _names(levels: list[tuple[str, int, bool, str]]) -> list[tuple[str, str]]:
    names = []
    for prefix, blocks, resampled, kind in levels:
        names += [(f"{prefix}.resnets.{i}", f"{prefix}.attentions.{i}") for i in range(blocks)]
        names += [(f"{prefix}.{kind}.0", "")] if resampled else []
    return names


def _stages(stages: list[nn.Module], rows: nn.Module, names: list[tuple[str, str]]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    weights, biases = rows.linear.weight.split(rows.widths), rows.linear.bias.split(rows.widths)
    for stage, (block, mixer), weight, bias in zip(stages, names, weights, biases, strict=True):
        for ours, theirs in (
            ("norm1",) * 2,
            ("conv1",) * 2,
            ("norm2",) * 2,
            ("conv2",) * 2,
            ("conv",) * 2,
            ("shortcut", "conv_shortcut"),
        ):
            state |= _named(f"{block}.{theirs}", getattr(stage.block, ours, None))
        if len(weight):
            state |= {f"{block}.time_emb_proj.weight": weight, f"{block}.time_emb_proj.bias": bias}
        if stage.mixer is not None:
            state |= _attention(mixer, stage.mixer)
    return state


def _attention(name: str, mixer: nn.Module) -> dict[str, Tensor]:
    state = _named(f"{name}.group_norm", mixer.norm)
    parts = zip("qkv", mixer.qkv.weight.chunk(3), mixer.qkv.bias.chunk(3), strict=True)
    for letter, weight, bias in parts:
        state |= {f"{name}.to_{letter}.weight": weight.flatten(1), f"{name}.to_{letter}.bias": bias}
    state |= {f"{name}.to_out.0.weight": mixer.project.weight.flatten(1), f"{name}.to_out.0.bias": mixer.project.bias}
    return state


def _named(name: str, module: nn.Module | None) -> dict[str, Tensor]:
    return {} if module is None else {f"{name}.weight": module.weight, f"{name}.bias": module.bias}


def randomise(net: nn.Module, scale: float = 0.05, seed: int = 0) -> None:
    """N(0, scale) everywhere, around 1 for the norms: with layers that start at zero any wiring would pass."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in net.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data = centre + scale * torch.randn(parameter.shape, generator=generator)
