"""From a run folder to everything that training needs to go on with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from sfumato.cli.flags import EXAMPLES, DataFlags, MachineFlags, OutputFlags, TrainFlags, value_of
from sfumato.cli.job import Job, asked_training, built, open_split, options_of, preview_of
from sfumato.cli.judging import Judging, asked
from sfumato.cli.parse import parse
from sfumato.cli.plan import Rows
from sfumato.cli.runs import described, done, find_run
from sfumato.cli.show import amount
from sfumato.data import DataOptions, Dataset
from sfumato.engine import Options, RunFolder
from sfumato.engine.distributed import World
from sfumato.engine.plan import choose_device
from sfumato.engine.state import refuse_misfit
from sfumato.errors import UserError
from sfumato.recipe import Training
from sfumato.registry import config_from, paper

__all__ = ["resumed"]


@dataclass(frozen=True)
class _Words:
    """Options of the command that began the run, which hold unless said anew."""

    batch: str
    machine: MachineFlags
    output: OutputFlags


@dataclass(frozen=True)
class _Told:
    """What run.yaml is needed for."""

    data: str
    data_options: DataOptions
    holdout: float | None
    seed: int
    options: _Words


def _told(private: Mapping[str, Any], home: Path) -> _Told:
    try:
        told: _Told = config_from(_Told, {field.name: private[field.name] for field in fields(_Told)})
        return told
    except (KeyError, UserError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise UserError(
            f"'{home / 'run.yaml'}' is damaged ({what}): start from its weights with "
            f"`sfumato train PAPER DATA --from {home}`."
        ) from None


def resumed(args: list[str], world: World) -> Job:
    """From the run folder; --steps, --lr and the machine's and output's options may be given anew. Raises UserError."""
    home = find_run(value_of(args, "--resume"), "train --resume")
    if home.name == "final" and RunFolder(home.parent).started:
        raise UserError(f"'{home}' is what a run left: give the run itself, as in --resume {home.parent}.")
    facts, private = described(home), RunFolder(home).private()
    found = paper(facts["paper"])
    told = _told(private, home)
    if "training" not in facts:
        raise UserError(f"'{home / 'config.yaml'}' is damaged: it does not say how the run trains.")
    training, config = config_from(Training, facts["training"]), config_from(found.config, facts["config"])
    before = TrainFlags(batch=told.options.batch, machine=told.options.machine, output=told.options.output)
    flags = parse(TrainFlags, "train", args, examples=EXAMPLES, default=before)
    _refuse_fixed(args, flags, home)
    if flags.steps is not None and flags.steps < (had := done(home)):
        raise UserError(f"'{home}' has done {had:,} steps already: give --steps of more than that, or leave it out.")
    flags = replace(flags, seed=told.seed, stage=str(facts.get("stage") or ""))
    options = options_of(flags, home, str(facts.get("preset") or ""), asked_training(flags, training))
    data, held = _reopened(home, told, options, world)
    recipe = built(
        facts["paper"], config, options.seed, choose_device(options.device, world.local), partial(refuse_misfit, home)
    )
    options = replace(options, private=private, preview=preview_of(recipe))
    device = choose_device(options.device, world.local)
    judging = Judging(
        recipe, data, held, options, flags.output, device=device, world=world, typed=asked(args), resume=True
    )
    options, _, evaluation = judging.decide()
    return Job(recipe, data, held, options, _plan(home, told.data, data, options, evaluation), resume=True)


def _refuse_fixed(args: list[str], flags: TrainFlags, home: Path) -> None:
    """What a run keeps for life."""
    words = {word.partition("=")[0] for word in args}
    fixed = {
        "PAPER": flags.paper,
        "DATA": flags.source,
        "--preset": flags.preset,
        "--from": flags.start,
        "--seed": flags.seed is not None,
        "--stage": flags.stage,
        "--out": flags.output.out,
        "options of the data": words & {f"--{field.name}" for field in fields(DataFlags)},
    }
    for name, given in fixed.items():
        if given:
            raise UserError(
                f"--resume goes on with '{home}' as it is, so it takes no {name}: leave it out, or start "
                f"another run from its weights with `sfumato train PAPER DATA --from {home}`."
            )


def _reopened(home: Path, told: _Told, options: Options, world: World) -> tuple[Dataset, Dataset | None]:
    try:
        return open_split(told.data, told.data_options, told.holdout, options.seed, world, quiet=options.quiet)
    except UserError as error:
        raise UserError(
            f"{str(error).rstrip('.')}. (This is the data of {home}; if it has moved, write its place into "
            f"{home / 'run.yaml'}.)"
        ) from None


def _plan(home: Path, source: str, data: Dataset, options: Options, evaluation: str) -> Rows:
    return [
        ("run", f"{home}, from step {done(home):,} of {options.training.steps:,}"),
        ("data", f"{source}: {amount(len(data), 'picture')}"),
        ("quality", evaluation),
    ]
