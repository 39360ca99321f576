"""Long runs, dead processes, broken loaders and too little memory: what a run costs, and how it ends."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.engine import RunFolder, lifeline, order, state, steps
from sfumato.engine.state import checkpoints, read_state
from sfumato.errors import UserError
from tests.engine import toy as module
from tests.engine.compare import metrics, same
from tests.engine.test_distributed import Job, context, finish, port, ranks, wait_for
from tests.engine.toy import Pictures, options, toy, train

DIED = "has died without a word: killed, or out of memory? Go on from the last checkpoint with --resume."
ENDLESS = {"steps": 1_000_000, "save_every": 0, "log_every": 5, "slow": 0.005}


# -- a process dies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_process_ends_the_others_at_once(tmp_path: Path, victim: int) -> None:
    job = Job(tmp_path / "run", ENDLESS, 3)
    wait_for(tmp_path / "run" / "metrics.jsonl")
    job.kill(victim)
    began = time.monotonic()
    codes = job.end()
    print(f"process {victim} of 3 killed: the others ended in {time.monotonic() - began:.1f} s")
    assert codes == [-9 if rank == victim else 2 for rank in range(3)]
    assert time.monotonic() - began < 15
    assert victim == 0 or read_step(tmp_path / "run") >= 5, "what the first process had was not saved"
    for rank, said in enumerate(job.said):
        assert rank == victim or said == f"sfumato: Process {victim} of 3 (the first is 0) {DIED}\n"


def deaf(grace: float) -> None:
    """Does not come back from step 20 of its own accord, as one that waits for a GPU or samples for an hour."""
    lifeline.GRACE = grace
    inner = module.Toy.after

    def after(self: Any, at: Any, seen: Any) -> None:
        inner(self, at, seen)
        if at.step == 20:
            time.sleep(1000)

    module.Toy.after = after  # type: ignore[method-assign]


@pytest.mark.parametrize("grace", [1.0, pytest.param(lifeline.GRACE, marks=pytest.mark.slow)])
def test_also_those_that_do_not_listen(tmp_path: Path, grace: float) -> None:
    job = Job(tmp_path / "run", {**ENDLESS, "slow": 0.0}, twists={0: [partial(deaf, grace)]})
    wait_for(tmp_path / "run" / "metrics.jsonl")
    time.sleep(0.5)
    job.kill(1)
    began = time.monotonic()
    assert job.end(grace + 10) == [2, -9]
    print(f"a process that sleeps ended {time.monotonic() - began:.1f} s after the other was killed")
    assert time.monotonic() - began < 60
    assert job.said[0] == f"sfumato: Process 1 of 2 (the first is 0) {DIED}\n"


def command(words: list[str], world: dict[str, str], said: str, room: int = 0) -> None:
    """In a process of its own, with so many MB of memory (0: all)."""
    from sfumato.cli import sample, train  # noqa: F401  # imported before memory is short
    from sfumato.cli.main import main

    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    os.environ |= {**world, "SFUMATO_CACHE": f"{said}.cache"}
    torch.set_num_threads(1)
    if room:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + room * 1_000_000,) * 2)
    sys.exit(main(words))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "pictures.npz", image=draw.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8))
    return tmp_path / "pictures.npz"


def words(source: Path, out: Path, count: int) -> list[str]:
    fixed = "--config.network.widths 16 16 --batch 8 --sample-every 0 --log-every 5 --precision fp32 --threads 1"
    return ["train", "ddpm", str(source), "--out", str(out), "--steps", str(count), *fixed.split()]


@pytest.mark.parametrize("victim", [0, 1])
def test_the_command_line_says_one_sentence(tmp_path: Path, pictures: Path, victim: int) -> None:
    out = tmp_path / "run"
    both = [
        context.Process(target=command, args=(words(pictures, out, 100_000), world, str(tmp_path / world["RANK"])))
        for world in ranks(2)
    ]
    for process in both:
        process.start()
    wait_for(out / "metrics.jsonl", both)
    both[victim].kill()
    other = both[1 - victim]
    other.join(30)
    assert other.exitcode == 2
    said = (tmp_path / f"{1 - victim}").read_text()
    assert "Traceback" not in said
    assert said.splitlines()[-1] == f"sfumato: Process {victim} of 2 (the first is 0) {DIED}"


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [False, True])
def test_with_torchrun(tmp_path: Path, stop: bool) -> None:
    """It ends the others of a killed process by itself, and passes SIGTERM on."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port()}"]
    settings = [str(tmp_path / "run"), repr(ENDLESS)]
    run = subprocess.Popen([*launcher, "-m", "tests.engine.toy", *settings], stdout=subprocess.DEVNULL, stderr=-1)
    wait_for(tmp_path / "run" / "metrics.jsonl")
    began = time.monotonic()
    os.kill(run.pid if stop else children(run.pid)[1], signal.SIGTERM if stop else signal.SIGKILL)
    said = run.communicate(timeout=60)[1].decode()
    print(f"torchrun, {'SIGTERM' if stop else 'a worker killed'}: over in {time.monotonic() - began:.1f} s")
    assert checkpoints(RunFolder(tmp_path / "run")) or not stop, said
    finish(tmp_path / "run", {**ENDLESS, "steps": read_step(tmp_path / "run") + 5, "slow": 0.0})


