"""Several processes, one run: each works on its share of every batch; gradients are summed while backward runs.

Not torch's `replicate`: its hooks want the gradient of every parameter from each backward pass ("Expected to have
finished reduction", torch 2.13), and a phase differentiates with respect to its own parameters only. `Reducer` does the
same work, flat buckets reduced as soon as they are complete; nothing is wrapped and no name changes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from sfumato.engine.lifeline import Lifeline, Lost
from sfumato.errors import UserError

__all__ = ["Reducer", "World", "join"]

_BUCKET = 1 << 23  # elements: 32 MB of float32
_ARRIVAL = timedelta(minutes=5)  # for all processes to have started
_PATIENCE = timedelta(days=7)  # with one that decodes, saves or samples; the dead are the lifeline's affair


@dataclass(frozen=True)
class World:
    """The processes of a run. Alone, every method does nothing. Raises Lost when another process has died."""

    rank: int = 0
    size: int = 1
    local: int = 0  # rank on this machine: which GPU
    control: Any = None  # a group that works on CPU tensors

    @property
    def main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        self.sum([])

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each number over the processes."""
        if self.size == 1:
            return list(values)
        total = torch.tensor([*values, 0.0], dtype=torch.float64)
        with _in_touch():
            dist.all_reduce(total, group=self.control)
        return total.tolist()[:-1]

    def any(self, flag: bool) -> bool:
        return (self.size > 1 and self.sum([float(flag)])[0] > 0) or flag

    def gather(self, rows: Tensor) -> Tensor:
        """The rows (n, ...) of all processes, by rank, on the CPU; n may differ."""
        rows = rows.detach().cpu()
        if self.size == 1:
            return rows
        each = [int(n) for n in self.sum([len(rows) if rank == self.rank else 0 for rank in range(self.size)])]
        padded = torch.cat([rows, rows.new_zeros(max(each) - len(rows), *rows.shape[1:])])
        parts = [torch.empty_like(padded) for _ in each]
        with _in_touch():
            dist.all_gather(parts, padded, group=self.control)
        return torch.cat([part[:n] for part, n in zip(parts, each, strict=True)])

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Everybody takes rank 0's values."""
        if self.size > 1:
            with _in_touch():
                for tensor in tensors:
                    dist.broadcast(tensor.detach(), 0)


# -- coming together, and leaving --------------------------------------------------------------------------------------


def _environment() -> tuple[int, int, int] | None:
    """(rank, size, local rank) as torchrun or srun tell them."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0))
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        node = _first_node(env.get("SLURM_STEP_NODELIST", "")) or env.get("SLURM_LAUNCH_NODE_IPADDR", "")
        if not node and "MASTER_ADDR" not in env:
            raise UserError("srun started several processes, but nobody says where the first one is: set MASTER_ADDR.")
        env.setdefault("MASTER_ADDR", node)
        env.setdefault("MASTER_PORT", str(20_000 + int(env.get("SLURM_JOB_ID", 0)) % 20_000))
        return int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_LOCALID"])
    return None


def _first_node(nodes: str) -> str:
    """'gpu[07-09,12],login' -> 'gpu07'. Not where srun was typed: with salloc that may be a login node."""
    return re.sub(r"^([^,\[]*)(?:\[([^],-]*)[^]]*\])?([^,\[]*).*", r"\1\2\3", nodes)


_world: World | None = None
_lifeline: Lifeline | None = None
_store: Any = None  # where the processes meet; kept, or the next run would meet where the last one is still leaving
_runs = 0


@contextmanager
def join(device: str = "auto") -> Iterator[World]:
    """The world this process belongs to. A process group that already exists is used and left alone. Raises UserError:
    the others cannot be found; Lost."""
    global _world, _lifeline
    where = _environment()
    if where is None or where[1] == 1 or _world:
        yield _world or World()
        return
    mine = not dist.is_initialized()
    if mine:
        _meet(device, *where[:2])
    try:
        _world = World(*where, dist.new_group(backend="gloo", timeout=_PATIENCE))
        _lifeline = Lifeline(_world.rank, _world.size, _world.sum)
        yield _world
        _world.barrier()  # nobody leaves while others are still at work
    except BaseException as error:
        if _lifeline:
            _lifeline.part(error)
        raise
    finally:
        if mine:
            dist.destroy_process_group()
        if _lifeline:
            _lifeline.close()
        _world = _lifeline = None


def _meet(device: str, rank: int, size: int) -> None:
    global _store, _runs
    gpu = torch.cuda.is_available() and device.partition(":")[0] in ("auto", "cuda")
    backend, _runs = "cpu:gloo,cuda:nccl" if gpu else "gloo", _runs + 1
    try:
        _store = _store or next(rendezvous("env://", rank, size, timeout=_ARRIVAL))[0]
        own = dist.PrefixStore(f"run {_runs}", _store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        where = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise Lost(
            f"The {size} processes of this run did not find each other at {where} (process {rank}: "
            f"{str(error).splitlines()[0].rstrip('.')}): start all of them, with MASTER_ADDR and MASTER_PORT of a free "
            "port of the first machine.",
            unheard=True,
        ) from error


@contextmanager
def _in_touch() -> Iterator[None]:
    """Around what needs the other processes. Raises Lost in place of torch's error when one of them has died."""
    try:
        yield
    except RuntimeError as error:
        if _lifeline and (lost := _lifeline.lost()):
            raise lost from error
        raise


