"""Records what official networks say, with weights, inputs and conditions of tests/weights/filling.py. Run once:

    python -m tests.reference.make_networks CHECKOUTS

CHECKOUTS has a folder for each repository, named after it, at the commit given here. Writes networks.json (repository,
commit, their settings, our config, the names and shapes of the weights) and networks.npz (a corner of the pictures that
come out) beside itself. They are computed in float64, time features included, on a CPU; `rounding` is how far the same
code in float32 is from that, relative to the greatest number. No code of theirs is kept."""

import importlib
import json
import math
import sys
import types
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.utils.cpp_extension

from tests.weights.filling import augmentation, fill, pictures, told

SIZE = 16
CORNER = (..., slice(0, 8), slice(8, 16))  # of the pictures that come out
STEPS = [0.0, 3.0, 777.0, 999.0]
CONTINUOUS = [0.0, 0.37, 500.3, 999.0]  # 999 t
LOG_SIGMA = [math.log(s) for s in (0.01, 0.5, 7.7, 50.0)]
C_NOISE = [math.log(s) / 4 for s in (0.002, 0.3, 4.4, 80.0)]
ROOT = 0.5**0.5

OURS_OPENAI = {"eps": 1e-5, "pad": [1, 1], "shift": 0.0, "cosine_first": True}
OURS_ADM = {**OURS_OPENAI, "resample_blocks": True, "scale_shift": True}
OURS_DDPMPP = {
    "attend_last": True,
    "group_width": 4,
    "resample_blocks": True,
    "project_resampled": True,
    "rescale": ROOT,
}
OURS_NCSNPP = {**OURS_DDPMPP, "fir": True, "fourier": 16.0, "time_width": 64, "embed": 128}
WIDTHS = {"widths": [32, 64, 64], "attention": [1]}

UNET = {"in_channels": 3, "model_channels": 32, "channel_mult": [1, 2, 2], "attention_resolutions": [2, 4]}
SONG = {"img_resolution": SIZE, "in_channels": 3, "out_channels": 3, "model_channels": 32, "attn_resolutions": [8]}
NCSNPP = {"nf": 32, "ch_mult": [1, 2, 2], "attn_resolutions": [8], "resblock_type": "biggan", "skip_rescale": True}
FIR = {"fir": True, "embedding_type": "fourier"}

