"""What a run is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sfumato.engine.judge import Judge
from sfumato.errors import UserError
from sfumato.recipe import Ask, Training

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """How one run trains. What a paper prescribes is in `training`; the rest is about this machine and this run."""

    out: Path | None = None  # run folder; None keeps nothing
    training: Training = field(default_factory=Training)
    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda[:i] | mps
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False  # torch.compile of the network; eager when that fails
    checkpointing: bool = False  # recompute activations in backward: less memory, about 1.3 x the time
    accumulate: int | None = None  # micro-batches per step and process; None: 1
    auto_batch: bool = False  # out of memory: halve the micro-batch, keep the effective batch
    threads: int | None = None  # CPU threads; None: timed at the start
    workers: int = 1  # threads that prepare batches; changes no bit of the result
    save_every: int = 1000  # steps; 0: only at the end
    keep: int = 3  # checkpoints
    sample_every: int = 1000  # steps between preview grids; 0: none
    log_every: int = 50
    evaluate_every: int = 1000  # steps between evaluations: held-out loss, and the judge's verdict; 0: none
    judge: Judge | None = None  # of pictures of the averaged model; the checkpoint it likes best is kept
    evaluate_n: int = 256  # pictures for the judge
    on_nan: Literal["skip", "stop"] = "skip"
    report_to: tuple[str, ...] = ()  # tensorboard, wandb, trackio, mlflow
    quiet: bool = False  # no progress on the terminal
    preview: Ask = field(default_factory=Ask)
    init_from: Path | None = None  # fine-tune: start from the averaged weights of this run
    stage: str = "model"
    preset: str = ""
    private: Mapping[str, Any] = field(default_factory=dict)  # for run.yaml only: data source, data options, command

    def __post_init__(self) -> None:
        t = self.training
        for name, value, least in (
            ("steps", t.steps, 1),
            ("batch", t.batch, 1),
            ("warmup", t.warmup, 0),
            ("accumulate", _or(self.accumulate, 1), 1),
            ("threads", _or(self.threads, 1), 1),
            ("workers", self.workers, 0),
            ("keep", self.keep, 1),
            ("log_every", self.log_every, 1),
            ("save_every", self.save_every, 0),
            ("sample_every", self.sample_every, 0),
            ("evaluate_every", self.evaluate_every, 0),
            ("evaluate_n", self.evaluate_n, 1),
        ):
            if value < least:
                raise UserError(f"{name} is {value}: it must be at least {least}.")
        if not t.lr > 0:
            raise UserError(f"lr is {t.lr}: it must be greater than 0.")
        if (self.accumulate or 1) > t.batch:
            raise UserError(f"accumulate {self.accumulate} splits a batch of {t.batch} into less than one example.")


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
