"""`sfumato evaluate RUN|FOLDER|FILE DATA`: how good samples are, in figures that say what they depend on."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional

from sfumato.apps.evaluation import Sampling, evaluate_run, is_run, keep_receipt
from sfumato.apps.evaluation_sets import Helpers, evaluate_sets
from sfumato.cli.evaluate_shown import told
from sfumato.cli.flags import data_options
from sfumato.cli.parse import nearest, option, parse
from sfumato.cli.progress import Progress
from sfumato.cli.request import names_of, refuse_numbers
from sfumato.cli.runs import at_checkpoint, described, find_run, opened
from sfumato.cli.samplers import SAMPLERS, SPACINGS, chosen, own_sampler
from sfumato.cli.show import amount, printable
from sfumato.data import DataOptions
from sfumato.engine.distributed import World, join
from sfumato.engine.plan import choose_device, using_threads
from sfumato.errors import UserError
from sfumato.metrics.figures import METRICS
from sfumato.metrics.matched import PAIRED
from sfumato.metrics.receipt import Receipt
from sfumato.samplers.sampler import Sampler

__all__ = ["run"]

KNOWN = (*METRICS, *PAIRED, "lpips", "clip")
EXAMPLES = """\
examples
  sfumato evaluate runs/photos photos/ --n 10000                 a run against data: Frechet distance and KID
  sfumato evaluate runs/photos photos/ --n 5000 --metrics pr vendi --sampler dpmpp --steps 20
  sfumato evaluate made/ photos/                                 two folders
  sfumato evaluate out/ truth/ --metrics ssim psnr               pictures of equal names, one by one
  sfumato evaluate made/ photos/ --features inception:pt_inception-2015-12-05-6726825d.pth   FID
  torchrun --nproc_per_node=2 -m -- sfumato evaluate runs/photos photos/ --n 50000"""


@dataclass(frozen=True)
class WalkFlags:
    """How a run is sampled."""

    label: Annotated[str, option("classes, used in turn", "NAME[,NAME]", "as --classes")] = ""
    classes: Annotated[Literal["even", "data"], option("each as often, or as often as in DATA")] = "even"
    guidance: Annotated[float, option("how strongly the class is meant", "SCALE")] = 1.0
    sampler: Annotated[str | None, option("how to walk", "|".join(SAMPLERS), "the paper's")] = None
    steps: Annotated[int | None, option("fewer is faster", "N", "the sampler's")] = None
    spacing: Annotated[str | None, option("where the steps lie", "|".join(SPACINGS), "the sampler's")] = None
    eta: Annotated[float | None, option("noise added on the way", "0..1", "the sampler's")] = None
    precision: Annotated[Literal["fp32", "bf16"], option("bf16: often faster")] = "fp32"
    checkpoint: Annotated[
        str, option("which of the run's models", "best|latest|final|step_N", "final, else the latest")
    ] = ""


@dataclass(frozen=True)
class ReadFlags:
    """How pictures are read; beside a run at its size and in its colours."""

    size: Annotated[str, option("pixels, for two sets", "N|WxH", "their own, the smaller")] = ""
    fit: Annotated[Literal["crop", "pad", "stretch"], option("what happens to other shapes")] = "crop"
    alpha: Annotated[Literal["white", "keep"], option("transparent pictures: on white, or as a channel")] = "white"
    split: Annotated[str, option("part of the data", "NAME|all", "train, where there is one")] = ""
    labels: Annotated[str, option("classes of DATA", "folder|COLUMN|none", "column `label`")] = ""
    captions: Annotated[str, option("texts, for clip", "COLUMN|sidecar|names|none", "")] = ""
    strict: Annotated[bool, option("stop at a bad picture in place of skipping it")] = False

    def options(self) -> DataOptions:
        """Raises UserError."""
        return data_options(self, flip="off")


@dataclass(frozen=True)
class Evaluate:
    """Measure the samples of a run, or a set of pictures, against a set of pictures.

    Figures come with n, the features that looked, an interval where there is one, and what as many real pictures get.
    Interrupted, it goes on where it was. docs/evaluation.md says what the figures mean and what does not compare.
    """

    made: Annotated[str, Positional, option("a run, a folder, .npz, .parquet, .zip, hf:NAME", "RUN|DATA", "")] = ""
    reference: Annotated[str, Positional, option("what to compare with; or an .npz of statistics", "DATA", "")] = ""
    metrics: Annotated[tuple[str, ...], option(" ".join(KNOWN), "NAME ...", "fid kid")] = ("fid", "kid")
    features: Annotated[
        str, option("what looks at the pictures", "lite0|lite0@SIZE|own|inception:FILE|FILE", "lite0")
    ] = "lite0"
    resize: Annotated[
        Literal["clean", "tf1", "bilinear", "antialias"] | None,
        option("as in clean-fid, torch-fidelity, pytorch-fid, torchmetrics", None, "the features' own"),
    ] = None
    n: Annotated[int | None, option("samples", "N", "10,000 of a run, all of a set")] = None
    seed: Annotated[int, option("of the first sample; of a set: of the choice", "N")] = 0
    lpips: Annotated[str, option("weights for lpips, as torchvision has them", "alex|vgg|squeeze:FILE", "")] = ""
    clip: Annotated[Path | None, option("a CLIP of transformers, for clip", "FOLDER", "")] = None
    out: Annotated[Path | None, option("the receipt", "FILE.json", "RUN/evaluation/...; of sets: none")] = None
    json: Annotated[bool, option("print the receipt, and nothing else")] = False
    no_cache: Annotated[bool, option("keep nothing: no resuming, features of DATA anew")] = False
    batch: Annotated[int | None, option("pictures at once", "N", "by their size")] = None
    device: Annotated[str, option("auto: a GPU if there is one", "auto|cpu|cuda[:I]|mps")] = "auto"
    threads: Annotated[int | None, option("CPU threads", "N", "as torch picks")] = None
    walk: OmitArgPrefixes[WalkFlags] = field(default_factory=WalkFlags)
    data: OmitArgPrefixes[ReadFlags] = field(default_factory=ReadFlags)


def run(args: list[str]) -> int:
    flags = parse(Evaluate, "evaluate", args, examples=EXAMPLES)
    if not (flags.made and flags.reference):
        raise UserError("evaluate needs two sets, as in `sfumato evaluate runs/NAME photos/` or `evaluate A/ B/`.")
    refuse_numbers({**vars(flags), **vars(flags.walk)})
    metrics = _metrics(flags.metrics)
    _refuse_out(flags.out)
    shown = Shown(quiet=flags.json)
    try:
        with join(flags.device) as world, using_threads(flags.threads), shown:
            receipt = _measured(flags, metrics, world, shown)
            if world.main:
                _tell(receipt, flags)
    except KeyboardInterrupt:
        Progress.say(shown.stopped(kept=not flags.no_cache))
        return 130
    return 0


def _metrics(asked: Sequence[str]) -> tuple[str, ...]:
    """Names, each once. Raises UserError with the nearest."""
    names = tuple(dict.fromkeys(name for word in asked for name in word.split(",") if name))
    for name in names:
        if name not in KNOWN:
            hint = " give --metrics after the two sets." if Path(name).exists() else f" choose from {', '.join(KNOWN)}."
            raise UserError(f"there is no metric '{name}':{nearest(name, KNOWN, hint)}")
    if not names:
        raise UserError(f"--metrics names none: choose from {', '.join(KNOWN)}.")
    return names


def _measured(flags: Evaluate, metrics: tuple[str, ...], world: World, shown: Shown) -> Receipt:
    common: dict[str, Any] = {
        "metrics": metrics,
        "features": flags.features,
        "resize": flags.resize,
        "options": flags.data.options(),
        "batch": flags.batch,
        "device": flags.device,
        "cache": not flags.no_cache,
        "show": shown,
        "say": shown.say,
        "world": world,
    }
    path = Path(flags.made)
    if is_run(path):
        if flags.data.size:
            raise UserError("--size is for two sets: pictures are compared at the size of the run.")
        sampling = _sampling(flags)
        common |= {"sampling": sampling, "checkpoint": flags.walk.checkpoint, "written": False}
        return evaluate_run(path, flags.reference, n=flags.n or 10_000, **common)
    _refuse_walk(flags)
    helpers = Helpers(flags.lpips, flags.clip)
    return evaluate_sets(flags.made, flags.reference, n=flags.n, seed=flags.seed, helpers=helpers, **common)


def _refuse_walk(flags: Evaluate) -> None:
    """Raises UserError for options of runs where there is none."""
    usual = WalkFlags()
    for name, value in vars(flags.walk).items():
        if value != getattr(usual, name):
            raise UserError(f"--{name} is for runs, and '{flags.made}' is none: leave it out.")


def _sampling(flags: Evaluate) -> Sampling:
    """Raises UserError for a sampler that there is not, or with fields that it has not."""
    w, sampler = flags.walk, None
    if any(value is not None for value in (w.sampler, w.steps, w.spacing, w.eta)):
        recipe = opened(at_checkpoint(find_run(flags.made, "evaluate"), w.checkpoint), choose_device("cpu"))
        sampler = _walk(own_sampler(recipe), w)
    classes = described(Path(flags.made)).get("classes") or ()
    return Sampling(flags.seed, sampler, w.guidance, names_of(w.label, classes), w.classes, w.precision)


def _walk(own: Sampler | None, w: WalkFlags) -> Sampler:
    if own is None:
        raise UserError("this run has a way of sampling of its own: leave out --sampler, --steps, --spacing and --eta.")
    return chosen(own, w.sampler, steps=w.steps, spacing=w.spacing, eta=w.eta)


def _refuse_out(out: Path | None) -> None:
    """Raises UserError before any work for a receipt that cannot be written."""
    if out is not None and (out.suffix != ".json" or out.is_dir()):
        raise UserError(f"--out {out} must be a file that ends in .json: it is the file of the receipt.")


# -- showing -----------------------------------------------------------------------------------------------------------


class Shown:
    """Progress of one thing after another, and what to say when it is stopped."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet, self.what, self.done, self.total = quiet, "", 0, 0
        self.bar = Progress("", quiet=True)

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.__exit__(None, None, None)

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self.what:
            self.bar.__exit__(None, None, None)
            self.bar = Progress(what, quiet=self.quiet)
        self.what, self.done, self.total = what, done, total
        self.bar(done, total)

    def say(self, line: str) -> None:
        self.bar.__exit__(None, None, None)
        Progress.say(f"note: {line}")

    def stopped(self, *, kept: bool) -> str:
        if not kept:
            return "stopped; --no-cache kept nothing."
        done = f" at {self.done:,} of {amount(self.total, 'picture')}" if self.total else ""
        return (
            f"stopped while {self.what or 'opening'}{done}. What is done is kept: the same command goes on from there."
        )


def _tell(receipt: Receipt, flags: Evaluate) -> None:
    """The figures first: a full disk shall not take them away."""
    print(json.dumps(_strict(asdict(receipt)), indent=1) if flags.json else told(receipt))
    home = Path(flags.made) / "evaluation" if is_run(Path(flags.made)) else None
    if (where := flags.out or home) is not None:
        path = keep_receipt(receipt, where)
        if not flags.json:
            print(f"\nreceipt  {printable(str(path))}")


def _strict(value: Any) -> Any:
    """Without NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _strict(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
