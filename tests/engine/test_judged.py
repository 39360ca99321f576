"""Pictures of the average are judged while it trains: the best checkpoint stays, and not a bit of training changes."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato.core.random import Seeds
from sfumato.engine import RunFolder, Verdict, load
from sfumato.engine.judge import Best, best_of, point_to
from sfumato.engine.state import checkpoints, read_state, read_tensors
from sfumato.errors import UserError
from sfumato.recipe import Ask
from tests.engine import toy as module
from tests.engine.compare import content, metrics, same
from tests.engine.test_distributed import Job, killed_at, wait_for
from tests.engine.toy import Pictures, Toy, build_toy, options, toy, train

EVERY = {"evaluate_every": 10, "evaluate_n": 12}
TARGET = torch.from_numpy(Pictures().images).mean(0)


def judge(pictures: Iterator[Tensor]) -> Verdict:
    """How far the mean picture is from the data's; careless with the global generator."""
    torch.rand(3)
    seen = torch.cat([*pictures])
    distance = (seen.double() / 127.5 - 1).mean(0) - TARGET
    return Verdict("distance", float(distance.abs().mean()), 0.25, "mean", f"{len(seen)} pictures")


def scripted(recipe: Toy, best: int) -> Any:
    """A judge to whom step `best` is the best."""

    def looks(pictures: Iterator[Tensor]) -> Verdict:
        assert len(torch.cat([*pictures])) == 12
        return Verdict("odds", float(abs(int(recipe.seen) - best)))

    return looks


def numbers(out: Path, name: str = "distance") -> dict[int, float]:
    return {line["step"]: line[name] for line in metrics(out) if name in line}


def best(out: Path) -> str:
    return (out / "checkpoints" / "best").read_text()


def kept(out: Path) -> list[int]:
    return [int(folder.name[5:]) for folder in checkpoints(RunFolder(out))]


# -- what it says and keeps --------------------------------------------------------------------------------------------


