"""What converters refuse, what they give, and DDPM and ADM with diffusers as the judge."""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.networks import UNet, UNetConfig
from sfumato.networks.attention import from_interleaved, from_legacy, to_interleaved, to_legacy
from sfumato.weights import Converted, edm, openai, score_sde
from sfumato.weights.conversion import unwrapped
from tests.networks.to_diffusers import keywords
from tests.weights.filling import fill, normal
from tests.weights.test_official import ABOUT, config, convert

KINDS = ["ddpm", "adm", "ncsnpp_skip", "edm_ddpmpp"]


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest) -> tuple[dict, dict[str, Tensor]]:
    about = ABOUT[request.param]
    return about, fill(about["shapes"], about["seed"])


def middle(state: dict[str, Tensor]) -> str:
    """A weight from the middle, of more than one axis."""
    keys = sorted(key for key, tensor in state.items() if tensor.ndim > 1 and "filter" not in key)
    return keys[len(keys) // 2]


def test_a_missing_key_is_named(case: tuple[dict, dict[str, Tensor]]) -> None:
    about, state = case
    state.pop(key := middle(state))
    with pytest.raises(UserError, match=f"no '{key}'"):
        convert(about, state)


def test_a_surplus_key_is_named(case: tuple[dict, dict[str, Tensor]]) -> None:
    about, state = case
    with pytest.raises(UserError, match=r"have 'one\.more\.weight'.* no place"):
        convert(about, {**state, "one.more.weight": torch.zeros(3)})


def test_a_misshapen_key_is_named_with_both_shapes(case: tuple[dict, dict[str, Tensor]]) -> None:
    about, state = case
    key = middle(state)
    state[key] = state[key][:-1]
    with pytest.raises(UserError, match=f"'{key}' is of shape .* where the config says"):
        convert(about, state)


def test_weights_of_a_deeper_or_shallower_network_are_refused(case: tuple[dict, dict[str, Tensor]]) -> None:
    about, state = case
    for blocks in (config(about).blocks - 1, config(about).blocks + 1):
        if blocks:
            with pytest.raises(UserError):
                convert({**about, "config": {**about["config"], "blocks": blocks}}, state)


def test_every_weight_arrives_once(case: tuple[dict, dict[str, Tensor]]) -> None:
    """The numbers that came in are the numbers that go out: sorted, they are the same (a class table aside)."""
    about, state = case
    tables = convert(about, state)
    skip = ("resample_filter", "sigmas", "label_emb.weight", "map_label.weight", "map_label.bias", "map_augment.weight")
    came = torch.cat([t.flatten() for key, t in state.items() if not key.endswith(skip)]).sort().values
    assert torch.equal(came, torch.cat([t.flatten() for t in tables.network.values()]).sort().values)
    UNet(config(about)).load_state_dict(tables.network)


def test_the_source_is_left_alone(case: tuple[dict, dict[str, Tensor]]) -> None:
    about, state = case
    names = set(state)
    tables = convert(about, state)
    assert set(state) == names
    for tensor in tables.network.values():
        assert tensor.is_contiguous()


def test_names_of_wrappers_are_taken_off() -> None:
    for name, prefix in (("ddpm", "module."), ("ncsnpp", "module."), ("edm_ddpmpp", "model.")):
        about = ABOUT[name]
        state = fill(about["shapes"], about["seed"])
        plain = convert(about, state).network
        wrapped = convert(about, {prefix + key: tensor for key, tensor in state.items()}).network
        assert all(torch.equal(wrapped[key], plain[key]) for key in plain)
    assert unwrapped({}, "module.") == {}


def test_another_filter_is_refused() -> None:
    about = ABOUT["edm_ncsnpp"]
    state = fill(about["shapes"], about["seed"])
    key = next(key for key in state if key.endswith("resample_filter"))
    with pytest.raises(UserError, match="another filter"):
        convert(about, {**state, key: state[key].flip(0) * 1.1})


def test_weights_of_another_code_are_refused() -> None:
    state = fill(ABOUT["ddpm"]["shapes"], 1)
    for strange in (openai.convert, score_sde.convert, edm.convert):
        with pytest.raises(UserError):
            strange(state, config(ABOUT["ddpm"]))


def test_packings_go_there_and_back() -> None:
    packed = normal(3, 24, 5)
    assert torch.equal(to_legacy(from_legacy(packed, 4), 4), packed)
    assert torch.equal(to_interleaved(from_interleaved(packed, 2), 2), packed)


def test_the_class_tables() -> None:
    """OpenAI's rows and zeros; EDM's root of the number of classes, and its bias as "not told"."""
    about = ABOUT["improved"]
    state = fill(about["shapes"], about["seed"])
    label = convert(about, state).label
    assert label is not None
    assert torch.equal(label, torch.cat([state["label_emb.weight"], torch.zeros(1, label.shape[1])]))
    about = ABOUT["edm_ddpmpp"]
    state = fill(about["shapes"], about["seed"])
    tables = convert(about, state)
    weight, bias = state["map_label.weight"], state["map_label.bias"]
    assert torch.allclose(tables.label, torch.cat([math.sqrt(5) * weight.T + bias, bias[None]]))
    assert torch.equal(tables.augment, state["map_augment.weight"])


# -- diffusers, by direct renaming of the official keys --------------------------------------------------------------


def renamed(state: dict[str, Tensor], names: list[tuple[str, str]]) -> dict[str, Tensor]:
    out = {}
    for key, tensor in state.items():
        for old, new in names:
            key = key.replace(old, new)
        out[key] = tensor
    return out


def of_pesser(state: dict[str, Tensor], c: UNetConfig) -> dict[str, Tensor]:
    last = len(c.widths) - 1
    names = [("temb.dense.0", "time_embedding.linear_1"), ("temb.dense.1", "time_embedding.linear_2")]
    names += [(f"up.{level}.", f"up_blocks.{last - level}.") for level in range(last + 1)]
    names += [("down.", "down_blocks."), (".block.", ".resnets."), (".attn.", ".attentions.")]
    names += [("mid.block_1", "mid_block.resnets.0"), ("mid.block_2", "mid_block.resnets.1")]
    names += [("mid.attn_1", "mid_block.attentions.0"), (".downsample.", ".downsamplers.0.")]
    names += [(".upsample.", ".upsamplers.0."), ("temb_proj", "time_emb_proj"), ("nin_shortcut", "conv_shortcut")]
    names += [("norm_out", "conv_norm_out"), ("proj_out", "to_out.0")]
    out = renamed(state, names)
    for key in [key for key in out if ".attentions." in key]:
        tensor, new = out.pop(key), key.replace(".norm.", ".group_norm.")
        for letter in "qkv":
            new = new.replace(f".{letter}.", f".to_{letter}.")
        out[new] = tensor.flatten(1) if tensor.ndim == 4 else tensor
    return out


def of_adm(state: dict[str, Tensor], c: UNetConfig, new_order: bool) -> dict[str, Tensor]:
    """Weights of guided-diffusion, whose places in diffusers are counted out here anew."""
    moves, last, per = {}, len(c.widths) - 1, c.blocks + 1
    for n in range(1, per * (last + 1)):
        level, i = divmod(n - 1, per)
        block = f"down_blocks.{level}." + (f"resnets.{i}" if i < c.blocks else "downsamplers.0")
        moves |= {f"input_blocks.{n}.0.": f"{block}.", f"input_blocks.{n}.1.": f"down_blocks.{level}.attentions.{i}."}
    for n in range(per * (last + 1)):
        up, i = divmod(n, per)
        attends = last - up in c.attention
        moves[f"output_blocks.{n}.0."] = f"up_blocks.{up}.resnets.{i}."
        moves[f"output_blocks.{n}.{2 if attends else 1}."] = f"up_blocks.{up}.upsamplers.0."
        if attends:
            moves[f"output_blocks.{n}.1."] = f"up_blocks.{up}.attentions.{i}."
    moves |= {"middle_block.0.": "mid_block.resnets.0.", "middle_block.2.": "mid_block.resnets.1."}
    moves |= {"middle_block.1.": "mid_block.attentions.0.", "input_blocks.0.0.": "conv_in.", "out.0.": "conv_norm_out."}
    moves |= {"out.2.": "conv_out.", "time_embed.0.": "time_embedding.linear_1."}
    moves |= {"time_embed.2.": "time_embedding.linear_2.", "label_emb.": "class_embedding."}
    leaves = [("in_layers.0", "norm1"), ("in_layers.2", "conv1"), ("emb_layers.1", "time_emb_proj")]
    leaves += [("out_layers.0", "norm2"), ("out_layers.3", "conv2"), ("skip_connection", "conv_shortcut")]
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        start = next(old for old in moves if key.startswith(old))
        (new,) = renamed({moves[start] + key.removeprefix(start): tensor}, leaves)
        if ".attentions." in new:
            tensor, new = tensor.flatten(1) if tensor.ndim == 3 else tensor, new.replace(".norm.", ".group_norm.")
            heads, name = len(tensor) // 3 // c.head_width, new.rpartition("qkv.")
            if name[1]:
                parts = tensor.unflatten(0, (3, -1) if new_order else (heads, 3, -1))
                parts = parts if new_order else parts.transpose(0, 1).flatten(1, 2)
                out |= {f"{name[0]}to_{w}.{name[2]}": part for w, part in zip("qkv", parts, strict=True)}
                continue
            new = new.replace("proj_out", "to_out.0")
        out[new] = tensor
    return out


def diffusers(c: UNetConfig, state: dict[str, Tensor], classes: int | None) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import UNet2DModel
    net: nn.Module = UNet2DModel(**keywords(c), sample_size=16, num_class_embeds=classes)
    net.load_state_dict(state)
    return net.eval()


def difference(name: str, other: Callable[..., Tensor], net: UNet, tables: Converted) -> tuple[float, float]:
    """The greatest, and the scale of the answer, at four times."""
    x, labels, most, scale = normal(5, 2, 3, 16, 16), torch.tensor([3, 0]), 0.0, 0.0
    for t in (0, 3, 777, 999):
        with torch.no_grad():
            if tables.label is None:
                truth, ours = other(x, t).sample, net(x, torch.tensor([float(t)]))
            else:
                truth = other(x, t, labels).sample
                ours = net(x, torch.tensor([float(t)]), vector=tables.label[labels])
        most, scale = max(most, (ours - truth).abs().max().item()), max(scale, truth.abs().max().item())
    return most, scale


@pytest.mark.parametrize("name", ["ddpm", "adm", "adm_new_order"])
def test_equals_diffusers(name: str) -> None:
    about, c = ABOUT[name], config(ABOUT[name])
    state = fill(about["shapes"], about["seed"])
    tables = convert(about, state)
    net = UNet(c).eval()
    net.load_state_dict(tables.network)
    renamed = of_pesser(state, c) if name == "ddpm" else of_adm(state, c, name == "adm_new_order")
    most, scale = difference(name, diffusers(c, renamed, about["classes"] or None), net, tables)
    assert most < 5e-6 * scale
    if name != "ddpm":  # the other packing is another network
        wrong = openai.convert(state, c, new_order=name == "adm")
        net.load_state_dict(wrong.network)
        assert difference(name, diffusers(c, renamed, about["classes"]), net, wrong)[0] > 1e-2 * scale


def test_conversion_follows_the_config_alone() -> None:
    """A network with classes is one without, and a table."""
    about = ABOUT["adm"]
    state = fill(about["shapes"], about["seed"])
    told = convert(about, state)
    label = state.pop("label_emb.weight")
    untold = convert(about, state)
    assert untold.label is None and len(told.label) == len(label) + 1
    assert all(torch.equal(tensor, told.network[key]) for key, tensor in untold.network.items())
    with pytest.raises(UserError, match="is of shape"):
        openai.convert(state, replace(config(about), embed=64))
