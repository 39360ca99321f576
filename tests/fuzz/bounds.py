"""What a hostile case may take, and what a command may answer."""

from __future__ import annotations

import contextlib
import io
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfumato.cli.main import main
from sfumato.errors import UserError

SECONDS, GROWTH = 5.0, 500_000_000  # of the processor, for one case; bytes above what the process had
PATIENCE = 60  # seconds of the clock, on a busy machine


def _status(name: str) -> int:
    """A line of this process's memory in bytes; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return 1024 * int(line.split()[1])
    return 0


@dataclass
class Bounds:
    """`with bounds("what"):` fails when the case takes too long or too much memory; counts, for the report."""

    cases: int = 0
    worked: int = 0
    refused: int = 0
    longest: tuple[float, str] = (0.0, "")
    growth: tuple[int, str] = (0, "")
    peak: int = field(default_factory=lambda: _status("VmHWM"))

    @contextlib.contextmanager
    def __call__(self, what: str, seconds: float = SECONDS) -> Iterator[None]:
        def late(*_: Any) -> None:
            raise AssertionError(f"{what} does not end")

        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before, start = _status("VmRSS"), time.process_time()
        old = signal.signal(signal.SIGALRM, late)
        signal.alarm(PATIENCE)
        try:
            yield
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, old)
        took, peak = time.process_time() - start, _status("VmHWM")
        self.cases += 1
        self.longest = max(self.longest, (took, what))
        self.growth = max(self.growth, (peak - before, what))
        self.peak = max(self.peak, peak)
        assert took < seconds, f"{what} takes {took:.1f} s"
        assert peak - before < GROWTH, f"{what} takes {(peak - before) / 1e6:.0f} MB"

    def report(self, what: str) -> None:
        (seconds, slow), (growth, large) = self.longest, self.growth
        print(
            f"\n{what}: {self.cases} cases, {self.worked} worked, {self.refused} refused; longest {seconds:.2f} s "
            f"({slow[:80]!r}); most memory for one {growth / 1e6:.0f} MB ({large[:80]!r}); peak of the process "
            f"{self.peak / 1e6:.0f} MB"
        )

    def command(self, *words: object, seconds: float = SECONDS) -> tuple[int, str, str]:
        """A command that works or is refused as a mistake is: (code, out, err)."""
        out, err = io.StringIO(), io.StringIO()
        typed = [str(word) for word in words]
        with self(" ".join(typed), seconds), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(typed)
        self.judge(code, out.getvalue(), err.getvalue(), typed)
        return code, out.getvalue(), err.getvalue()

    def judge(self, code: int, out: str, err: str, typed: list[str]) -> None:
        assert code in (0, 2), (code, typed, err)
        self.worked, self.refused = self.worked + (code == 0), self.refused + (code == 2)
        assert "Traceback" not in err and "out of memory" not in err, (typed, err)
        assert all(c.isprintable() or c == "\n" for c in out + err), (typed, out, err)
        last = (err.strip().splitlines() or [""])[-1]
        damaged = typed[0] == "inspect" and "damaged" in out
        assert code == 0 or damaged or (last.startswith("sfumato: ") and 20 < len(last) < 1200), (typed, err)

    def call(self, what: str, work: Callable[[], Any], seconds: float = SECONDS) -> Any:
        """What `work` returns; None if it raises UserError with a sentence."""
        with self(what, seconds):
            try:
                made = work()
                self.worked += 1
                return made
            except UserError as error:
                self.refused += 1
                assert str(error).strip()
                return None