def test_it_changes_no_bit_and_adds_its_numbers(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(toy(dropout=0.2), options(tmp_path / "plain"), held=Pictures(9))
    last = train(toy(dropout=0.2), options(tmp_path / "judged", judge=judge, **EVERY), held=Pictures(9))[-1]
    assert torch.equal(torch.rand(3), expected)
    assert content(tmp_path / "plain") == content(tmp_path / "judged")
    lines = metrics(tmp_path / "judged")
    assert [line for line in lines if "distance" not in line] == metrics(tmp_path / "plain")
    told = [line for line in lines if "distance" in line]
    assert [line["step"] for line in told] == [10, 20, 30, 40]
    assert all(set(line) == {"step", "held/model", "distance", "distance_error"} for line in told)
    assert (tmp_path / "judged" / "log.txt").read_text().count("distance is by mean.") == 1
    assert last.verdict.value == told[-1]["distance"] < told[0]["distance"]


def test_the_pictures_are_those_of_the_average_and_of_the_first_seeds(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def keep(pictures: Iterator[Tensor]) -> Verdict:
        seen[:] = [*pictures]
        return Verdict("odds", 0.0)

    train(toy(), options(tmp_path, seed=3, batch=8, judge=keep, evaluate_every=40, evaluate_n=12))
    assert [len(part) for part in seen] == [8, 4] and seen[0].dtype == torch.uint8
    recipe = load(tmp_path, builder=build_toy)
    with torch.no_grad():
        *_, state = recipe.sample(Ask(n=12), rng=Seeds(3))
        made = recipe.picture(state)
    assert torch.allclose(torch.cat(seen).float() / 255, made, atol=0.502 / 255)


def test_classes_come_as_often_as_in_the_data(tmp_path: Path) -> None:
    class Labelled(Pictures):
        classes = ("rare", "common")

        def batch(self, indices: np.ndarray, rng: Seeds | None = None) -> dict[str, Any]:
            return super().batch(indices, rng) | {"label": torch.from_numpy((np.asarray(indices) >= 10).astype("i8"))}

    recipe, asked = toy(classes=["rare", "common"]), list[int]()
    inner = recipe.sample

    def sample(ask: Ask, *, rng: Seeds) -> Iterator[Any]:
        asked.extend(ask.labels or ())
        return inner(ask, rng=rng)

    recipe.sample = sample  # type: ignore[method-assign]
    train(recipe, options(tmp_path, steps=10, judge=judge, **(EVERY | {"evaluate_n": 50})), data=Labelled(50))
    assert len(asked) == 50 and asked.count(0) == 10


def test_the_best_checkpoint_outlives_rotation(tmp_path: Path) -> None:
    recipe = toy()
    train(recipe, options(tmp_path, keep=1, save_every=8, judge=scripted(recipe, 15), evaluate_every=5, evaluate_n=12))
    assert kept(tmp_path) == [40, 15]
    assert best(tmp_path).splitlines() == ["step_00000015", "step 15, odds 0.0", "odds 0"]
    found = best_of(RunFolder(tmp_path))
    assert found and found[0] == tmp_path / "checkpoints" / "step_00000015" and "odds 0.0" in found[1]
    assert int(load(found[0], builder=build_toy).seen) == 15
    assert int(load(tmp_path, builder=build_toy).seen) == 40
    log = (tmp_path / "log.txt").read_text()
    assert "Step 15: odds 0, the best so far." in log and "Step 20: odds 5, the best is of step 15." in log
    whole = toy()
    train(whole, options(tmp_path / "to15", steps=15))
    stored = read_tensors(found[0] / "model.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in whole.state_dict().items() if name in stored)


def test_the_last_step_may_be_the_best_and_equal_values_change_nothing(tmp_path: Path) -> None:
    recipe = toy()
    train(recipe, options(tmp_path / "last", keep=1, judge=scripted(recipe, 40), **EVERY))
    assert kept(tmp_path / "last") == [40] and best(tmp_path / "last").startswith("step_00000040\n")
    train(toy(), options(tmp_path / "equal", keep=1, judge=lambda pictures: Verdict("odds", 1.0), **EVERY))
    assert kept(tmp_path / "equal") == [40, 10] and best(tmp_path / "equal").startswith("step_00000010\n")


def test_without_a_folder_steps_carry_the_verdict() -> None:
    steps = train(toy(), options(None, judge=judge, **EVERY))
    assert [step.step for step in steps if step.verdict] == [10, 20, 30, 40]


# -- going on ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [5, 10, 17, 30])
def test_a_resumed_run_has_the_same_figures_and_the_same_best(tmp_path: Path, stop: int) -> None:
    chosen = {"judge": judge, "keep": 2, "save_every": 7, **EVERY}
    train(toy(), options(tmp_path / "whole", **chosen), held=Pictures(9))
    recipe = toy()
    inner = recipe.after
    recipe.after = lambda at, seen: (inner(at, seen), recipe.seen == stop and os.kill(os.getpid(), signal.SIGINT))[0]
    assert train(recipe, options(tmp_path / "run", **chosen), held=Pictures(9))[-1].stopped
    train(toy(), options(tmp_path / "run", **chosen), held=Pictures(9), resume=True)
    assert same(tmp_path / "whole", tmp_path / "run") and best(tmp_path / "whole") == best(tmp_path / "run")
    assert (
        read_state(checkpoints(RunFolder(tmp_path / "run"))[0])["best"]
        == read_state(checkpoints(RunFolder(tmp_path / "whole"))[0])["best"]
    )


@pytest.mark.parametrize("where", ["sampling", "judging", "drawing"])
@pytest.mark.parametrize("at", [20, 40])
def test_a_signal_during_it_is_answered_and_the_look_is_owed(tmp_path: Path, where: str, at: int) -> None:
    chosen = {"batch": 4, "sample_every": 20, "keep": 9, **EVERY}
    train(toy(), options(tmp_path / "whole", judge=judge, **chosen), held=Pictures(9))
    recipe, asked, chunks = toy(), list[int](), list[int]()
    inner = recipe.predict

    def interrupt() -> None:
        if int(recipe.seen) == at and not asked:
            asked.append(1)
            os.kill(os.getpid(), signal.SIGTERM)

    def predict(xt: Tensor, t: Tensor) -> Tensor:
        if (not recipe.training and (where == "sampling" and len(xt) == 4)) or (where == "drawing" and len(xt) == 16):
            interrupt()
        return inner(xt, t)

    def slow(pictures: Iterator[Tensor]) -> Verdict:
        def told() -> Iterator[Tensor]:
            for part in pictures:
                chunks.append(len(part))
                if where == "judging":
                    interrupt()
                yield part

        return judge(told())

    recipe.predict = predict  # type: ignore[method-assign]
    last = train(recipe, options(tmp_path / "run", judge=slow, **chosen), held=Pictures(9))[-1]
    assert (last.step, last.stopped, last.verdict) == (at, "SIGTERM", None)
    assert where != "judging" or len(chunks) < 3 * at // 10  # it did not wait for all of them
    assert read_state(checkpoints(RunFolder(tmp_path / "run"))[0])["owed"]
    assert at not in numbers(tmp_path / "run")
    train(toy(), options(tmp_path / "run", judge=judge, **chosen), held=Pictures(9), resume=True)
    assert same(tmp_path / "whole", tmp_path / "run") and best(tmp_path / "whole") == best(tmp_path / "run")
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 2


def ready(kill_at: int = 0) -> None:
    """Runs of this process have the judge; with `kill_at` it dies once its figure of that step is written."""
    inner = module.options
    module.options = lambda *a, **b: inner(*a, **(EVERY | {"judge": judge} | b))  # type: ignore[assignment]
    if kill_at:
        from sfumato.engine.keeper import Keeper

        consider = Keeper.consider

        def dies(self: Keeper, verdict: Verdict) -> None:
            consider(self, verdict)
            if self.session.step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        Keeper.consider = dies  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "twist",
    [
        partial(ready, 20),
        partial(killed_at, "before rename folder@2"),
        partial(killed_at, "after rename latest@2"),
        partial(killed_at, "before fsync .tmp-best@2"),
        partial(killed_at, "before rename best@2"),
        partial(killed_at, "after rename best@2"),
        partial(killed_at, "half removed@1"),
    ],
    ids=lambda twist: str(twist.args[0]),
)
def test_kill_between_the_figure_its_checkpoint_and_its_name(tmp_path: Path, twist: Any) -> None:
    settings = {"save_every": 6, "keep": 1}
    train(toy(), options(tmp_path / "whole", judge=judge, **EVERY, **settings))
    job = Job(tmp_path / "run", settings, 1, twists={0: [ready, twist]})
    assert job.end() == [-9], job.said
    found = best_of(RunFolder(tmp_path / "run"))
    assert found is None or load(found[0], builder=build_toy, verify=True)
    job = Job(tmp_path / "run", settings, 1, twists={0: [ready]})
    assert job.end() == [0], job.said
    assert same(tmp_path / "whole", tmp_path / "run") and best(tmp_path / "whole") == best(tmp_path / "run")
    assert kept(tmp_path / "whole") == kept(tmp_path / "run")
    assert not list((tmp_path / "run").rglob(".tmp-*"))


def test_a_damaged_best_gives_way_to_the_one_before(tmp_path: Path) -> None:
    """The newest checkpoint is the best, and damaged: the run falls back, and does not point to what is not whole."""
    recipe = toy()
    train(recipe, options(tmp_path, steps=20, keep=1, judge=scripted(recipe, 40), **EVERY))
    train(toy(), options(tmp_path / "other", steps=10))
    newest = tmp_path / "checkpoints" / "step_00000020"
    (newest / "ema.safetensors").write_bytes(b"")
    newest.rename(newest.with_name("step_00000021"))
    source = tmp_path / "other" / "checkpoints" / "step_00000010"
    source.rename(tmp_path / "checkpoints" / source.name)
    again = toy()
    train(again, options(tmp_path, steps=30, keep=1, judge=scripted(again, 40), **EVERY), resume=True)
    assert best(tmp_path).startswith("step_00000030\n") and 30 in kept(tmp_path)


def test_another_judge_seeks_the_best_anew(tmp_path: Path) -> None:
    train(toy(), options(tmp_path, steps=20, judge=lambda pictures: Verdict("odds", -1.0, features="one"), **EVERY))
    other = options(tmp_path, steps=40, judge=lambda pictures: Verdict("odds", 7.0, features="two"), **EVERY)
    train(toy(), other, resume=True)
    assert best(tmp_path).splitlines()[1] == "step 30, odds 7.0"
    assert "odds -1 of step 10 does not compare" in (tmp_path / "log.txt").read_text()
    train(toy(), options(tmp_path, steps=60), resume=True)  # and none at all lets it be
    assert best(tmp_path).splitlines()[1] == "step 30, odds 7.0" and 30 in kept(tmp_path)


# -- when it fails -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "there is too little memory for it"),
        (UserError("The features lite0 need a package: pip install it."), "need a package: pip install it"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    ],
    ids=["memory", "package", "bug"],
)
@pytest.mark.parametrize("where", ["sampling", "judging"])
def test_what_fails_is_said_once_and_training_goes_on(tmp_path: Path, error: Exception, said: str, where: str) -> None:
    def broken(*words: object, **more: object) -> Any:
        raise error

    train(toy(), options(tmp_path / "plain"))
    recipe = toy()
    if where == "sampling":
        recipe.sample = broken  # type: ignore[method-assign]
    train(recipe, options(tmp_path / "run", judge=broken if where == "judging" else judge, **EVERY))
    assert content(tmp_path / "plain") == content(tmp_path / "run")
    assert metrics(tmp_path / "plain") == metrics(tmp_path / "run") and recipe.training
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("were not judged") == 1 and said in log
    assert not (tmp_path / "run" / "checkpoints" / "best").exists()


def test_pictures_and_values_that_are_no_numbers(tmp_path: Path) -> None:
    train(toy(), options(tmp_path / "value", judge=lambda pictures: Verdict("odds", math.nan, math.inf), **EVERY))
    assert [line["odds"] for line in metrics(tmp_path / "value") if "odds" in line] == [None] * 4
    assert (tmp_path / "value" / "log.txt").read_text().count("odds is no finite number") == 1
    recipe = toy()
    recipe.picture = lambda state, quick=False: state.x * math.nan  # type: ignore[method-assign]
    train(recipe, options(tmp_path / "pictures", judge=judge, **EVERY))
    assert "numbers that are not finite" in (tmp_path / "pictures" / "log.txt").read_text()


@pytest.mark.parametrize(
    "told",
    [
        None,
        7,
        [],
        {},
        {"step": 5},
        {"step": "5", "name": "kid", "value": 1.0},
        {"step": 5, "name": "kid", "value": math.inf},
        {"step": -5, "name": "kid", "value": 1.0},
        {"step": 5, "name": "kid", "value": 1.0, "more": 2},
        {"step": 5, "name": ["kid"], "value": 1.0},
    ],
    ids=str,
)
def test_a_best_that_makes_no_sense_is_none(told: Any) -> None:
    assert Best.read({"best": told}) is None and Best.read({}) is None


@pytest.mark.parametrize(
    "text", ["", "../../etc", "step_00000020/../..", "latest", "\0", "step_1", "step_00000099", "é"]
)
def test_a_file_that_names_no_checkpoint(tmp_path: Path, text: str) -> None:
    run = RunFolder(tmp_path)
    (run.checkpoints / "step_00000020").mkdir(parents=True)
    (run.checkpoints / "best").write_bytes(text.encode("latin-1"))
    assert best_of(run) is None
    point_to(run, Best(20, "kid", 0.1 + 0.2, "lite0", "KID 0.3"))
    found = best_of(run)
    assert found and found[0].name == "step_00000020" and "kid 0.30000000000000004" in found[1]
    point_to(run, None)
    assert not (run.checkpoints / "best").exists()


def test_options_are_checked() -> None:
    with pytest.raises(UserError, match="evaluate_n is 0"):
        options(None, evaluate_n=0)
    assert replace(options(None), judge=judge).judge is judge


# -- several processes -------------------------------------------------------------------------------------------------


def test_two_processes_share_the_work_and_say_what_one_says(tmp_path: Path) -> None:
    settings = {"batch": 8, "steps": 30, "save_every": 0, "evaluate_n": 11}
    train(toy(), options(tmp_path / "one", judge=judge, **(EVERY | settings)))
    job = Job(tmp_path / "two", settings, twists={0: [ready], 1: [ready]})
    assert job.end() == [0, 0], job.said
    one, two = numbers(tmp_path / "one"), numbers(tmp_path / "two")
    assert list(two) == [10, 20, 30] and two == pytest.approx(one, abs=1 / 255)  # a level of a picture may round away
    assert best(tmp_path / "one").split()[0] == best(tmp_path / "two").split()[0]


def fails(begun: Path | None = None) -> None:
    """Making pictures fails here; or it takes for ever."""

    def sample(self: Any, ask: Any, *, rng: Any) -> Any:
        if begun is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        begun.touch()
        signal.pause()

    module.Toy.sample = sample  # type: ignore[method-assign]


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_fails_is_known_to_all_and_both_go_on(tmp_path: Path, rank: int) -> None:
    settings = {"batch": 8, "steps": 30, "save_every": 0}
    job = Job(tmp_path / "run", settings, twists={k: [ready, *([fails] if k == rank else [])] for k in (0, 1)})
    assert job.end(40) == [0, 0], job.said
    assert not numbers(tmp_path / "run") and (tmp_path / "run" / "log.txt").read_text().count("were not judged") == 1


def test_one_that_is_killed_meanwhile_ends_the_other(tmp_path: Path) -> None:
    twists = {0: [ready], 1: [ready, partial(fails, tmp_path / "begun")]}
    job = Job(tmp_path / "run", {"batch": 8, "steps": 30}, twists=twists)
    wait_for(tmp_path / "begun", job.ranks)
    job.kill(1)
    assert job.end(20) == [2, -9] and "has died without a word" in job.said[0]


def test_a_judge_in_one_process_alone_is_refused(tmp_path: Path) -> None:
    job = Job(tmp_path / "run", {"batch": 8, "steps": 30}, twists={0: [ready]})
    assert job.end(20) == [2, 2] and "1 of 2 processes of this run have a judge" in job.said[0]
