"""The one training loop and what keeps its promises: exact resume, crash-safe files, no silent failure."""

from sfumato.engine.ema import EMA
from sfumato.engine.judge import Judge, Verdict
from sfumato.engine.options import Options
from sfumato.engine.run import RunFolder
from sfumato.engine.signals import EXIT_CODES
from sfumato.engine.state import load
from sfumato.engine.train import Step, fresh, steps

__all__ = ["EMA", "EXIT_CODES", "Judge", "Options", "RunFolder", "Step", "Verdict", "fresh", "load", "steps"]
