"""From the command line to everything that training needs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sfumato.cli.choose import pick_size, rehearse, timing
from sfumato.cli.flags import EXAMPLES, TrainFlags, for_paper, value_of
from sfumato.cli.judging import Judging, absolute
from sfumato.cli.judging import asked as said_of_evaluation
from sfumato.cli.origin import refuse_latents, refuse_without_base, starting_point
from sfumato.cli.parse import parse
from sfumato.cli.plan import Facts, Rows, refuse_if_full, refuse_if_large, rows_of
from sfumato.cli.progress import Progress
from sfumato.cli.runs import free_folder, writable
from sfumato.cli.samplers import own_sampler
from sfumato.data import DataOptions, Dataset, open_data
from sfumato.engine import Options, RunFolder, fresh
from sfumato.engine.distributed import World
from sfumato.engine.plan import choose_device, choose_precision, micro_batches, out_of_memory
from sfumato.engine.state import fitting
from sfumato.errors import UserError
from sfumato.recipe import Ask, Recipe, Training
from sfumato.registry import MISFITS, Paper, build, config_dict, outline, reason
from sfumato.samplers.auto import Auto
from sfumato.samplers.sampler import Sampler
from sfumato.samplers.sde import SSCS, quadratic_striding

__all__ = ["Job", "asked_training", "built", "new", "open_split", "options_of", "preview_of"]

BRIEF: tuple[Sampler, ...] = (Auto(20), SSCS(50, quadratic_striding))  # of previews: the first that walks the process
REHEARSED = 16  # pictures


@dataclass(frozen=True)
class Job:
    """A run about to start or to go on."""

    recipe: Recipe
    data: Dataset
    held: Dataset | None
    options: Options
    plan: Rows
    resume: bool = False
    seconds: float | None = None  # of a step, where it was timed


# -- a new run ---------------------------------------------------------------------------------------------------------


def new(args: list[str], found: Paper, world: World) -> Job:
    """Data first, then the config that fits it, then what the user overrides. Raises UserError."""
    start = starting_point(args, found)
    preset, before, training = start.preset, start.before, start.training
    flags = parse(for_paper(found, start.config, training), "train", args, examples=EXAMPLES)
    if not flags.source:
        raise UserError(f"train {found.name} on what? Give data, as in `sfumato train {found.name} photos/`.")
    refuse_latents(found, flags.config, start.base, ask="leave out --from" if start.before else "")
    device = choose_device(flags.machine.device, world.local)
    out = _out(flags, found.name)
    options = options_of(flags, out, preset, _training(flags, args))
    world.barrier()  # every process has looked for a free folder before one is made
    plain = flags.data.options()
    asked = _data_options(flags.source, plain, before, start.config.shape, device)
    data, held = open_split(flags.source, asked, flags.data.holdout, options.seed, world, quiet=options.quiet)
    _refuse_classless(found, data.classes)
    fitted = replace(start.config, shape=data.shape, classes=data.classes)
    config = parse(for_paper(found, fitted, training), "train", args).config
    _refuse_shape(config, fitted)
    refuse_without_base(found, config, start)
    weights = partial(fitting, flags.start) if flags.start and start.base is None else lambda whole: None
    recipe = built(found.name, config, options.seed, device, weights)
    options, seconds = _timed(recipe, data, options, device, world)
    refuse_if_full(recipe, replace(options, out=writable(out)))
    output = replace(flags.output, evaluate_features=absolute(flags.output.evaluate_features))
    judging = Judging(
        recipe, data, held, options, output, device=device, world=world, seconds=seconds, typed=said_of_evaluation(args)
    )
    options, output, evaluation = judging.decide()
    options = replace(options, private=_private(replace(flags, output=output), asked, options.seed))
    facts = Facts(
        flags.source,
        found.name,
        recipe,
        data,
        held,
        options,
        device,
        world.size,
        seconds,
        options.threads,
        shrunk=not before and asked.size != plain.size,
        evaluation=evaluation,
    )
    return Job(recipe, data, held, options, rows_of(facts), seconds=seconds)


def _out(flags: TrainFlags, name: str) -> Path:
    """The run's folder. Raises UserError when it holds a run already."""
    if flags.output.out is None:
        source = Path(flags.source)
        stem = (source.resolve() if source.exists() else source).stem.replace(":", "-") or "data"
        return free_folder(Path("runs") / f"{name}-{stem}")
    out = flags.output.out
    if out.exists() and not out.is_dir():
        raise UserError(f"--out '{out}' is a file: give a folder.")
    if RunFolder(out).started:
        raise UserError(
            f"'{out}' already holds a run: go on with `sfumato train --resume {out}`, or choose another --out."
        )
    return out


def _data_options(
    source: str, asked: DataOptions, before: dict[str, Any], shape: Any, device: torch.device
) -> DataOptions:
    """As asked; what is not asked follows the run that is fine-tuned, else the machine."""
    if not before:
        return pick_size(source, asked, device)
    if len(shape) != 3:
        raise UserError(f"the run to start from was trained on shapes of {shape}, which no picture has: train anew.")
    channels, *space = shape
    return replace(asked, size=asked.size or (space[-1], space[-2]), channels=asked.channels or channels)


