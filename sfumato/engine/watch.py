"""What a run shows of itself: lines of numbers, held-out losses, grids of pictures, and a word when it is unwell."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.engine import evaluate, health
from sfumato.engine.backward import Interrupted, reproducible
from sfumato.engine.judge import Verdict
from sfumato.engine.log import Log
from sfumato.engine.options import Options
from sfumato.engine.order import Data, listed
from sfumato.engine.plan import out_of_memory
from sfumato.engine.run import RunFolder
from sfumato.engine.session import Session

__all__ = ["Watch"]

_EXAMPLES = 64  # that tell how rough the data is, and what is odd about it


class Watch:
    """Looks at a session. Of `look` the process that writes, `run` given, shows the pictures."""

    def __init__(
        self,
        session: Session,
        options: Options,
        held: Data | None,
        run: RunFolder | None,
        log: Log,
        device: torch.device,
    ) -> None:
        self.session, self.options, self.held, self.run, self.log = session, options, held, run, log
        self.device = device
        self.newest: Mapping[str, Any] = run.newest_line() if run else {}
        n = min(len(session.data), _EXAMPLES)
        some: Tensor = session.data.batch(np.arange(n), None)["image"]
        self.roughness = health.roughness(some)
        for message in health.unusual(session.data.names, options.training.batch, some):
            log.say(message)
        self._began, self._first, self._warned = time.perf_counter(), session.step, False
        self._told: set[str] = set()
        self.figure = ""  # the newest verdict, in few words

    def begin(self) -> None:
        self._began, self._first = time.perf_counter(), self.session.step

    @property
    def rate(self) -> float:
        """Images per second since the start."""
        elapsed = time.perf_counter() - self._began
        return (self.session.step - self._first) * self.options.training.batch / max(elapsed, 1e-9)

    def line(self, lr: float) -> Mapping[str, Any]:
        """The numbers since the last line, written down."""
        s = self.session
        s.settle()
        lag = float(s.ema.lag())
        self.newest = {
            "step": s.step,
            "images": s.step * self.options.training.batch,
            **s.window.close(),
            "lr": lr,
            "ema_decay": s.ema.last,
            "ema_lag": round(lag, 6) if math.isfinite(lag) else None,
            "order": s.order,
            "skipped": s.skipped,
            "seconds": round(time.perf_counter() - self._began, 3),
            "rate": round(self.rate, 2),
        }
        self.log.metrics(self.newest)
        facts = self.facts()
        if facts.diverged and not self._warned:
            self._warned = True
            self.log.say(f"Step {s.step:,}: {next(health.reasons(facts))}.")
        return self.newest

    @property
    def loss(self) -> float | None:
        return next((value for name, value in self.newest.items() if name.endswith("loss")), None)

    def facts(self) -> health.Facts:
        s = self.session
        last = float(s.last) if self.loss is None and s.last is not None else self.loss
        return health.Facts(
            self.options.training,
            s.step,
            len(s.data),
            (s.first or 0.0) if s.recipe.steady else 0.0,
            last,
            s.ema.untrained,
            s.skipped,
        )

    def look(self, halt: Callable[[], bool]) -> dict[str, Any]:
        """Whatever is due at this step: a held-out loss, a verdict on pictures, a grid. Raises Interrupted when asked
        to halt, and is then to be asked again."""
        o, s, out, line = self.options, self.session, dict[str, Any](), dict[str, Any]()
        if self.held is not None and self._due(o.evaluate_every):
            with s.ema.swapped():
                out["held"] = evaluate.held_loss(s.backward, self.held, s.step, halt=halt)
            line |= {f"held/{name}": value for name, value in out["held"].items()}
        shows = not s.recipe.use
        if shows and o.judge is not None and self._due(o.evaluate_every) and (verdict := self._verdict(halt)):
            out["verdict"] = verdict
            line |= verdict.line()
        if shows and self.run and self._due(o.sample_every):
            out["grid"] = self._grid(halt, out.get("held"), out.get("verdict"))
        if line:
            self.log.metrics({"step": s.step, **line})
        return out

    def _verdict(self, halt: Callable[[], bool]) -> Verdict | None:
        """The judge's, in the process that writes; None where it fails, which is said once. Raises Interrupted."""
        o, s = self.options, self.session
        assert o.judge
        try:
            with s.ema.swapped():
                pictures = evaluate.portfolio(s.backward, s.data, o.preview, o.evaluate_n, halt=halt)
            if not s.world.main:
                return None
            verdict = self._judged(pictures)
        except evaluate.Failed as problem:
            self._unjudged(str(problem), problem.__cause__)
            return None
        self.figure = str(verdict).partition(" (")[0]
        if not verdict.sound:
            self._unjudged(f"{verdict.name} is no finite number")
        return verdict

    def _judged(self, pictures: Iterator[Tensor]) -> Verdict:
        assert self.options.judge
        try:
            with reproducible(self.device, self.options.seed, "judge"):
                return self.options.judge(pictures)
        except Interrupted:
            raise
        except Exception as error:  # the user's function, or a metric's: whatever it is, training goes on
            raise evaluate.Failed(evaluate.why(error)) from error

    def _unjudged(self, why: str, error: BaseException | None = None) -> None:
        if why not in self._told:
            self._told.add(why)
            if error:
                self.log.note("".join(traceback.format_exception(error)).rstrip())
            self.log.say(
                f"The pictures of step {self.session.step:,} were not judged: {why}. Training goes on, and this is "
                "said once."
            )

    def data(self) -> None:
        """Name the examples whose files were changed or lost since they were read. Training is not touched by it."""
        now = {f"{entry.name} {entry.reason}" for entry in getattr(self.session.data, "changes", tuple)()}
        if new := sorted(now - self._told):
            self._told |= now
            self.log.say(
                f"The data is not what it was when this run read it, which goes on as it read it: {listed(new)}."
            )

    def _due(self, every: int) -> bool:
        return bool(every) and (self.session.step % every == 0 or self.session.step == self.options.training.steps)

    def _pictures(self, halt: Callable[[], bool]) -> Tensor | None:
        """None if they do not fit into memory: training does, and goes on."""
        s = self.session
        try:
            with s.ema.swapped(), s.backward.autocast(), s.backward.eager():
                return evaluate.preview(s.recipe, self.options.preview, self.options.seed, self.device, halt=halt)
        except Exception as error:
            if not out_of_memory(error):
                raise
            self.log.say(f"The pictures of step {s.step:,} do not fit into memory: --sample-every 0 asks for none.")
            return None

    def _grid(self, halt: Callable[[], bool], held: Mapping[str, float] | None, verdict: Verdict | None) -> Path | None:
        assert self.run
        pictures = self._pictures(halt)
        if pictures is None:
            return None
        noise = health.noisy(pictures, self.roughness)
        if noise:
            why = "; ".join(health.reasons(self.facts()))
            self.log.say(f"The pictures of step {self.session.step:,} look like noise: {why}.")
        text = health.caption(self.newest, held, noise) if self.newest else ""
        text = "\n".join([*([text] if text else []), *([str(verdict)] if verdict else [])])
        try:
            return evaluate.write_grid(pictures, self.run.samples / f"step_{self.session.step:08d}.png", text)
        except OSError as error:
            self.log.say(f"The grid of step {self.session.step:,} could not be written: {error.strerror or error}.")
            return None
