"""`sfumato reproduce PAPER`: trains a preset, samples it, measures it, and puts the paper's figures beside ours."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from tyro.conf import OmitArgPrefixes, Positional

from sfumato.apps.evaluation import Sampling, evaluate_run, refuse_metrics
from sfumato.apps.reproduction import BITS, Done, beside, call_seconds, name_of_receipt, training_cost
from sfumato.cli.beside import told
from sfumato.cli.choose import pick_preset
from sfumato.cli.flags import DataFlags, MachineFlags
from sfumato.cli.job import Job, new
from sfumato.cli.origin import refuse_latents
from sfumato.cli.parse import nearest, option, parse
from sfumato.cli.progress import Progress
from sfumato.cli.resume import resumed
from sfumato.cli.runs import described, done, model_hash, opened
from sfumato.cli.samplers import SAMPLERS, chosen, in_steps, length, own_sampler
from sfumato.cli.show import duration, rows
from sfumato.data import DataOptions
from sfumato.engine import EXIT_CODES, RunFolder, steps
from sfumato.engine.distributed import World, join
from sfumato.engine.plan import choose_device
from sfumato.errors import UserError
from sfumato.metrics.choose import choose
from sfumato.metrics.figures import METRICS
from sfumato.metrics.lite0 import Lite0
from sfumato.metrics.receipt import Receipt
from sfumato.recipe import Preset
from sfumato.registry import Paper, config_from, paper
from sfumato.samplers.sampler import Sampler

__all__ = ["run"]

EXAMPLES = """\
examples
  sfumato reproduce ddpm --preset tiny --data digits --steps 200 --n 100   a rehearsal, in a minute
  sfumato reproduce ddpm --preset letters                                  what `sfumato demo` trains, measured
  sfumato reproduce edm --preset cifar10 --data cifar10.npz --features inception:inception-2015-12-05.pt
