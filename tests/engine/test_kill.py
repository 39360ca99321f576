"""kill -9 at named and at random moments; then the resumed run must be, to the bit, the one that was left alone."""

from __future__ import annotations

import multiprocessing as mp
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sfumato.engine import RunFolder, files, load
from sfumato.engine.state import checkpoints, last_good
from tests.engine import toy as module
from tests.engine.compare import difference, same

LONG = {"steps": 400, "save_every": 20, "keep": 2, "log_every": 7, "sample_every": 130, "slow": 0.002}
SHORT = {**LONG, "steps": 60, "save_every": 6, "log_every": 5, "sample_every": 0, "accumulate": 2, "workers": 1}
POINTS = (
    "before fsync model.safetensors",
    "after fsync model.safetensors",
    "written ema.safetensors",
    "before fsync optim.safetensors",
    "after fsync optim.safetensors",
    "before fsync state.json",
    "after fsync config.yaml",
    "before fsync manifest.json",
    "after fsync manifest.json",
    "before rename folder",
    "after rename folder",
    "before fsync .tmp-latest",
    "before rename latest",
    "after rename latest",
    "half removed",
)

context = mp.get_context("forkserver")
context.set_forkserver_preload(["tests.engine.toy", "sfumato.engine.evaluate"])


def child(out: str, settings: dict[str, Any], point: str, seen: Any) -> None:
    files._kill, _, files._nth = point.partition("@")
    module.torch.set_num_threads(1)
    module.main(out, repr(settings), lambda step: setattr(seen, "value", step))


def start(out: Path, settings: dict[str, Any], point: str = "") -> tuple[mp.process.BaseProcess, Any]:
    """(the process, the step it has finished)."""
    seen = context.Value("i", 0)
    process = context.Process(target=child, args=(str(out), settings, point, seen))
    process.start()
    return process, seen


def finish(out: Path, settings: dict[str, Any]) -> None:
    process, _ = start(out, settings)
    process.join(120)
    assert process.exitcode == 0


@dataclass
class Kills:
    """Ends runs of `settings` in `folder` and looks at what is left."""

    folder: Path
    settings: dict[str, Any]
    draw: random.Random
    hits: int = 0
    runs: int = 0
    named: set[str] = field(default_factory=set)

    @property
    def out(self) -> Path:
        return self.folder / f"run{self.runs}"

    def done(self) -> int:
        found = checkpoints(RunFolder(self.out)) if self.out.exists() else []
        return int(found[0].name[5:]) if found else 0

    def at_random(self) -> None:
        """Anywhere in the steps that are left, also before the first and inside a save."""
        if self.done() >= self.settings["steps"] - 1:  # the last kill came after the last step
            self.compare()
        target = self.draw.randrange(self.done(), self.settings["steps"] - 1)
        process, seen = start(self.out, self.settings)
        deadline = time.monotonic() + 60
        while seen.value < target and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(self.draw.uniform(0, 2 * self.settings["slow"] + 0.004))
        self._end(process)

    def at_point(self, name: str) -> None:
        """In one of the next saves; of the next run, if this one has none left."""
        process, _ = start(self.out, self.settings, f"{name}@{self.draw.randint(1, 3)}")
        process.join(60)
        hit = process.exitcode == -9
        self._end(process)
        if hit:
            self.named.add(name)
        else:
            self.at_point(name)

    def _end(self, process: mp.process.BaseProcess) -> None:
        process.kill()
        process.join()
        self.hits += process.exitcode == -9
        self.look()
        if process.exitcode == 0:
            self.compare()

    def look(self) -> None:
        """Every checkpoint is whole; one that was there is there still, or a newer one."""
        run, said = RunFolder(self.out), list[str]()
        if run.checkpoints.exists():
            last_good(run, said.append)
        assert not said, said
        assert self.done() or not (run.checkpoints / "latest").exists(), "the last good checkpoint is gone"

    def compare(self) -> None:
        """Let the run come to its end."""
        finish(self.out, self.settings)
        assert same(self.folder / "whole", self.out)
        self.runs += 1


def harness(folder: Path, settings: dict[str, Any], kills: int, named: int, *, seed: int) -> Kills:
    finish(folder / "whole", settings)
    draw = random.Random(seed)
    chaos = Kills(folder, settings, draw)
    points = (POINTS * (named // len(POINTS) + 1))[:named]
    moments: list[Callable[[], None]] = [lambda p=p: chaos.at_point(p) for p in points]  # type: ignore[misc]
    moments += [chaos.at_random] * (kills - named)
    draw.shuffle(moments)
    for k, moment in enumerate(moments):
        moment()
        if k % 4 == 3 and chaos.out.exists():
            chaos.compare()
    print(f"{settings}: {chaos.hits} of {kills} hit, {chaos.runs} runs compared, {len(chaos.named)} points")
    return chaos


def test_eight_kills(tmp_path: Path) -> None:
    chaos = harness(tmp_path, SHORT, 8, 4, seed=0)
    assert chaos.hits >= 7 and chaos.runs >= 2
    finish(tmp_path / "other", {**SHORT, "seed": 1})
    assert difference(tmp_path / "whole", tmp_path / "other") > 1e-3  # the comparison can fail


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate": 2},
        {"workers": 0},
        {"workers": 2},
        {"precision": "bf16"},
        {"recipe": {"phases": 2, "dropout": 0.1}},
    ],
    ids=str,
)
def test_a_hundred_kills(tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = {**LONG, "workers": 1, **changes}
    chaos = harness(tmp_path, settings, *((20, 6) if changes else (100, 30)), seed=1)
    assert chaos.hits >= (18 if changes else 90)
    assert changes or chaos.named == set(POINTS)


@pytest.mark.slow
def test_rotation_never_deletes_the_last_good_checkpoint(tmp_path: Path) -> None:
    """A hundred kills of a run that keeps one checkpoint and saves every second step."""
    settings = {**LONG, "save_every": 2, "keep": 1, "workers": 0, "steps": 2000, "slow": 0.0, "sample_every": 0}
    chaos = Kills(tmp_path, settings, random.Random(2))
    for k in range(100):
        before = chaos.done()
        process, seen = start(chaos.out, settings, f"{POINTS[-1 - k % 6]}@{1 + k % 3}" if k % 2 else "")
        deadline = time.monotonic() + 60
        while seen.value < before + 8 and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(chaos.draw.uniform(0, 0.02))
        chaos._end(process)
        assert chaos.done() >= before
    print(f"rotation: {chaos.hits} of 100 hit, at step {chaos.done()}")
    assert chaos.hits >= 90


def test_a_kill_while_an_outgrown_final_goes(tmp_path: Path) -> None:
    """`load` gives the newest whole model at every moment, and what is half deleted is swept."""
    settings = {**SHORT, "keep": 99, "save_every": 10, "slow": 0.0}
    finish(tmp_path / "whole", settings)
    finish(tmp_path / "run", {**settings, "steps": 20})
    process, _ = start(tmp_path / "run", settings, "half removed@1")
    process.join(60)
    assert process.exitcode == -9 and (tmp_path / "run" / ".tmp-gone-final").exists()
    assert load(tmp_path / "run", builder=module.build_toy).seen == 30
    finish(tmp_path / "run", settings)
    assert not list((tmp_path / "run").rglob(".tmp-*"))
    final = [tmp_path / out / "final" / "model.safetensors" for out in ("run", "whole")]
    assert final[0].read_bytes() == final[1].read_bytes()
