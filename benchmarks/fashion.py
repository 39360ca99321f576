"""Ten minutes of training on Fashion-MNIST: sfumato against denoising-diffusion-pytorch, the same paper at equal size,
time and machine.

    python benchmarks/fashion.py DATA --paper ddpm|improved_ddpm|edm|v --minutes 10 --tuned

Both train in one process of one thread, a minute each in turn, on the same 60,000 pictures without labels. Time is the
processor's, which other work on the machine hardly changes. The peer runs as its
`Trainer` does by default (fp32, Adam 1e-4, batch 16, EMA 0.995 every 10 steps): `GaussianDiffusion` (v prediction on
its sigmoid schedule) for ddpm, `LearnedGaussianDiffusion` for improved_ddpm, `ElucidatedDiffusion` for edm,
`VParamContinuousTimeGaussianDiffusion` for v, which is our ddpm again; a second time with the batch and the learning
rate that serve us (`--tuned`). Both sample with about 50 network calls. The figure is a Frechet distance to the 10,000
test pictures in the features of a classifier trained on the same set; the floor is that of as many training
pictures."""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from classifier import Classifier, features, frechet, kept, read, train
from PIL import Image
from timing import report

from sfumato import Ask, DataOptions, Seeds, load, open_data
from sfumato.engine.options import Options
from sfumato.engine.train import fresh, steps
from sfumato.registry import paper
from sfumato.samplers.auto import Auto

CLASSIFIER = Path(__file__).parent / "runs" / "fashion_classifier" / "model.safetensors"


def pictures(data) -> torch.Tensor:
    return data.batch(np.arange(len(data)), None)["image"]


class Ours:
    """The generator of sfumato's own engine, pulled step by step."""

    def __init__(self, data, out: Path | None, total: int, name: str) -> None:
        self.name, preset = f"sfumato {name}", paper(name).presets["fashion"]
        options = Options(
            out=out,
            training=replace(preset.training, steps=total),
            preset="fashion",
            sample_every=0,
            evaluate_every=0,
            save_every=0,
            log_every=50,
            quiet=True,
        )
        self.recipe = fresh(name, replace(preset.config, shape=data.shape), 0)
        self.size = sum(p.numel() for p in self.recipe.parameters())
        self.out, self.total, self.done = out, total, 0
        self.loop = steps(self.recipe, data, options)

    def step(self) -> None:
        if self.done < self.total:
            next(self.loop)
            self.done += 1

    def finish(self) -> float:
        """Seconds of the steps that were left."""
        begin = time.process_time()
        while self.done < self.total:
            self.step()
        return time.process_time() - begin

    def sample(self, n: int) -> torch.Tensor:
        assert self.out
        recipe, out = load(self.out), []
        for first in range(0, n, 250):
            with torch.autocast("cpu", torch.bfloat16):
                *_, state = recipe.sample(Ask(n=250, sampler=Auto(50)), rng=Seeds(first))
            out.append(recipe.picture(state) * 2 - 1)
        return torch.cat(out)


