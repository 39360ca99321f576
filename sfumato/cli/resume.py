"""From a run folder to everything that training needs to go on with it."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from sfumato.cli.flags import EXAMPLES, DataFlags, MachineFlags, OutputFlags, TrainFlags, value_of
from sfumato.cli.job import Job, asked_training, built, open_split, options_of, preview_of
from sfumato.cli.parse import parse
from sfumato.cli.plan import Rows
from sfumato.cli.runs import described, find_run
from sfumato.cli.show import amount
from sfumato.data import DataOptions, Dataset
from sfumato.engine import Options, RunFolder
from sfumato.engine.distributed import World
from sfumato.engine.state import checkpoints
from sfumato.errors import UserError
from sfumato.recipe import Training, config_from, paper

__all__ = ["resumed"]


def resumed(args: list[str], world: World) -> Job:
    """From the run folder; --steps, --lr and the machine's and output's options may be given anew. Raises UserError."""
    home = find_run(value_of(args, "--resume"), "train --resume")
    facts, private = described(home), RunFolder(home).private()
    found = paper(facts["paper"])
    try:
        kept, seed = private["options"], int(private["seed"])
        before = TrainFlags(
            batch=str(kept.get("batch", "")),
            machine=config_from(MachineFlags, kept["machine"]),
            output=config_from(OutputFlags, kept["output"]),
        )
        source, asked = str(private["data"]), config_from(DataOptions, private["data_options"])
        training, config = config_from(Training, facts["training"]), config_from(found.config, facts["config"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"'{home / 'run.yaml'}' is damaged ({type(error).__name__}: {error}): start from its weights "
            f"with `sfumato train {facts['paper']} DATA --from {home}`."
        ) from None
    flags = parse(TrainFlags, "train", args, examples=EXAMPLES, default=before)
    _refuse_fixed(args, flags, home)
    if flags.steps is not None and flags.steps < (done := _done(home)):
        raise UserError(f"'{home}' has done {done:,} steps already: give --steps of more than that, or leave it out.")
    flags = replace(flags, seed=seed, stage=str(facts.get("stage") or ""))
    options = options_of(flags, home, str(facts.get("preset") or ""), asked_training(flags, training))
    data, held = _reopened(home, source, asked, private.get("holdout"), options, world)
    recipe = built(facts["paper"], config, options.seed)
    options = replace(options, private=private, preview=preview_of(recipe))
    return Job(recipe, data, held, options, _plan(home, source, data, options), resume=True)


def _done(home: Path) -> int:
    """Steps in the newest checkpoint."""
    saved = checkpoints(RunFolder(home))
    return int(saved[0].name[5:]) if saved else 0


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


def _reopened(
    home: Path, source: str, asked: DataOptions, holdout: float | None, options: Options, world: World
) -> tuple[Dataset, Dataset | None]:
    try:
        return open_split(source, asked, holdout, options.seed, world, quiet=options.quiet)
    except UserError as error:
        raise UserError(
            f"{str(error).rstrip('.')}. (This is the data of {home}; if it has moved, write its place into "
            f"{home / 'run.yaml'}.)"
        ) from None


def _plan(home: Path, source: str, data: Dataset, options: Options) -> Rows:
    return [
        ("run", f"{home}, from step {_done(home):,} of {options.training.steps:,}"),
        ("data", f"{source}: {amount(len(data), 'picture')}"),
    ]
