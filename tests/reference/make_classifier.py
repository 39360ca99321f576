"""Records what the official noisy classifier says, with weights and inputs of tests/weights/filling.py. Run once:

    python -m tests.reference.make_classifier CHECKOUT

CHECKOUT is openai/guided-diffusion at the commit given here. Writes classifier.json (repository, commit, their
settings, our config, names and shapes of the weights) and classifier.npz (logits, the gradient of one of them) beside
itself, computed in float64 on a CPU; `rounding` is how far the same code in float32 is from that, relative to the
greatest number. No code of theirs is kept."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

from tests.reference.make_networks import OURS_ADM, SIZE, STEPS, double_precision
from tests.weights.filling import fill, pictures

REPOSITORY, COMMIT = "openai/guided-diffusion", "22e0df8183507e13a7813f8d38d51b072ca1e67c"
UNET = {"in_channels": 3, "model_channels": 32, "channel_mult": [1, 2, 2], "attention_resolutions": [2, 4]}
UNET |= {"out_channels": 7, "num_head_channels": 16, "use_scale_shift_norm": True, "resblock_updown": True}
OURS = {**OURS_ADM, "widths": [32, 64, 64], "attention": [1, 2], "head_width": 16}

CASES = {  # case: (their settings, our encoder, our pool)
    "attention": ({**UNET, "num_res_blocks": 2, "pool": "attention"}, {**OURS, "blocks": 2}, "attention"),
    "attention_new_order": (
        {**UNET, "num_res_blocks": 1, "pool": "attention", "use_new_attention_order": True},
        {**OURS, "blocks": 1},
        "attention",
    ),
    "adaptive": ({**UNET, "num_res_blocks": 1, "pool": "adaptive"}, {**OURS, "blocks": 1}, "average"),
    "attention_half": (  # as at 512 x 512, which begins with half of its channels
        {**UNET, "model_channels": 64, "channel_mult": [0.5, 1, 1], "num_res_blocks": 1, "pool": "attention"},
        {**OURS, "blocks": 1, "time_width": 64},
        "attention",
    ),
}


def answers(net, x, t):
    """Logits (4, 7), and the gradient of log p of class i of the i-th picture, in a corner."""
    x = x.requires_grad_()
    logits = net(x, t)
    chosen = logits.log_softmax(1)[torch.arange(4), torch.arange(4)]
    (gradient,) = torch.autograd.grad(chosen.sum(), x)
    return logits.detach(), gradient[..., 0:8, 8:16]


def main(checkout):
    torch.set_num_threads(1)
    sys.path.insert(0, checkout)
    kind = importlib.import_module("guided_diffusion.unet").EncoderUNetModel
    about, arrays = {"torch": torch.__version__}, {}
    for seed, (name, (settings, ours, pool)) in enumerate(CASES.items(), 101):
        net = kind(image_size=SIZE, **settings).eval()
        shapes = {key: list(tensor.shape) for key, tensor in net.state_dict().items()}
        net.load_state_dict(fill(shapes, seed))
        x = pictures(seed, 3, SIZE)
        rough = answers(net, x, torch.tensor(STEPS))
        with double_precision():
            net.dtype = torch.float64
            true = answers(net.double(), x.double(), torch.tensor(STEPS, dtype=torch.float64))
        scale = [part.abs().max().item() for part in true]
        rounding = [((a - b).abs().max() / s).item() for a, b, s in zip(rough, true, scale, strict=True)]
        about[name] = {"repository": REPOSITORY, "commit": COMMIT, "settings": settings, "encoder": ours, "pool": pool}
        about[name] |= {"seed": seed, "times": STEPS, "size": SIZE, "scale": scale, "rounding": rounding}
        about[name]["shapes"] = shapes
        arrays |= {f"{name}/logits": true[0].numpy(), f"{name}/gradient": true[1].numpy()}
    here = Path(__file__).parent
    (here / "classifier.json").write_text(json.dumps(about, separators=(",", ":")) + "\n")
    np.savez_compressed(here / "classifier.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
