"""The gradient of one phase for one batch: micro-batches, mixed precision, a way out when memory or compiler fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.core.random import Seeds, key
from sfumato.engine.distributed import Reducer, World
from sfumato.engine.metrics import mean_loss
from sfumato.engine.optim import AdamW
from sfumato.engine.order import Batch, cut, share
from sfumato.engine.plan import out_of_memory
from sfumato.errors import UserError
from sfumato.recipe import At, Loss, Phase, Recipe

__all__ = ["Backward", "Buffers", "Interrupted", "Unit", "reproducible"]

_COMPILER = ("torch._dynamo", "torch._inductor", "torch._functorch")


class Interrupted(Exception):
    """The run was asked to stop between two micro-batches."""


@dataclass
class Unit:
    """A phase and what updates it."""

    name: str
    phase: Phase
    optimiser: AdamW
    reducer: Reducer | None
    skips: int = 0  # updates in a row that were skipped for a NaN


class Buffers:
    """The registered buffers as they were, for a step that must not have happened."""

    def __init__(self, recipe: Recipe) -> None:
        self._live = list(recipe.buffers())
        self._kept = [b.clone() for b in self._live]
        self._versions = [b._version for b in self._live]

    def _changed(self) -> Iterator[int]:
        return (i for i, b in enumerate(self._live) if b._version != self._versions[i])

    @torch.no_grad()
    def keep(self) -> None:
        for i in self._changed():
            self._kept[i].copy_(self._live[i])
            self._versions[i] = self._live[i]._version

    @torch.no_grad()
    def restore(self) -> None:
        for i in self._changed():
            self._live[i].copy_(self._kept[i])
            self._versions[i] = self._live[i]._version


def _generators(device: torch.device) -> list[torch.Generator]:
    """The global generators of the CPU and of this device, and of no other."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        current = torch.cuda.current_device()  # also makes sure that there are generators
        generators.append(torch.cuda.default_generators[current if device.index is None else device.index])
    elif device.type == "mps":
        generators.append(torch.mps._get_default_mps_generator())
    return generators


@contextmanager
def reproducible(device: torch.device, *parts: int | str) -> Iterator[None]:
    """Within the block the global generators, which only dropout uses, are keyed by `parts`; then as before."""
    before = [(generator, generator.get_state()) for generator in _generators(device)]
    try:
        for generator, _ in before:
            generator.manual_seed(key(*parts))
        yield
    finally:
        for generator, state in before:
            generator.set_state(state)


class Backward:
    """Fills the gradients of a phase."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        world: World,
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
        total: int,
        batch: int,
        accumulate: int,
        auto: bool,
        say: Callable[[str], None],
    ) -> None:
        self.recipe, self.world, self.device, self.dtype = recipe, world, device, dtype
        self.seed, self.total, self.batch, self.accumulate = seed, total, batch, accumulate
        self.auto, self.say = auto, say
        self.buffers = Buffers(recipe)
        self.compiled: tuple[torch.nn.Module, ...] = ()
        self.on_trial = False  # compiled and not yet seen to work

    def compile(self, networks: tuple[torch.nn.Module, ...]) -> None:
        """Compile in place: no module is wrapped, no name changes. Tried out in the first step."""
        for network in networks:
            network.compile()
        self.compiled, self.on_trial = networks, bool(networks)

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Within the block networks run as written: compiling again for a look at some pictures takes too long."""
        compiled = [network._compiled_call_impl for network in self.compiled]
        for network in self.compiled:
            network._compiled_call_impl = None
        try:
            yield
        finally:
            for network, call in zip(self.compiled, compiled, strict=True):
                network._compiled_call_impl = call

    def at(self, step: int, phase: str, rng: Seeds) -> At:
        return At(step, step * self.batch, self.total, phase, rng, self.world.gather)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def __call__(self, unit: Unit, batch: Batch, halt: Callable[[], bool]) -> tuple[Loss, Tensor]:
        """(what was seen by this process, the loss of the whole batch). Afterwards every parameter of the phase has the
        gradient of the mean over the whole batch, over all processes."""
        self.buffers.keep()
        try:
            while (parts := self._tried(unit, batch, halt)) is None:
                self.buffers.restore()
            self.on_trial = False
            loss = torch.stack([seen.value * weight for seen, weight in parts]).sum()
            return mean_loss(parts), unit.reducer.finish(loss) if unit.reducer else loss
        except Exception:
            self.buffers.restore()
            raise

    def _tried(self, unit: Unit, batch: Batch, halt: Callable[[], bool]) -> list[tuple[Loss, float]] | None:
        """None: once more, now that something has changed. When memory is too short for one process all of them take
        smaller micro-batches: a checkpoint has one number for all."""
        parts, short = None, None
        try:
            parts = self._attempt(unit, batch, halt)
        except Exception as error:
            if not out_of_memory(error):
                self._uncompile(error, unit)
                return None
            short = error
        if self.world.any(short is not None) if self.auto else short:
            self._smaller(short)
            return None
        return parts

    def _attempt(self, unit: Unit, batch: Batch, halt: Callable[[], bool]) -> list[tuple[Loss, float]]:
        unit.optimiser.zero()
        seeds = Seeds.at(self.seed, batch.positions, "loss")
        n, parts = len(batch.positions), list[tuple[Loss, float]]()
        count = min(self.accumulate, n)
        for k in range(count):
            if halt():
                raise Interrupted
            part = share(n, k, count)
            weight = (part.stop - part.start) / self.batch
            with reproducible(self.device, self.seed, "dropout", unit.name, batch.step, k, self.world.rank):
                with self.autocast():
                    seen = self.recipe(cut(batch.content, part), self.at(batch.step, unit.name, seeds[part]))
                if unit.reducer and k == count - 1 and not (self.auto or self.on_trial):
                    unit.reducer.arm()  # what is sent cannot be tried again
                (seen.value * weight).backward(inputs=unit.optimiser.parameters)
            parts.append((seen._replace(value=seen.value.detach()), weight))
        return parts

    def _uncompile(self, error: Exception, unit: Unit) -> None:
        """Go on without the compiler if it is to blame, else raise."""
        sent = unit.reducer and unit.reducer.armed
        blamed = self.on_trial or type(error).__module__.startswith(_COMPILER)
        if isinstance(error, Interrupted | UserError) or sent or not (self.compiled and blamed):
            raise error
        for network in self.compiled:
            network._compiled_call_impl = None
        self.compiled, self.on_trial = (), False
        self.say(f"torch.compile failed ({_first_line(error)}): going on without it.")

    def _smaller(self, error: Exception | None) -> None:
        examples = -(-self.batch // self.world.size)  # the largest share
        micro = -(-examples // self.accumulate)
        if not self.auto or micro == 1:
            raise UserError(
                f"Out of memory with {micro} examples at a time. What helps: smaller micro-batches "
                f"(--batch auto or --accumulate {2 * self.accumulate}), --checkpointing, a smaller size or "
                "preset."
            ) from error
        self.accumulate = min(2 * self.accumulate, examples)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.say(
            f"Out of memory with {micro} examples at a time: now {-(-examples // self.accumulate)}, accumulated "
            f"{self.accumulate} times; the batch is still {self.batch}."
        )


def _first_line(error: Exception) -> str:
    lines: list[Any] = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
