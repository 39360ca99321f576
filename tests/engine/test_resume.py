"""An interrupted and resumed run is, to the bit, the run that was never interrupted."""

from __future__ import annotations

import json
import os
import signal
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.engine import RunFolder, plan, steps
from sfumato.engine.state import checkpoints, read_state
from sfumato.errors import UserError
from tests.engine.compare import content, difference, metrics, same
from tests.engine.toy import Pictures, options, toy, train


def interrupted(out: Path, at: int, recipe: dict, **changes: object) -> None:
    """Train, vanish without a word after step `at`, resume."""
    run = steps(toy(**recipe), Pictures(), options(out, **changes))
    for _ in islice(run, at):
        pass
    run.close()
    train(toy(**recipe), options(out, **changes), resume=True)


@pytest.mark.parametrize(
    ("changes", "recipe"),
    [
        ({}, {}),
        ({"accumulate": 2}, {}),
        ({"accumulate": 3, "workers": 2}, {"dropout": 0.2}),
        ({"workers": 1}, {}),
        ({"precision": "bf16", "workers": 2}, {"dropout": 0.1}),
        ({}, {"phases": 2}),
        ({"decay": "cosine", "ema_rule": "warmup"}, {}),
        ({"batch": 70}, {"dropout": 0.1}),
        ({"ema_rule": "images", "ema": 200.0, "clip": 0.05, "weight_decay": 0.1}, {}),
    ],
)
@pytest.mark.parametrize("at", [13, 30])
def test_resuming_repeats_every_bit(tmp_path: Path, changes: dict, recipe: dict, at: int) -> None:
    train(toy(**recipe), options(tmp_path / "whole", **changes))
    interrupted(tmp_path / "broken", at, recipe, **changes)
    assert same(tmp_path / "whole", tmp_path / "broken")


def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    for seed in (0, 1):
        train(toy(0), options(tmp_path / str(seed), seed=seed))
    assert difference(tmp_path / "0", tmp_path / "1") > 1e-3


def test_workers_previews_evaluation_and_saving_change_no_bit(tmp_path: Path) -> None:
    train(toy(dropout=0.2), options(tmp_path / "plain"))
    train(
        toy(dropout=0.2),
        options(tmp_path / "busy", workers=2, sample_every=3, evaluate_every=4, save_every=6),
        held=Pictures(9),
    )
    assert content(tmp_path / "plain") == content(tmp_path / "busy")
    busy = [line for line in metrics(tmp_path / "busy") if not any(k.startswith("held") for k in line)]
    assert metrics(tmp_path / "plain") == busy


def test_the_users_random_numbers_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(toy(dropout=0.3), options(tmp_path, sample_every=5, evaluate_every=5), held=Pictures(5))
    assert torch.equal(torch.rand(3), expected)


def test_accumulation_equals_the_whole_batch_to_rounding(tmp_path: Path) -> None:
    for k in (1, 3, 8):
        train(toy(phases=2), options(tmp_path / str(k), accumulate=k))
    assert difference(tmp_path / "1", tmp_path / "3") < 2e-5  # 40 steps of float32 sums in another order
    assert difference(tmp_path / "1", tmp_path / "8") < 2e-5


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
@pytest.mark.parametrize("phases", [1, 2])
def test_a_signal_saves_the_last_finished_step(tmp_path: Path, name: str, phases: int) -> None:
    train(toy(phases=phases), options(tmp_path / "whole", accumulate=4))
    before = signal.getsignal(getattr(signal, name))
    recipe, inner, calls = toy(phases=phases), None, 0
    inner = recipe.loss

    def loss(batch, at):  # the signal comes in the middle of step 17
        nonlocal calls
        calls += at.step == 17
        if calls == 2:
            os.kill(os.getpid(), getattr(signal, name))
        return inner(batch, at)

    recipe.loss = loss
    last = train(recipe, options(tmp_path / "broken", accumulate=4))[-1]
    assert (last.step, last.stopped) == (17, name) and last.saved.name == "step_00000017"
    assert signal.getsignal(getattr(signal, name)) is before
    train(toy(phases=phases), options(tmp_path / "broken", accumulate=4), resume=True)
    assert same(tmp_path / "whole", tmp_path / "broken")


def test_lengthening(tmp_path: Path) -> None:
    """With a constant rate 20 + 20 steps are 40 steps; what a decay does is said."""
    train(toy(), options(tmp_path / "whole", steps=42))
    train(toy(), options(tmp_path / "longer", steps=21))
    train(toy(), options(tmp_path / "longer", steps=42), resume=True)
    assert same(tmp_path / "whole", tmp_path / "longer")
    assert "42 steps in place of 21" in (tmp_path / "longer" / "log.txt").read_text()


