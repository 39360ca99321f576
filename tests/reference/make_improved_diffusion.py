"""Records what openai/improved-diffusion (MIT, commit 1bc7bbbdc414d83d4abf2ad8cc1446dc36c4e4d5) computes. Run once,
with a checkout of it on PYTHONPATH. Writes improved_diffusion.json beside itself.

Pictures, noise and the stub network are formulas, which the tests repeat: no arrays are stored that can be computed.
"""

import json
from pathlib import Path

import numpy as np
import torch
from improved_diffusion import gaussian_diffusion as gd
from improved_diffusion import resample
from improved_diffusion.respace import SpacedDiffusion, space_timesteps

np.int = int  # which numpy had when this code was written
SHAPE = (4, 2, 3, 3)
RESPACINGS = [
    (1000, "250"),
    (1000, "7"),
    (1000, "1"),
    (300, "10,15,20"),
    (1000, "ddim25"),
    (1000, "ddim30"),
    (50, "50"),
]
LOSSES = {
    "mse": (gd.LossType.MSE, gd.ModelVarType.FIXED_LARGE),
    "hybrid": (gd.LossType.RESCALED_MSE, gd.ModelVarType.LEARNED_RANGE),
    "hybrid_unscaled": (gd.LossType.MSE, gd.ModelVarType.LEARNED_RANGE),
    "kl": (gd.LossType.RESCALED_KL, gd.ModelVarType.LEARNED_RANGE),
}


def wave(rate, shift):
    """A picture of cosines."""
    n = int(np.prod(SHAPE))
    return torch.from_numpy(np.cos(rate * np.arange(n) + shift)).float().reshape(SHAPE)


def pictures():
    return ((wave(1.3, 0.2) + 1) * 127.5).round() / 127.5 - 1


class Stub(torch.nn.Module):
    """Four numbers that stand for a network."""

    def __init__(self, variance):
        super().__init__()
        self.variance = variance
        self.w = torch.nn.Parameter(torch.tensor([0.8, 0.3, 0.6, -0.2]))

    def forward(self, x, t):
        t = t.float().reshape(-1, 1, 1, 1)
        eps = self.w[0] * x + self.w[1] * torch.sin(t / 300)
        o = self.w[2] * torch.sin(3 * x) + self.w[3] * torch.cos(t / 300)
        return torch.cat([eps, o], 1) if self.variance else eps


def diffusion(schedule, T, kind, respacing="", rescale=True):
    loss, variance = LOSSES[kind]
    return SpacedDiffusion(
        use_timesteps=space_timesteps(T, respacing or str(T)),
        betas=gd.get_named_beta_schedule(schedule, T),
        model_mean_type=gd.ModelMeanType.EPSILON,
        model_var_type=variance,
        loss_type=loss,
        rescale_timesteps=rescale,
    )


def losses():
    """The loss of each example, and the gradient of their mean."""
    out = []
    for schedule, T in (("cosine", 4000), ("linear", 200)):
        for kind in LOSSES:
            for rescale in (True, False):
                stub, t = Stub(kind != "mse"), torch.tensor([0, 1, T // 3, T - 2])
                found = diffusion(schedule, T, kind, rescale=rescale).training_losses(
                    stub, pictures(), t, noise=wave(2.1, 0.7)
                )
                found["loss"].mean().backward()
                row = {"schedule": schedule, "T": T, "kind": kind, "rescale": rescale, "t": t.tolist()}
                out.append(row | {"loss": found["loss"].tolist(), "gradient": stub.w.grad.tolist()})
    return out


def walks():
    """Respaced: mean and variance of one step, DDIM to the end, and the bound with the same noise in every step."""
    out = {}
    for respacing in ("10", "ddim10"):
        chain, stub, x = diffusion("cosine", 1000, "hybrid", respacing), Stub(True), wave(2.1, 0.7)
        step = chain.p_mean_variance(stub, x, torch.full((4,), 4), clip_denoised=True)
        end = chain.ddim_sample_loop(stub, SHAPE, noise=x, clip_denoised=True, device="cpu")
        gd.th.randn_like = lambda x: wave(2.1, 0.7)
        bits = chain.calc_bpd_loop(stub, pictures())
        out[respacing] = {
            "map": chain.timestep_map,
            "betas": chain.betas.tolist(),
            "mean": step["mean"].flatten().tolist(),
            "variance": step["variance"].flatten().tolist(),
            "ddim": end.flatten().tolist(),
            "total": bits["total_bpd"].tolist(),
            "vb": bits["vb"].T.tolist(),
        }
    return out


def history():
    sampler = resample.LossSecondMomentResampler(diffusion("cosine", 5, "kl"), history_per_term=3)
    draw = np.random.default_rng(0)
    steps = []
    for _ in range(8):
        t, loss = draw.integers(0, 5, 7), draw.uniform(0, 4, 7).round(3)
        sampler.update_with_all_losses(t.tolist(), loss.tolist())
        weights = sampler.weights()
        steps.append({"t": t.tolist(), "loss": loss.tolist(), "p": (weights / weights.sum()).tolist()})
    return steps


def main():
    tables = {f"{name} {T}": gd.get_named_beta_schedule(name, T) for name in ("cosine", "linear") for T in (50, 4000)}
    recorded = {
        "source": "openai/improved-diffusion @ 1bc7bbbdc414d83d4abf2ad8cc1446dc36c4e4d5",
        "betas": {
            name: {"some": table[:: len(table) // 10].tolist(), "last": table[-1], "kept": float(np.prod(1 - table))}
            for name, table in tables.items()
        },
        "respacings": [[T, text, sorted(space_timesteps(T, text))] for T, text in RESPACINGS],
        "losses": losses(),
        "walks": walks(),
        "history": history(),
    }
    (Path(__file__).parent / "improved_diffusion.json").write_text(json.dumps(recorded) + "\n")


if __name__ == "__main__":
    main()
