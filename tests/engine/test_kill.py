"""kill -9 at named and at random moments; then the resumed run must be, to the bit, the one that was left alone."""

from __future__ import annotations

import multiprocessing as mp
import random
import time
from pathlib import Path

import pytest

from sfumato.engine import RunFolder, files, load
from sfumato.engine.state import checkpoints
from tests.engine import toy as module
from tests.engine.compare import difference, same

SETTINGS = {"steps": 60, "save_every": 6, "keep": 2, "log_every": 5, "accumulate": 2, "workers": 1, "slow": 0.004}
POINTS = (
    "before fsync optim.safetensors@2",
    "after fsync manifest.json@3",
    "before rename folder@2",
    "after rename folder@4",
    "before rename latest@3",
    "after rename latest@2",
    "half removed@1",
    "written model.safetensors@5",
    "between renames@1",
    "before fsync state.json@4",
)

context = mp.get_context("forkserver")
context.set_forkserver_preload(["tests.engine.toy", "sfumato.engine.evaluate", "PIL.Image"])


def child(out: str, settings: dict, point: str) -> None:
    files._kill, _, files._nth = point.partition("@")
    module.torch.set_num_threads(1)
    module.main(out, repr(settings))


def start(out: Path, settings: dict, point: str = "") -> mp.process.BaseProcess:
    process = context.Process(target=child, args=(str(out), settings, point))
    process.start()
    return process


def finish(out: Path, settings: dict) -> float:
    began = time.monotonic()
    process = start(out, settings)
    process.join(60)
    assert process.exitcode == 0
    return time.monotonic() - began


def harness(tmp_path: Path, settings: dict, kills: int, seed: int) -> int:
    """Returns how many kills hit a running process."""
    draw, hits = random.Random(seed), 0
    finish(tmp_path / "whole", settings)  # warms the fork server
    seconds = finish(tmp_path / "clock", settings)
    run = 0
    for k in range(kills):
        out = tmp_path / f"run{run}"
        process = start(out, settings, POINTS[k // 2 % len(POINTS)] if k % 2 else "")
        process.join(30 if k % 2 else draw.uniform(0.15, 0.9) * seconds)
        process.kill()
        process.join()
        hits += process.exitcode == -9
        if (out / "checkpoints").exists():
            assert not [p for p in checkpoints(RunFolder(out)) if not (p / "manifest.json").exists()], (
                "a half-written checkpoint"
            )
        if process.exitcode == 0 or k % 3 == 2:  # every third kill the run may come to its end
            finish(out, settings)
            assert same(tmp_path / "whole", out)
            run += 1
    return hits


def test_ten_kills(tmp_path: Path) -> None:
    assert harness(tmp_path, SETTINGS, 10, seed=0) >= 7
    finish(tmp_path / "other", {**SETTINGS, "seed": 1})
    assert difference(tmp_path / "whole", tmp_path / "other") > 1e-3  # the comparison can fail


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"accumulate": 1}, {"workers": 0}, {"workers": 2}, {"precision": "bf16"}, {"recipe": {"phases": 2}}]
)
def test_a_hundred_kills(tmp_path: Path, changes: dict) -> None:
    kills = 100 if not changes else 20
    assert harness(tmp_path, {**SETTINGS, **changes}, kills, seed=1) >= 0.75 * kills


def test_a_kill_while_an_outgrown_final_goes(tmp_path: Path) -> None:
    """`load` gives the newest whole model at every moment, and what is half deleted is swept."""
    settings = {**SETTINGS, "keep": 99, "save_every": 10, "slow": 0.0}
    finish(tmp_path / "whole", settings)
    finish(tmp_path / "run", {**settings, "steps": 20})
    process = start(tmp_path / "run", settings, "half removed@1")
    process.join(60)
    assert process.exitcode == -9 and (tmp_path / "run" / ".tmp-gone-final").exists()
    assert load(tmp_path / "run", builder=module.build_toy).seen == 30
    finish(tmp_path / "run", settings)
    assert not list((tmp_path / "run").rglob(".tmp-*"))
    final = [tmp_path / out / "final" / "model.safetensors" for out in ("run", "whole")]
    assert final[0].read_bytes() == final[1].read_bytes()


def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    import os
    import signal

    process = start(tmp_path, {**SETTINGS, "accumulate": 1, "slow": 3.0})
    deadline = time.monotonic() + 30
    while not (tmp_path / "config.yaml").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGTERM)
    process.join(1.5)
    assert process.exitcode == 143


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 75)])
def test_a_signal_ends_the_process_with_its_code_and_a_checkpoint(tmp_path: Path, name: str, code: int) -> None:
    import os
    import signal

    process = start(tmp_path, {**SETTINGS, "save_every": 0, "slow": 0.03})
    deadline = time.monotonic() + 30
    while not (tmp_path / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, getattr(signal, name))
    process.join(5)
    assert process.exitcode == code and len(checkpoints(RunFolder(tmp_path))) == 1