class Theirs:
    """denoising-diffusion-pytorch's network, diffusion, optimiser and EMA, as its Trainer puts them together."""

    def __init__(self, images: torch.Tensor, dim: int, kind: str, *, lr: float = 1e-4, batch: int = 16) -> None:
        library = torch.library.Library(
            "torchvision", "FRAGMENT"
        )  # torchvision has no CPU build here: schemas that it registers for
        for schema in (
            "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        ):
            try:
                library.define(schema)
            except RuntimeError:
                break
        from ema_pytorch import EMA

        torch.manual_seed(0)
        self.name = f"denoising-diffusion-pytorch, batch {batch}, lr {lr:g}"
        self.diffusion = diffusion(kind, dim)
        self.size = sum(p.numel() for p in self.diffusion.parameters())
        self.optimiser = torch.optim.Adam(self.diffusion.parameters(), lr=lr, betas=(0.9, 0.99))
        self.ema = EMA(self.diffusion, beta=0.995, update_every=10)
        self.images, self.batch, self.done = (images + 1) / 2, batch, 0

    def step(self) -> None:
        x = self.images[torch.randint(len(self.images), (self.batch,))]
        x = torch.where(torch.rand(self.batch, 1, 1, 1) < 0.5, x.flip(-1), x)
        self.diffusion(x).backward()
        torch.nn.utils.clip_grad_norm_(self.diffusion.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.ema.update()
        self.done += 1

    def sample(self, n: int) -> torch.Tensor:
        self.ema.ema_model.eval()
        with torch.no_grad():
            return torch.cat([self.ema.ema_model.sample(batch_size=250) for _ in range(n // 250)]) * 2 - 1


def diffusion(kind: str, dim: int) -> torch.nn.Module:
    """The peer's form of a paper, at its defaults but for the number of sampling steps."""
    import denoising_diffusion_pytorch as peer

    def net(**settings: bool) -> torch.nn.Module:
        return peer.Unet(dim=dim, dim_mults=(1, 2, 4), channels=1, **settings)

    if kind == "edm":
        return peer.ElucidatedDiffusion(net(random_fourier_features=True), image_size=28, channels=1)  # 63 calls
    if kind == "improved_ddpm":
        peer.learned_gaussian_diffusion.partial = (
            functools.partial
        )  # its DDIM needs what version 2.3.4 forgot to import
        return peer.LearnedGaussianDiffusion(
            net(learned_variance=True), image_size=28, sampling_timesteps=50, objective="pred_noise"
        )
    if kind == "v":
        return peer.VParamContinuousTimeGaussianDiffusion(
            net(random_fourier_features=True), image_size=28, channels=1, num_sample_steps=50
        )
    return peer.GaussianDiffusion(net(), image_size=28, sampling_timesteps=50)


def in_turn(rivals: list, minutes: float, slice_seconds: float = 60.0, used: dict | None = None) -> dict[str, float]:
    """Each rival steps until it has had `minutes`, a slice at a time; seconds that each has used."""
    used = {rival.name: 0.0 for rival in rivals} if used is None else used
    while min(used[rival.name] for rival in rivals) < minutes * 60 - 1:
        for rival in rivals:
            begin, budget = time.process_time(), min(slice_seconds, minutes * 60 - used[rival.name])
            while time.process_time() - begin < budget:
                rival.step()
            used[rival.name] += time.process_time() - begin
        print({name: round(seconds) for name, seconds in used.items()}, flush=True)
    return used


def pace(make: Callable[[], Ours], probe: int = 40) -> float:
    """Seconds of one of our steps."""
    ours = make()
    for _ in range(10):
        ours.step()
    begin = time.process_time()
    for _ in range(probe):
        ours.step()
    ours.loop.close()
    return (time.process_time() - begin) / probe


def sheet(images: torch.Tensor, columns: int = 16) -> Image.Image:
    n, _, h, w = images.shape
    rows = ((images[:, 0] + 1) * 127.5).round().clamp(0, 255).byte().reshape(n // columns, columns, h, w)
    return Image.fromarray(255 - rows.permute(0, 2, 1, 3).reshape(n // columns * h, columns * w).numpy())


def quality(net: Classifier, test: torch.Tensor, images: torch.Tensor) -> dict[str, float]:
    sure = torch.cat([net(x).softmax(1).max(1).values for x in images.split(500)]).mean()
    return {
        "frechet distance": round(frechet(features(net, images), features(net, test)), 3),
        "mean confidence": round(float(sure), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.npz and test.npz")
    parser.add_argument("--paper", default="ddpm", choices=["ddpm", "improved_ddpm", "edm", "v"])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--work", type=Path, default=Path("runs/fashion"))
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, test = (open_data(str(options.data / name), DataOptions(flip="on")) for name in ("train.npz", "test.npz"))
    images, held, labels = pictures(data), pictures(test), torch.as_tensor(data.labels)
    net = kept(CLASSIFIER, lambda: train(images, labels, 10, epochs=3), 10)
    accuracy = float((read(net, held) == torch.as_tensor(test.labels)).float().mean())
    print(f"classifier: {accuracy:.4f} of the test pictures", flush=True)
    name = "ddpm" if options.paper == "v" else options.paper
    second = pace(lambda: Ours(data, None, 10_000, name))
    ours = Ours(data, options.work / "run", int(options.minutes * 60 / second * 0.97), name)
    theirs = [Theirs(images, 32, options.paper)]
    theirs += [Theirs(images, 32, options.paper, lr=1e-3, batch=32)] if options.tuned else []
    used = in_turn([ours, *theirs], options.minutes)
    used[ours.name] += ours.finish()  # a busy machine leaves some of its steps over: the peers get as much more
    in_turn(theirs, used[ours.name] / 60, used=used)
    with torch.no_grad():
        rows: dict[str, object] = {
            "classifier accuracy": accuracy,
            "n": options.n,
            "floor: as many training pictures": quality(net, held, images[torch.randperm(len(images))[: options.n]]),
        }
        for rival in (ours, *theirs):
            begin = time.process_time()
            made = rival.sample(options.n)
            sheet(made[:128]).save(options.work / f"{rival.name.split(',')[0].replace(' ', '_')}_{rival.done}.png")
            rows[rival.name] = {
                "parameters": rival.size,
                "steps": rival.done,
                "training seconds": round(used[rival.name]),
                "sampling seconds": round(time.process_time() - begin),
                **quality(net, held, made),
            }
    report("fashion", rows, options.out)


if __name__ == "__main__":
    main()
