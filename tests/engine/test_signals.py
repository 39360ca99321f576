"""A run that is asked to stop does so soon, keeps its last step, says so, and goes on later as if nothing had been."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sfumato.engine import RunFolder, steps
from sfumato.engine.state import checkpoints, read_state
from tests.engine.compare import metrics, same
from tests.engine.test_kill import SHORT, start
from tests.engine.toy import Pictures, options, toy, train

NAMES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 75}


def until(ready: Path) -> None:
    deadline = time.monotonic() + 30
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.parametrize(("name", "code"), NAMES.items())
def test_a_signal_ends_the_process_with_its_code_and_a_checkpoint(tmp_path: Path, name: str, code: int) -> None:
    process, _ = start(tmp_path, {**SHORT, "save_every": 0, "slow": 0.03})
    until(tmp_path / "metrics.jsonl")
    os.kill(process.pid, getattr(signal, name))
    process.join(5)
    assert process.exitcode == code and len(checkpoints(RunFolder(tmp_path))) == 1


def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    process, _ = start(tmp_path, {**SHORT, "accumulate": 1, "slow": 3.0})
    until(tmp_path / "config.yaml")
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGTERM)
    process.join(1.5)
    assert process.exitcode == 143


def test_a_signal_before_the_first_step_is_not_lost(tmp_path: Path) -> None:
    recipe = toy()
    inner = recipe.train

    def slowly(mode: bool = True) -> torch.nn.Module:
        os.kill(os.getpid(), signal.SIGTERM)
        recipe.train = inner
        return inner(mode)

    recipe.train = slowly
    last = train(recipe, options(tmp_path / "run"))[-1]
    assert (last.step, last.stopped) == (0, "SIGTERM")
    train(toy(), options(tmp_path / "run"), resume=True)
    train(toy(), options(tmp_path / "whole"))
    assert same(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("where", ["held", "preview"])
@pytest.mark.parametrize("at", [20, 40])
def test_a_look_that_is_cut_short_is_taken_when_the_run_goes_on(tmp_path: Path, where: str, at: int) -> None:
    """Pictures and held-out losses of a large model take minutes; a signal does not wait for them."""
    chosen = {"evaluate_every": 20, "sample_every": 20, "batch": 8}
    train(toy(), options(tmp_path / "whole", **chosen), held=Pictures(30))
    recipe = toy()
    inner = recipe.loss if where == "held" else recipe.predict
    asked = []

    def work(*args: object) -> object:
        if not recipe.training and recipe.seen == at and not asked:
            asked.append(os.kill(os.getpid(), signal.SIGINT))
        assert len(asked) < 2
        return inner(*args)

    setattr(recipe, "loss" if where == "held" else "predict", work)
    last = train(recipe, options(tmp_path / "run", **chosen), held=Pictures(30))[-1]
    assert (last.step, last.stopped, last.held, last.grid) == (at, "SIGINT", None, None)
    assert read_state(checkpoints(RunFolder(tmp_path / "run"))[0])["owed"]
    train(toy(), options(tmp_path / "run", **chosen), held=Pictures(30), resume=True)
    assert same(tmp_path / "whole", tmp_path / "run")
    grids = [sorted((tmp_path / out / "samples").glob("*.png")) for out in ("whole", "run")]
    assert [p.name for p in grids[0]] == [p.name for p in grids[1]]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*grids, strict=True))


def test_a_look_that_was_taken_twice_leaves_one_line(tmp_path: Path) -> None:
    """kill -9 after the look that was owed, before a checkpoint knows that it was taken."""
    chosen = {"evaluate_every": 20, "save_every": 0}
    recipe = toy()
    inner = recipe.loss
    recipe.loss = lambda batch, at: (recipe.training or os.kill(os.getpid(), signal.SIGINT), inner(batch, at))[1]
    train(recipe, options(tmp_path / "run", **chosen), held=Pictures(9))
    shutil.copytree(tmp_path / "run" / "checkpoints", tmp_path / "kept")
    next(steps(toy(), Pictures(), options(tmp_path / "run", **chosen), held=Pictures(9), resume=True))
    assert "held" in (tmp_path / "run" / "metrics.jsonl").read_text()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(tmp_path / "kept", tmp_path / "run" / "checkpoints")
    train(toy(), options(tmp_path / "run", **chosen), held=Pictures(9), resume=True)
    train(toy(), options(tmp_path / "whole", **chosen), held=Pictures(9))
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_the_answer_says_how_long_it_takes(tmp_path: Path) -> None:
    code = (
        "import tests.engine.toy as t, sys, pathlib\n"
        f"t.main({str(tmp_path / 'run')!r}, repr(dict(steps=60, slow=2.5, quiet=False, save_every=0)))"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=env)
    until(tmp_path / "run" / "config.yaml")
    time.sleep(4)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    took = time.monotonic() - asked
    assert process.returncode == 130 and took < 4
    assert "SIGINT: stopping after this micro-batch, in about 3 s, and saving. Once more leaves at once." in err
    assert "Go on with: sfumato train --resume" in err


@pytest.mark.slow
@pytest.mark.parametrize(("data", "preset", "extra"), [("glyphs", "tiny", []), ("digits", "small", ["--size", "32"])])
def test_signals_at_any_time_are_answered_within_five_seconds(
    tmp_path: Path, data: str, preset: str, extra: list[str]
) -> None:
    """The demo's model and `small`, through the command line, previews and held-out losses included."""
    waits = []
    command = [sys.executable, "-m", "sfumato", "train", "ddpm", data, "--preset", preset, "--out", str(tmp_path / "r")]
    command += [*extra, "--sample-every", "2", "--evaluate-every", "2", "--save-every", "3"]
    for k in range(12):
        resume = [*command[:4], "--resume", str(tmp_path / "r")]
        process = subprocess.Popen(resume if k else command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        until(tmp_path / "r" / "config.yaml")
        time.sleep(9 + 1.7 * (k % 7))
        name = list(NAMES)[k % 3]
        asked = time.monotonic()
        process.send_signal(getattr(signal, name))
        _, err = process.communicate(timeout=60)
        waits.append(round(time.monotonic() - asked, 2))
        assert process.returncode == NAMES[name], err
    print(data, preset, "seconds from signal to exit:", waits)
    assert max(waits) < 5