def read_step(out: Path) -> int:
    return max([0, *(read_state(folder)["step"] for folder in checkpoints(RunFolder(out)))])


# -- one process is in trouble -----------------------------------------------------------------------------------------


def short_of_memory(most: int) -> None:
    inner = module.Toy.loss

    def loss(self: Any, batch: Any, at: Any) -> Any:
        if len(batch["image"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return inner(self, batch, at)

    module.Toy.loss = loss  # type: ignore[method-assign]


def nan_in(step: int) -> None:
    inner = module.Toy.loss

    def loss(self: Any, batch: Any, at: Any) -> Any:
        seen = inner(self, batch, at)
        return seen._replace(value=seen.value * (float("nan") if at.step == step else 1.0))

    module.Toy.loss = loss  # type: ignore[method-assign]


class Broken(Pictures):
    """Raises `error` where the position `at` of the run is asked for."""

    def __init__(self, error: Exception, at: int = 60) -> None:
        super().__init__()
        self.error, self.at = error, at

    def batch(self, indices: np.ndarray, rng: Any = None) -> dict[str, Any]:
        if rng is not None and self.at in rng.positions:
            raise self.error
        return super().batch(indices, rng)


def broken(error: Exception) -> None:
    module.Pictures = partial(Broken, error)  # type: ignore[misc, assignment]


def test_too_little_memory_in_one_process_makes_all_of_them_take_less(tmp_path: Path) -> None:
    settings = {"batch": 9, "steps": 20, "auto_batch": True}
    finish(tmp_path / "auto", settings, twists={1: [partial(short_of_memory, 2)]})
    finish(tmp_path / "asked", {**settings, "accumulate": 4})
    assert same(tmp_path / "auto", tmp_path / "asked")
    assert read_state(checkpoints(RunFolder(tmp_path / "auto"))[0])["accumulate"] == 4


@pytest.mark.parametrize(
    ("twist", "reason", "kept"),
    [
        (partial(short_of_memory, 2), "Out of memory with 4 examples at a time. What helps: smaller micro-batches", []),
        (partial(broken, OSError(5, "Input/output error", "cat.png")), "step 8 (picture", ["step_00000007"]),
    ],
    ids=["memory", "data"],
)
def test_the_others_say_why_one_has_stopped(tmp_path: Path, twist: Any, reason: str, kept: list[str]) -> None:
    job = Job(tmp_path / "run", {"batch": 8}, twists={1: [twist]})
    assert job.end(20) == [2, 2]
    assert [folder.name for folder in checkpoints(RunFolder(tmp_path / "run"))] == kept
    assert reason in job.said[1] and f"Process 1 of 2 (the first is 0) has stopped: {job.said[1][9:-2]}" in job.said[0]
    assert len(job.said[0].splitlines()) == 1


def counting() -> None:
    """Has a buffer that changes with every loss, as statistics of a batch do."""
    inner = module.Toy.loss

    def loss(self: Any, batch: Any, at: Any) -> Any:
        self.seen += 1
        return inner(self, batch, at)

    module.Toy.loss = loss  # type: ignore[method-assign]


def test_what_the_first_saves_when_another_stops_is_a_finished_step(tmp_path: Path) -> None:
    odd = {rank: [counting] for rank in range(2)}
    finish(tmp_path / "whole", {}, twists=odd)
    job = Job(tmp_path / "run", {"save_every": 0}, twists={**odd, 1: [counting, partial(broken, UserError("gone."))]})
    assert job.end(20) == [2, 2] and read_step(tmp_path / "run") == 7
    finish(tmp_path / "run", {}, twists=odd)
    assert same(tmp_path / "whole", tmp_path / "run")


def astray() -> None:
    """Sees no checkpoint: a file system that is shared late, or not at all."""
    state.last_good = lambda run, say: None  # type: ignore[assignment]


def test_all_go_on_from_the_same_checkpoint_or_none_does(tmp_path: Path) -> None:
    finish(tmp_path / "run", {"steps": 20})
    job = Job(tmp_path / "run", {"steps": 30}, twists={1: [astray]})
    assert job.end(20) == [2, 2] and all("do not see the same checkpoints" in said for said in job.said)


def test_a_nan_in_one_process_is_skipped_by_all(tmp_path: Path) -> None:
    finish(tmp_path / "skip", {}, twists={1: [partial(nan_in, 5)]})
    assert metrics(tmp_path / "skip")[-1]["skipped"] == 1
    job = Job(tmp_path / "stop", {"on_nan": "stop"}, twists={1: [partial(nan_in, 5)]})
    assert job.end(20) == [2, 2] and all("not finite in step 6" in said for said in job.said)


# -- the loader --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(5, "Input/output error", "cat.png"), r"failed: cat\.png: Input/output error\."),
        (MemoryError(), r"Out of memory while reading .* What helps: "),
        (UserError("cat.png has changed since the run began."), r"failed: cat\.png has changed since the run began\."),
    ],
    ids=["disk", "memory", "data"],
)
def test_a_loader_that_fails_ends_the_run_after_saving(
    tmp_path: Path, workers: int, error: Exception, why: str
) -> None:
    """With the step and its examples; mended and resumed the run is, to the bit, one that met nothing."""
    with pytest.raises(UserError, match=why) as caught:
        train(toy(), options(tmp_path / "run", workers=workers), data=Broken(error))
    names = [f"picture {i}" for i in order.Order(50, 8, 0).indices(7)]
    assert f"the examples of step 8 ({', '.join(names)})" in str(caught.value)
    assert [folder.name for folder in checkpoints(RunFolder(tmp_path / "run"))] == ["step_00000007"]
    train(toy(), options(tmp_path / "run", workers=workers), resume=True)
    train(toy(), options(tmp_path / "whole"))
    assert same(tmp_path / "whole", tmp_path / "run")