def open_split(
    source: str, asked: DataOptions, holdout: float | None, seed: int, world: World, *, quiet: bool
) -> tuple[Dataset, Dataset | None]:
    """Training and held-out pictures. The first process decodes, the others find the cache."""
    if not world.main:
        world.barrier()
    with Progress("reading pictures", quiet=quiet) as show:
        data = open_data(source, asked, show)
    if world.main:
        world.barrier()
    share = (0.02 if len(data) >= 100 else 0.0) if holdout is None else holdout
    return data.split(share, seed) if share else (data, None)


def _refuse_classless(found: Paper, classes: Sequence[str]) -> None:
    """Raises UserError for a paper about classes on pictures that have none."""
    if found.recipe.told_classes and not classes:
        raise UserError(
            f"{found.name} learns classes, and these pictures have no labels: give --labels folder, or a column; "
            "`sfumato train ddpm DATA` needs none."
        )


def _refuse_shape(config: Any, fitted: Any) -> None:
    if config.shape != fitted.shape:
        raise UserError("--config.shape follows the data: give --size (and --channels) instead.")
    if config.classes != fitted.classes:
        raise UserError("--config.classes follows the data: give --labels folder, a column or none instead.")


def options_of(flags: Any, out: Path, preset: str, training: Training) -> Options:
    machine, output = asdict(flags.machine), asdict(flags.output)
    for name in ("out", "evaluate", "evaluate_features"):
        del output[name]
    return Options(
        out=out,
        training=training,
        seed=flags.seed or 0,
        auto_batch=flags.batch in ("", "auto"),
        init_from=flags.start,
        stage=flags.stage or "model",
        preset=preset,
        **machine,
        **output,
    )


def _private(flags: Any, asked: DataOptions, seed: int) -> dict[str, Any]:
    """For run.yaml: what `--resume` needs."""
    source = str(Path(flags.source).resolve()) if Path(flags.source).exists() else flags.source
    options = {
        "batch": flags.batch,
        "machine": config_dict(flags.machine),
        "output": config_dict(replace(flags.output, out=None)),
    }
    return {
        "data": source,
        "data_options": config_dict(asked),
        "holdout": flags.data.holdout,
        "seed": seed,
        "options": options,
        "command": ["sfumato", *sys.argv[1:]],
    }


def _training(flags: Any, args: list[str]) -> Training:
    """The preset's, then --training.FIELD, then the plain words. A short run warms up for a tenth of it, unless the
    user typed for how long."""
    asked = asked_training(flags, flags.training)
    typed = value_of(args, "--training.warmup") != ""
    return asked if typed else replace(asked, warmup=min(asked.warmup, asked.steps // 10))


def asked_training(flags: Any, training: Training) -> Training:
    """--steps, --lr and --batch."""
    number: int | None = None
    if flags.batch not in ("", "auto"):
        if not flags.batch.isdecimal() or not 1 <= int(flags.batch) <= 1_000_000:
            raise UserError(f"--batch cannot be '{flags.batch}': give a number of pictures from 1 on, or auto.")
        number = int(flags.batch)
    given = {"steps": flags.steps, "lr": flags.lr, "batch": number}
    return replace(training, **{name: value for name, value in given.items() if value is not None})


def built(name: str, config: Any, seed: int, device: torch.device, check: Callable[[Recipe], object]) -> Recipe:
    """The untrained recipe. Its outline, which takes no memory, must pass `check` and fit into the device's memory.
    Raises UserError."""
    try:
        whole = outline(lambda: build(name, config))
        if whole is not None:
            check(whole)
            refuse_if_large(whole, device)
        recipe = fresh(name, config, seed)
        preview_of(recipe)
        return recipe
    except MISFITS as error:
        raise _unfit(error, config) from error


def _unfit(error: Exception, config: Any) -> UserError:
    """A model that cannot be, in words."""
    shape = " x ".join(map(str, config.shape[:0:-1]))
    if out_of_memory(error):
        return UserError(f"this model does not fit into memory at {shape}: give a smaller --preset, --size or --batch.")
    return UserError(
        f"no model can be made with this config for pictures of {shape}: {reason(error)}. "
        "Give another --size, --preset or --config.FIELD."
    )


def _timed(
    recipe: Recipe, data: Dataset, options: Options, device: torch.device, world: World
) -> tuple[Options, float | None]:
    """The options with precision, threads and preview decided, and the seconds of a step (None: not known)."""
    agreed = world.sum([choose_precision(options.precision, device) == torch.bfloat16])[0] == world.size
    dtype = torch.bfloat16 if agreed else torch.float32
    options = replace(options, precision="bf16" if agreed else "fp32", preview=preview_of(recipe))
    if world.size > 1 or options.compile:
        return options, None
    pictures = min(options.training.batch, REHEARSED)
    try:
        work = rehearse(recipe.to(device).train(), data, options.training.steps, dtype, pictures)
        threads, seconds = timing(work, device, options.threads)
    except MISFITS as error:
        raise _unfit(error, recipe.config) from error
    seconds = seconds and seconds * options.training.batch / pictures
    if seconds and device.type == "cpu" and options.accumulate is None:
        options = replace(options, accumulate=micro_batches(seconds, options.training.batch))
    return replace(options, threads=threads), seconds


def preview_of(recipe: Recipe) -> Ask:
    """Few enough steps that looking at a run does not slow it down."""
    own = own_sampler(recipe)
    for brief in BRIEF if own is not None else ():
        with suppress(ValueError):
            brief.check(recipe.denoiser.process)  # type: ignore[union-attr, arg-type]
            return Ask(n=16, sampler=None if own is not None and own.steps <= brief.steps else brief)
    return Ask(n=16)
