"""Being asked to stop: by Ctrl-C, by a scheduler, by a shutdown."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

__all__ = ["EXIT_CODES", "Stop"]

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 75}
"""Exit code of a run stopped and saved on this signal. 75 is EX_TEMPFAIL: a scheduler may queue the job again."""


class Stop:
    """Within the block, SIGINT, SIGTERM and SIGUSR1 set `signal`, and `answer`, if any, says when the run will stop; a
    second one leaves at once with its exit code.

    Signals that follow within `grace` seconds count as one: a launcher passes on what the terminal has already sent.
    Elsewhere than in the main thread nothing is caught.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self.answer: Callable[[], str] | None = None
        self.grace = 5.0 if "TORCHELASTIC_RUN_ID" in os.environ else 0.3
        self._since = 0.0
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                getattr(signal, name): signal.signal(getattr(signal, name), self._caught)
                for name in EXIT_CODES
                if hasattr(signal, name)
            }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.signal is None:
            self.signal, self._since = name, time.monotonic()
            if self.answer:
                with contextlib.suppress(OSError):  # not print: the signal may have come in the middle of one
                    os.write(2, f"\n{name}: {self.answer()} Once more leaves at once.\n".encode())
        elif time.monotonic() - self._since > self.grace:
            os._exit(EXIT_CODES[name])
