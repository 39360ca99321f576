"""How good pictures are, a run's or those in files, measured against data, with a receipt."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato import __version__
from sfumato.apps.reproduction import training_cost
from sfumato.apps.sampled import Sampled, Sampling, facts_of, planned
from sfumato.cli.request import batch_of
from sfumato.cli.runs import at_checkpoint, described, find_run, model_hash, name_of, opened, refuse_use
from sfumato.data import DataOptions, Dataset, open_data
from sfumato.data.cache import cache_folder
from sfumato.engine.distributed import World
from sfumato.engine.plan import choose_device, processor
from sfumato.errors import UserError
from sfumato.metrics.choose import choose
from sfumato.metrics.evaluation import Show, measure
from sfumato.metrics.features import Extractor
from sfumato.metrics.matched import PAIRED
from sfumato.metrics.own import Own, fit, keep, kept
from sfumato.metrics.receipt import Receipt
from sfumato.metrics.reference import key
from sfumato.metrics.sources import Known, Pictures, Source, holds
from sfumato.recipe import Recipe

__all__ = [
    "Sampling",
    "Store",
    "about_reference",
    "evaluate_run",
    "is_run",
    "keep_receipt",
    "looker",
    "made_here",
    "read_reference",
]

COLOURS = {1: "gray", 3: "colour", 4: "colour and alpha"}


def _quiet(what: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Store:
    """Where features, statistics of references and trained extractors stay; without a folder nothing does."""

    folder: Path | None

    @classmethod
    def usual(cls, cache: bool = True) -> Store:
        """Beside the cache of decoded pictures."""
        return cls(cache_folder().parent / "evaluation" if cache else None)

    def _room(self, name: str) -> Path | None:
        return self.folder / name if self.folder else None

    @property
    def keep(self) -> Path | None:
        return self._room("features")

    @property
    def references(self) -> Path | None:
        return self._room("references")

    def own(self, reference: Source, show: Show, world: World) -> Own:
        """The extractor `own`, trained on a reference: the same in all processes."""
        room = self._room("own")
        path = room / f"{key({'data': reference.fingerprint})}.safetensors" if room else None
        found = kept(path) if path else None
        if not world.any(found is None) and found is not None:
            return found
        pictures = reference.batch(np.arange(len(reference)))
        made = fit(pictures, progress=lambda done, total: show("training the features own", done, total))
        if world.size > 1:
            world.same(made.net.state_dict().values())
            made = Own(made.net, made.channels, made.dims, made.size or 0)
        if path is not None and world.main:
            keep(made, path)
        return made


def looker(
    features: str | Extractor,
    reference: Source | Known,
    store: Store,
    device: torch.device,
    show: Show,
    world: World,
    resize: str | None = None,
) -> Extractor:
    """The extractor of `--features`, with a resize mode in place of its own. Raises UserError."""

    def own() -> Own:
        if isinstance(reference, Known):
            raise UserError("the features own train on the reference, and this one holds statistics alone.")
        return store.own(reference, show, world)

    found = choose(features, own, resize) if isinstance(features, str) else features
    return found.to(device)


def is_run(path: Path) -> bool:
    """Whether a folder is a run, or the final/ of one."""
    return (path / "config.yaml").is_file()


# -- a run -------------------------------------------------------------------------------------------------------------


def evaluate_run(
    run: Path,
    data: Dataset | str,
    *,
    metrics: Sequence[str] = ("fid", "kid"),
    features: str | Extractor = "lite0",
    resize: str | None = None,
    n: int = 10_000,
    sampling: Sampling | None = None,
    checkpoint: str = "",
    options: DataOptions | None = None,
    batch: int | None = None,
    device: str = "auto",
    cache: bool = True,
    out: Path | None = None,
    written: bool = True,
    show: Show = _quiet,
    say: Callable[[str], None] = lambda line: None,
    world: World | None = None,
) -> Receipt:
    """Samples n pictures of `run` (its averaged weights, 8-bit rounding), measures them against `data`, and writes the
    receipt to `out`: a file, or by default RUN/evaluation/<utc time>_<short hash>.json.

    data      a Dataset at the run's size and channels, or what open_data reads: then read at the run's size and
              channels, with what `options` says of the rest (split, fit, labels, ...); or an .npz of statistics
    features  the words of --features, or an extractor
    checkpoint  which of the run's models: best, latest, final, step_N; "": final, else the latest
    resize    a mode of metrics.resize in place of the extractor's own
    batch     pictures at once; None: by their size
    cache     keep features by position (an interrupted evaluation goes on where it was) and statistics of the reference
    written   False: the receipt is returned and not written
    show      called with (what is being done, done, total)
    say       called with what the user should know before it begins
    world     the processes that share the work, all of which call this; only the first writes

    Raises UserError.
    """
    world = world or World()
    refuse_metrics(metrics)
    home, where = find_run(run, "evaluate"), choose_device(device, world.local)
    model = at_checkpoint(home, checkpoint)
    config, recipe = described(model), opened(model, where).requires_grad_(False)
    refuse_use(recipe, "evaluate")
    whole = statistics_suffice(metrics, features)
    reference = _reference_of(recipe, data, options or DataOptions(), show, whole)
    sampling = sampling or Sampling()
    plan, words = planned(recipe, sampling, reference.data if isinstance(reference, Pictures) else None)
    if words:
        say(f"classes {words}")
    made = Sampled(recipe, sampling, n, plan, words)
    store, start = Store.usual(cache), time.monotonic()
    extractor = looker(features, reference, store, where, show, world, resize)
    size = batch_of(batch, n, recipe.config.shape[1:])
    with _Ledger(made, store, world) as ledger:
        figures = measure(
            made,
            reference,
            metrics,
            extractor,
            batch=size,
            show=show,
            keep=store.keep,
            references=store.references,
            world=world,
        )
    sampled = ledger.total()
    measuring = world.sum([time.monotonic() - start])[0] / world.size - ledger.here / world.size
    receipt = Receipt(
        figures,
        facts_of(made, name_of(config), model_hash(model), sampled.get("calls"))
        | ({"checkpoint": checkpoint} if checkpoint else {}),
        about_reference(reference, data if isinstance(data, str) else "", options),
        {
            "sampling": round(sampled["seconds"], 3),
            "measuring": round(max(measuring, 0.0), 3),
            "training": {"parameters": sum(p.numel() for p in recipe.parameters()), **training_cost(home)},
        },
        made_here(where),
    )
    if world.main and written:
        keep_receipt(receipt, out or home / "evaluation")
    world.barrier()
    return receipt


def _reference_of(
    recipe: Recipe, data: Dataset | str, options: DataOptions, show: Show, statistics: bool
) -> Pictures | Known:
    """The reference at the run's size and channels. Raises UserError."""
    channels, *space = recipe.config.shape
    if len(space) != 2 or channels not in COLOURS:
        raise UserError(f"this run makes no pictures but {' x '.join(map(str, recipe.config.shape))}.")
    if isinstance(data, str):
        options = replace(options, size=(space[1], space[0]), channels=channels, flip="off")
        return read_reference(data, options, show, statistics)
    if data.shape != tuple(recipe.config.shape):
        raise UserError(f"the reference is {data.shape}, and the run makes {tuple(recipe.config.shape)}.")
    return Pictures(data)


