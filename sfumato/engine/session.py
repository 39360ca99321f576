"""Everything that changes while a run trains, and how one step changes it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core.random import Seeds
from sfumato.engine import state as store
from sfumato.engine.backward import Backward, Interrupted, Unit
from sfumato.engine.distributed import Reducer, World
from sfumato.engine.ema import EMA, RULES
from sfumato.engine.metrics import Window
from sfumato.engine.optim import AdamW, factor
from sfumato.engine.order import Batch, Data
from sfumato.errors import UserError
from sfumato.recipe import Loss, Recipe, Training

__all__ = ["PATIENCE", "Session"]

PATIENCE = 10  # steps in a row that a phase may skip for a NaN


class Session:
    """A recipe in training: its optimisers, its average, the count of steps."""

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        training: Training,
        backward: Backward,
        world: World,
        say: Callable[[str], None],
        *,
        stop_on_nan: bool = False,
    ) -> None:
        self.recipe, self.data, self.training, self.backward = recipe, data, training, backward
        self.world, self.say, self.stop_on_nan = world, say, stop_on_nan
        self.names = {id(p): name for name, p in recipe.named_parameters()}
        self.units = [self._unit(name, phase) for name, phase in recipe.phases().items()]
        averaged = [p for unit in self.units if unit.phase.ema for p in unit.phase.parameters]
        self.ema = EMA(self._named(averaged), training.ema, RULES[training.ema_rule])
        self.window = Window()
        self.step, self.skipped, self.order = 0, 0, ""
        self.first: float | None = None  # the first finite loss: that of a model that knows nothing
        self.last: Tensor | None = None  # the loss of the last step
        self.whole = True  # not in the middle of a step
        self.asynchronous = backward.device.type == "cuda"
        # A skipped step leaves parameters alone; buffers and what `after` does have to know at once.
        self._hurt = any(True for _ in recipe.buffers()) or getattr(recipe.after, "__func__", None) is not Recipe.after
        self._unjudged: list[Callable[[], bool]] = []
        rest = [p for unit in self.units if not unit.phase.ema for p in unit.phase.parameters]
        self._watched = {f"{name} (ema)": t for name, t in self.ema.tensors().items()} | self._named(rest)

    def _named(self, parameters: list[nn.Parameter] | tuple[nn.Parameter, ...]) -> dict[str, nn.Parameter]:
        return {self.names[id(p)]: p for p in parameters}

    def _unit(self, name: str, phase: Any) -> Unit:
        if not phase.parameters:
            raise UserError(f"Phase '{name}' has no parameters to train.")
        self.world.same(phase.parameters)
        reducer = Reducer(phase.parameters) if self.world.size > 1 else None
        return Unit(name, phase, AdamW(self._named(phase.parameters), self.training), reducer)

    # -- one step ------------------------------------------------------------------------------------------------------

    def advance(self, batch: Batch, halt: Callable[[], bool]) -> dict[str, Tensor] | None:
        """One optimiser step of every phase that is due. Returns losses and gradient norms as tensors; None if the run
        was asked to stop before anything had changed."""
        values: dict[str, Tensor] = {}
        updated = False
        due = [unit for unit in self.units if self.step % unit.phase.every == 0]
        for i, unit in enumerate(due):
            try:
                row, fine = self._update(unit, batch, halt if i == 0 else lambda: False)
            except Interrupted:
                return None
            values |= row
            updated = updated or fine
            self.whole = False
        if updated:
            self.ema.update(self.step * self.training.batch, self.training.batch)
        self._judge_weights()
        self.order = hashlib.blake2b(self.order.encode() + batch.indices.tobytes(), digest_size=8).hexdigest()
        self.step += 1
        self.whole = True
        return values

    def _update(self, unit: Unit, batch: Batch, halt: Callable[[], bool]) -> tuple[dict[str, Tensor], bool]:
        seen, loss = self.backward(unit, batch, halt)
        if self.step == 0 and (idle := unit.optimiser.unused()):
            self.say(f"No gradient reaches {len(idle)} parameters of phase '{unit.name}', such as {idle[0]}.")
        unit.optimiser.fill()
        norm = unit.optimiser.norm()
        bad = ~torch.isfinite(norm + loss)
        unit.optimiser.step(self.lr * unit.phase.lr, norm, bad.float())
        prefix = "" if len(self.units) == 1 else f"{unit.name}/"
        scalars = {f"{prefix}{name}": value for name, value in seen.scalars.items()}
        values = {f"{prefix}loss": loss, f"{prefix}norm": norm}
        if unit is self.units[0]:
            self.last = loss
        if self.first is None and math.isfinite(value := float(loss)):
            self.first = value
        fine = not self._judge(unit, bad, batch, seen)
        self.window.add(values | scalars, seen)
        if fine:
            self.whole = False
            rng = Seeds.at(self.backward.seed, batch.positions, "after")
            self.recipe.after(self.backward.at(self.step, unit.name, rng), seen._replace(value=loss))
        return values, fine

    @property
    def lr(self) -> float:
        """The learning rate of the step that comes."""
        return self.training.lr * factor(self.training, self.step)

    # -- numbers that are not finite -----------------------------------------------------------------------------------

    def _judge(self, unit: Unit, bad: Tensor, batch: Batch, seen: Loss) -> bool:
        """True if the step is known to have been skipped. Where a bad step hurts nothing, a GPU is asked one step late,
        so that it never waits."""
        step, verdict = self.step, _asked(bad)
        at_once = self._hurt or self.stop_on_nan or not self.asynchronous
        return self._soon(lambda: self._react(verdict(), unit, step, batch, seen), at_once)

    def _judge_weights(self) -> None:
        """A NaN that no gradient shows: in the average, or in weights that this batch did not use. The average takes on
        any NaN of a parameter, so that one pass over it sees both."""
        step, verdict = self.step, _asked(store.suspect(list(self._watched.values())))

        def judge() -> bool:
            if verdict() and (name := store.infinite(self._watched)):
                self.whole = False
                raise UserError(
                    f"{name} is not finite after step {step + 1}: nothing was saved since. Resume from the last "
                    "checkpoint, with a lower --lr if this comes back."
                )
            return False

        self._soon(judge, not self.asynchronous)

    def _soon(self, judge: Callable[[], bool], at_once: bool) -> bool:
        if at_once:
            return judge()
        self.whole = False  # a late verdict that ends the run finds the step after it half done
        self._unjudged.append(judge)
        if len(self._unjudged) > len(self.units) + 1:
            self._unjudged.pop(0)()
        return False

    def settle(self) -> None:
        """Look at every verdict that is still open."""
        while self._unjudged:
            self._unjudged.pop(0)()

    def _react(self, bad: bool, unit: Unit, step: int, batch: Batch, seen: Loss) -> bool:
        if not bad:
            unit.skips = 0
            return False
        self.backward.buffers.restore()
        if name := store.infinite(dict(self.recipe.named_parameters())):
            raise UserError(
                f"Parameter {name} is not finite before step {step + 1}: nothing was saved since. Resume "
                "from the last checkpoint, with a lower --lr if this comes back."
            )
        what = f"The loss or its gradient is not finite in step {step + 1}, with {self._suspects(batch, seen)}"
        if self.stop_on_nan:
            raise UserError(f"{what}. Nothing was changed by this step (on_nan: stop).")
        self.say(f"{what}: step skipped.")
        self.skipped += 1
        unit.skips += 1
        if unit.skips >= PATIENCE:
            raise UserError(
                f"{PATIENCE} steps in a row had no finite gradient (phase '{unit.name}'): try a lower --lr or "
                "--precision fp32, and look at the data."
            )
        return True

    def _suspects(self, batch: Batch, seen: Loss) -> str:
        indices = batch.indices.tolist()
        if seen.per_sample is not None and self.world.size == 1:
            wrong = (~torch.isfinite(seen.per_sample)).nonzero().flatten().tolist()
            indices = [indices[i] for i in wrong] or indices
        names = [self.data.names[i] for i in indices]
        return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

    # -- memory across restarts ----------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The live tensors by file of the checkpoint."""
        optim = {f"{unit.name}/{name}": t for unit in self.units for name, t in unit.optimiser.tensors().items()}
        return {"model": dict(self.recipe.state_dict()), "ema": self.ema.tensors(), "optim": optim}

    def state(self) -> dict[str, Any]:
        """What is not a tensor."""
        return {
            "step": self.step,
            "skipped": self.skipped,
            "order": self.order,
            "accumulate": self.backward.accumulate,
            "ema": [self.ema.updates, self.ema.last, self.ema.untrained],
            "first": self.first,
            "window": self.window.state(),
        }

    def restore(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Take everything from a checkpoint. Raises UserError if it does not fit, with nothing changed."""
        store.restore(folder, self.tensors())
        self.step, self.skipped, self.order = state["step"], state["skipped"], state["order"]
        self.ema.updates, self.ema.last, self.ema.untrained = state["ema"]
        self.first = state["first"]
        self.window.restore(state["window"])
        self.backward.buffers.keep()

    def refuse_infinite(self) -> None:
        """Raises UserError if anything that a checkpoint would hold is not finite."""
        self.settle()
        for file, tensors in self.tensors().items():
            if name := store.infinite(tensors):
                raise UserError(
                    f"{name} ({file}) is not finite after step {self.step}: not saved. Earlier checkpoints "
                    "are good: resume from the last, with a lower --lr if this comes back."
                )

    def averaged_model(self) -> dict[str, Tensor]:
        """What is left of the model after training, with averaged weights, by name."""
        whole = {**self.recipe.state_dict(), **self.ema.tensors()}
        return {name: whole[name] for name in self.recipe.lasting(whole)}

    def close(self) -> None:
        for unit in self.units:
            unit.optimiser.zero()
            if unit.reducer:
                unit.reducer.close()


def _asked(flag: Tensor) -> Callable[[], bool]:
    """A flag on its way from a GPU: only the call waits for it."""
    if flag.device.type != "cuda":
        return lambda: bool(flag)
    copy = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(flag, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(flag.device))

    def answer() -> bool:
        event.synchronize()
        return bool(copy)

    return answer
