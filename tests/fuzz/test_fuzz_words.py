"""Command lines that nobody types by mistake: exit code 0 or 2, a sentence, and nothing written anywhere else."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.cli.cite import Cite
from sfumato.cli.data import Check
from sfumato.cli.flags import for_paper
from sfumato.cli.inspect import Inspect
from sfumato.cli.papers import Papers
from sfumato.cli.parse import known_flags
from sfumato.cli.sample import Sample
from sfumato.registry import paper
from tests.fuzz.bounds import Bounds
from tests.fuzz.hostile import examples, texts


def listed(words: str) -> list[str]:
    return words.split()


WORK = listed("steps batch n size T blocks widths width patch accumulate stem embed vector")
"""Options by which one may rightly ask for hours or for all memory: they get small numbers, or impossible ones."""
SLOW = ("--compile", "--report-to", "--help")  # minutes, or packages that take seconds to import
SMALL = ["", *listed("-1 0 1 2 3 8 8x8 x nan inf 1.5 1e3 auto"), "9" * 30, "-" + "9" * 30]
WORDS = [
    *listed("- -- -h -1 +1 0 1 2 3 00 0x10 1_0 1e3 1.5 -0.0 . .. nan inf -inf 1e400 NaN None null True ٣ ½ [] {}"),
    *listed("auto cpu cuda cuda:99 mps meta cpu:7 fp32 bf16 ddpm ddim digits glyphs tiny all none folder 8x8 8x x8"),
    *listed("RUN FILE FOLDER ABSENT LINK PIPE ABOVE /dev/null 9x9999999999 --= = --out= %s $(id) `id` * ~ ~root \\"),
    *listed("--steps --resume --from --config --config."),
    *("", " ", "9" * 30, "-" + "9" * 30, "9" * 5000, "a" * 300, "a" * 5000, "é" * 200, "a/" * 2000),
    *("\x1b[2J\x1b[31m", "\x1b]0;x\x07", "a\nb", "a\rb", "\0", "a\0b", "\udcff", "\u202e"),
]
TRAIN = (
    "train ddpm digits --steps 1 --batch 4 --sample-every 0 --precision fp32 --threads 1 --holdout 0 "
    "--config.network.widths 8 --preset tiny --device cpu"
)
CASES = {
    "train": listed(TRAIN),
    "sample": listed("sample RUN --n 1 --steps 1 --threads 1 --device cpu"),
    "data check": listed("data check digits"),
    "inspect": ["inspect"],
    "papers": ["papers"],
    "cite": ["cite"],
}


@cache
def flags(verb: str) -> tuple[str, ...]:
    found = paper("ddpm")
    preset = found.presets["tiny"]
    kinds: dict[str, type[Any]] = {
        "sample": Sample,
        "data check": Check,
        "inspect": Inspect,
        "papers": Papers,
        "cite": Cite,
    }
    kind = kinds[verb] if verb in kinds else for_paper(found, preset.config, preset.training)
    return tuple(flag for flag in known_flags(kind) if flag not in SLOW)


def costly(flag: str) -> bool:
    return flag.rpartition(".")[2].strip("-").replace("-", "_") in WORK


@st.composite
def lines(draw: st.DrawFn, verb: str, options: tuple[str, ...]) -> list[str]:
    """A command that would work, with options added, repeated, misspelt, cut off, or in place of what it needs."""
    words = list(CASES[verb])
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        flag = draw(st.sampled_from([*options, "", ""]))
        many = draw(st.sampled_from([0, 1, 1, 1, 1, 1, 1, 2]))
        values = [
            draw(st.sampled_from(SMALL) if costly(flag) else st.sampled_from(SMALL) | st.sampled_from(WORDS) | texts)
            for _ in range(many)
        ]
        if flag and values and draw(st.booleans()):
            words += [f"{flag}={values[0]}", *values[1:]]
        elif flag:
            words += [flag + draw(st.sampled_from([""] * 9 + ["x"])), *values]
        else:
            at = draw(st.integers(len(verb.split()), len(words)))
            words[at:at] = [value for value in values if not harmful(value)]
    return words


def harmful(value: str) -> bool:
    """Where a value may be taken for a number of steps or a data set of the network."""
    return value.strip("-").isdecimal() or value.startswith("hf:")


@pytest.fixture
def desk(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with one of everything, and a home that is not the user's."""
    here = tmp_path / "desk" / "here"
    (here / "folder").mkdir(parents=True)
    (here / "file.txt").write_text("no picture\n")
    os.symlink("loop", here / "loop")
    os.mkfifo(here / "pipe")
    (tmp_path / "desk" / "home").mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "desk" / "home"))
    return here


def outside(desk: Path, trained: Path) -> list[str]:
    """All there is where no command was told to write."""
    places = (desk.parent, desk.parent / "home", trained.parent)
    return sorted(f"{place}/{name}" for place in places for name in os.listdir(place) if not name.startswith("."))


def run(bounds: Bounds, desk: Path, trained: Path, words: list[str], number: int) -> None:
    places = {
        "RUN": trained,
        "FILE": "file.txt",
        "FOLDER": "folder",
        "ABSENT": "nowhere/at all",
        "LINK": "loop",
        "PIPE": "pipe",
        "ABOVE": "..",
    }
    typed = [str(places.get(word, word)) for word in words]
    if words[0] in ("train", "sample") and not any(word.startswith("--out") for word in words):
        typed += ["--out", str(desk / f"out-{number}")]
    bounds.command(*typed)


def go(bounds: Bounds, desk: Path, trained: Path, data: st.DataObject, verb: str) -> None:
    before = outside(desk, trained)
    run(bounds, desk, trained, data.draw(lines(verb, flags(verb))), bounds.cases)
    assert outside(desk, trained) == before


@pytest.mark.parametrize(("verb"), ["data check", "inspect", "papers", "cite", "sample"])
@examples(25)
@given(data=st.data())
def test_words(verb: str, bounds: Bounds, desk: Path, trained: Path, data: st.DataObject) -> None:
    go(bounds, desk, trained, data, verb)


@examples(10)
@given(data=st.data())
def test_words_of_train(bounds: Bounds, desk: Path, trained: Path, data: st.DataObject) -> None:
    go(bounds, desk, trained, data, "train")


@pytest.mark.slow
@pytest.mark.parametrize("verb", list(CASES))
@examples(600)
@given(data=st.data())
def test_words_at_length(verb: str, bounds: Bounds, desk: Path, trained: Path, data: st.DataObject) -> None:
    go(bounds, desk, trained, data, verb)


@pytest.mark.slow
def test_every_option_with_every_word(bounds: Bounds, desk: Path, trained: Path) -> None:
    """Options that cost nothing to refuse, one at a time."""
    for verb in CASES:
        for flag in flags(verb):
            for word in (SMALL if costly(flag) else WORDS)[:: 7 if verb == "train" else 1]:
                run(bounds, desk, trained, [*CASES[verb], flag, word], bounds.cases)


@pytest.mark.parametrize(
    "words",
    [
        ["\x1b[31m"],
        ["--\x1b[2J"],
        ["trian\x07"],
        ["train\0"],
        ["\udcff"],
        ["x" * 100_000],
        [""],
        ["--", "--"],
        ["-V\n"],
    ],
)
def test_verbs(words: list[str], bounds: Bounds) -> None:
    assert bounds.command(*words)[0] == 2
