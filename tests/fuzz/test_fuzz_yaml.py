"""Descriptions of a run that someone spoiled on purpose: every command works or refuses them in one sentence."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import sfumato
from sfumato.engine.run import YAML, as_yaml, read_yaml
from sfumato.errors import UserError
from tests.fuzz.bounds import Bounds
from tests.fuzz.conftest import SMALL
from tests.fuzz.hostile import examples, insides, mutated, sign

LAUGHS = "a: &a [l, l]\n" + "".join(
    f"{x}: &{x} [*{y}, *{y}, *{y}, *{y}]\n"
    for x, y in zip("bcdefghijklmnopqrstuvwxyz", "abcdefghijklmnopqrstuvwxy", strict=True)
)
TREES = ("config.yaml", "run.yaml", "inside")
WAYS = ("load", "inspect", "cite", "sample", "from", "resume")
CANARY = "canary-was-here"
BOMBS: dict[str, bytes] = {
    "billion laughs": LAUGHS.encode(),
    "an alias to itself": b"a: &a [*a, *a]\n",
    "merged aliases": b"a: &a {x: 1}\nb:\n  <<: [*a, *a, *a]\n",
    "nested 5,000 in flow": b"paper: ddpm\nconfig: " + b"[" * 5000 + b"]" * 5000,
    "nested 5,000 mappings": b"config: " + b"{a: " * 5000 + b"1" + b"}" * 5000,
    "never closed": b"[" * 1_000_000,
    "nested 2,000 in block": "".join(f"{' ' * i}a:\n" for i in range(2000)).encode(),
    "dashes": b"- " * 200_000,
    "questions": b"? " * 100_000,
    "a scalar of 10 MB": b"paper: " + b"x" * 10_000_000,
    "a scalar of 3 MB": b"paper: " + b"x" * 3_000_000,
    "a million entries": b"config: [" + b"1," * 1_000_000 + b"]",
    "a million keys": b"\n".join(b"k%d: 1" % i for i in range(250_000)),
    "python/object": f"paper: !!python/object/apply:os.system ['touch {CANARY}']\nconfig: {{}}\n".encode(),
    "python/object/new": f"config: !!python/object/new:pathlib.Path ['{CANARY}']\npaper: ddpm\n".encode(),
    "python/name": b"paper: !!python/name:os.system\nconfig: {}\n",
    "python/module": b"paper: !!python/module:this\nconfig: {}\n",
    "python/tuple": b"paper: ddpm\nconfig: !!python/tuple [1, 2]\n",
    "a set": b"paper: ddpm\nconfig: !!set {a, b}\n",
    "bytes": b"paper: !!binary aGVsbG8=\nconfig: {}\n",
    "an int that is none": b"paper: !!int ddpm\nconfig: {}\n",
    "a date": b"paper: 2001-01-01\nconfig: {}\n",
    "a date that is none": b"paper: 2001-99-99\nconfig: {}\n",
    "5,000 digits": b"format: " + b"9" * 5000 + b"\npaper: ddpm\nconfig: {}\n",
    "60,000 hex digits": b"format: 0x" + b"f" * 60_000 + b"\npaper: ddpm\nconfig: {}\n",
    "base 60": b"format: 1" + b":59" * 20_000 + b"\npaper: ddpm\nconfig: {}\n",
    "keys of numbers": b"1: 2\n3.5: 4\nnull: 5\npaper: ddpm\nconfig: {}\n",
    "a key that is a list": b"? [a, b]\n: 1\npaper: ddpm\nconfig: {}\n",
    "the same key twice": b"paper: ddpm\npaper: ddim\nconfig: {}\n",
    "two documents": b"paper: ddpm\n---\npaper: ddim\n",
    "a list": b"- paper\n- ddpm\n",
    "null": b"null\n",
    "empty": b"",
    "spaces": b" \n\t\n",
    "tabs": b"paper:\n\tddpm: 1\n",
    "binary": bytes(range(256)) * 16,
    "zero bytes": b"\0" * 4096,
    "UTF-16": "paper: ddpm\nconfig: {}\n".encode("utf-16"),
    "UTF-16 without mark": "paper: ddpm\nconfig: {}\n".encode("utf-16-le"),
    "a colour": b'paper: "\\e[31mddpm"\nconfig: {"\\e]0;title\\a": 1}\nversion: "\\e[2J"\n',
    "a path": b"paper: ../../ddpm\nconfig: {}\n",
    "no config": b"paper: ddpm\nconfig: {}\n",
    "not a config": b"paper: ddpm\nconfig: {shape: 3, network: 7, classes: 1}\n",
}
TOLD = ("a colour", "a path", "no config", "not a config")  # enough for what asks for little


def ways(bounds: Bounds, run: Path, chosen: Collection[str] = WAYS) -> None:
    """The things that read a description."""
    out, tuned = run.parent / "out", run.parent / f"tuned-{bounds.cases}"
    if "load" in chosen:
        bounds.call(f"load {run.name}", lambda: sfumato.load(run))
    commands = {
        "inspect": ("inspect", run),
        "cite": ("cite", run),
        "sample": ("sample", run, "--n", 1, "--steps", 1, "--size", 8, "--threads", 1, "--out", out),
        "from": ("train", "ddpm", "digits", "--from", run, "--out", tuned, "--steps", 1, "--quiet", *SMALL),
        "resume": ("train", "--resume", run, "--steps", 3, "--threads", 1, "--sample-every", 0, "--quiet"),
    }
    for name in commands.keys() & set(chosen):
        bounds.command(*commands[name])


def put(run: Path, where: str, content: bytes) -> None:
    for folder in insides(run) if where == "inside" else [run]:
        (folder / ("run.yaml" if where == "run.yaml" else "config.yaml")).write_bytes(content)
        if where == "inside":
            sign(folder)


def test_a_run_that_nobody_spoiled(spoiled: Callable[[], Path], bounds: Bounds) -> None:
    """The other tests would pass if everything were refused."""
    ways(bounds, spoiled())
    assert bounds.worked == len(WAYS)


READERS = {"config.yaml": ("inspect",), "run.yaml": ("resume",), "inside": ("load",)}


@pytest.mark.parametrize("where", TREES)
@pytest.mark.parametrize("fully", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_bombs(
    where: str, fully: bool, spoiled: Callable[[], Path], bounds: Bounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each is read first, none may work; elsewhere it harms nobody."""
    for name, content in BOMBS.items():
        run = spoiled()
        monkeypatch.chdir(run)
        put(run, where, content)
        before = bounds.worked
        ways(bounds, run, READERS[where])
        assert bounds.worked == before or name in TOLD, name
        if fully:
            ways(bounds, run)
        assert not any(p.name == CANARY for p in run.rglob("*")), name