The same command goes on where the last one was stopped, and takes what is finished."""
EMBEDDED = {"tiny": "digits", "letters": "glyphs"}  # data that needs no file, by preset
DAY = 86_400.0
FULL, FEW = 50_000, 2_000  # samples: of papers, and where there is no figure to meet


@dataclass(frozen=True)
class Reproduce:
    """Train a paper's preset, sample it, measure it, and show the published figures beside ours.

    What makes the two incomparable (features, n, data, steps) is said with every figure. Lower is better, but for is,
    pr and dc.
    """

    paper: Annotated[str, Positional, option("as in `sfumato papers`", "PAPER", "")] = ""
    preset: Annotated[str, option("a named setting", "NAME", "the first with published figures")] = ""
    source: Annotated[
        str, option("what to train on and to compare with", "DATA", "digits or glyphs where those do", name="data")
    ] = ""
    steps: Annotated[int | None, option("of training", "N", "the preset's")] = None
    n: Annotated[int | None, option("samples to measure", "N", "the paper's, 50,000; 2,000 for other presets")] = None
    seed: Annotated[int, option("of training, and of the first sample", "N")] = 0
    features: Annotated[str, option("what looks at the pictures", "lite0|own|inception:FILE|FILE")] = "lite0"
    metrics: Annotated[
        tuple[str, ...], option("as of `sfumato evaluate`", "NAME ...", "the paper's, and fid kid pr")
    ] = ()
    sampler: Annotated[str | None, option("how to walk", "|".join(SAMPLERS), "the paper's")] = None
    sampling_steps: Annotated[int | None, option("of the walk", "N", "the sampler's")] = None
    start: Annotated[Path | None, option("a run that this one is trained upon", "RUN", "", name="from")] = None
    out: Annotated[Path | None, option("the run's folder", "RUN", "runs/reproduce-PAPER-PRESET-DATA")] = None
    yes: Annotated[bool, option("go ahead where it takes more than a day")] = False
    data: OmitArgPrefixes[DataFlags] = field(default_factory=DataFlags)
    machine: OmitArgPrefixes[MachineFlags] = field(default_factory=MachineFlags)


class Target(NamedTuple):
    """What is to be reproduced, and where."""

    found: Paper
    name: str  # of the preset
    preset: Preset
    data: str
    home: Path


def run(args: list[str]) -> int:
    flags = parse(Reproduce, "reproduce", args, examples=EXAMPLES)
    if not flags.paper:
        raise UserError("reproduce which paper? Give its name, as in `sfumato reproduce ddpm`.")
    _refuse_numbers(flags)
    target = _target(flags)
    metrics = flags.metrics or _metrics(target.preset, flags.features)
    _refuse_measuring(metrics, flags)
    with join(flags.machine.device) as world:
        job = _job(target, flags, world)
        n = flags.n or _samples(target.preset)
        sampler = _sampler(job, target, flags)
        _plan(job, target, flags, n, sampler, world)
        if job is not None and (code := _train(job)):
            return code
        receipt = _measured(target, flags, metrics, n, sampler, world)
    if world.main:
        facts = described(target.home)
        walk = in_steps(sampler) if sampler is not None else "its own way"
        how = Done(target.data, tuple(facts["config"]["shape"]), facts.get("training") or {}, walk)
        print(told(beside(target.preset, receipt.figures, how), receipt, target.data, target.home))
    return 0


def _refuse_numbers(flags: Reproduce) -> None:
    for name, least in (("n", 2), ("steps", 1), ("sampling_steps", 1), ("seed", 0)):
        value = getattr(flags, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}: it must be at least {least}.")


def _refuse_measuring(metrics: tuple[str, ...], flags: Reproduce) -> None:
    """Raises UserError, before anything is trained, for what could not be measured after it."""
    refuse_metrics(metrics)
    for name in metrics:
        if name not in METRICS:
            hint = nearest(name, list(METRICS), f" choose of {', '.join(METRICS)}.")
            raise UserError(f"there is no metric '{name}':{hint}")
        if flags.n is not None and flags.n < METRICS[name].least:
            raise UserError(f"--n is {flags.n}: {name} needs at least {METRICS[name].least} samples.")
    if flags.features != "own":  # which is trained on the data
        choose(flags.features, Lite0)


# -- what, and from where ----------------------------------------------------------------------------------------------


def _target(flags: Reproduce) -> Target:
    """Raises UserError for a preset that is not there, and asks for data that nobody else can give."""
    found = paper(flags.paper)
    name = flags.preset or next((name for name, one in found.presets.items() if one.published), "")
    name = name or pick_preset(found, choose_device("cpu"))
    if name not in found.presets:
        hint = nearest(name, list(found.presets), f" choose one of {', '.join(found.presets)}.")
        raise UserError(f"{found.name} has no preset '{name}':{hint}")
    preset = found.presets[name]
    refuse_latents(found, preset.config)
    data = flags.source or EMBEDDED.get(name, "")
    if not data:
        raise UserError(_which_data(found, name, preset))
    source = Path(data)
    stem = (source.resolve() if source.exists() else source).stem.replace(":", "-") or "data"
    return Target(found, name, preset, data, flags.out or Path("runs") / f"reproduce-{found.name}-{name}-{stem}")


def _which_data(found: Paper, name: str, preset: Preset) -> str:
    whose = preset.published[0].data if preset.published else "pictures of yours"
    ready = [f"--preset {other} --data {data}" for other, data in EMBEDDED.items() if other in found.presets]
    rehearsal = f" To try it out first, {ready[0]} needs no file." if ready else ""
    return (
        f"{found.name}'s {name} was trained on {whose}, which sfumato cannot get for you: give it with --data "
        f"(a folder, .npz, .parquet, .zip or hf:NAME).{rehearsal}"
    )


def _job(target: Target, flags: Reproduce, world: World) -> Job | None:
    """The training that is still to be done: a new run, or the rest of one; None: it is done. Raises UserError for a
    folder with another run."""
    if not RunFolder(target.home).started:
        return new(_words(target, flags), target.found, world)
    facts = described(target.home)
    if other := _another(target, facts, flags):
        raise UserError(f"'{target.home}' holds {other}: give another folder with --out.")
    whole = int(facts["training"]["steps"])
    if (target.home / "final").exists() and done(target.home) >= (flags.steps or whole):
        return None
    more = ["--steps", str(flags.steps)] if flags.steps else []
    return resumed(["--resume", str(target.home), *more], world)


def _another(target: Target, facts: dict[str, Any], flags: Reproduce) -> str:
    """What a run is, where it is not this one; ""."""
    private, source = RunFolder(target.home).private(), Path(target.data)
    data = str(source.resolve()) if source.exists() else target.data
    had = (facts["paper"], facts.get("preset"), int(private.get("seed") or 0), str(private.get("data")))
    if had != (target.found.name, target.name, flags.seed, data):
        return f"{had[0]}, preset {had[1]}, seed {had[2]}, trained on {had[3]}"
    own = config_from(target.found.config, facts["config"])
    due = target.preset.config
    same = replace(own, shape=due.shape, classes=due.classes) == due or target.found.recipe.base(due)
    return "" if same else f"{had[0]} with other values than preset {had[1]} has"


def _words(target: Target, flags: Reproduce) -> list[str]:
    """The command of `sfumato train` that begins this run."""
    shape = target.preset.config.shape
    data = flags.data
    if target.preset.published and len(shape) == 3:
        data = replace(data, size=data.size or f"{shape[2]}x{shape[1]}", channels=data.channels or shape[0])
    words = [target.found.name, target.data, "--preset", target.name, "--out", str(target.home)]
    words += ["--seed", str(flags.seed)] + (["--steps", str(flags.steps)] if flags.steps else [])
    words += ["--from", str(flags.start)] if flags.start else []
    return words + _changed(data) + _changed(flags.machine)


def _changed(flags: Any) -> list[str]:
    """The options of a group that are not as they are by default, as they are typed."""
    words = []
    for one in fields(flags):
        value, name = getattr(flags, one.name), f"--{one.name.replace('_', '-')}"
        if value != one.default:
            words += [name] if value is True else [name, str(value)]
    return words


def _samples(preset: Preset) -> int:
    return next((one.n for one in preset.published if one.n), FULL) if preset.published else FEW


def _sampler(job: Job | None, target: Target, flags: Reproduce) -> Sampler | None:
    """How it will be walked; None: the recipe walks no denoiser. Raises UserError for a walk that its process has
    not."""
    recipe = job.recipe if job is not None else opened(target.home, choose_device("cpu"))
    own = own_sampler(recipe)
    if own is None:
        return None
    sampler = chosen(own, flags.sampler, steps=flags.sampling_steps)
    length(sampler, recipe)
    return sampler


# -- training and measuring --------------------------------------------------------------------------------------------


def _plan(job: Job | None, target: Target, flags: Reproduce, n: int, sampler: Sampler | None, world: World) -> None:
    """Says what will be done and for how long. Raises UserError before days are spent."""
    recipe = job.recipe if job is not None else opened(target.home, choose_device(flags.machine.device, world.local))
    call, calls = call_seconds(recipe), sampler.calls() if sampler is not None else None
    sampling = call * calls * n / world.size if call is not None and calls is not None else None
    training = 0.0 if job is None else _left(job, target.home)
    plan = job.plan if job is not None else [("run", f"{target.home}, trained already")]
    walk = f" by {in_steps(sampler)}" if sampler is not None else ""
    took = f", about {duration(sampling)}" if sampling is not None else ""
    if job is not None and job.resume and training is not None:
        plan = [*plan, ("time", f"{duration(training)} to go")]
    plan = [*plan, ("samples", f"{n:,}{walk}{took}"), ("stopping", "Ctrl-C; the same command goes on")]
    if world.main:
        print(rows(plan, indent=""), flush=True)
    spent = (training or 0.0) + (sampling or 0.0)
    if world.any(spent > DAY and not flags.yes):
        raise UserError(
            f"this takes about {duration(spent)} on this machine ({duration(training or 0)} of training, "
            f"{duration(sampling or 0)} of sampling): add --yes to spend them, or give fewer --steps, a smaller --n or "
            "--sampler auto --sampling-steps 20, which make it another experiment, and that is said with its figures."
        )


def _left(job: Job, home: Path) -> float | None:
    """Seconds of training to come; None: not known."""
    left = job.options.training.steps - (done(home) if job.resume else 0)
    if job.seconds is not None:
        return job.seconds * left
    spent = training_cost(home) if job.resume else {}
    return left * float(spent["seconds"]) / spent["steps"] if spent.get("seconds") and spent.get("steps") else None


def _train(job: Job) -> int:
    """0, or the exit code of what stopped it."""
    stopped: str | None = None
    for step in steps(job.recipe, job.data, job.options, held=job.held, resume=job.resume):
        stopped = step.stopped
    if stopped:
        Progress.say(f"stopped and saved in {job.options.out}: the same command goes on.")
        return EXIT_CODES.get(stopped, EXIT_CODES["SIGTERM"])
    return 0


def _measured(
    target: Target, flags: Reproduce, metrics: tuple[str, ...], n: int, sampler: Sampler | None, world: World
) -> Receipt:
    """The receipt of this question, measured now unless it is there."""
    walk = in_steps(sampler) if sampler is not None else ""
    digest = model_hash(target.home)
    name = name_of_receipt(digest, target.data, n, flags.seed, flags.features, metrics, walk)
    path = target.home / "evaluation" / name
    if path.exists():
        return Receipt.read(path)
    with Shown() as show:
        return evaluate_run(
            target.home,
            target.data,
            metrics=metrics,
            features=flags.features,
            n=n,
            sampling=Sampling(seed=flags.seed, sampler=sampler),
            options=_options(target.home),
            device=flags.machine.device,
            out=path,
            show=show,
            world=world,
        )


class Shown:
    """Progress of one thing after another: `show(what, done, total)`."""

    def __init__(self) -> None:
        self.what, self.bar = "", Progress("")

    def __enter__(self) -> Shown:
        return self

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self.what:
            self.bar.__exit__(None, None, None)
            self.what, self.bar = what, Progress(what)
        self.bar(done, total)

    def __exit__(self, *error: object) -> None:
        self.bar.__exit__(None, None, None)


def _metrics(preset: Preset, features: str) -> tuple[str, ...]:
    """What the paper reports, as far as these features can say it, and what says more at small n."""
    theirs = {one.metric.partition(".")[0] for one in preset.published} - {BITS}
    able = theirs if features.startswith("inception") else theirs - {"is", "sfid"}
    return tuple(dict.fromkeys([*sorted(able), "fid", "kid", "pr"]))


def _options(home: Path) -> DataOptions:
    """How the run's data was read."""
    told = RunFolder(home).private().get("data_options") or {}
    options: DataOptions = config_from(DataOptions, told)
    return options
