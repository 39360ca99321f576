"""How papers are found, by name, and made from their configs.

File names are the registry: `sfumato/papers/NAME.py` with a docstring, a `Config`, `PRESETS` and one `Recipe` is the
paper NAME, with a CLI name, a row in the README and a `sfumato cite NAME`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, cast, get_args, get_origin, get_type_hints

import torch

from sfumato.errors import UserError
from sfumato.recipe import Preset, Recipe

__all__ = ["MISFITS", "Paper", "build", "config_dict", "config_from", "outline", "paper", "papers", "reason"]


class Paper(NamedTuple):
    """A paper file, opened."""

    name: str
    doc: str
    config: type
    recipe: type[Recipe]
    presets: dict[str, Preset]

    @property
    def title(self) -> str:
        return self.doc.strip().splitlines()[0]


def papers() -> tuple[str, ...]:
    """The names of all papers, sorted."""
    from sfumato import papers as package

    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.name[0] != "_"))


def paper(name: str) -> Paper:
    """Open the paper `name`. Raises UserError with the nearest name when there is none."""
    if name not in papers():
        near = difflib.get_close_matches(name, papers(), n=1)
        hint = f"did you mean '{near[0]}'?" if near else "`sfumato papers` lists them."
        raise UserError(f"There is no paper called '{name}': {hint}")
    module = importlib.import_module(f"{__package__}.papers.{name}")
    kinds = (value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Recipe))
    recipe = next(kind for kind in kinds if kind.__module__ == module.__name__)
    return Paper(name, module.__doc__ or "", module.Config, recipe, module.PRESETS)


def config_dict(config: Any) -> dict[str, Any]:
    """A config as plain YAML values (tuples become lists, nested configs become mappings)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    return {k: plain(v) for k, v in dataclasses.asdict(config).items()}


def config_from(kind: type, plain: Mapping[str, Any], within: str = "") -> Any:
    """The config dataclass `kind` from what `config_dict` gave. Raises UserError: an unknown key, with the nearest
    name; a value of another type; values that do not go together."""
    types = get_type_hints(kind)
    for unknown in plain.keys() - {f.name for f in dataclasses.fields(kind)}:
        near = difflib.get_close_matches(str(unknown)[:100], types, n=1)
        raise UserError(f"The config has no field '{unknown}'" + (f": did you mean '{near[0]}'?" if near else "."))
    values = {name: _typed(types[name], value, within + name) for name, value in plain.items()}
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:  # of __post_init__, or for a field that is missing
        raise UserError(f"The config{within and f' {within[:-1]}'} cannot be: {error}.") from error


def _typed(kind: Any, value: Any, name: str) -> Any:
    """`value` as the type that a field declares, lists as tuples. Raises UserError."""
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(value, Mapping) and dataclasses.is_dataclass(kind):
        return config_from(cast(type, kind), value, f"{name}.")
    if origin in (Union, UnionType):
        for one in inner:
            with suppress(UserError):
                return _typed(one, value, name)
    elif origin is tuple and isinstance(value, list | tuple):
        each = inner[:1] * len(value) if inner[1:] == (...,) else inner
        if len(each) == len(value):
            return tuple(_typed(one, part, name) for one, part in zip(each, value, strict=True))
    elif origin is Literal:
        if any(type(value) is type(choice) and value == choice for choice in inner):
            return value
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e300:
            return float(value)
    elif kind is Any or (origin is None and isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
        return value
    shown = repr(value) if len(repr(value)) < 60 else f"{repr(value)[:60]}..."
    raise UserError(f"The config's {name} cannot be {shown}: it should be {_words(kind)}.")


def _words(kind: Any) -> str:
    """A type, as people say it."""
    inner = get_args(kind)
    if get_origin(kind) in (Literal, Union, UnionType):
        return " or ".join(repr(one) if get_origin(kind) is Literal else _words(one) for one in inner)
    if get_origin(kind) is tuple:
        return f"a list, of {_words(inner[0])} each" if inner[1:] == (...,) else f"a list of {len(inner)}"
    names = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false", NoneType: "null"}
    return names.get(kind, "a mapping")


def build(name: str, config: Any) -> Recipe:
    """The recipe of paper `name` with its config, or with one read back from YAML. Raises UserError for unknown
    keys and values that cannot be."""
    found = paper(name)
    return found.recipe(config_from(found.config, config) if isinstance(config, Mapping) else config)


MISFITS = (ValueError, RuntimeError, ZeroDivisionError, IndexError, TypeError, AssertionError, OverflowError)
"""What Python and torch raise while a model is built from a config that no model can have."""


def outline(make: Callable[[], Recipe]) -> Recipe | None:
    """The recipe with the names and shapes of its tensors alone, on the meta device: however large, nothing is
    allocated. None for one that looks at its weights while it is built. Raises MISFITS."""
    try:
        with torch.device("meta"):
            return make()
    except RuntimeError as error:
        if "meta" in str(error).lower():
            return None
        raise


def reason(misfit: Exception) -> str:
    """Why no model can be made, in words."""
    said = (str(misfit).strip().splitlines() or [type(misfit).__name__])[0].rstrip(".")
    huge = f"it would have more than {2**60:,} parameters ({4 * 2**60 / 1e18:.1f} million TB)"
    return huge if "overflow" in said.lower() else said
