"""The options of `sfumato train`, grouped as its help shows them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, make_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagConversionOff, OmitArgPrefixes, Positional

from sfumato.cli.parse import option
from sfumato.data.options import DataOptions
from sfumato.engine.run import THREADS
from sfumato.errors import UserError
from sfumato.recipe import Training
from sfumato.registry import Paper

__all__ = [
    "EXAMPLES",
    "DataFlags",
    "MachineFlags",
    "OutputFlags",
    "TrainFlags",
    "data_options",
    "for_paper",
    "pixels",
    "value_of",
]

EXAMPLES = """\
examples
  sfumato train ddpm photos/                            any folder of pictures: the rest is picked, and said
  sfumato train ddpm photos/ --preset small --size 64   another model, another size
  sfumato train --resume runs/ddpm-photos --steps 40000 go on, for longer
  sfumato train ddpm cats/ --from runs/ddpm-photos      fine-tune
  torchrun --nproc_per_node=2 -m sfumato train ddpm photos/"""


@dataclass(frozen=True)
class DataFlags:
    """How the pictures are read. What is not given is picked from the data."""

    size: Annotated[str, option("pixels", "N|WxH", "from data and machine")] = ""
    channels: Annotated[Literal[1, 3, 4] | None, option("gray, colour, colour and alpha", None, "from the data")] = None
    fit: Annotated[Literal["crop", "pad", "stretch"], option("what happens to other shapes")] = "crop"
    flip: Annotated[Literal["auto", "on", "off"], option("mirror half of the pictures; auto: not letters")] = "auto"
    alpha: Annotated[Literal["white", "keep"], option("transparent pictures: on white, or as a channel")] = "white"
    labels: Annotated[str, option("classes; folder: the sub-folder", "folder|COLUMN|none", "column `label`")] = ""
    captions: Annotated[str, option("texts", "COLUMN|sidecar|names|none", "")] = ""
    split: Annotated[str, option("part of the data", "NAME|all", "train, where there is one")] = ""
    holdout: Annotated[
        float | None, option("kept aside to measure the loss on", "SHARE", "0.02; 0 below 100 pictures")
    ] = None
    strict: Annotated[bool, option("stop at a bad picture in place of skipping it")] = False

    def options(self) -> DataOptions:
        """Raises UserError."""
        return data_options(self)


@dataclass(frozen=True)
class MachineFlags:
    """What it runs on."""

    device: Annotated[str, option("auto: a GPU if there is one", "auto|cpu|cuda[:I]|mps")] = "auto"
    precision: Annotated[Literal["auto", "fp32", "bf16"], option("bf16: often twice the speed; auto: timed")] = "auto"
    compile: Annotated[bool, option("torch.compile the network: minutes at the start, faster steps")] = False
    checkpointing: Annotated[bool, option("compute activations twice: less memory, 1.3 x the time")] = False
    accumulate: Annotated[
        int | None, option("parts a batch is worked through in", "N", "1; on a CPU so many that each takes at most 2 s")
    ] = None
    threads: Annotated[int | None, option("CPU threads", "N", "timed at the start")] = None
    workers: Annotated[int, option("threads that prepare batches", "N")] = 1

    def __post_init__(self) -> None:
        """Raises UserError for more threads than any machine runs."""
        if max(self.threads or 0, self.workers) > THREADS:
            raise UserError(f"--threads and --workers are at most {THREADS}.")


@dataclass(frozen=True)
class OutputFlags:
    """What is written, and how often (in steps; 0 is never)."""

    out: Annotated[Path | None, option("the run's folder", "RUN", "runs/PAPER-DATA")] = None
    save_every: Annotated[int, option("steps between checkpoints", "N")] = 1000
    keep: Annotated[int, option("checkpoints kept", "N")] = 3
    sample_every: Annotated[int, option("steps between preview grids", "N")] = 1000
    evaluate_every: Annotated[int, option("steps between held-out losses and what --evaluate asks for", "N")] = 1000
    evaluate: Annotated[
        Literal["auto", "kid", "fid", "loss"],
        option("compare the model's pictures with real ones; auto: kid where it costs little; loss: do not"),
    ] = "auto"
    evaluate_n: Annotated[int, option("pictures to compare", "N")] = 256
    evaluate_features: Annotated[str, option("what looks at them", "lite0|own|inception:FILE|FILE")] = "lite0"
    log_every: Annotated[int, option("steps between lines of metrics.jsonl", "N")] = 50
    report_to: Annotated[
        tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...],
        option("tensorboard, wandb, trackio, mlflow", "NAME ...", ""),
    ] = ()
    quiet: Annotated[bool, option("no plan and no progress")] = False


@dataclass(frozen=True)
class TrainFlags:
    """Train a paper's model on pictures; go on with a run (--resume); fine-tune one (--from).

    `sfumato train PAPER --help` adds the options of the paper: --config.FIELD and --training.FIELD.

    Ctrl-C saves and exits with 130 (SIGTERM 143, SIGUSR1 75); --resume goes on from there.
    """

    paper: Annotated[str, Positional, option("as in `sfumato papers`", "PAPER", "")] = ""
    source: Annotated[
        str, Positional, option("a folder, .parquet, .npz, .zip, hf:NAME, digits or glyphs", "DATA", "")
    ] = ""
    preset: Annotated[str, option("a named setting", "NAME", "by machine")] = ""
    steps: Annotated[int | None, option("optimiser steps", "N", "the preset's")] = None
    batch: Annotated[
        str, option("pictures per step; auto: in parts if memory is short", "N|auto", "the preset's, auto")
    ] = ""
    lr: Annotated[float | None, option("learning rate", "RATE", "the preset's")] = None
    seed: Annotated[int | None, option("of weights, order and noise", "N", "0")] = None
    resume: Annotated[Path | None, option("go on with this run, exactly", "RUN", "")] = None
    start: Annotated[Path | None, option("start from this run's weights", "RUN", "", name="from")] = None
    stage: Annotated[str, option("of papers that train in several stages", "NAME", "")] = ""
    data: OmitArgPrefixes[DataFlags] = field(default_factory=DataFlags)
    machine: OmitArgPrefixes[MachineFlags] = field(default_factory=MachineFlags)
    output: OmitArgPrefixes[OutputFlags] = field(default_factory=OutputFlags)


def for_paper(found: Paper, config: Any, training: Training) -> type[Any]:
    """TrainFlags with the options of a paper: --config.FIELD and --training.FIELD, defaulting to what is given here."""
    model: Any = FlagConversionOff
    extra: list[tuple[str, Any, Any]] = [
        ("config", model[found.config], field(default=config)),
        ("training", Training, field(default=training)),
    ]
    made = make_dataclass("TrainFlags", extra, bases=(TrainFlags,), frozen=True)
    made.__doc__ = TrainFlags.__doc__
    return made


def value_of(args: list[str], flag: str) -> str:
    """What follows `flag` on the command line, before everything is parsed."""
    joined = next((word.partition("=")[2] for word in args if word.startswith(f"{flag}=")), "")
    return joined or next((after for word, after in pairwise(args) if word == flag and after[:2] != "--"), "")


def data_options(flags: Any, **others: Any) -> DataOptions:
    """What flags say whose names are those of the options, an empty text nothing; and others in their place. Raises
    UserError."""
    said: dict[str, Any] = {f.name: getattr(flags, f.name) for f in fields(DataOptions) if hasattr(flags, f.name)}
    if "size" in said:
        said["size"] = pixels(said["size"])
    told: dict[str, Any] = {name: None if value == "" else value for name, value in (said | others).items()}
    return DataOptions(**told)


def pixels(text: str) -> int | tuple[int, int] | None:
    """'64' or '96x64' (width x height). Raises UserError."""
    if not text:
        return None
    if not re.fullmatch(r"\d{1,9}([xX]\d{1,9})?", text):
        raise UserError(f"--size cannot be '{text}': give one or two numbers from 1 to 8192, as 64 or 96x64.")
    width, _, height = text.lower().partition("x")
    if not all(1 <= int(side) <= 8192 for side in (width, height or width)):
        raise UserError(f"--size {text} is not possible: give one or two numbers from 1 to 8192, as 64 or 96x64.")
    return (int(width), int(height)) if height else int(width)