def read_reference(source: str, options: DataOptions, show: Show, statistics: bool = False) -> Pictures | Known:
    """What a reference can be: data, or an .npz of statistics. Of files that hold both, as ADM's do, the statistics
    where they suffice: they are of the whole set, the pictures of a part. Raises UserError for a run."""
    path = Path(source)
    if is_run(path):
        raise UserError(
            f"'{source}' is a run, and no reference: give the data to compare with. Two runs are compared by "
            "evaluating both against the same data."
        )
    inside = holds(path) if path.suffix == ".npz" else set()
    if {"mu", "sigma"} <= inside and (statistics or not inside & {"arr_0", "image"}):
        return Known.read(path)
    return Pictures(open_data(source, options, lambda done, total: show("reading the reference", done, total)))


def statistics_suffice(metrics: Sequence[str], features: str | Extractor) -> bool:
    """Whether a file's own mu and sigma can answer: of Inception, for distances of Gaussians."""
    name = features if isinstance(features, str) else features.name
    return set(metrics) <= {"fid", "sfid"} and name.startswith("inception")


def refuse_metrics(metrics: Sequence[str]) -> None:
    """Raises UserError for metrics that say nothing of a run's samples."""
    for name in metrics:
        if name in (*PAIRED, "lpips"):
            raise UserError(
                f"{name} compares pictures of equal names, and a run's samples have no partner in the data: use fid, "
                f"kid, pr. {name} is for two folders."
            )
        if name in ("clip", "fvd"):
            raise UserError(
                f"{name} of a run waits for runs that make {'videos' if name == 'fvd' else 'pictures from captions'}: "
                "give two files or folders."
            )


