"""Figures with all that they depend on, and the file that keeps them: written by evaluate, read by reports."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from sfumato.errors import UserError

__all__ = ["Figure", "Receipt"]

FORMAT = "sfumato receipt 1"
NUMBERS = ("value", "error", "low", "high", "floor")
INFINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}  # which JSON has not: the PSNR of equal pictures


@dataclass(frozen=True)
class Figure:
    """One number. None: not known, or without meaning for this metric.

    metric    the name typed at `--metrics`, and the part of it where it has several: "pr.precision"
    n, m      samples, and examples of the reference
    features  identity of what looked at the pictures; "" where nothing did
    low, high the 95 % interval
    floor     the same figure for as many real pictures
    warning   a sentence where the figure means little
    """

    metric: str
    value: float
    n: int
    m: int | None = None
    features: str = ""
    error: float | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    lower_is_better: bool | None = True
    warning: str = ""


@dataclass(frozen=True)
class Receipt:
    """Figures of one set of samples: what was measured, against what, by what, and what it cost. No paths, no host or
    user names: a receipt may be published.

    samples    of a run: model (paper-preset), digest, sampler, steps, spacing, eta, guidance, labels, seed, precision,
               calls (of the network, a picture), size; of files: name (the folder's own), fingerprint
    reference  name, fingerprint, split, size
    cost       seconds of sampling and of measuring; training: steps, images, seconds, parameters, where they are known
    made       date, sfumato, torch, machine (processor or GPU), threads
    """

    figures: tuple[Figure, ...]
    samples: Mapping[str, Any]
    reference: Mapping[str, Any]
    cost: Mapping[str, Any] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        """JSON, whole or absent. Raises OSError."""
        beside = path.with_name(f".{path.name}.tmp")
        try:
            told = json.dumps({"format": FORMAT, **_plain(asdict(self))}, indent=1, allow_nan=False)
            beside.write_text(told + "\n", encoding="utf-8")
            return beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises UserError for what is no receipt."""
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            if told.pop("format") != FORMAT:
                raise ValueError
            known = {field.name for field in fields(Figure)}
            figures = tuple(
                Figure(**{k: INFINITE.get(v, v) if k in NUMBERS else v for k, v in one.items() if k in known})
                for one in told.pop("figures")
            )
            return cls(figures, **told)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path} is no receipt of `sfumato evaluate`.") from None


def _plain(told: Any) -> Any:
    """With words for what JSON has no numbers for."""
    if isinstance(told, Mapping):
        return {name: _plain(value) for name, value in told.items()}
    if isinstance(told, list | tuple):
        return [_plain(value) for value in told]
    return str(told) if isinstance(told, float) and not math.isfinite(told) else told
