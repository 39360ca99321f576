"""Values that nobody sends by mistake, trees in which one of them sits, and a manifest that vouches for it."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

NUMBERS = [0, -1, 1, 2, 3, 7, 8192, 8193, 2**31, 2**53, 2**63 - 1, 2**63, 10**12, 10**30, -(10**12), True]
REALS = [0.0, -0.0, 0.5, 1.5, -1.0, 1e-320, 1e30, 1e308, float("inf"), float("-inf"), float("nan")]
TEXTS = ["", " ", "0", "1e9", "nan", "\x1b[31mred\x1b[0m", "a\nb", "\u202egnp.exe", "\x00", "\x07\x9b2J", "é" * 300]
TEXTS += ["../../x", "~", "null", "{}", "ddpm", "%s%n", "x" * 5000, "\U0001f600", "\u2028", "true", "--help"]

texts = st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.sampled_from(NUMBERS) | st.integers(-(2**70), 2**70) | st.integers(-3, 12)
scalars = st.none() | st.booleans() | numbers | st.sampled_from(REALS) | st.floats() | texts
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
deep = st.sampled_from([6, 60, 200]).map(lambda n: nested(n))
values = scalars | trees | deep | st.lists(numbers, max_size=5)


def examples(n: int) -> settings:
    """The same n examples in every run. A failure is shown as it was found: to shrink it would take minutes."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=n,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=checks,
    )


def nested(levels: int) -> Any:
    out: Any = 1
    for level in range(levels):
        out = [out] if level % 2 else {"a": out}
    return out


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every entry of a tree of dicts and lists."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in inner for place in ((*at, key), *places(value, (*at, key)))]


@st.composite
def mutated(draw: st.DrawFn, tree: Any) -> Any:
    """The tree with one or two entries replaced, taken away, renamed or added."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 2))):
        *way, key = draw(st.sampled_from(places(tree)))
        home = tree
        for step in way:
            home = home[step]
        kind = draw(st.sampled_from(["replace"] * 6 + ["remove", "add", "rename"]))
        if kind == "replace":
            home[key] = draw(values)
        elif kind == "add" and isinstance(home, dict):
            home[draw(texts)] = draw(values)
        else:
            value = home.pop(key)
            if kind == "rename" and isinstance(home, dict):
                home[draw(texts)] = value
        if not places(tree):
            break
    return tree


def sign(folder: Path) -> None:
    """A manifest that vouches for whatever lies in the folder."""
    names = [p.name for p in folder.iterdir() if p.name != "manifest.json" and p.is_file()]
    entries = {}
    for name in names:
        content = (folder / name).read_bytes()
        entries[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": entries}))


def insides(run: Path) -> list[Path]:
    """final/ and the checkpoints."""
    return [run / "final", *sorted((run / "checkpoints").glob("step_*"))]
