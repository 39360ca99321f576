"""Weights of other codes as ours: pure functions from their state dict to ours. One file per source."""

from sfumato.weights.conversion import Converted

__all__ = ["Converted"]
