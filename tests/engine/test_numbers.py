"""NaN, memory, and what a step must not do when something goes wrong."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from sfumato.engine import RunFolder, load, steps
from sfumato.engine.backward import reproducible
from sfumato.engine.state import checkpoints, infinite, read_tensors
from sfumato.errors import UserError
from sfumato.recipe import At, Loss, Phase, Recipe
from tests.engine.compare import difference, same
from tests.engine.toy import Config, Pictures, Toy, build_toy, options, toy, train


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
    assert "Ended: The loss or its gradient is not finite in step 18" in (tmp_path / "log.txt").read_text()


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
    with pytest.raises(UserError, match=r"net\.0\.bias \(ema\) is not finite after step 24"):
        list(run)
    assert sound(tmp_path) and checkpoints(RunFolder(tmp_path))[0].name == "step_00000020"


class Harm:
    """Puts a NaN or an infinity somewhere while step `at` is under way."""

    def __init__(self, recipe: Toy, what: str, at: int, value: float) -> None:
        self.recipe, self.what, self.at, self.value = recipe, what, at, value
        self.inner, recipe.loss = recipe.loss, self.loss

    def loss(self, batch: dict, at: At) -> Loss:
        seen = self.inner(batch, at)
        if at.step != self.at:
            return seen
        if self.what == "loss":
            wrong = torch.ones(len(seen.per_sample))
            wrong[3] = self.value
            return Loss(seen.value * wrong.mean(), seen.scalars, seen.per_sample * wrong, seen.t)
        if self.what == "gradient":
            return seen._replace(value=seen.value + (self.recipe.net[0].bias[5] * self.value))
        return seen


@pytest.mark.parametrize("what", ["loss", "gradient", "parameter", "idle parameter", "average", "moment"])
@pytest.mark.parametrize("times", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_bad_numbers_at_random_steps(tmp_path: Path, what: str, times: int) -> None:
    """Caught within one step; the run skips it or ends; no checkpoint is ever bad."""
    draw = random.Random(what)
    for k in range(times):
        at, value = draw.randrange(1, 38), draw.choice([float("nan"), float("inf"), float("-inf")])
        out, recipe = tmp_path / str(k), toy()
        recipe.spare = torch.nn.Parameter(torch.ones(3))
        recipe.phases = lambda recipe=recipe: {"model": Phase((*recipe.net.parameters(), recipe.spare))}
        Harm(recipe, what, at, value)
        run = steps(recipe, Pictures(), options(out, save_every=3, log_every=1))
        caught = None
        try:
            for step in run:
                session = run.gi_frame.f_locals["trainer"].session
                if session.skipped and caught is None:
                    caught = step.step
                if step.step == at:  # between two steps
                    if what == "parameter":
                        recipe.net[0].weight.data[4, 4] = value
                    elif what == "idle parameter":  # an average of weights that no loss sees
                        recipe.spare.data[1] = value
                    elif what == "average":
                        session.ema.tensors()["net.3.weight"][1, 1] = value
                    elif what == "moment":
                        session.units[0].optimiser._first[0][2, 2] = value
        except UserError as problem:
            assert "not finite" in str(problem)
            caught = session.step + 1
        if what in ("loss", "gradient"):
            assert step.step == 40 and step.line["skipped"] == 1 and caught == at + 1
            names = (
                (out / "log.txt")
                .read_text()
                .split(f"in step {at + 1}, with ")[1]
                .split(": step skipped")[0]
                .split(", ")
            )
            assert all(name in Pictures().names for name in names) and len(names) == (1 if what == "loss" else 8)
        else:
            assert caught is not None and at + 1 <= caught <= at + 2, (what, at, caught)
        assert not checkpoints(RunFolder(out)) or sound(out)


def test_a_rate_of_a_thousand_is_bounded_and_explained(tmp_path: Path) -> None:
    try:
        train(toy(), options(tmp_path, lr=1e3, warmup=0, save_every=5, log_every=5))
    except UserError as problem:
        assert "--lr" in str(problem)
    assert "lower --lr (1000)" in (tmp_path / "log.txt").read_text() and sound(tmp_path)


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


@pytest.mark.parametrize("phase", ["generator", "critic"])
def test_a_phase_that_is_never_finite_stops_the_run(tmp_path: Path, phase: str) -> None:
    """However healthy the other one is."""
    recipe = toy(phases=2)
    sick = recipe.phases()[phase].parameters[0]
    sick.register_hook(lambda g: torch.full_like(g, float("nan")) if sick is watched["now"] else g)
    watched: dict[str, torch.Tensor] = {}
    inner = recipe.loss

    def loss(batch, at):
        watched["now"] = recipe.phases()[at.phase].parameters[0]
        return inner(batch, at)

    recipe.loss = loss
    with pytest.raises(UserError, match=rf"10 steps in a row had no finite gradient \(phase '{phase}'\)"):
        train(recipe, options(tmp_path))
    assert (tmp_path / "log.txt").read_text().count("step skipped") == 10 and sound(tmp_path)


class Bare(Toy):
    """Nothing but parameters changes."""

    after = Recipe.after

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        for name in ("seen", "history", "table"):
            delattr(self, name)


class Mindful(Bare):
    """No buffer, but what `after` is told lives on."""

    def after(self, at: At, seen: Loss) -> None:
        self.told = [*getattr(self, "told", ()), float(seen.value)]


def asked_late(recipe: Toy, **changes: object) -> dict[int, tuple[int, dict[str, torch.Tensor]]]:
    """(skipped, state) after each step of a run whose verdicts are awaited as a GPU's are."""
    run, out = steps(recipe, Pictures(), options(**changes)), {}
    for step in run:
        session = run.gi_frame.f_locals["trainer"].session
        session.asynchronous = True
        out[step.step] = session.skipped, {k: v.clone() for k, v in recipe.state_dict().items()}
    return out


