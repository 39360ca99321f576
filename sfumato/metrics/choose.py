"""From the words of `--features` to an extractor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sfumato.errors import UserError
from sfumato.metrics.features import Extractor
from sfumato.metrics.inception import Inception
from sfumato.metrics.lite0 import Lite0
from sfumato.metrics.script import Script, ScriptedInception, is_script

__all__ = ["choose"]


def choose(text: str, own: Callable[[], Extractor], resize: str | None = None) -> Extractor:
    """lite0 or lite0@SIZE, own (which `own` trains or loads), inception:FILE, or a TorchScript FILE; `resize` is a mode
    in place of the extractor's usual one. Raises UserError."""
    name, _, rest = text.partition(":")
    if name == "inception" and rest:
        path = Path(rest)
        return (ScriptedInception if is_script(path) else Inception)(path, resize=resize or "tf1")
    name, at, size = text.partition("@")
    if name == "lite0" and (size.isdecimal() and int(size) >= 32 if at else True):
        return Lite0(size=int(size or 64), resize=resize or "clean")
    if text == "own":
        return own()
    if Path(text).is_file():
        return Script(Path(text), resize=resize or "clean")
    raise UserError(
        f"--features {text} is none of lite0, lite0@SIZE (32 or more), own, inception:FILE and the path of a "
        "TorchScript file."
    )