class Reducer:
    """Sums gradients over processes, bucket by bucket, in one order everywhere, while backward goes on.

    The last place of the flat buffer carries one more number, the loss.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = list(reversed(parameters))  # backward reaches the last ones first
        self._flat = parameters[0].new_zeros(sum(p.numel() for p in parameters) + 1)
        self._views: dict[nn.Parameter, Tensor] = {}
        self._bucket: dict[nn.Parameter, int] = {}
        self._ends = self._layout()
        self.extra = self._flat[-1]
        self._hooks = [
            p.register_post_accumulate_grad_hook(self._ready)  # type: ignore[no-untyped-call]
            for p in self._parameters
        ]
        self.armed = False

    def _layout(self) -> list[int]:
        ends: list[int] = []
        end = 0
        for p in self._parameters:
            self._bucket[p] = len(ends)
            self._views[p] = self._flat[end : end + p.numel()].as_strided(p.shape, p.stride())
            end += p.numel()
            if end - (ends[-1] if ends else 0) >= _BUCKET:
                ends.append(end)
        return [*ends, len(self._flat)]

    def arm(self) -> None:
        """The backward pass that follows is the last of this step."""
        self.armed = True
        self._todo = [0] * len(self._ends)
        for p in self._parameters:
            self._todo[self._bucket[p]] += 1
        self._launched, self._works, self._taken = 0, list[Any](), set[nn.Parameter]()

    def _ready(self, p: nn.Parameter) -> None:
        if self.armed:
            self._take(p)
            while self._launched < len(self._ends) - 1 and self._todo[self._launched] == 0:
                self._launch()

    def _take(self, p: nn.Parameter) -> None:
        view = self._views[p]
        view.zero_() if p.grad is None else view.copy_(p.grad)
        p.grad = view
        self._taken.add(p)
        self._todo[self._bucket[p]] -= 1

    def _launch(self) -> None:
        start = self._ends[self._launched - 1] if self._launched else 0
        with _in_touch():
            self._works.append(dist.all_reduce(self._flat[start : self._ends[self._launched]], async_op=True))
        self._launched += 1

    def finish(self, loss: Tensor) -> Tensor:
        """Wait for everything. Afterwards each `p.grad` is the sum over processes; returns that of the loss."""
        if not self.armed:
            self.arm()
        self.extra.copy_(loss)
        for p in self._parameters:
            if p not in self._taken:
                self._take(p)
        while self._launched < len(self._ends):
            self._launch()
        with _in_touch():
            for work in self._works:
                work.wait()
        self.armed = False
        return self.extra.clone()

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