# repository: (commit, {case: (their settings, our config, times)})
CASES = {
    "pytorch_diffusion": (
        "304bdff2196db604fb66108b0bb2d4a19058b20f",
        {
            "ddpm": (
                {"ch": 32, "out_ch": 3, "ch_mult": [1, 2, 2], "num_res_blocks": 2, "attn_resolutions": [8]},
                WIDTHS,
                STEPS,
            ),
        },
    ),
    "improved-diffusion": (
        "1bc7bbbdc414d83d4abf2ad8cc1446dc36c4e4d5",
        {
            "improved": (
                {**UNET, "out_channels": 6, "num_res_blocks": 2, "num_classes": 5, "num_heads": 4}
                | {"use_scale_shift_norm": True},
                {**OURS_OPENAI, **WIDTHS, "attention": [1, 2], "out": 6, "heads": 4, "scale_shift": True},
                STEPS,
            ),
            "improved_plain": (
                {**UNET, "out_channels": 3, "num_res_blocks": 1, "attention_resolutions": [4]},
                {**OURS_OPENAI, **WIDTHS, "attention": [2], "blocks": 1},
                STEPS,
            ),
        },
    ),
    "guided-diffusion": (
        "22e0df8183507e13a7813f8d38d51b072ca1e67c",
        {
            "adm": (
                {**UNET, "out_channels": 6, "num_res_blocks": 2, "num_classes": 5, "num_head_channels": 16}
                | {"use_scale_shift_norm": True, "resblock_updown": True},
                {**OURS_ADM, **WIDTHS, "attention": [1, 2], "out": 6, "head_width": 16},
                STEPS,
            ),
            "adm_new_order": (
                {**UNET, "out_channels": 6, "num_res_blocks": 1, "num_classes": 5, "num_head_channels": 16}
                | {"use_scale_shift_norm": True, "resblock_updown": True, "use_new_attention_order": True},
                {**OURS_ADM, **WIDTHS, "attention": [1, 2], "out": 6, "head_width": 16, "blocks": 1},
                STEPS,
            ),
            "adm_half": (  # the 512 x 512 model begins with half of its channels; an upsampler has six inputs
                {**UNET, "in_channels": 6, "out_channels": 6, "model_channels": 64, "channel_mult": [0.5, 1, 1]}
                | {"num_res_blocks": 1, "use_scale_shift_norm": True, "resblock_updown": True, "num_heads": 4},
                {**OURS_ADM, **WIDTHS, "attention": [1, 2], "channels": 6, "out": 6, "heads": 4, "blocks": 1}
                | {"time_width": 64},
                STEPS,
            ),
        },
    ),
    "score_sde_pytorch": (
        "cb1f359f4aadf0ff9a5e122fe8fffc9451fd6e44",
        {
            "score_sde_ddpm": (
                {**NCSNPP, "name": "ddpm", "num_res_blocks": 2},
                {**WIDTHS, "attend_last": True},
                CONTINUOUS,
            ),
            "ddpmpp": (
                {**NCSNPP, "name": "ncsnpp", "num_res_blocks": 2},
                {**OURS_DDPMPP, **WIDTHS},
                CONTINUOUS,
            ),
            "ncsnpp": (
                {**NCSNPP, **FIR, "name": "ncsnpp", "num_res_blocks": 2, "progressive_input": "residual"},
                {**OURS_NCSNPP, **WIDTHS, "pyramid": "residual"},
                LOG_SIGMA,
            ),
            "ncsnpp_skip": (
                {**NCSNPP, **FIR, "name": "ncsnpp", "num_res_blocks": 1, "progressive_input": "input_skip"}
                | {"progressive": "output_skip"},
                {**OURS_NCSNPP, **WIDTHS, "blocks": 1, "pyramid": "skip", "output_skip": True},
                LOG_SIGMA,
            ),
        },
    ),
    "CLD-SGM": (
        "43dc5681e4c6350a02c4ca6bf6e370dc592cfec9",
        {
            "cld": (
                {"n_channels": 32, "ch_mult": "1,2,2", "attn_resolutions": "8", "n_resblocks": 1}
                | {"use_fir": True, "progressive_input": "residual", "embedding_type": "fourier"},
                {**OURS_NCSNPP, **WIDTHS, "blocks": 1, "channels": 6, "pyramid": "residual"},
                [math.log(t) for t in (1e-5, 0.01, 0.5, 1.0)],
            ),
        },
    ),
    "edm": (
        "008a4e5316c8e3bfe61a62f874bddba254295afb",
        {
            "edm_ddpmpp": (
                {**SONG, "kind": "SongUNet", "channel_mult": [2, 2], "num_blocks": 2, "label_dim": 5, "augment_dim": 9},
                {**OURS_DDPMPP, "widths": [64, 64], "attention": [1], "stem": 32, "time_width": 32, "early": True},
                C_NOISE,
            ),
            "edm_ncsnpp": (
                {**SONG, "kind": "SongUNet", "channel_mult": [2, 2], "num_blocks": 2, "augment_dim": 9}
                | {"embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual"}
                | {"resample_filter": [1, 3, 3, 1]},
                {**OURS_NCSNPP, "widths": [64, 64], "attention": [1], "stem": 32, "early": True}
                | {"pyramid": "residual"},
                LOG_SIGMA,
            ),
            "edm_skip": (
                {**SONG, "kind": "SongUNet", "channel_mult": [1, 2, 2], "num_blocks": 1}
                | {"encoder_type": "skip", "decoder_type": "skip"},
                {**OURS_DDPMPP, **WIDTHS, "blocks": 1, "early": True, "pyramid": "skip", "output_skip": True},
                C_NOISE,
            ),
            "edm_adm": (
                {**SONG, "kind": "DhariwalUNet", "model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1}
                | {"label_dim": 5},
                {**OURS_ADM, "widths": [64, 128], "attention": [1], "blocks": 1, "head_width": 64, "group_width": 4},
                C_NOISE,
            ),
        },
    ),
}


def space(settings):
    return types.SimpleNamespace(**settings)


def ddpm(settings):
    module = importlib.import_module("pytorch_diffusion.model")
    settings = {**settings, "ch_mult": tuple(settings["ch_mult"]), "in_channels": 3, "resolution": SIZE}
    return module.Model(**settings), lambda net, x, t, case: net(x, t)


def openai(package):
    def build(settings):
        module = importlib.import_module(f"{package}.unet")
        size = {"image_size": SIZE} if package == "guided_diffusion" else {}
        return module.UNetModel(**size, **settings), labelled

    return build


def labelled(net, x, t, case):
    labels = case["classes"] and told(case["classes"])[case["part"]]
    return net(x, t, labels) if case["classes"] else net(x, t)


def score_sde(settings):
    model = {"dropout": 0.0, "resamp_with_conv": True, "conditional": True, "fir": False, "fir_kernel": [1, 3, 3, 1]}
    model |= {"progressive": "none", "progressive_input": "none", "progressive_combine": "sum", "init_scale": 0.0}
    model |= {"embedding_type": "positional", "fourier_scale": 16, "scale_by_sigma": False, "nonlinearity": "swish"}
    model |= {"sigma_max": 50, "sigma_min": 0.01, "num_scales": 1000, "normalization": "GroupNorm", **settings}
    config = space({"model": space(model), "data": space({"image_size": SIZE, "num_channels": 3, "centered": True})})
    config.training = space({"continuous": True})
    name, kind = (model["name"], {"ddpm": "DDPM", "ncsnpp": "NCSNpp"}[model["name"]])
    net = getattr(importlib.import_module(f"models.{name}"), kind)(config)
    return net, lambda net, x, t, case: net(x, t.exp() if model["embedding_type"] == "fourier" else t)


def cld(settings):
    config = {"sde": "cld", "dropout": 0.0, "resamp_with_conv": True, "image_size": SIZE, "fir_kernel": "1,3,3,1"}
    config |= {"skip_rescale": True, "resblock_type": "biggan", "progressive": "none", "init_scale": 0.0}
    config |= {"fourier_scale": 16, "progressive_combine": "sum", "image_channels": 3, "nonlinearity": "swish"}
    net = importlib.import_module("models.ncsnpp").NCSNpp(space({**config, **settings}))
    return net, lambda net, x, t, case: net(x, t.exp())


def edm(settings):
    settings = dict(settings)
    net = getattr(importlib.import_module("training.networks"), settings.pop("kind"))(**settings)

    def call(net, x, t, case):
        """The last of the four is not told its class."""
        labels = None
        if case["classes"]:
            labels = torch.nn.functional.one_hot(told(case["classes"]), case["classes"]).to(x.dtype)
            labels[3] = 0
            labels = labels[case["part"]]
        done = case["augment"][case["part"]].to(x.dtype) if settings.get("augment_dim") else None
        return net(x, t, labels, done)

    return net, call


BUILD = {
    "pytorch_diffusion": ddpm,
    "improved-diffusion": openai("improved_diffusion"),
    "guided-diffusion": openai("guided_diffusion"),
    "score_sde_pytorch": score_sde,
    "CLD-SGM": cld,
    "edm": edm,
}


@contextmanager
def double_precision():
    """Everything in float64, also where their code says float32."""
    saved = torch.float32, np.float32, torch.Tensor.float
    torch.float32, np.float32, torch.Tensor.float = torch.float64, np.float64, lambda self: self
    torch.set_default_dtype(torch.float64)
    yield
    torch.float32, np.float32, torch.Tensor.float = saved
    torch.set_default_dtype(torch.float32)


def answers(net, call, x, t, case):
    with torch.no_grad():
        parts = slice(0, 2), slice(2, 4)
        return torch.cat([call(net, x[part], t[part], {**case, "part": part}) for part in parts])


def record(repository, commit, name, seed, settings, ours, times):
    """One case: what goes into the JSON, and the pictures."""
    net, call = BUILD[repository](settings)
    shapes = {key: list(tensor.shape) for key, tensor in net.state_dict().items()}
    net.load_state_dict(fill(shapes, seed))
    net.eval()
    case = {"classes": settings.get("num_classes") or settings.get("label_dim") or 0, "augment": augmentation(seed, 9)}
    x, t = pictures(seed, ours.get("channels", 3), SIZE), torch.tensor(times)
    rough = answers(net, call, x, t, case)
    with double_precision():
        net.dtype = torch.float64  # of the torso of guided-diffusion
        true = answers(net.double(), call, x.double(), torch.tensor(times), case)
    rounding = ((rough - true).abs().max() / true.abs().max()).item()
    told_of = {"classes": case["classes"], "augment": settings.get("augment_dim", 0)}
    about = {"repository": repository, "commit": commit, "settings": settings, "config": ours, "seed": seed, **told_of}
    about |= {"times": times, "size": SIZE, "rounding": rounding, "scale": true.abs().max().item(), "shapes": shapes}
    return about, true[CORNER].numpy()


def main(checkouts):
    torch.set_num_threads(1)
    torch.utils.cpp_extension.load = lambda *_, **__: None  # theirs compile for CUDA on import; the CPU has plain torch
    about, arrays, seed = {"torch": torch.__version__}, {}, 0
    for repository, (commit, cases) in CASES.items():
        before = set(sys.modules)
        sys.path.insert(0, str(Path(checkouts) / repository))
        for name, (settings, ours, times) in cases.items():
            seed += 1
            about[name], arrays[name] = record(repository, commit, name, seed, settings, ours, times)
        sys.path.pop(0)
        for module in set(sys.modules) - before:
            if not module.startswith(("torch.", "numpy")):
                del sys.modules[module]
    here = Path(__file__).parent
    (here / "networks.json").write_text(json.dumps(about, separators=(",", ":")) + "\n")
    np.savez_compressed(here / "networks.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
