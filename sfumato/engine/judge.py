"""Pictures of the average, judged while it trains: one number a look, and the checkpoint that had the best of them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from sfumato.engine.run import RunFolder, read_small, write_text

__all__ = ["Best", "Judge", "Verdict", "best_of", "point_to"]


@dataclass(frozen=True)
class Verdict:
    """What a judge says of pictures. The lower its value, the better they are.

    name      of the number in metrics.jsonl and in TensorBoard, as "kid"
    error     standard error of the value; metrics.jsonl has it as NAME_error
    features  what looked at the pictures: values of other features are never compared
    text      for people; "": name and value
    """

    name: str
    value: float
    error: float | None = None
    features: str = ""
    text: str = ""

    @property
    def sound(self) -> bool:
        return math.isfinite(self.value)

    def line(self) -> dict[str, float | None]:
        """Its numbers in metrics.jsonl."""
        known = {self.name: self.value} | ({} if self.error is None else {f"{self.name}_error": self.error})
        return {name: value if math.isfinite(value) else None for name, value in known.items()}

    def __str__(self) -> str:
        return self.text or f"{self.name} {self.value:.4g}"


Judge = Callable[[Iterator[Tensor]], Verdict]
"""Looks at uint8 pictures (B, C, *S), some at a time, as PNG files would hold them. What it raises is said once, and
training goes on."""


@dataclass(frozen=True)
class Best:
    """The step of the best verdict so far."""

    step: int
    name: str
    value: float
    features: str = ""
    text: str = ""

    @classmethod
    def of(cls, step: int, verdict: Verdict) -> Self:
        return cls(step, verdict.name, verdict.value, verdict.features, str(verdict))

    @classmethod
    def read(cls, state: Mapping[str, Any]) -> Self | None:
        """From state.json; None where there is none, or what is there makes no sense."""
        told = state.get("best")
        try:
            found = cls(**told) if isinstance(told, dict) else None
        except TypeError:
            return None
        kinds = found and (type(found.step), type(found.value), *map(type, (found.name, found.features, found.text)))
        fine = found and kinds in ((int, float, str, str, str), (int, int, str, str, str))
        return found if found and fine and found.step > 0 and math.isfinite(found.value) else None

    def state(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def folder(self) -> str:
        return f"step_{self.step:08d}"

    def comparable(self, verdict: Verdict) -> bool:
        return (self.name, self.features) == (verdict.name, verdict.features)


def best_of(run: RunFolder) -> tuple[Path, str] | None:
    """(checkpoint, what was said of it) that checkpoints/best names; None where it names none that is there."""
    try:
        name, _, said = read_small(run.checkpoints / "best", 4096).decode("utf-8", "replace").partition("\n")
    except OSError:
        return None
    folder = run.checkpoints / name.strip()
    return (folder, said.strip()) if re.fullmatch(r"step_\d{8,}", name.strip()) and folder.is_dir() else None


def point_to(run: RunFolder, best: Best | None) -> None:
    """Make checkpoints/best say it; without a best, or once its checkpoint is gone, there is no such file. Raises
    UserError."""
    path = run.checkpoints / "best"
    if best is None or not (run.checkpoints / best.folder).is_dir():
        path.unlink(missing_ok=True)
        return
    text = f"{best.folder}\nstep {best.step}, {best.name} {best.value!r}\n{best.text}\n"
    if not path.is_file() or path.read_text("utf-8", "replace") != text:
        write_text(path, text)
