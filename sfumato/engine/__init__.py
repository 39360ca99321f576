"""The one training loop and what keeps its promises: exact resume, crash-safe files, no silent failure."""

from .ema import EMA
from .options import Options
from .run import RunFolder
from .signals import EXIT_CODES
from .state import load
from .train import Step, fresh, steps

__all__ = ["EMA", "EXIT_CODES", "Options", "RunFolder", "Step", "fresh", "load", "steps"]
