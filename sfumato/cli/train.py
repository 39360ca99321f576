"""`sfumato train`: says what it picked and how long it will take, trains, and says where things are."""

from __future__ import annotations

from pathlib import Path

from sfumato.cli.flags import EXAMPLES, TrainFlags, value_of
from sfumato.cli.job import Job, new
from sfumato.cli.parse import parse
from sfumato.cli.resume import resumed
from sfumato.cli.show import rows
from sfumato.engine import EXIT_CODES, Step, steps
from sfumato.engine.distributed import World, join
from sfumato.errors import UserError
from sfumato.recipe import paper, papers

__all__ = ["run"]


def run(args: list[str]) -> int:
    name = next((word for word in args if word in papers()), "")
    going_on = bool(value_of(args, "--resume"))
    flags = None if name and not going_on else parse(TrainFlags, "train", args, examples=EXAMPLES)
    if flags is not None and flags.resume is None:
        raise UserError(_what_is_missing(flags))
    with join(value_of(args, "--device") or "auto") as world:
        return _train(new(args, paper(name), world) if flags is None else resumed(flags, world), world)


def _what_is_missing(flags: TrainFlags) -> str:
    if flags.paper:
        paper(flags.paper)  # there is none, and it says the nearest name
    return (
        "train needs a paper and data, as in `sfumato train ddpm photos/`, or a run to go on with, as in "
        "`sfumato train --resume runs/NAME`."
    )


def _train(job: Job, world: World) -> int:
    talks = world.main and not job.options.quiet
    if talks:
        print(rows(job.plan, indent=""), flush=True)
    last: Step | None = None
    grid: Path | None = None
    for last in steps(job.recipe, job.data, job.options, held=job.held, resume=job.resume):
        grid = last.grid or grid
    if last is not None and last.stopped:
        return EXIT_CODES.get(last.stopped, EXIT_CODES["SIGTERM"])
    if talks:
        print(_ending(job, last, grid), flush=True)
    return 0


def _ending(job: Job, last: Step | None, grid: Path | None) -> str:
    out = job.options.out
    pairs = []
    if last is not None:
        held = f", {next(iter(last.held.values())):.4f} on held-out pictures" if last.held else ""
        pairs.append(("loss", f"{last.loss:.4f}{held}"))
    pairs += [("preview", str(grid))] if grid else []
    return rows([*pairs, ("saved", f"{out}/final"), ("next", f"sfumato sample {out}")], indent="")
