"""`sfumato train`: says what it picked and how long it will take, trains, and says where things are."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from sfumato.cli.flags import EXAMPLES, TrainFlags, for_paper, value_of
from sfumato.cli.job import Job, new
from sfumato.cli.parse import parse
from sfumato.cli.resume import resumed
from sfumato.cli.show import printable, rows
from sfumato.engine import EXIT_CODES, RunFolder, Step, steps
from sfumato.engine.distributed import World, join
from sfumato.engine.judge import best_of
from sfumato.errors import UserError
from sfumato.recipe import Recipe
from sfumato.registry import paper, papers

__all__ = ["run"]


def run(args: list[str]) -> int:
    going_on = value_of(args, "--resume") != ""
    name = "" if going_on else _paper_of(args)
    if not (name or going_on):
        raise UserError(_what_is_missing(parse(TrainFlags, "train", args, examples=EXAMPLES)))
    with join(value_of(args, "--device") or "auto") as world:
        return _train(resumed(args, world) if going_on else new(args, paper(name), world), world)


def _paper_of(args: list[str]) -> str:
    """PAPER. Other words may be a paper's name too, as in `--out ddim ddpm photos/`: the options of the one that is
    meant parse, and tell the positional from the values."""
    words = [word for word in args if word not in ("-h", "--help")]
    names = [word for word in words if word in papers()]
    for found in map(paper, names):
        preset = next(iter(found.presets.values()))
        with suppress(UserError):
            return str(parse(for_paper(found, preset.config, preset.training), "train", words).paper)
    return names[0] if names else ""  # a mistake in the other words, which is explained when they are parsed again


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
    best = best_of(RunFolder(out)) if out else None
    if best:
        *_, said = best[1].splitlines() or [""]
        pairs.append(("best", printable(f"{best[0].name}: {said}; `sfumato sample {out} --checkpoint best` takes it")))
    return rows([*pairs, ("saved", f"{out}/final"), ("next", next_of(job.recipe, out))], indent="")


def next_of(recipe: Recipe, out: object) -> str:
    """The command that uses the run."""
    return recipe.use.split("`")[1].replace("RUN", str(out)) if "`" in recipe.use else f"sfumato sample {out}"