def test_what_a_bad_step_could_hurt_is_judged_within_it() -> None:
    buffered = asked_late(toy(nan=(20,)))
    assert all(torch.equal(v, buffered[20][1][k]) for k, v in buffered[21][1].items()) and buffered[21][0] == 1
    assert buffered[40][1]["seen"] == 39 and torch.isfinite(buffered[40][1]["history"]).all()
    mindful = Mindful(Config(nan=(20,)))
    asked_late(mindful)
    assert len(mindful.told) == 39 and torch.isfinite(torch.tensor(mindful.told)).all()


def test_parameters_alone_are_judged_a_step_later() -> None:
    late, now = Bare(Config(nan=(20,))), Bare(Config(nan=(20,)))
    now.load_state_dict(late.state_dict())
    seen = asked_late(late, log_every=100)  # a line waits for every verdict
    train(now, options())
    assert [seen[n][0] for n in (20, 21, 22)] == [0, 0, 1]
    assert all(torch.equal(v, seen[20][1][k]) for k, v in seen[21][1].items())
    assert all(torch.equal(v, now.state_dict()[k]) for k, v in late.state_dict().items())


def test_a_late_verdict_that_ends_a_run_saves_no_half_step(tmp_path: Path) -> None:
    """Steps 12 to 21 are bad; the last of them is known of when step 22 has changed the parameters."""
    with pytest.raises(UserError, match="10 steps in a row"):
        asked_late(Bare(Config(nan=tuple(range(11, 21)))), out=tmp_path, save_every=10, log_every=100)
    assert checkpoints(RunFolder(tmp_path))[0].name == "step_00000020"
    with pytest.raises(UserError, match="step 18, with picture"):
        asked_late(Bare(Config(nan=(17,))), out=tmp_path / "stop", on_nan="stop", log_every=100)
    assert checkpoints(RunFolder(tmp_path / "stop"))[0].name == "step_00000017"


@pytest.mark.parametrize("device", [torch.device("cpu"), torch.device("cpu", 0)])
def test_only_the_generators_that_are_restored_are_seeded(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("another device's generator is seeded")

    for name in ("cuda.manual_seed", "cuda.manual_seed_all", "mps.manual_seed", "xpu.manual_seed_all"):
        monkeypatch.setattr(f"torch.{name}", refuse)
    before, drawn = torch.get_rng_state(), []
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), reproducible(device, 3, "dropout"):
            drawn.append(torch.rand(5))
            raise ZeroDivisionError
    assert torch.equal(*drawn) and torch.equal(torch.get_rng_state(), before)
    with reproducible(device, 3, "other"):
        assert not torch.equal(torch.rand(5), drawn[0])