# -- receipts ----------------------------------------------------------------------------------------------------------


@dataclass
class _Ledger:
    """What sampling cost, over interruptions and processes: each process keeps a file of its own."""

    made: Sampled
    store: Store
    world: World
    before: Mapping[str, float] = field(default_factory=dict)

    def __enter__(self) -> _Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        cost, path = self.made.cost, self._path(f"{self.world.rank}-{time.time_ns()}")
        if cost.pictures and path is not None and path.parent.is_dir():
            told = {"pictures": cost.pictures, "seconds": cost.seconds, "calls": cost.calls}
            with suppress(OSError):
                path.write_text(json.dumps(told), encoding="utf-8")

    def _path(self, name: str) -> Path | None:
        return self.store.keep / f"{self.made.fingerprint}.{name}.json" if self.store.keep else None

    @property
    def here(self) -> float:
        """Seconds of this call, of all processes."""
        return self.world.sum([self.made.cost.seconds])[0]

    def total(self) -> dict[str, float]:
        """seconds, and calls of the network for a picture, of this call and of those that it went on from."""
        cost = self.made.cost
        told = [{"pictures": cost.pictures, "seconds": cost.seconds, "calls": cost.calls}]
        if self.store.keep is not None:
            self.world.barrier()
            told = [json.loads(path.read_text()) for path in self.store.keep.glob(f"{self.made.fingerprint}.*.json")]
            sums = {name: sum(one[name] for one in told) for name in ("pictures", "seconds", "calls")}
        else:
            sums = dict(zip(told[0], self.world.sum(list(told[0].values())), strict=True))
        return {"seconds": sums["seconds"]} | (
            {"calls": round(sums["calls"] / sums["pictures"], 2)} if sums["pictures"] else {}
        )


def about_reference(reference: Source | Known, source: str, options: DataOptions | None) -> dict[str, Any]:
    """What a receipt says of a reference; its name without a path."""
    name = Path(source).name or source
    told: dict[str, Any] = {"name": name, "fingerprint": reference.fingerprint}
    if isinstance(reference, Known):
        return told | {"kind": "statistics"}
    told["size"] = len(reference)
    if isinstance(reference, Pictures):
        channels, high, wide = reference.data.shape
        told |= {"split": (options and options.split) or "", "pixels": f"{wide} x {high}, {COLOURS[channels]}"}
    return told


def made_here(device: torch.device) -> dict[str, Any]:
    """When, by what, on what kind of machine."""
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "sfumato": __version__,
        "torch": torch.__version__,
        "machine": machine,
        "threads": torch.get_num_threads(),
    }


def keep_receipt(receipt: Receipt, where: Path) -> Path:
    """Write it to a .json file, or into a folder under its time and a hash. Raises UserError, OSError."""
    if where.suffix != ".json":
        text = json.dumps([repr(receipt.figures), str(receipt.samples), str(receipt.reference)])
        short = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        where = where / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}_{short}.json"
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        return receipt.write(where)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"'{where.parent}' is a file, or lies below one: give a file with --out.") from None
