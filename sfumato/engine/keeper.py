"""What a run keeps of itself: its newest checkpoints, the best one, and final/."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sfumato.engine import state as store
from sfumato.engine.judge import Best, Verdict, point_to
from sfumato.engine.options import Options
from sfumato.engine.run import RunFolder
from sfumato.engine.session import Session
from sfumato.engine.watch import Watch

__all__ = ["Keeper"]


class Keeper:
    """Writes a session into its run folder. `facts` are of the machine and the data, for the next start."""

    def __init__(
        self,
        run: RunFolder | None,
        session: Session,
        options: Options,
        watch: Watch,
        document: Mapping[str, Any],
        facts: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.run, self.session, self.options = run, session, options
        self.watch, self.log = watch, watch.log
        self.document, self.facts, self.main = document, facts, session.world.main
        self.kept = -1  # the step of the newest checkpoint
        self.best: Best | None = None  # known to the first process alone
        self._new = False  # the best is this step, which is in no checkpoint yet

    def take_up(self, before: Mapping[str, Any]) -> None:
        """Go on from a checkpoint with this state; {}: from the beginning."""
        self.kept = self.session.step if before else -1
        self.best = Best.read(before)
        if not (self.run and self.main):
            return
        point_to(self.run, self.best)
        if self.best and not (self.run.checkpoints / self.best.folder).is_dir():
            self.log.say(
                f"The best checkpoint, of step {self.best.step:,}, is gone: only a better one takes its place."
            )

    def consider(self, verdict: Verdict) -> None:
        """Is this step the best so far? Then its checkpoint is to be kept."""
        step = self.session.step
        if self.best and not self.best.comparable(verdict):
            self.log.say(f"{self.best.text} of step {self.best.step:,} does not compare: the best is sought anew.")
            self.best = None
        if self.best is None and verdict.features:
            self.log.note(f"{verdict.name} is by {verdict.features}.")
        self._new = self.best is None or verdict.value < self.best.value
        if self._new:
            self.best = Best.of(step, verdict)
        assert self.best
        rank = "the best so far" if self._new else f"the best is of step {self.best.step:,}"
        self.log.say(f"Step {step:,}: {verdict}, {rank}.")

    def saved(self, stopped: str | None, *, owed: bool) -> Path | None:
        """What was saved after this step, if anything is due: always when the run ends or is stopped here, and the best
        at once. `owed`: a look at pictures was cut short."""
        s, every = self.session, self.options.save_every
        done = s.step == self.options.training.steps
        due = done or stopped or (every and s.step % every == 0)
        if not self.run or not (due or self._new):
            return None
        path = self.save(owed=owed, alone=not due)  # that it is the best the others do not know
        if stopped:
            self.log.say(
                f"Stopped by {stopped} after step {s.step:,}; saved. Go on with: sfumato train --resume {self.run.path}"
            )
        return (self.finish() if done else None) or path

    def save(self, *, owed: bool, alone: bool = False) -> Path:
        """A checkpoint of this step; `alone`: the other processes do not come here. Raises UserError."""
        assert self.run
        s = self.session
        s.refuse_infinite()
        if self.main and s.step != self.kept:
            self.log.sync()
            best = self.best and self.best.state()
            store.save(
                self.run, s.step, s.tensors(), {**s.state(), **self.facts(), "owed": owed, "best": best}, self.document
            )
            point_to(self.run, self.best)
            store.rotate(self.run, self.options.keep, self.best.folder if self.best else "")
            self.watch.data()
        self.kept, self._new = s.step, False
        if not alone:
            s.world.barrier()
        return self.run.checkpoints / f"step_{s.step:08d}"

    def finish(self) -> Path | None:
        """Write final/, the model that `load` prefers."""
        if self.run and self.main:
            return store.write_final(self.run, self.session.averaged_model(), self.document)
        return None