def test_lengthening_a_cosine_says_what_happens_to_the_rate(tmp_path: Path) -> None:
    train(toy(), options(tmp_path, steps=20, decay="cosine"))
    train(toy(), options(tmp_path, steps=40, decay="cosine", lr=1e-3), resume=True)
    log = (tmp_path / "log.txt").read_text()
    assert "40 steps in place of 20" in log and "in place of 0." in log and "lr 0.003 -> 0.001" in log


def test_a_finished_run_has_nothing_to_do(tmp_path: Path) -> None:
    train(toy(), options(tmp_path, steps=10))
    assert train(toy(), options(tmp_path, steps=10), resume=True) == []


def test_what_cannot_change_on_resume_is_refused(tmp_path: Path) -> None:
    train(toy(), options(tmp_path, steps=10))
    with pytest.raises(UserError, match="batch"):
        train(toy(), options(tmp_path, steps=20, batch=4), resume=True)
    with pytest.raises(UserError, match="already holds a run"):
        train(toy(), options(tmp_path, steps=20))
    with pytest.raises(UserError, match="no run to resume"):
        train(toy(), options(tmp_path / "nowhere"), resume=True)
    with pytest.raises(UserError, match="does not fit"):
        train(toy(width=25), options(tmp_path, steps=20), resume=True)


def test_the_held_out_loss_is_a_function_of_the_weights(tmp_path: Path) -> None:
    """Fixed t and eps: the same weights give the same loss, whatever was trained, drawn or batched in between."""
    from sfumato.engine import load
    from sfumato.engine.backward import Backward
    from sfumato.engine.distributed import World
    from sfumato.engine.evaluate import held_loss
    from tests.engine.toy import build_toy

    held = Pictures(23)
    last = train(toy(dropout=0.2), options(tmp_path, evaluate_every=10), held=held)[-1]

    def again(batch: int) -> dict[str, float]:
        recipe = load(tmp_path, builder=build_toy)
        backward = Backward(
            recipe,
            world=World(),
            device=torch.device("cpu"),
            dtype=torch.float32,
            seed=0,
            total=40,
            batch=batch,
            accumulate=1,
            auto=False,
            say=print,
        )
        return held_loss(backward, held, 40)

    assert again(8) == again(8) == last.held
    assert again(5)["model"] == pytest.approx(last.held["model"], rel=1e-6)


def test_fine_tuning_starts_from_the_averaged_weights(tmp_path: Path) -> None:
    from sfumato.engine import load
    from tests.engine.toy import build_toy

    train(toy(), options(tmp_path / "base"))
    tuned = toy(7)
    train(tuned, options(tmp_path / "tuned", steps=1, lr=1e-12, init_from=tmp_path / "base"))
    base = load(tmp_path / "base", builder=build_toy).state_dict()
    for name, p in tuned.named_parameters():
        assert torch.allclose(p, base[name], atol=1e-9), name
    with pytest.raises(UserError, match="does not fit this model"):
        train(toy(width=9), options(tmp_path / "other", init_from=tmp_path / "base"))


def test_metrics_are_strict_and_complete(tmp_path: Path) -> None:
    train(toy(), options(tmp_path, log_every=10))

    def refuse(text: str) -> None:
        raise AssertionError(text)

    lines = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert {"loss", "norm", "lr", "ema_decay", "ema_lag", "levels", "order", "images", "seconds", "rate"} <= lines[
        0
    ].keys()
    assert np.mean(lines[0]["levels"]) == pytest.approx(lines[0]["loss"], rel=0.1)


def test_decisions_outlive_a_run_that_saved_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Precision and threads are decided once, even if the machine answers otherwise before the first checkpoint."""
    before = torch.get_num_threads()
    chosen = {"precision": "auto", "threads": None, "save_every": 0}

    def machine(bf16: bool, threads: int) -> None:
        monkeypatch.setattr(plan, "_bf16_pays", lambda device: bf16)
        monkeypatch.setattr(plan, "choose_threads", lambda work: (threads, 0.0))

    machine(True, 2)
    train(toy(), options(tmp_path / "whole", **chosen))
    part = steps(toy(), Pictures(), options(tmp_path / "broken", private={"data": "here"}, **chosen))
    next(part)
    part.close()
    machine(False, 1)
    train(toy(), options(tmp_path / "broken", **chosen), resume=True)
    private = RunFolder(tmp_path / "broken").private()
    assert private["decided"] == {"precision": "bf16", "threads": 2, "accumulate": 1} and private["data"] == "here"
    state = read_state(checkpoints(RunFolder(tmp_path / "broken"))[0])
    assert (state["precision"], state["threads"]) == ("bf16", 2) and torch.get_num_threads() == before
    assert same(tmp_path / "whole", tmp_path / "broken")


def test_what_is_asked_for_goes_before_what_was_decided(tmp_path: Path) -> None:
    part = steps(toy(), Pictures(), options(tmp_path, precision="bf16", save_every=0))
    next(part)
    part.close()
    train(toy(), options(tmp_path, precision="fp32"), resume=True)
    assert RunFolder(tmp_path).private()["decided"]["precision"] == "fp32"
