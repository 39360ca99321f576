"""The commands that make a run again: from what it is, not from what was typed, so that no path is among them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from sfumato.errors import UserError
from sfumato.registry import MISFITS, Paper, config_dict, config_from

__all__ = ["commands", "flat", "shown"]

DATA = ("size", "channels", "fit", "flip", "alpha", "labels", "captions", "split")
USUAL = {"fit": "crop", "flip": "auto", "alpha": "white"}
SHORT = ("steps", "batch", "lr")
FOLLOWS = ("shape", "classes")  # the data
LONGEST = 400  # characters of a value that is shown


def shown(value: Any) -> str:
    """A value as people write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "none"
    text = "?" if value is None else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def flat(config: Mapping[str, Any], prefix: str = "") -> tuple[tuple[str, str], ...]:
    """Name and value of every field, nested ones with a dot; without the classes, of which there may be thousands."""
    out: list[tuple[str, str]] = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            out += flat(value, f"{prefix}{name}.")
        elif name != "classes":
            out.append((f"{prefix}{name}", "-" if value is None else shown(value)))
    return tuple(out)


def commands(config: Mapping[str, Any], private: Mapping[str, Any], found: Paper | None) -> tuple[str, ...]:
    """Training, sampling and this report. DATA, RUN and BASE stand for paths."""
    words = ["sfumato", "train", str(config.get("paper")), _source(private), *_options(config, private, found)]
    train = " ".join(word if word in ("DATA", "RUN", "BASE") else shlex.quote(word) for word in words)
    return (f"{train} --out RUN", "sfumato sample RUN --n 64 --seed 0", "sfumato report RUN --data DATA")


def _source(private: Mapping[str, Any]) -> str:
    source = str(private.get("data") or "")
    return source if source in ("digits", "glyphs") or source.startswith("glyphs:") else "DATA"


def _options(config: Mapping[str, Any], private: Mapping[str, Any], found: Paper | None) -> Iterator[str]:
    if config.get("preset"):
        yield from ("--preset", str(config["preset"]))
    if config.get("stage") not in (None, "", "model"):
        yield from ("--stage", str(config["stage"]))
    if "--from" in (private.get("command") or ()) or _needs_base(config, found):
        yield from ("--from", "BASE")
    yield from _of_data(private)
    yield from _of_training(config, found)
    yield from _of_config(config, found)
    decided = private.get("decided")
    for name, value in (("seed", private.get("seed")), *(decided.items() if isinstance(decided, dict) else ())):
        if name in ("seed", "precision", "threads") and value is not None:
            yield from (f"--{name}", str(value))


def _needs_base(config: Mapping[str, Any], found: Paper | None) -> bool:
    if found is None:
        return False
    with suppress(UserError, *MISFITS):
        settings = config.get("config")
        return isinstance(settings, dict) and bool(found.recipe.base(config_from(found.config, settings)))
    return False


def _of_data(private: Mapping[str, Any]) -> Iterator[str]:
    options = private.get("data_options")
    told = options if isinstance(options, dict) else {}
    for name in DATA:
        value = told.get(name)
        if value is not None and value != USUAL.get(name):
            size = value if isinstance(value, list) else [value]
            yield from (f"--{name}", "x".join(map(str, size)))
    if private.get("holdout") is not None:
        yield from ("--holdout", shown(private["holdout"]))


def _of_training(config: Mapping[str, Any], found: Paper | None) -> Iterator[str]:
    """What is not as in the preset. A short run's warm-up follows its steps."""
    now, preset = config.get("training"), _preset(config, found)
    if not isinstance(now, dict) or preset is None:
        return
    usual = config_dict(preset.training)
    if usual.get("warmup") is not None and type(now.get("steps")) is int:
        usual["warmup"] = min(usual["warmup"], now["steps"] // 10)
    for name, value in now.items():
        if value != usual.get(name):
            yield f"--{name}" if name in SHORT else f"--training.{_typed(name)}"
            yield from _values(value)


def _of_config(config: Mapping[str, Any], found: Paper | None) -> Iterator[str]:
    preset, now = _preset(config, found), config.get("config")
    if preset is None or not isinstance(now, dict):
        return
    usual = dict(_leaves(config_dict(preset.config)))
    for name, value in _leaves(now):
        if name not in FOLLOWS and name != "stage" and value != usual.get(name) and not isinstance(value, bool):
            yield f"--config.{_typed(name)}"
            yield from _values(value)
        elif isinstance(value, bool) and value != usual.get(name):
            yield from (f"--config.{_typed(name)}", str(value))


def _typed(name: str) -> str:
    return name.replace("_", "-")


def _values(value: Any) -> Iterator[str]:
    yield from (shown(one) for one in (value if isinstance(value, list) else [value]))


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _preset(config: Mapping[str, Any], found: Paper | None) -> Any:
    return found.presets.get(str(config.get("preset"))) if found else None
