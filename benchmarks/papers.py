"""How good the kept Fashion-MNIST runs are, at how many network calls: one row for each.

    python benchmarks/papers.py ../shared/data/fashion_mnist benchmarks/runs/fashion_edm ... --n 1000
        --out benchmarks/results/papers.json --sheets docs/images/papers

The figure is the Frechet distance of `--n` samples to the 10,000 test pictures in the features of a classifier trained
on the same set (benchmarks/classifier.py); the floor is that of as many training pictures. Samplers: `auto` at each
number of calls where it can walk the run's process, the paper's own at its own number, few-step models at 1, 2 and 4.
With `--bits N`: bits per dimension of N test pictures by the probability flow and by the bound of the chain, side by
side; they are two models, and no order is claimed. All samples are in float32, seeds 0 to n - 1. What `--out` holds
already is not measured again."""

from __future__ import annotations

import argparse
import csv
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from classifier import Classifier, features, frechet, kept, read
from fashion import CLASSIFIER, pictures, sheet
from timing import machine

from sfumato import Ask, DataOptions, Seeds, load, open_data
from sfumato.cli import likelihood
from sfumato.core.process import Affine
from sfumato.engine.run import read_config
from sfumato.samplers.ancestral import DDIM
from sfumato.samplers.auto import Auto
from sfumato.samplers.consistency import Consistency
from sfumato.samplers.sampler import Sampler
from sfumato.samplers.sde import SSCS

AT_ONCE = 250


def walks(recipe, calls: list[int], own: bool) -> dict[str, Sampler]:
    """Samplers by what the table calls them."""
    paper: Sampler = recipe.sampler()
    if isinstance(paper, Consistency):
        return {f"own, {n}": replace(paper, steps=n) for n in (1, 2, 4)}
    affine = isinstance(recipe.denoiser.process, Affine)
    found: dict[str, Sampler] = {f"{'auto' if affine else 'sscs'}, {n}": Auto(n) if affine else SSCS(n) for n in calls}
    found |= {f"ddim, {n}": DDIM(n) for n in (2,) if affine}
    return found | ({f"own, {paper.calls() or type(paper).__name__}": paper} if own else {})


def made(recipe, sampler: Sampler, n: int) -> tuple[torch.Tensor, float]:
    """(n, 1, 28, 28) in [-1, 1], and the seconds they took."""
    out, begin = [], time.perf_counter()
    for first in range(0, n, AT_ONCE):
        size = min(AT_ONCE, n - first)
        for state in recipe.sample(Ask(n=size, sampler=sampler), rng=Seeds(first)):
            last = state
        out.append(recipe.picture(last) * 2 - 1)
    return torch.cat(out), time.perf_counter() - begin


def bits(run: Path, data: Path, n: int) -> dict[str, Any]:
    """Mean and standard error of n test pictures, by each method that the run allows."""
    found: dict[str, Any] = {}
    for method in ("ode", "bound"):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            words = [str(run), str(data), "--method", method, "--n", str(n), "--out", str(out), "--threads", "1"]
            try:
                likelihood.run([*words, "--labels", "none"])
            except Exception as error:  # a method that this model has not
                found[method] = str(error)
                continue
            values = [float(row[method]) for row in csv.DictReader((out / "images.csv").open())]
        mean = sum(values) / len(values)
        error = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
        found[method] = [round(mean, 3), round(error, 3)]
    return found


def measured(
    run: Path, options: Any, net: Classifier, test: torch.Tensor, row: dict[str, Any], keep: Callable[[], object]
) -> None:
    """Fills the row of a run, and keeps it after every figure."""
    recipe, config = load(run), read_config(run)
    training = config["training"]
    row |= {
        "paper": config["paper"],
        "preset": config["preset"],
        "steps": training["steps"],
        "batch": training["batch"],
        "parameters": sum(p.numel() for p in recipe.parameters()),
    }
    row.setdefault("frechet", {})
    row.setdefault("seconds per 1000", {})
    for name, sampler in walks(recipe, options.calls, options.own).items():
        if name in row["frechet"]:
            continue
        images, seconds = made(recipe, sampler, options.n)
        row["frechet"][name] = round(frechet(features(net, images), features(net, test)), 3)
        row["seconds per 1000"][name] = round(seconds / options.n * 1000, 1)
        print(run.name, name, row["frechet"][name], f"{seconds:.0f} s", flush=True)
        keep()
        if options.sheets:
            options.sheets.mkdir(parents=True, exist_ok=True)
            sheet(images[:64]).resize((448, 112)).save(options.sheets / f"{run.name}_{name.replace(', ', '_')}.png")
    keep()
    if options.bits and "bits per dimension" not in row:
        row["bits per dimension"] = bits(run, options.data / "test.npz", options.bits)
        print(run.name, row["bits per dimension"], flush=True)
        keep()


def keep(rows: dict[str, Any], out: Path | None) -> None:
    if out:
        out.write_text(json.dumps({"machine": machine(), "results": rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.npz and test.npz")
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--calls", type=int, nargs="+", default=[10, 20, 50])
    parser.add_argument("--own", action="store_true", help="also the paper's own sampler, with its own steps")
    parser.add_argument("--bits", type=int, default=0)
    parser.add_argument("--sheets", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    train, test = (open_data(str(options.data / name), DataOptions()) for name in ("train.npz", "test.npz"))
    held, images = pictures(test), pictures(train)
    if not CLASSIFIER.is_file():
        parser.error("there is no classifier yet: benchmarks/fashion.py trains it")
    net = kept(CLASSIFIER, lambda: Classifier(10), 10)
    chosen = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: options.n]]
    rows: dict[str, Any] = (
        json.loads(options.out.read_text())["results"] if options.out and options.out.exists() else {}
    )
    rows["classifier accuracy"] = float((read(net, held) == torch.as_tensor(test.labels)).float().mean())
    rows["n"] = options.n
    rows["floor"] = round(frechet(features(net, chosen), features(net, held)), 3)
    for run in options.runs:
        with torch.no_grad():
            row = rows.setdefault(run.name, {})
            measured(run, options, net, held, row, lambda: keep(rows, options.out))


if __name__ == "__main__":
    main()
