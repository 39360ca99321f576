"""What steering costs and gives on Fashion-MNIST: the class that was asked for, quality and variety, at every scale.

    python benchmarks/guidance.py ../shared/data/fashion_mnist --out benchmarks/results/guidance.json
        --free RUN --plain benchmarks/runs/fashion_ddpm --classifier RUN --free-classifier RUN
        --base benchmarks/runs/fashion_edm --discriminator RUN [--sheets FOLDER]

Rows: `free`, classifier-free guidance of a run that was told the labels (classifier_free); `classifier`, a run that was
not (ddpm) steered by a classifier trained upon it; `both`, the first steered by a classifier of its own. Classes come
in turn, `--n` pictures, seeds 0 to n - 1, `auto` in `--steps` steps, float32. Of the pictures: the share that an
independent classifier (benchmarks/classifier.py, it never saw noise) reads as what was asked for, the Frechet distance
of its features to those of the 10,000 test pictures (no FID), and precision and recall in them against as many test
pictures. `discriminator`: a run of edm with its own sampler and a discriminator trained upon it, three seeds of
sampling, and the distance in features of lite0, too, which see textures. What `--out` holds already is not measured
again. The runs, all on train.npz with `--preset fashion --flip on --threads 1`:

    sfumato train classifier_free DATA --steps 3000 --out runs/free
    sfumato train adm DATA --stage classifier --steps 2000 --from benchmarks/runs/fashion_ddpm (and --from runs/free)
    sfumato train discriminator_guidance DATA --labels none --steps 1500 --from benchmarks/runs/fashion_edm"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from classifier import Classifier, features, frechet, kept, read
from fashion import CLASSIFIER, pictures, sheet
from timing import machine
from torch import Tensor

from sfumato import Ask, DataOptions, Seeds, load, open_data
from sfumato.cli.steer import Forces, Steered
from sfumato.metrics.features import levels
from sfumato.metrics.lite0 import Lite0
from sfumato.metrics.neighbours import precision_recall
from sfumato.recipe import Recipe
from sfumato.samplers.auto import Auto
from sfumato.samplers.sampler import Sampler

AT_ONCE = 250
FREE = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
STEER = (0.0, 1.0, 2.0, 4.0, 8.0)
BOTH = ((1.5, 1.0), (1.5, 4.0), (3.0, 4.0))  # guidance, and the classifier's scale
REAL = (0.0, 1.0, 2.0)
SEEDS = (0, 10_000, 20_000)


class Judge:
    """What pictures are held against: the test pictures (N, 1, 28, 28) in [-1, 1]."""

    def __init__(self, net: Classifier, held: Tensor) -> None:
        self.net, self.real = net, features(net, held)
        self.lite0 = Lite0()
        self.textures = self._textures(held)

    def _textures(self, images: Tensor) -> Tensor:
        """(N, 232) features of lite0."""
        parts = levels((images + 1) / 2).split(AT_ONCE)
        return torch.cat([self.lite0(part).features.double() for part in parts])

    def texture(self, images: Tensor) -> float:
        """Frechet distance in features of lite0, each over the deviation of the test pictures' own."""
        scale = self.textures.std(0).clamp(min=1e-6)
        return round(frechet(self._textures(images) / scale, self.textures / scale), 2)

    def __call__(self, images: Tensor, labels: Tensor | None) -> dict[str, float]:
        seen = features(self.net, images)
        some = self.real[torch.randperm(len(self.real), generator=torch.Generator().manual_seed(0))[: len(seen)]]
        found = {"frechet": frechet(seen, self.real), **precision_recall(some, seen)._asdict()}
        if labels is not None:
            found["accuracy"] = float((read(self.net, images) == labels).double().mean())
        out = {name: round(value, 4) for name, value in found.items()}
        return out if labels is not None else out | {"lite0": self.texture(images)}


def made(recipe: Recipe, n: int, sampler: Sampler | None, *, first: int = 0, told: bool = True, scale: float = 1.0):
    """(n, 1, 28, 28) in [-1, 1] and the classes that were asked for, those in turn."""
    out = []
    for at in range(0, n, AT_ONCE):
        size = min(AT_ONCE, n - at)
        labels = tuple((at + i) % 10 for i in range(size)) if told else None
        ask = Ask(n=size, labels=labels, guidance=scale, sampler=sampler)
        *_, last = recipe.sample(ask, rng=Seeds(first + at))
        out.append(recipe.picture(last) * 2 - 1)
    return torch.cat(out), torch.arange(n) % 10 if told else None


Way = Callable[[], tuple[Tensor, Tensor | None]]


def rows(options: Any) -> dict[str, Way]:
    """What is measured, by name."""
    walk, found = Auto(options.steps), dict[str, Way]()
    if options.free:
        free = load(options.free)
        found |= {f"free {s:g}": partial(made, free, options.n, walk, scale=s) for s in FREE}
    if options.plain and options.classifier:
        plain, reader = load(options.plain), load(options.classifier)
        for s in STEER:
            found[f"classifier {s:g}"] = partial(made, Steered(plain, Forces(reader, s)), options.n, walk)
    if options.free and options.free_classifier:
        reader = load(options.free_classifier)
        for w, s in BOTH:
            found[f"both {w:g} {s:g}"] = partial(made, Steered(free, Forces(reader, s)), options.n, walk, scale=w)
    if options.base and options.discriminator:
        base, judge = load(options.base), load(options.discriminator)
        for seed in SEEDS:
            for s in REAL:
                steered = Steered(base, Forces(discriminator=judge, slopes=(s, s)))
                found[f"discriminator {s:g} seed {seed}"] = partial(
                    made, steered, options.n, None, first=seed, told=False
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.npz and test.npz")
    for name in ("free", "plain", "classifier", "free-classifier", "base", "discriminator", "sheets", "out"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    train, test = (open_data(str(options.data / name), DataOptions()) for name in ("train.npz", "test.npz"))
    net, held, images = kept(CLASSIFIER, lambda: Classifier(10), 10), pictures(test), pictures(train)
    judge = Judge(net, held)
    kept_rows: dict[str, Any] = (
        json.loads(options.out.read_text())["results"] if options.out and options.out.exists() else {}
    )
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: options.n]
    kept_rows |= {"n": options.n, "steps": options.steps}
    kept_rows["real"] = judge(images[chosen], torch.as_tensor(train.labels)[chosen])
    for name, way in rows(options).items():
        if name in kept_rows:
            continue
        begin = time.process_time()
        with torch.no_grad():
            found, labels = way()
        kept_rows[name] = judge(found, labels) | {"seconds": round(time.process_time() - begin, 1)}
        print(name, kept_rows[name], flush=True)
        if options.out:
            options.out.write_text(json.dumps({"machine": machine(), "results": kept_rows}, indent=1) + "\n")
        if options.sheets:
            options.sheets.mkdir(parents=True, exist_ok=True)
            sheet(found[:100], 10).save(options.sheets / f"{name.replace(' ', '_')}.png")


if __name__ == "__main__":
    main()
