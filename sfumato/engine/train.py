"""The one training loop. It knows Recipe, never a paper."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from sfumato import __version__
from sfumato.core.random import key
from sfumato.engine import plan
from sfumato.engine import state as store
from sfumato.engine.backward import Backward, Interrupted, reproducible
from sfumato.engine.distributed import World, join
from sfumato.engine.keeper import Keeper
from sfumato.engine.log import Log, duration
from sfumato.engine.optim import factor
from sfumato.engine.options import Options
from sfumato.engine.order import Batch, Data, Order, feed, prepare, share
from sfumato.engine.run import RunFolder
from sfumato.engine.session import Session
from sfumato.engine.signals import Stop
from sfumato.engine.step import Step
from sfumato.engine.watch import Watch
from sfumato.errors import UserError
from sfumato.recipe import Recipe
from sfumato.registry import build, config_dict

__all__ = ["Step", "fresh", "steps"]


def fresh(paper: str, config: Any, seed: int, *, builder: Callable[[str, Any], Recipe] = build) -> Recipe:
    """The untrained recipe of a run with this seed and config, the paper's dataclass or a mapping; the user's own
    random numbers are left alone."""
    with reproducible(torch.device("cpu"), seed, "initial weights"):
        return builder(paper, config)


def steps(
    recipe: Recipe, data: Data, options: Options, *, held: Data | None = None, resume: bool = False
) -> Iterator[Step]:
    """Train `recipe` on `data`, step by step. The run is kept in `options.out` and, with `resume`, goes on there.

        for step in steps(recipe, data, Options(out=Path("runs/cats"))): ...

    `held` are examples for the held-out loss. SIGINT, SIGTERM and SIGUSR1 end the run at the next micro-batch (with
    several processes: step), with a checkpoint. Raises UserError for what the user can put right.
    """
    with ExitStack() as stack:
        world = stack.enter_context(join(options.device))
        trainer = _Trainer(recipe, data, held, options, world, stack)
        trainer.start(resume)
        try:
            yield from trainer.steps()
        except UserError as problem:
            trainer.log.note(f"Ended: {problem}")
            raise


class _Trainer:
    """Set-up, and what happens between steps."""

    def __init__(
        self, recipe: Recipe, data: Data, held: Data | None, options: Options, world: World, stack: ExitStack
    ) -> None:
        self.recipe, self.data, self.held, self.options = recipe, data, held, options
        self.world, self.stack = world, stack
        self.training = options.training
        self.device = plan.choose_device(options.device, world.local)
        self.run = RunFolder(options.out) if options.out else None
        if not len(data):
            raise UserError("There is not a single example to train on.")
        if self.training.batch < world.size:
            raise UserError(
                f"A batch of {self.training.batch} cannot be shared by {world.size} processes: use a larger --batch."
            )
        self.order = Order(len(data), self.training.batch, options.seed)
        self.part = share(self.training.batch, world.rank, world.size)
        self._owed = False  # a look at pictures that a signal cut short
        self._seconds = 0.0  # of the last step
        self.stop = stack.enter_context(Stop())

    # -- before the first step -----------------------------------------------------------------------------------------

    def start(self, resume: bool) -> None:
        found = self._claim(resume)
        before = store.read_state(found) if found else self.run.decided() if resume and self.run else {}
        self.log = Log(
            self.run,
            total=self.training.steps,
            batch=self.training.batch,
            quiet=self.options.quiet,
            main=self.world.main,
            report_to=self.options.report_to,
        )
        self.stack.callback(self.log.close)
        self.say = self.log.say
        for message in self._messages:
            self.say(message)
        if not found and (told := store.begin(self.recipe, self.options.init_from)):
            self.say(told)
        self.recipe.to(self.device).train()
        self._prepare(before)
        if found:
            self._continue(found, before)
        if resume and self.run and self.world.main:
            self.run.cut_metrics(self.session.step, held=not self._owed)
        self.world.same(self.recipe.buffers())
        self._threads(before)
        if self.options.compile:
            self.backward.compile(self.recipe.networks())
        writes = self.run if self.world.main else None
        self.watch = Watch(self.session, self.options, self.held, writes, self.log, self.device)
        self.keeper = Keeper(self.run, self.session, self.options, self.watch, self._describe(), self._machine)
        self.keeper.take_up(before if found else {})
        judges = self.world.sum([self.options.judge is not None])[0]
        if judges not in (0, self.world.size):
            raise UserError(
                f"{judges:.0f} of {self.world.size} processes of this run have a judge: give all or none one."
            )
        self.stop.answer = self._answer if self.world.main and not self.options.quiet else None

    def _claim(self, resume: bool) -> Path | None:
        """Lock the folder; the checkpoint to go on from."""
        self._messages: list[str] = []
        if not self.run:
            return None
        if resume and not self.run.started:
            raise UserError(f"There is no run to resume in {self.run.path}.")
        if self.run.started and not resume and self.world.main:
            raise UserError(
                f"{self.run.path} already holds a run: go on with --resume {self.run.path}, or choose another --out."
            )
        if self.world.main:
            self.stack.enter_context(self.run.claimed())
        self.world.barrier()
        found = store.last_good(self.run, self._messages.append) if resume else None
        step = int(found.name[5:]) if found else 0
        if self.world.any(self.world.sum([step]) != [step * self.world.size]):
            raise UserError(f"The processes of this run do not see the same checkpoints in {self.run.path}: share it.")
        if resume and not found:
            self._messages.append("There is no checkpoint yet: starting from the beginning.")
        return found

    def _prepare(self, before: Mapping[str, Any]) -> None:
        precision = before.get("precision", "auto") if self.options.precision == "auto" else self.options.precision
        self.dtype = plan.choose_precision(precision, self.device)
        accumulate = self.options.accumulate or before.get("accumulate", 1)
        if self.options.checkpointing and not plan.switch_checkpointing(self.recipe.networks()):
            self.say("This recipe's networks cannot recompute activations: --checkpointing does nothing.")
        self.backward = Backward(
            self.recipe,
            world=self.world,
            device=self.device,
            dtype=self.dtype,
            seed=self.options.seed,
            total=self.training.steps,
            batch=self.training.batch,
            accumulate=accumulate,
            auto=self.options.auto_batch,
            say=self.say,
        )
        self.session = Session(
            self.recipe,
            self.data,
            self.training,
            self.backward,
            self.world,
            self.say,
            stop_on_nan=self.options.on_nan == "stop",
        )
        self.stack.callback(self.session.close)

    def _continue(self, found: Path, before: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, and say what is different this time."""
        earlier, now = dataclasses.replace(self.training, **before["training"]), self.training
        for name, old, new in (("batch", earlier.batch, now.batch), ("seed", before["seed"], self.options.seed)):
            if old != new:
                raise UserError(f"A run keeps its {name} ({old}, not {new}): start another run with --from.")
        self.session.restore(found, before)
        self._owed = before["owed"]
        self.say(f"Resumed from {found.name}.")
        for name, was, is_now in self._changes(before):
            self.say(f"Changed since then: {name} {was} -> {is_now}.")
        if earlier.steps != now.steps:
            rates = [t.lr * factor(t, self.session.step) for t in (now, earlier)]
            self.say(
                f"The run has {now.steps:,} steps in place of {earlier.steps:,}: with decay '{now.decay}' the "
                f"learning rate of the next step is {rates[0]:.3g} in place of {rates[1]:.3g}."
            )

    def _changes(self, before: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
        now = self._facts()
        for name in ("precision", "device", "processes", "torch", "data"):
            if before.get(name) != now[name]:
                yield name, before.get(name), now[name]
        for name, value in now["training"].items():
            if before["training"].get(name) != value:
                yield name, before["training"].get(name), value

    def _threads(self, before: Mapping[str, Any]) -> None:
        """CPU threads as asked, as before, or as timed; and how long the run will take."""
        left = self.training.steps - self.session.step
        threads = self.options.threads or before.get("threads")
        if threads is None and left and self.world.size == 1 and self.device.type == "cpu" and not self.options.compile:
            threads, seconds = plan.choose_threads(self._rehearsal())
            if not (self.options.accumulate or "accumulate" in before):
                self.backward.accumulate = plan.micro_batches(seconds, self.training.batch)
            self.say(f"{threads} CPU thread{'s' * (threads > 1)}, about {duration(seconds * left)} for {left:,} steps.")
        self.stack.enter_context(plan.using_threads(threads))
        self.threads = torch.get_num_threads()

    def _rehearsal(self) -> Callable[[], object]:
        """A step that changes nothing."""
        batch, unit = prepare(self.data, self.order, self.part, self.session.step, self.device), self.session.units[0]

        def work() -> None:
            self.backward(unit, batch, lambda: False)
            unit.optimiser.fill()
            unit.optimiser.norm()
            self.backward.buffers.restore()

        return work

    def _facts(self) -> dict[str, Any]:
        fingerprint = getattr(self.data, "fingerprint", "") or f"{key(*self.data.names):x}"
        return {
            "seed": self.options.seed,
            "training": config_dict(self.training),
            "device": self.device.type,
            "precision": "bf16" if self.dtype == torch.bfloat16 else "fp32",
            "processes": self.world.size,
            "torch": torch.__version__,
            "data": [len(self.data), fingerprint],
        }

    def _machine(self) -> dict[str, Any]:
        return {**self._facts(), "threads": self.threads}

    def _describe(self) -> dict[str, Any]:
        """Write down what the model is; warn of an average that cannot keep up. Returns what was written."""
        config, options = self.recipe.config, self.options
        classes = getattr(config, "classes", ()) or getattr(self.data, "classes", ())
        document = {
            "format": store.FORMAT,
            "version": __version__,
            "paper": type(self.recipe).__module__.rpartition(".")[2],
            "stage": options.stage,
            "preset": options.preset,
            "config": config_dict(config),
            "training": config_dict(self.training),
            "classes": [str(name) for name in classes],
            "value_range": list(self.recipe.value_range),
            "data": {
                "examples": len(self.data),
                "shape": list(getattr(self.data, "shape", ())),
                "roughness": round(rough, 4) if (rough := self.watch.roughness) == rough else None,  # NaN: flat
            },
        }
        if self.run and self.world.main:
            decided = {"precision": self._facts()["precision"], "threads": self.threads}
            decided["accumulate"] = self.backward.accumulate
            self.run.describe(document, options.private, decided)
        fixed = self.training.ema_rule in ("constant", "copy_first")
        memory = 1.0 / max(1e-12, 1.0 - self.training.ema) if fixed else 0.0
        if memory > self.training.steps:
            self.say(
                f"The average has a memory of {memory:,.0f} steps, the run {self.training.steps:,}: it will lag "
                "behind the weights; a smaller ema or ema_rule warmup helps."
            )
        return document

    # -- the loop ------------------------------------------------------------------------------------------------------

    def steps(self) -> Iterator[Step]:
        session, total = self.session, self.training.steps
        if self._owed:
            self._pay()
        if self._owed:  # stopped once more
            yield self._ended(Step(session.step, total, self._images, session.lr, 0.0))
            return
        if session.step >= total:
            self.say(f"The run already has its {total:,} steps: ask for more with --steps.")
            self.keeper.finish()
            return
        batches = feed(
            self.data, self.order, self.part, session.step, total, self.options.workers, self.device, self._halt_alone
        )
        self._clock = time.perf_counter()
        self.watch.begin()
        with closing(batches):  # type: ignore[type-var]
            while session.step < total:
                step = self._one(batches)
                yield step
                if step.stopped:
                    return

    def _one(self, batches: Iterator[Batch | None]) -> Step:
        lr, session = self.session.lr, self.session
        with self._last_words():
            batch = next(batches)
            values = session.advance(batch, self._halt_alone) if batch else None
        now = time.perf_counter()
        self._seconds, self._clock = now - self._clock, now
        events = {} if values is None else self._events(lr)
        return self._ended(
            Step(session.step, self.training.steps, self._images, lr, self._seconds, values or {}, **events)
        )

    def _halt_alone(self) -> bool:
        """Between micro-batches only a single process may stop: others would wait for its gradients."""
        return self.world.size == 1 and self.stop.asked

    @property
    def _images(self) -> int:
        return self.session.step * self.training.batch

    def _events(self, lr: float) -> dict[str, Any]:
        """What is due after a step: a line of metrics, a held-out loss, a grid."""
        out: dict[str, Any] = {}
        if self.session.step % self.options.log_every == 0 or self.session.step == self.training.steps:
            out["line"] = self.watch.line(lr)
        self.log.progress(self.session.step, self.watch.loss, self.watch.rate, self.watch.figure)
        return out | self._look()

    def _look(self) -> dict[str, Any]:
        """A look that a signal cuts short is owed: it is taken when the run goes on, so that no line is missing."""
        try:
            seen = self.watch.look(lambda: self.stop.asked)
        except Interrupted:
            self._owed = True
            return {}
        if (verdict := seen.get("verdict")) and verdict.sound:
            self.keeper.consider(verdict)
        return seen

    def _pay(self) -> None:
        """Take the look that a signal cut short, and keep the checkpoint that knows of it."""
        self._owed = False
        self._look()
        self._owed = self.world.any(self._owed)  # only one process makes the pictures
        if not self._owed:
            self.keeper.kept = -1
            self.keeper.save(owed=False)

    def _ended(self, step: Step) -> Step:
        """The step, with what was saved and whether a signal ends the run here."""
        with self._last_words():
            asked = self.world.any(self.stop.asked)
        stopped = self.stop.signal or "SIGTERM" if asked else None  # SIGTERM: it was another process that was asked
        return dataclasses.replace(step, stopped=stopped, saved=self.keeper.saved(stopped, owed=self._owed))

    def _answer(self) -> str:
        """How long a signal will have to wait."""
        parts = self.backward.accumulate if self.world.size == 1 else 1
        wait = self._seconds / parts
        what = "micro-batch" if self.world.size == 1 else "step"
        return f"stopping after this {what}{f', in about {wait:.0f} s' * (wait >= 2)}, and saving."

    @contextmanager
    def _last_words(self) -> Iterator[None]:
        """What may fail before a step has changed anything: keep the steps before it, if they are sound."""
        try:
            yield
        except UserError:
            if self.run and self.session.step and self.session.whole:
                try:
                    self.keeper.save(owed=self._owed, alone=True)  # others may be dead
                except UserError as problem:
                    self.say(str(problem))
            raise
