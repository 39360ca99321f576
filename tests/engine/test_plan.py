"""Choices that depend on the machine."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch

from sfumato.engine import plan
from sfumato.errors import UserError
from tests.engine.toy import options, toy, train


def test_threads_are_halved_only_while_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        for best in (1, 2, 4):
            torch.set_num_threads(4)
            chosen, seconds = plan.choose_threads(
                lambda best=best: time.sleep(0.01 + 0.02 * abs(torch.get_num_threads() - best))
            )
            assert chosen == best and 0.005 < seconds < 0.03
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_absent_gpu_is_said_to_be_absent() -> None:
    assert plan.choose_device("auto").type in ("cpu", "mps")
    for name in ("cuda", "cuda:1"):
        with pytest.raises(UserError, match="--device cpu"):
            plan.choose_device(name)
    for name in ("gpu", "tpu:x", "meta"):
        with pytest.raises(UserError, match="use auto, cpu"):
            plan.choose_device(name)


def test_precision_as_asked() -> None:
    cpu = torch.device("cpu")
    assert plan.choose_precision("bf16", cpu) is torch.bfloat16 and plan.choose_precision("fp32", cpu) is torch.float32
    assert plan.choose_precision("auto", cpu) in (torch.bfloat16, torch.float32)


def test_the_plan_is_told_and_changes_nothing(tmp_path: Path) -> None:
    """Timing steps at the start leaves no trace in the result."""
    train(toy(dropout=0.1), options(tmp_path / "asked"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(toy(dropout=0.1), options(tmp_path / "timed", threads=None))
    finally:
        torch.set_num_threads(before)
    from tests.engine.compare import same

    assert same(tmp_path / "asked", tmp_path / "timed")
    assert re.search(r"1 CPU thread, about .* for 40 steps", (tmp_path / "timed" / "log.txt").read_text())


def test_bf16_runs_the_network_in_bfloat16() -> None:
    recipe, seen = toy(), []
    recipe.net[3].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    train(recipe, options(steps=2, precision="bf16"))
    assert set(seen) == {torch.bfloat16} and all(p.dtype == torch.float32 for p in recipe.parameters())


def test_checkpointing_is_switched_on_where_networks_can() -> None:
    recipe = toy()
    recipe.net.checkpointing = False
    recipe.networks = lambda: (recipe.net,)
    train(recipe, options(steps=1, checkpointing=True))
    assert recipe.net.checkpointing is True


@pytest.mark.parametrize(
    ("field", "value"), [("steps", 0), ("batch", 0), ("lr", 0.0), ("accumulate", 9), ("keep", 0), ("workers", -1)]
)
def test_impossible_options_are_refused(field: str, value: float) -> None:
    with pytest.raises(UserError, match=field):
        options(**{field: value})


def test_tensorboard_and_what_is_not_there(tmp_path: Path) -> None:
    train(toy(), options(tmp_path, report_to=("tensorboard",)))
    assert list((tmp_path / "tensorboard").glob("events*"))
    with pytest.raises(UserError, match="choose among"):
        train(toy(), options(tmp_path / "b", report_to=("nobody",)))
    with pytest.raises(UserError, match="pip install trackio"):
        train(toy(), options(tmp_path / "c", report_to=("trackio",)))
