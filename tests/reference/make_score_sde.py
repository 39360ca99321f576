"""Records losses and samples of the official score_sde_pytorch and CLD-SGM. Run once:

    python tests/reference/make_score_sde.py SCORE_SDE_PYTORCH CLD_SGM

with checkouts of github.com/yang-song/score_sde_pytorch @cb1f359f and github.com/nv-tlabs/CLD-SGM @43dc5681. Writes
score_sde.json and cld.json beside itself: in float64, x0, what the official loss drew, its value with an analytic stub
for the network, `stub`, and its gradient with respect to the stub's two numbers; and where predictors and correctors
lead from a given x with given noise. Only numbers are recorded."""

import importlib
import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import torch

SEED, SHAPE = 20261122, (2, 3, 3, 3)
torch.set_default_dtype(torch.float64)


class Stub(torch.nn.Module):
    """a sin(x) + b cos(time / 700), of an input's last three channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Parameter(torch.tensor(0.7)), torch.nn.Parameter(torch.tensor(-0.4))

    def forward(self, x, time):
        x = x[:, -3:]
        return self.a * torch.sin(x) + self.b * torch.cos(time.to(x.dtype) / 700).reshape(-1, 1, 1, 1)


class Drawn:
    """torch's random functions, remembering what they gave."""

    NAMES = ("rand", "randn_like", "randint")

    def __enter__(self):
        self.seen, self.true = [], {name: getattr(torch, name) for name in self.NAMES}
        for name, draw in self.true.items():
            setattr(torch, name, self.remembering(draw))
        return self.seen

    def remembering(self, draw):
        def call(*args, **settings):
            self.seen.append(draw(*args, **settings))
            return self.seen[-1]

        return call

    def __exit__(self, *_):
        for name, draw in self.true.items():
            setattr(torch, name, draw)


def opened(root, *names, others=None):
    """Modules of a checkout, with stand-ins for what they import and never call here."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("models", "sde_lib", "losses", "util")]:
        del sys.modules[name]
    sys.modules |= others or {}
    sys.path.insert(0, str(root))
    package = types.ModuleType("models")
    package.__path__ = [str(Path(root) / "models")]
    sys.modules["models"] = package
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(root))


def case(run, x0):
    net = Stub()
    with Drawn() as seen:
        value = run(net, x0)
    value.backward()
    return {
        "drawn": [z.tolist() for z in seen],
        "value": value.item(),
        "gradient": [net.a.grad.item(), net.b.grad.item()],
    }


def score_sde(root):
    sde_lib, losses, sampling = opened(root, "sde_lib", "losses", "sampling")
    torch.manual_seed(SEED)
    x0 = torch.rand(SHAPE) * 2 - 1
    make = {"vp": sde_lib.VPSDE, "subvp": sde_lib.subVPSDE, "ve": sde_lib.VESDE}
    out, steps = {}, {}
    for name, kind in make.items():
        data = (x0 + 1) / 2 if name == "ve" else x0
        for weight in ("plain", "likelihood"):
            for reduce in ("mean", "sum"):
                loss = losses.get_sde_loss_fn(kind(), True, reduce == "mean", True, weight == "likelihood")
                out[f"{name} {weight} {reduce}"] = case(loss, data)
    out["vp chain mean"] = case(losses.get_ddpm_loss_fn(sde_lib.VPSDE(), True, True), x0)
    out["ve chain sum"] = case(losses.get_smld_loss_fn(sde_lib.VESDE(), True, False), (x0 + 1) / 2)
    net = Stub().requires_grad_(False)
    for name, kind in make.items():
        for t in (1.0, 0.5):
            x = torch.randn(SHAPE)
            score = sampling.mutils.get_score_fn(kind(), net, train=False, continuous=True)
            at = torch.full((len(x),), t)
            row = {"x": x.tolist(), "score": score(x, at).tolist()}
            with Drawn() as seen:
                end, mean = sampling.EulerMaruyamaPredictor(kind(), score).update_fn(x, at)
                row["euler"] = [seen[-1].tolist(), end.tolist(), mean.tolist()]
                if name != "subvp":
                    end, mean = sampling.LangevinCorrector(kind(), score, 0.16, 1).update_fn(x, at)
                    row["langevin"] = [seen[-1].tolist(), end.tolist(), mean.tolist()]
            steps[f"{name} {t}"] = row
    return {"x0": x0.tolist(), "losses": out, "steps": steps}


def cld(root):
    others = {name: types.ModuleType(name) for name in ("util", "util.utils")}  # theirs imports tensorboard and more
    others["util.utils"].add_dimensions = lambda x, is_image: x[:, None, None, None]
    sde_lib, losses = opened(root, "sde_lib", "losses", others=others)
    torch.manual_seed(SEED)
    x0, out = torch.rand(SHAPE) * 2 - 1, {}
    for objective in ("hsm", "dsm"):
        for weighting in ("reweightedv2", "likelihood"):
            for slope in (0.0, 6.9):
                beta = 0.1 if slope else 4.0
                config = SimpleNamespace(
                    m_inv=4.0,
                    gamma=0.04,
                    numerical_eps=1e-9,
                    cld_objective=objective,
                    is_image=True,
                    device="cpu",
                    loss_eps=1e-5,
                    weighting=weighting,
                    mixed_score=True,
                )
                sde = sde_lib.CLD(
                    config, lambda t, b=beta, s=slope: b + s * t, lambda t, b=beta, s=slope: b * t + s * t * t / 2
                )
                run = losses.get_loss_fn(sde, True, config)
                out[f"{objective} {weighting} {slope}"] = case(lambda net, x, run=run: run(net, x).mean(), x0)
    return {"x0": x0.tolist(), "losses": out}


def main():
    where = {"score_sde": (score_sde, "cb1f359f"), "cld": (cld, "43dc5681")}
    for root, (name, (make, commit)) in zip(sys.argv[1:], where.items(), strict=True):
        record = {"commit": commit, "torch": torch.__version__, "seed": SEED, **make(root)}
        Path(__file__).with_name(f"{name}.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
