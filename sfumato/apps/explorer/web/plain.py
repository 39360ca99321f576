"""Answers as JSON can hold them, without paths of this machine."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["listed", "plain", "unpathed"]

ROOTED = re.compile(r"(?<![\w.:/])(?:/[^\s/'\"<>:]+){2,}/?")  # /two/parts or more, wherever a sentence quotes one


def plain(found: Any) -> Any:
    """Dicts, lists, text and numbers; NaN and infinities become None, half surrogate pairs question marks."""
    match found:
        case dict():
            return {str(name): plain(value) for name, value in found.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(value) for value in found]
        case np.ndarray():
            return plain(found.tolist())
        case np.generic():
            return plain(found.item())
        case float():
            return found if math.isfinite(found) else None
        case str():
            return found.encode("utf8", "replace").decode()
    return found if found is None or isinstance(found, bool | int) else str(found)


def unpathed(sentence: str, places: Iterable[Path]) -> str:
    """The sentence with folders of this machine left out: only the last part of a path is said."""
    for place in sorted({str(place) for place in places}, key=len, reverse=True):
        if len(place) > 1:
            sentence = sentence.replace(place + "/", "").replace(place, Path(place).name)
    return ROOTED.sub(lambda found: found[0].rstrip("/").rpartition("/")[2], sentence)


def listed(found: Any, hide: Callable[[str], str]) -> Any:
    """An answer whose sentences (reasons, errors, what is being done) went through `hide`; names and captions are the
    user's own words, and stay."""
    if isinstance(found, dict):
        told = {"reason", "error", "says", "stage", "why"}
        return {
            name: hide(value) if name in told and isinstance(value, str) else listed(value, hide)
            for name, value in found.items()
        }
    return [listed(value, hide) for value in found] if isinstance(found, list | tuple) else found