@pytest.mark.parametrize("where", ["config.yaml", "run.yaml", "final/config.yaml", "final/manifest.json"])
def test_what_is_no_file(where: str, spoiled: Callable[[], Path], bounds: Bounds) -> None:
    """A pipe never ends, a link may lead to itself."""
    makers: list[Callable[[Path], object]] = [
        os.mkfifo,
        os.mkdir,
        lambda p: os.symlink(p, p),
        lambda p: os.symlink("/dev/zero", p),
    ]
    for make in makers:
        run = spoiled()
        (run / where).unlink()
        make(run / where)
        ways(
            bounds, run, ("resume",) if where == "run.yaml" else ("load",) if "final" in where else ("inspect", "cite")
        )


def spoil(bounds: Bounds, spoiled: Callable[[], Path], data: st.DataObject, *, fully: bool) -> None:
    run, where = spoiled(), data.draw(st.sampled_from(TREES))
    source = run / "final" / "config.yaml" if where == "inside" else run / where
    tree = data.draw(mutated(yaml.safe_load(source.read_text())))
    put(run, where, as_yaml(tree).encode() if isinstance(tree, dict) else b"")
    if affordable(tree):
        quick = {"config.yaml": ("inspect", "cite", "sample"), "run.yaml": ("resume",), "inside": ("load", "sample")}
        ways(bounds, run, WAYS if fully else quick[where])


def affordable(tree: dict[str, object]) -> bool:
    """Not what would rightly read this machine's files, or ask the network, when it works."""
    return tree.get("data") == "digits" or not isinstance(tree.get("data"), str)


@examples(15)
@given(data=st.data())
def test_spoiled_descriptions(spoiled: Callable[[], Path], bounds: Bounds, data: st.DataObject) -> None:
    spoil(bounds, spoiled, data, fully=False)


@pytest.mark.slow
@examples(300)
@given(data=st.data())
def test_spoiled_descriptions_at_length(spoiled: Callable[[], Path], bounds: Bounds, data: st.DataObject) -> None:
    spoil(bounds, spoiled, data, fully=True)


@examples(60)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
        | st.integers(-(2**62), 2**62)
        | st.floats(allow_nan=False)
        | st.none()
        | st.booleans(),
        min_size=1,
    )
)
def test_what_a_run_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, object]) -> None:
    path = tmp_path_factory.getbasetemp() / "back.yaml"
    path.write_text(as_yaml(tree), "utf-8")
    assert read_yaml(path) == tree


def test_fifty_thousand_classes_are_read_back(tmp_path: Path) -> None:
    tree = {"classes": [f"class number {i}" for i in range(50_000)]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    assert (tmp_path / "config.yaml").stat().st_size < YAML and read_yaml(tmp_path / "config.yaml") == tree
    (tmp_path / "config.yaml").write_text("a: " + "x" * YAML)
    with pytest.raises(UserError, match="larger than"):
        read_yaml(tmp_path / "config.yaml")
