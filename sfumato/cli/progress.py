"""Showing that long work goes on: a bar on a terminal, a line now and then elsewhere. On stderr."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

from sfumato.cli.show import duration, printable

__all__ = ["Progress", "first_rank"]


def first_rank() -> bool:
    """False in all but one of the processes that torchrun or srun started: only that one speaks."""
    rank = os.environ.get("RANK")
    if rank is None and int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        rank = os.environ.get("SLURM_PROCID")
    return rank in (None, "0")


class Progress:
    """`with Progress("decoding") as show: show(done, total)`."""

    def __init__(self, what: str, *, quiet: bool = False, every: float = 10.0) -> None:
        self.what, self.every = what, every
        self.silent = quiet or not first_rank()
        self.terminal = sys.stderr.isatty()
        self.start = self.said = time.monotonic()

    @staticmethod
    def say(line: str) -> None:
        """A line on stderr, whatever names it quotes."""
        if first_rank():
            print(printable(line), file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.silent or now - self.said < (0.1 if self.terminal else self.every):
            return
        self.said = now
        left = duration((now - self.start) * (total - done) / max(done, 1))
        if self.terminal:
            full = round(30 * done / max(total, 1))
            bar = "━" * full + "─" * (30 - full)
            sys.stderr.write(f"\r\x1b[K{self.what} {bar} {done:,}/{total:,}, {left} left")
        else:
            sys.stderr.write(f"{self.what} {done:,}/{total:,}, {left} left\n")
        sys.stderr.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.terminal and not self.silent:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
