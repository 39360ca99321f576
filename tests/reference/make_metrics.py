"""Records what other people's metric packages say of seeded features, pictures and weights. Run once:

    pip install --no-deps --target PEERS torch-fidelity==0.4.0 torchvision==0.28.0 clean-fid==0.1.35 lpips==0.1.4
    python tests/reference/make_metrics.py PEERS

They stay out of the environment of the tests: torchvision has no build for a CPU torch, and beside it diffusers cannot
be imported; torch-fidelity installs a package called `tests`. Writes metrics.json beside itself. Only numbers are
recorded."""

import json
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "metrics"), sys.argv[1]]
LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
for op in ("nms", "qnms"):
    LIBRARY.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from seeded import checker, filled, rows, some  # noqa: E402


def features():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    x, y = rows(0, 600, 24, 0.1), rows(1, 700, 24)
    kid = {"kid_subsets": 7, "kid_subset_size": 200, "rng_seed": 2020, "kid_kernel": "poly", "verbose": False}
    kid |= {"kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}
    precise = kid_features_to_metric(x.double(), y.double(), **kid)
    found = dict(precise)
    statistics = [fid_features_to_statistics(z) for z in (x, y)]
    found |= fid_statistics_to_metric(*statistics, False)
    found |= isc_features_to_metric(4 * x, 10, True, 2020)
    found |= prc_features_to_metric(
        x.double(), y.double(), prc_neighborhood=3, prc_batch_size=128, verbose=False, save_cpu_ram=False
    )
    return {name: float(value) for name, value in found.items()}


def resized():
    from cleanfid.resize import make_resizer
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as tf1

    out = {}
    for h, w in ((32, 32), (330, 410), (64, 299)):
        picture = checker(h, w)
        x = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
        clean = make_resizer("PIL", False, "bicubic", (299, 299))(picture).transpose(2, 0, 1)
        torch_way = make_resizer("PyTorch", False, "bilinear", (299, 299))(picture).transpose(2, 0, 1)
        ways = {"clean": np.ascontiguousarray(clean), "bilinear": np.ascontiguousarray(torch_way)}
        ways["tf1"] = tf1(x, size=(299, 299), align_corners=False)[0]
        ways["antialias"] = torch.nn.functional.interpolate(x, (299, 299), mode="bilinear", antialias=True)[0]
        out[f"{h}x{w}"] = {name: some(way, 149) for name, way in ways.items()}
    return out


def inception():
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Theirs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.hub.load_state_dict_from_url = None
        saved = Theirs.load_state_dict
        Theirs.load_state_dict = lambda self, state: None
        torch.save({}, path)
        net = Theirs("n", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path))
        Theirs.load_state_dict = saved
        net.load_state_dict(filled(net.state_dict()))
    seen = []
    net.Mixed_6d.branch1x1.register_forward_hook(lambda _, __, out: seen.append(out))
    pooled, logits = net(torch.from_numpy(checker(64, 48)).permute(2, 0, 1)[None])
    return {
        "keys": {name: list(tensor.shape) for name, tensor in net.state_dict().items()},
        "features": some(pooled),
        "logits": some(logits),
        "spatial": some(seen[0][0, :7]),
    }


def perceptual():
    import lpips

    out = {}
    x, y = (
        torch.from_numpy(checker(64, 80)[:, :, order].copy()).permute(2, 0, 1)[None] / 127.5 - 1
        for order in ([0, 1, 2], [2, 0, 1])
    )
    for trunk in ("alex", "vgg", "squeeze"):
        net = lpips.LPIPS(net=trunk, pnet_rand=True, verbose=False)
        weights = {f"features.{name.split('.', 1)[1]}": tensor for name, tensor in net.net.state_dict().items()}
        made = filled(weights)
        net.net.load_state_dict({name: made[f"features.{name.split('.', 1)[1]}"] for name in net.net.state_dict()})
        out[trunk] = {
            "keys": {name: list(tensor.shape) for name, tensor in weights.items()},
            "packaged": net(x, y).item(),
        }
        for i, head in enumerate(net.lins):
            head.model[1].weight.data = torch.linspace(0, 1, head.model[1].weight.numel()).reshape(1, -1, 1, 1) + i
        out[trunk]["ramps"] = net(x, y).item()
    return out


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with torch.no_grad():
        found = {"torch_fidelity": features(), "resize": resized(), "inception": inception(), "lpips": perceptual()}
    (HERE / "metrics.json").write_text(json.dumps(found) + "\n")
