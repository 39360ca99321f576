"""What the official DiT says of weights that tests/weights/filling.py makes: writes dit.json and dit.npz.

    PYTHONPATH=benchmarks python -m tests.reference.make_dit CHECKOUT

CHECKOUT is facebookresearch/DiT @ed81ce2, run as it is but for what float64 needs: the features of the time in float64,
where the code has float32. timm's three pieces are the stand-ins of benchmarks/dit.py, which compute the same."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.dit import official
from tests.weights.filling import fill, pictures

HERE = Path(__file__).parent
CASES = {
    "latents": {"input_size": 16, "patch_size": 2, "in_channels": 4, "hidden_size": 64, "depth": 3, "num_heads": 4},
    "pixels": {"input_size": 16, "patch_size": 4, "in_channels": 3, "hidden_size": 128, "depth": 2, "num_heads": 2},
}
TIMES, LABELS = [0.0, 999.0, 17.0, 500.25], [0, 9, 10, 4]


def features(t: torch.Tensor, dim: int, max_period: int = 10_000) -> torch.Tensor:
    k = torch.arange(dim // 2, dtype=torch.float64)
    angle = t[:, None].double() * torch.exp(-math.log(max_period) * k / (dim // 2))
    return torch.cat([angle.cos(), angle.sin()], 1)


def main() -> None:
    models = official(Path(sys.argv[1]))
    models.TimestepEmbedder.timestep_embedding = staticmethod(features)
    about, arrays = {"torch": torch.__version__, "commit": "ed81ce2"}, {}
    for seed, (name, settings) in enumerate(CASES.items(), 50):
        net = models.DiT(num_classes=10, **settings).eval()
        shapes = {key: list(value.shape) for key, value in net.state_dict().items()}
        net.load_state_dict(fill({k: s for k, s in shapes.items() if k != "pos_embed"}, seed), strict=False)
        arrays[f"{name} positions"] = net.pos_embed.numpy()[0, ::5, ::7]
        x, t = pictures(seed, settings["in_channels"], 16).double(), torch.tensor(TIMES, dtype=torch.float64)
        with torch.no_grad():
            out = net.double()(x, t, torch.tensor(LABELS))
        arrays[name] = out[..., 3:9, 5:13].numpy()
        about[name] = {"seed": seed, "shapes": shapes, "settings": settings, "scale": float(out.abs().max())}
    about["parameters"] = {}
    for name, make in models.DiT_models.items():
        with torch.device("meta"):
            about["parameters"][name.removeprefix("DiT-")] = parameters(models, make)
    (HERE / "dit.json").write_text(json.dumps(about, indent=1) + "\n")
    np.savez_compressed(HERE / "dit.npz", **arrays)


def parameters(models, make) -> int:
    """Of the module without its weights: `initialize_weights` reads the numbers of the positions."""
    initialise, models.DiT.initialize_weights = models.DiT.initialize_weights, lambda self: None
    count = sum(p.numel() for p in make().parameters())
    models.DiT.initialize_weights = initialise
    return count


if __name__ == "__main__":
    main()
