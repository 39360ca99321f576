"""NaN, memory, and what a step must not do when something goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sfumato.engine import RunFolder, load, steps
from sfumato.engine.state import checkpoints, infinite, read_tensors
from sfumato.errors import UserError
from tests.engine.compare import difference, same
from tests.engine.toy import Pictures, build_toy, options, toy, train


def sound(out: Path) -> bool:
    """No file of any checkpoint holds a NaN."""
    found = checkpoints(RunFolder(out))
    return bool(found) and not any(
        infinite(read_tensors(file)) for folder in found for file in folder.glob("*.safetensors")
    )


def test_a_bad_step_is_skipped_and_named(tmp_path: Path) -> None:
    last = train(toy(nan=(5, 17)), options(tmp_path))[-1]
    log = (tmp_path / "log.txt").read_text()
    assert "step 6, with picture" in log and "step 18, with picture" in log and log.count("step skipped") == 2
    assert last.line["skipped"] == 2 and sound(tmp_path)


def test_a_skipped_step_changes_nothing() -> None:
    recipe = toy(nan=(20,))
    run, before = steps(recipe, Pictures(), options()), {}
    for step in run:
        now = {k: v.clone() for k, v in recipe.state_dict().items()}
        if step.step == 21:
            assert all(torch.equal(now[k], before[k]) for k in now)
            break
        assert step.step == 1 or any(not torch.equal(now[k], before[k]) for k in now)
        before = now
    run.close()


def test_a_bad_step_stops_the_run_when_asked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="step 18, with picture"):
        train(toy(nan=(17,)), options(tmp_path, on_nan="stop"))
    assert checkpoints(RunFolder(tmp_path))[0].name == "step_00000017" and sound(tmp_path)


@pytest.mark.parametrize("what", ["parameter", "gradient"])
def test_bad_numbers_are_caught_within_a_step(tmp_path: Path, what: str) -> None:
    recipe = toy()
    weight = recipe.net[0].weight
    run = steps(recipe, Pictures(), options(tmp_path))
    for step in run:
        if step.step == 23:
            break
    if what == "gradient":
        weight.register_hook(lambda g: torch.full_like(g, float("inf")))
        with pytest.raises(UserError, match="10 steps in a row"):
            list(run)
    else:
        weight.data[2, 2] = float("nan")
        with pytest.raises(UserError, match=r"Parameter net\.0\.weight is not finite"):
            list(run)
    assert sound(tmp_path)
    assert all(torch.isfinite(p).all() for p in load(tmp_path, builder=build_toy).parameters())


def test_a_bad_average_is_never_saved(tmp_path: Path) -> None:
    recipe = toy()
    run = steps(recipe, Pictures(), options(tmp_path))
    for step in run:
        if step.step == 23:
            break
    frame = run.gi_frame.f_locals["trainer"]
    frame.session.ema.tensors()["net.0.bias"][1] = float("inf")
    with pytest.raises(UserError, match=r"net\.0\.bias \(ema\) is not finite after step 28"):
        list(run)
    assert sound(tmp_path) and checkpoints(RunFolder(tmp_path))[0].name == "step_00000020"


def test_an_absurd_rate_is_explained(tmp_path: Path) -> None:
    """lr 1e30: the weights leave float32; the run ends with a reason and without a bad checkpoint."""
    with pytest.raises(UserError, match="--lr"):
        train(toy(), options(tmp_path, lr=1e38, warmup=0, save_every=1))
    assert not checkpoints(RunFolder(tmp_path)) or sound(tmp_path)


def test_out_of_memory_halves_the_micro_batch_and_nothing_else(tmp_path: Path) -> None:
    train(toy(phases=2, dropout=0.0), options(tmp_path / "small", batch=16, accumulate=8))
    train(toy(phases=2, limit=3), options(tmp_path / "auto", batch=16, auto_batch=True))
    log = (tmp_path / "auto" / "log.txt").read_text()
    assert "now 2, accumulated 8 times; the batch is still 16" in log
    assert same(tmp_path / "small", tmp_path / "auto")  # the failed attempts left no trace
    train(toy(phases=2), options(tmp_path / "whole", batch=16))
    assert difference(tmp_path / "whole", tmp_path / "auto") < 2e-5


def test_out_of_memory_says_what_helps(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--batch auto or --accumulate 2.*--checkpointing.*preset"):
        train(toy(limit=3), options(tmp_path))
    with pytest.raises(UserError, match="1 examples at a time"):
        recipe = toy(limit=1)
        recipe.config.__dict__["limit"] = 0.5
        train(recipe, options(tmp_path / "never", auto_batch=True))


def test_parameters_without_a_gradient_are_named(tmp_path: Path) -> None:
    recipe = toy()
    recipe.idle = torch.nn.Linear(2, 2)
    recipe.phases = lambda: {
        "model": __import__("sfumato.recipe", fromlist=["Phase"]).Phase(
            tuple(recipe.net.parameters()) + tuple(recipe.idle.parameters())
        )
    }
    train(recipe, options(tmp_path, steps=2))
    assert (
        "No gradient reaches 2 parameters of phase 'model', such as idle.weight" in (tmp_path / "log.txt").read_text()
    )


def test_a_phase_moves_only_its_own_parameters() -> None:
    """The critic's turn comes every second step; the generator's loss runs through the critic and must not move it."""
    recipe = toy(phases=2)
    start = recipe.other.weight.detach().clone()
    moved = []
    for _ in steps(recipe, Pictures(), options(steps=6)):
        moved.append(not torch.equal(recipe.other.weight, start))
        start = recipe.other.weight.detach().clone()
    assert moved == [True, False, True, False, True, False]


def test_more_batch_than_data_and_a_single_picture(tmp_path: Path) -> None:
    for n in (1, 3):
        last = train(toy(), options(batch=8), data=Pictures(n))[-1]
        assert last.loss < 0.5


def test_only_training_runs_compiled(tmp_path: Path) -> None:
    recipe, calls = toy(), []

    def compiled(*inputs: torch.Tensor) -> torch.Tensor:
        calls.append(recipe.training)
        return recipe.net._call_impl(*inputs)

    recipe.networks = lambda: (recipe.net,)
    recipe.net.compile = lambda: setattr(recipe.net, "_compiled_call_impl", compiled)
    train(recipe, options(tmp_path / "compiled", compile=True, evaluate_every=10, sample_every=10), held=Pictures(5))
    assert calls == [True] * 40
    train(toy(), options(tmp_path / "eager"))
    assert difference(tmp_path / "eager", tmp_path / "compiled") == 0


def test_a_compiler_that_fails_is_left_behind(tmp_path: Path) -> None:
    def broken(self: torch.nn.Module, *args: object, **kwargs: object) -> None:
        raise RuntimeError("no C++ compiler found")

    recipe = toy()
    recipe.networks = lambda: (recipe.net,)
    recipe.net.compile = lambda: setattr(recipe.net, "_compiled_call_impl", lambda *a, **k: broken(recipe.net))
    train(recipe, options(tmp_path / "broken", compile=True))
    train(toy(), options(tmp_path / "eager"))
    assert same(tmp_path / "eager", tmp_path / "broken")
    assert (
        "torch.compile failed (RuntimeError: no C++ compiler found): going on without it."
        in (tmp_path / "broken" / "log.txt").read_text()
    )
