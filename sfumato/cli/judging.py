"""How `train` judges the model's pictures while it trains, and whether that is worth its time.

What one gets by default: KID, where the package of the features lite0 is installed and where it takes no more than a
twentieth of the training; else the held-out loss alone, as ever, and the plan says why. Whoever asks (--evaluate kid,
or for its interval, number or features) gets it whatever it takes; what it takes is in the plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from sfumato.apps.judge import METRICS, Distance, judge, looked_at
from sfumato.cli.flags import OutputFlags, value_of
from sfumato.cli.progress import Progress
from sfumato.cli.samplers import length, own_sampler
from sfumato.cli.show import amount, duration
from sfumato.core.random import Seeds
from sfumato.data import Dataset
from sfumato.engine import Options
from sfumato.engine.backward import Buffers, reproducible
from sfumato.engine.distributed import World
from sfumato.engine.evaluate import why
from sfumato.engine.judge import Verdict
from sfumato.engine.plan import out_of_memory, using_threads
from sfumato.errors import UserError
from sfumato.metrics.features import Extractor
from sfumato.metrics.lite0 import PACKAGE, wheel
from sfumato.recipe import Recipe
from sfumato.registry import MISFITS

__all__ = ["Judging", "absolute", "asked"]

SHARE = 0.05  # of the training that evaluation takes by itself
SETUP = 5.0  # seconds that loading the features takes, at least
FEWER = 128
WORDS = ("--evaluate", "--evaluate-every", "--evaluate-n", "--evaluate-features")


def asked(args: Sequence[str]) -> bool:
    """Whether the user said anything about evaluation."""
    return any(value_of(list(args), word) for word in WORDS)


def absolute(features: str) -> str:
    """The words of --evaluate-features, with their file as it can be found from anywhere."""
    kind, colon, rest = features.partition(":")
    if colon and Path(rest).is_file():
        return f"{kind}:{Path(rest).resolve()}"
    return str(Path(features).resolve()) if Path(features).is_file() else features


class Judging:
    """Decides for one run. `resume`: what cannot be had is said, and the run goes on without."""

    def __init__(
        self,
        recipe: Recipe,
        data: Dataset,
        held: Dataset | None,
        options: Options,
        output: OutputFlags,
        *,
        device: torch.device,
        world: World,
        seconds: float | None = None,  # of a step
        typed: bool = False,
        resume: bool = False,
    ) -> None:
        self.recipe, self.data, self.held, self.options = recipe, data, held, options
        self.output, self.device, self.world, self.seconds = output, device, world, seconds
        self.typed, self.resume = typed, resume
        wish = output.evaluate
        self.metric = "kid" if wish == "auto" and (typed or not resume) else "loss" if wish == "auto" else wish
        self.must = typed or wish in METRICS

    def decide(self) -> tuple[Options, OutputFlags, str]:
        """(the options with a judge, if any, what was decided in place of auto, words for the plan). Raises
        UserError."""
        found: tuple[Distance | None, str] = (None, "")
        if self.metric != "loss" and self.options.evaluate_every and self.world.main:
            found = self._found()
        distance, words = found
        n = int(self.world.sum([distance.n if distance else 0])[0])  # the first process knows
        if not n:
            return self.options, replace(self.output, evaluate="loss"), self._losses() + words
        judged = replace(self.options, judge=distance or _elsewhere, evaluate_n=n)
        return judged, replace(self.output, evaluate=self.metric, evaluate_n=n), words

    def _losses(self) -> str:
        every = self.options.evaluate_every
        if not every:
            return "none"
        return f"held-out loss every {amount(every, 'step')}" if self.held else "none: no pictures are held out"

    def _found(self) -> tuple[Distance | None, str]:
        """The judge, or why there is none."""
        numbers = [self.output.evaluate_n]
        if not self.must:
            numbers = [n for n in (*numbers, FEWER) if not self._hopeless(n)]
        if not numbers:
            return None, ""
        if self.output.evaluate_features.startswith("lite0") and (missing := _missing()):
            self._note(f"{self.metric} is not measured: {missing}", self.must)
            return None, f" ({self.metric.upper()} too, after: pip install {PACKAGE})"
        try:
            return self._chosen(numbers)
        except (UserError, OSError, *MISFITS) as problem:
            if not isinstance(problem, UserError | OSError) and not out_of_memory(problem):
                raise
            words = UserError(f"{self.metric} is not measured: {why(problem)}.")
            if self.must and not self.resume:
                raise words from problem
            self._note(str(words), self.resume)
            return None, ""

    def _chosen(self, numbers: Sequence[int]) -> tuple[Distance | None, str]:
        """The judge of the first of these numbers of pictures that is worth its time."""
        features: str | Extractor = self.output.evaluate_features
        for n in numbers:
            distance = self._made(n, features)
            cost, features = self._cost(distance), distance.extractor
            if self.must or cost is None or cost[1] <= SHARE:
                return distance, self._words(distance, cost)
        return None, f" (KID would take {cost[1]:.0%} of the time: --evaluate kid asks for it)" if cost else ""

    def _hopeless(self, n: int) -> bool:
        """Too dear to load anything for it: a training step takes three calls of the network for each picture."""
        t = self.options.training
        calls = 3 * t.batch * min(self.options.evaluate_every, t.steps)
        short = self.seconds is not None and SHARE * self.seconds * t.steps < SETUP
        return short or n * self._states() > SHARE * calls

    def _states(self) -> int:
        sampler = self.options.preview.sampler or own_sampler(self.recipe)
        return length(sampler, self.recipe) if sampler else 1

    def _made(self, n: int, features: str | Extractor) -> Distance:
        with (
            Progress("looking at real pictures", quiet=self.options.quiet) as show,
            using_threads(self.options.threads),
        ):
            return judge(
                self.data,
                self.held,
                metric=self.metric,
                features=features,
                n=n,
                device=self.device,
                show=show,
            )

    def _cost(self, distance: Distance) -> tuple[float, float] | None:
        """(seconds of one evaluation, share of the training time); None: not known, as on resuming."""
        if self.resume:
            return None
        o = self.options
        some = max(1, min(distance.n, o.training.batch // self.world.size // (o.accumulate or 1)))
        with using_threads(o.threads):
            walk = self._walk(some) / self.world.size
            step = self.seconds or 3 * walk * o.training.batch / self._states()
            look = distance.n * walk + _seconds(lambda: _measured(distance))
        return look, look / (look + step * min(o.evaluate_every, o.training.steps))

    def _walk(self, some: int) -> float:
        """Seconds from noise to one picture, in batches of `some`."""
        ask = replace(self.options.preview, n=some, labels=None)
        dtype = torch.bfloat16 if self.options.precision == "bf16" else torch.float32
        buffers = Buffers(self.recipe.to(self.device).eval())
        try:
            with (
                torch.no_grad(),
                reproducible(self.device, 0, "rehearsal"),
                torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32),
            ):
                states = self.recipe.sample(ask, rng=Seeds(0))
                seconds = _seconds(lambda: [state.x.sum().item() for state in islice(states, 1)])
                if rest := self._states() - 1:
                    seconds = _seconds(lambda: [state.x.sum().item() for state in islice(states, 1)])
                return seconds * (rest + 1) / some
        finally:
            self.recipe.train()
            buffers.restore()

    def _words(self, distance: Distance, cost: tuple[float, float] | None) -> str:
        o = self.options
        loss = "held-out loss, and " if self.held else ""
        price = f": {_about(cost[0])} each, {_percent(cost[1])} of the time" if cost else ""
        return (
            f"{loss}{distance.title} of {distance.n:,} pictures against {distance.what} by {distance.features} every "
            f"{amount(o.evaluate_every, 'step')}{price}; the best checkpoint is kept"
        )

    def _note(self, words: str, aloud: bool) -> None:
        if aloud:
            Progress.say(f"note: {words.rstrip('.')}. Training goes on without.")


def _about(seconds: float) -> str:
    words = duration(seconds)
    return words if words.startswith("under") else f"about {words}"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "under 1 %"


def _measured(distance: Distance) -> None:
    """The work on all pictures that are made, on as many real ones."""
    picture = torch.zeros((min(16, distance.n), *distance.shape), dtype=torch.uint8)
    for _ in range(-(-distance.n // len(picture))):
        looked_at(distance.extractor, picture)
    rows = distance.real.repeat(-(-distance.n // len(distance.real)), 1)[: distance.n]
    METRICS[distance.name].measure(rows, distance.real)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _missing() -> str:
    """Why there are no features lite0; "": there are."""
    try:
        wheel()
    except UserError as problem:
        return str(problem)
    return ""


def _elsewhere(pictures: object) -> Verdict:
    """In the processes that make their share of the pictures, and do not judge them."""
    raise AssertionError("only the first process judges")