def test_a_defect_of_a_data_set_is_not_taken_for_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        train(toy(), options(tmp_path, workers=1), data=Broken(ZeroDivisionError()))
    assert "the examples of step 8 (picture" in caught.value.__notes__[0]


class Slow(Pictures):
    """0.8 s a batch from the ninth on; asks to stop soon after the tenth has begun."""

    asked = 0.0

    def batch(self, indices: np.ndarray, rng: Any = None) -> dict[str, Any]:
        if rng is not None and rng.positions[0] >= 64:
            time.sleep(0.1)
            if rng.positions[0] == 72:
                self.asked = time.monotonic()
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.7)
        return super().batch(indices, rng)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_stop_does_not_wait_for_a_slow_loader_to_save(tmp_path: Path, workers: int) -> None:
    """And to end it waits for no more than the batches in flight."""
    data = Slow()
    seen = [(step, time.monotonic()) for step in steps(toy(), data, options(tmp_path, workers=workers))]
    step, then = seen[-1]
    assert step.stopped == "SIGTERM" and step.saved and then - data.asked < (0.5 if workers else 1.2)
    assert time.monotonic() - data.asked < 1.2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sfumato")]


# -- twenty thousand steps ---------------------------------------------------------------------------------------------


def footprint() -> tuple[float, int, int]:
    """(MB in memory, open files, threads) of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return (
        pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        len(os.listdir("/proc/self/fd")),
        len(os.listdir("/proc/self/task")),
    )


def soak(out: Path, every: int, marks: list[int]) -> Iterator[tuple[float, int, int]]:
    often = {"save_every": every, "sample_every": every, "evaluate_every": every, "log_every": 50, "workers": 1}
    for step in steps(toy(), Pictures(), options(out, steps=marks[-1], **often), held=Pictures(9)):
        if step.step in marks:
            yield footprint()


@pytest.mark.parametrize(
    ("first", "last", "every"),
    [(500, 2000, 250), pytest.param(2000, 20_000, 1000, marks=pytest.mark.slow)],
)
def test_steps_grow_neither_memory_nor_open_files_nor_threads(
    tmp_path: Path, first: int, last: int, every: int
) -> None:
    before, after = soak(tmp_path, every, [first, last])
    print(f"steps {first} to {last}: {after[0] - before[0]:+.1f} MB, {before[1:]} -> {after[1:]} files and threads")
    assert after[0] - before[0] < 20 and after[1:] == before[1:]
    ballast = b"." * 64_000_000  # so large that the allocator asks the system
    assert footprint()[0] - after[0] > 20 and ballast  # the measure can fail


# -- too little memory -------------------------------------------------------------------------------------------------

SHORT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"),
    MemoryError("Unable to allocate 1 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
    RuntimeError("could not create a primitive"),
]


@pytest.mark.parametrize("error", SHORT, ids=lambda error: f"{type(error).__name__} {str(error)[:10]}")
def test_too_little_memory_names_what_helps(
    tmp_path: Path,
    pictures: Path,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from sfumato.cli.main import main
    from sfumato.papers import ddpm

    def fail(*_: object, **__: object) -> None:
        raise error

    recipe = toy()
    recipe.loss = fail  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"--batch auto or --accumulate 2.*--checkpointing.*preset"):
        train(recipe, options(tmp_path / "toy"))
    recipe = toy()
    recipe.sample = fail  # type: ignore[method-assign]
    assert train(recipe, options(tmp_path / "pictures", sample_every=10))[-1].step == 40
    assert "The pictures of step 10 do not fit" in (tmp_path / "pictures" / "log.txt").read_text()
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    assert main(words(pictures, tmp_path / "run", 1)) == 0
    capsys.readouterr()
    monkeypatch.setattr(ddpm.DDPM, "sample", fail)
    assert main(["sample", str(tmp_path / "run"), "--n", "8", "--threads", "1"]) == 2
    said = capsys.readouterr().err
    assert said == "sfumato: out of memory with 8 at once. What helps: --batch 4, --precision bf16, a smaller --size.\n"


@pytest.mark.slow
@pytest.mark.parametrize("room", [200, 500, 1000])
def test_real_shortage(tmp_path: Path, pictures: Path, room: int) -> None:
    """Of address space, as `ulimit -v` makes it: 64 pictures of 512 x 512 through 16 channels take 1.1 GB a layer."""
    said, out = tmp_path / "said", tmp_path / "run"
    for line, megabytes, code in [
        (words(pictures, out, 1), 0, 0),
        (["sample", str(out), "--batch", "64", "--size", "512", "--steps", "2", "--threads", "1"], room, 2),
    ]:
        process = context.Process(target=command, args=(line, {}, str(said), megabytes))
        process.start()
        process.join(60)
        assert process.exitcode == code, said.read_text()
    *_, last = said.read_text().splitlines()
    assert last == "sfumato: out of memory with 64 at once. What helps: --batch 32, --precision bf16, a smaller --size."
