"""Receipts of trained runs: what was measured of each, with what, and at what cost.

    python benchmarks/receipts.py                        every kept run (benchmarks/runs/NAME/evaluation/*.json)
    python benchmarks/receipts.py runs/fashion_ddpm_s1   any other run (benchmarks/receipts/NAME/*.json)
    python benchmarks/receipts.py --n 5000 --features lite0 --sampler auto --steps 20 benchmarks/runs/fashion_ddpm

Each run is measured against the pictures it was trained on, in the features of lite0, and Fashion-MNIST runs also in
those of a classifier trained on that set: figures of two features never compare. A receipt that is there with the same
n, seed and sampler stays; an interrupted measurement goes on where it was. benchmarks/receipts_page.py makes
docs/receipts.md of them."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from classifier import Eyes
from timing import commit

from sfumato.apps.evaluation import Store, about_reference, looker, made_here, read_reference
from sfumato.apps.reproduction import training_cost
from sfumato.apps.sampled import Sampled, Sampling, facts_of, planned
from sfumato.cli.runs import described, model_hash, name_of, opened
from sfumato.cli.samplers import chosen, own_sampler
from sfumato.data import DataOptions
from sfumato.data.cache import cache_folder
from sfumato.engine.distributed import World
from sfumato.engine.plan import choose_device
from sfumato.metrics.evaluation import measure
from sfumato.metrics.features import Extractor
from sfumato.metrics.receipt import Receipt

ROOT = Path(__file__).parent
PACK = Path(os.environ.get("SFUMATO_DATA") or ROOT.parent.parent / "shared" / "data")
DATA = {  # by a word of the run's name
    "fashion": str(PACK / "fashion_mnist" / "train.npz"),
    "letters": "glyphs",
    "emoji": str(PACK / "emoji" / "emoji.parquet"),
}
KEEP = cache_folder().parent / "receipts"  # of its own, so that pictures and their features come together
METRICS = ("fid", "kid", "pr")
FEATURES: dict[str, Callable[[], str | Extractor]] = {"lite0": lambda: "lite0", "fashion_classifier": Eyes}


def data_of(name: str) -> str:
    """What the run NAME was trained on. Raises SystemExit."""
    found = [data for word, data in DATA.items() if word in name]
    if not found:
        raise SystemExit(f"what was {name} trained on? Give --data.")
    return found[0]


def place(run: Path, features: str, walk: str) -> Path:
    """Where a receipt is kept: in a kept run itself, of others beside."""
    kept = run.resolve().parent == (ROOT / "runs").resolve()
    folder = run / "evaluation" if kept else ROOT / "receipts" / run.resolve().name
    return folder / f"{'_'.join(filter(None, (features, walk)))}.json"


def same(path: Path, n: int, seed: int) -> bool:
    """Whether the receipt is there, of so many samples and this seed."""
    if not path.exists():
        return False
    found = Receipt.read(path)
    return found.samples.get("seed") == seed and all(figure.n == n for figure in found.figures)


class Once:
    """The pictures of a run, sampled once for all features and kept as they come, with what that took."""

    def __init__(self, made: Sampled, folder: Path) -> None:
        self.made, place = made, folder / f"{made.fingerprint}_{len(made)}"
        place.mkdir(parents=True, exist_ok=True)
        self.pictures = _mapped(place / "pictures.npy", (len(made), *made.recipe.config.shape), np.uint8)
        self.there = _mapped(place / "there.npy", (len(made),), np.bool_)
        self.ledger = place / "cost.json"
        self.cost: dict[str, float] = json.loads(self.ledger.read_text()) if self.ledger.exists() else {}

    def __len__(self) -> int:
        return len(self.made)

    @property
    def names(self) -> Sequence[str]:
        return self.made.names

    @property
    def fingerprint(self) -> str:
        return self.made.fingerprint

    def batch(self, positions: np.ndarray) -> torch.Tensor:
        missing = positions[~self.there[positions]]
        if len(missing):
            self.pictures[missing] = self.made.batch(missing).numpy()
            self.pictures.flush()
            self.there[missing] = True
            self.there.flush()
            self._count()
        return torch.from_numpy(self.pictures[positions].copy())

    def _count(self) -> None:
        new = {name: getattr(self.made.cost, name) for name in ("pictures", "seconds", "calls")}
        self.cost = {name: self.cost.get(name, 0) + value for name, value in new.items()}
        self.made.cost.pictures = self.made.cost.calls = 0
        self.made.cost.seconds = 0.0
        self.ledger.write_text(json.dumps(self.cost))


def _mapped(path: Path, shape: tuple[int, ...], kind: type) -> np.memmap:
    """An array in a file, zeros at first."""
    mode = "r+" if path.exists() else "w+"
    return np.lib.format.open_memmap(path, mode, dtype=kind, shape=None if mode == "r+" else shape)


def measured(run: Path, features: str, options: argparse.Namespace) -> Path:
    """The receipt of a run in these features."""
    path = place(run, features, "_".join(map(str, filter(None, (options.sampler, options.steps)))))
    if same(path, options.n, options.seed):
        return path
    config, recipe = described(run), opened(run, choose_device("cpu")).requires_grad_(False)
    own = own_sampler(recipe)
    sampler = chosen(own, options.sampler, steps=options.steps) if own is not None else None
    data, show, store = options.data or data_of(run.name), Said(f"{run.name}, {features}"), Store(KEEP)
    channels, high, wide = recipe.config.shape
    asked = DataOptions(
        size=(wide, high), channels=channels, flip="off", labels=None if config.get("classes") else "none"
    )
    reference = read_reference(data, asked, show)
    sampling = Sampling(seed=options.seed, sampler=sampler)
    plan, words = planned(recipe, sampling, None)
    made = Once(Sampled(recipe, sampling, options.n, plan, words), KEEP / "pictures")
    extractor = looker(FEATURES[features](), reference, store, choose_device("cpu"), show, World())
    start, before = time.monotonic(), made.cost.get("seconds", 0.0)
    figures = measure(
        made, reference, options.metrics, extractor, show=show, keep=store.keep, references=store.references
    )
    cost = {
        "sampling": round(made.cost["seconds"], 3),
        "measuring": round(time.monotonic() - start - (made.cost["seconds"] - before), 3),
        "training": {"parameters": sum(p.numel() for p in recipe.parameters()), **training_cost(run)},
    }
    samples = facts_of(
        made.made, name_of(config), model_hash(run), round(made.cost["calls"] / made.cost["pictures"], 2)
    )
    told = {**about_reference(reference, data, asked), "name": "/".join(Path(data).parts[-2:])}
    path.parent.mkdir(parents=True, exist_ok=True)
    return Receipt(figures, samples, told, cost, {**made_here(choose_device("cpu")), "commit": commit()}).write(path)


class Said:
    """A line now and then."""

    def __init__(self, what: str) -> None:
        self.what, self.last = what, 0.0

    def __call__(self, doing: str, done: int, total: int) -> None:
        if time.monotonic() - self.last > 20:
            self.last = time.monotonic()
            print(f"{self.what}: {doing} {done:,}/{total:,}", flush=True)


def runs(given: list[Path]) -> list[Path]:
    """Those that were given, or all that are kept."""
    return given or sorted(path.parent for path in (ROOT / "runs").glob("*/config.yaml"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--data", default="")
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the first sample")
    parser.add_argument("--features", nargs="+", choices=FEATURES, default=list(FEATURES))
    parser.add_argument("--metrics", nargs="+", default=list(METRICS))
    parser.add_argument("--sampler", help="in place of the run's own")
    parser.add_argument("--steps", type=int, help="of the sampler")
    options = parser.parse_args()
    for run in runs(options.runs):
        for features in options.features:
            if features == "lite0" or run.name.startswith("fashion"):
                print(measured(run, features, options), flush=True)


if __name__ == "__main__":
    main()
