"""Several processes, one run: each works on its share of every batch; gradients are summed while backward runs.

Not torch's `replicate`: its hooks want the gradient of every parameter from each backward pass ("Expected to have
finished reduction", torch 2.13), and a phase differentiates with respect to its own parameters only. `Reducer` does the
same work, flat buckets reduced as soon as they are complete; nothing is wrapped and no name changes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sfumato.errors import UserError

__all__ = ["Reducer", "World", "join"]

_BUCKET = 1 << 23  # elements: 32 MB of float32


@dataclass(frozen=True)
class World:
    """The processes of a run. Alone, every method does nothing."""

    rank: int = 0
    size: int = 1
    local: int = 0  # rank on this machine: which GPU
    control: Any = None  # a group that works on CPU tensors

    @property
    def main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(group=self.control)

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each number over the processes."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.control)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        return (self.size > 1 and self.sum([float(flag)])[0] > 0) or flag

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Everybody takes rank 0's values."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)


def _environment() -> tuple[int, int, int] | None:
    """(rank, size, local rank) as torchrun or srun tell them."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0))
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        if "MASTER_ADDR" not in env and "SLURM_LAUNCH_NODE_IPADDR" not in env:
            raise UserError("srun started several processes, but nobody says where the first one is: set MASTER_ADDR.")
        env.setdefault("MASTER_ADDR", env.get("SLURM_LAUNCH_NODE_IPADDR", ""))
        env.setdefault("MASTER_PORT", str(20_000 + int(env.get("SLURM_JOB_ID", 0)) % 20_000))
        return int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_LOCALID"])
    return None


@contextmanager
def join(device: str = "auto") -> Iterator[World]:
    """The world this process belongs to. A process group that already exists is used and left alone."""
    where = _environment()
    if where is None or where[1] == 1:
        yield World()
        return
    rank, size, local = where
    mine = not dist.is_initialized()
    if mine:
        gpu = torch.cuda.is_available() and device.partition(":")[0] in ("auto", "cuda")
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", rank=rank, world_size=size)
    try:
        yield World(rank, size, local, dist.new_group(backend="gloo"))
    finally:
        if mine:
            dist.destroy_process_group()


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
        for work in self._works:
            work.wait()
        self.armed = False
        return self.extra.clone()

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
