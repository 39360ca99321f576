"""Several processes are one process with the whole batch, to rounding; killed and resumed, they are themselves, to the
bit; and their number may change on the way."""

from __future__ import annotations

import ast
import multiprocessing as mp
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.engine import RunFolder, distributed, files
from sfumato.engine.order import Order
from sfumato.engine.plan import choose_device
from sfumato.engine.state import checkpoints
from sfumato.errors import UserError
from tests.engine import toy as module
from tests.engine.compare import difference, metrics, same

SETTINGS = {"steps": 60, "batch": 9, "save_every": 6, "keep": 2, "log_every": 5, "workers": 1, "slow": 0.004}
ROUNDING = 2e-5  # float32 sums in another order, 40 to 60 steps; another seed is off by more than 1e-3
POINTS = (
    "after rename folder",
    "before fsync optim.safetensors",
    "before rename latest",
    "after rename latest",
    "half removed",
    "written ema.safetensors",
    "after fsync manifest.json",
    "before rename folder",
    "before fsync state.json",
    "after fsync model.safetensors",
)
Twist = Callable[[], None]
Twists = Mapping[int, Sequence[Twist]]  # rank: what is odd about it

context = mp.get_context("forkserver")
context.set_forkserver_preload(["tests.engine.toy", "sfumato.engine.evaluate"])


def child(out: str, settings: dict[str, Any], world: dict[str, str], said: str, twists: Sequence[Twist]) -> None:
    """One of the processes; what it says goes to a file."""
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.environ |= world
    torch.set_num_threads(1)
    for twist in twists:
        twist()
    try:
        module.main(out, repr(settings), lambda step: None)
    except UserError as problem:
        print(f"sfumato: {problem}", file=sys.stderr)
        sys.exit(2)


def killed_at(point: str) -> None:
    files._kill, _, files._nth = point.partition("@")


def announced(file: Path) -> None:
    """Makes a file when it trains."""
    inner = module.Toy.after

    def after(self: Any, at: Any, seen: Any) -> None:
        file.touch()
        inner(self, at, seen)

    module.Toy.after = after  # type: ignore[method-assign]


def recorded(file: Path) -> None:
    """Writes down what is trained on: the step, positions in the run, examples."""
    inner = module.Toy.loss

    def loss(self: Any, batch: Any, at: Any) -> Any:
        with file.open("a") as out:
            print([at.step, list(at.rng.positions), batch["index"].tolist()], file=out)
        return inner(self, batch, at)

    module.Toy.loss = loss  # type: ignore[method-assign]


def port(first: int = 0) -> int:
    """A free one, from `first` on."""
    for number in range(first, first + 1000):
        with socket.socket() as free:
            try:
                free.bind(("127.0.0.1", number))
            except OSError:
                continue
            return int(free.getsockname()[1])
    raise AssertionError("no port is free")


def ranks(size: int) -> list[dict[str, str]]:
    """The environment of each process, as torchrun makes it."""
    world = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port())}
    return [{**world, "RANK": str(rank)} for rank in range(size)]


class Job:
    """Processes of one run, started without a launcher."""

    def __init__(
        self,
        out: Path,
        settings: dict[str, Any],
        worlds: int | list[dict[str, str]] = 2,
        *,
        twists: Twists | None = None,
    ) -> None:
        worlds = ranks(worlds) if isinstance(worlds, int) else worlds
        self._said = [out.with_name(f"{out.name}.{rank}.txt") for rank in range(len(worlds))]
        self.ranks = [
            context.Process(target=child, args=(str(out), settings, world, str(said), (twists or {}).get(rank, ())))
            for rank, (world, said) in enumerate(zip(worlds, self._said, strict=True))
        ]
        for process in self.ranks:
            process.start()

    def end(self, seconds: float = 60) -> list[int | None]:
        """The exit codes; None: not within so many seconds."""
        deadline = time.monotonic() + seconds
        for process in self.ranks:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.ranks]
        for process in self.ranks:
            process.kill()
            process.join()
        return codes

    def kill(self, *which: int) -> None:
        for rank in which:
            self.ranks[rank].kill()

    @property
    def said(self) -> list[str]:
        return [file.read_text() for file in self._said]


def finish(out: Path, settings: dict[str, Any], size: int = 2, **more: Any) -> None:
    job = Job(out, settings, size, **more)
    assert job.end() == [0] * size, job.said


def wait_for(path: Path, processes: Sequence[Any] = ()) -> None:
    """Until the processes have made it."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline and all(p.exitcode is None for p in processes), f"there is no {path}"
        time.sleep(0.005)


@pytest.mark.parametrize("settings", [{"batch": 9, "accumulate": 2}, {"recipe": {"phases": 2}, "clip": 0.05}], ids=str)
def test_two_processes_equal_one(tmp_path: Path, settings: dict) -> None:
    finish(tmp_path / "two", settings)
    changes = {k: v for k, v in settings.items() if k != "recipe"}
    module.train(module.toy(**settings.get("recipe", {})), module.options(tmp_path / "one", **changes))
    assert 0 < difference(tmp_path / "one", tmp_path / "two") < ROUNDING
    assert [line["order"] for line in metrics(tmp_path / "one")] == [
        line["order"] for line in metrics(tmp_path / "two")
    ]
    losses = [
        [line[name] for name in line if name.endswith("loss")]
        for out in ("one", "two")
        for line in metrics(tmp_path / out)
    ]
    assert losses[: len(losses) // 2] == [pytest.approx(row, rel=1e-5) for row in losses[len(losses) // 2 :]]


def test_a_signal_to_one_process_stops_both_and_they_resume_to_the_bit(tmp_path: Path) -> None:
    settings = {"batch": 8, "log_every": 5, "save_every": 0}
    finish(tmp_path / "whole", settings)
    job = Job(tmp_path / "broken", {**settings, "slow": 0.05})
    wait_for(tmp_path / "broken" / "metrics.jsonl")
    os.kill(job.ranks[1].pid, signal.SIGTERM)
    assert job.end() == [143, 143], job.said
    assert len(checkpoints(RunFolder(tmp_path / "broken"))) == 1
    finish(tmp_path / "broken", settings)
    assert same(tmp_path / "whole", tmp_path / "broken")


def leisurely(begun: Path) -> None:
    """Takes its time over pictures."""
    inner = module.Toy.sample

    def sample(self: Any, ask: Any, *, rng: Any) -> Any:
        begun.touch()
        for state in inner(self, ask, rng=rng):
            time.sleep(0.5)
            yield state

    module.Toy.sample = sample  # type: ignore[method-assign]


def test_stopped_while_one_makes_pictures_for_all(tmp_path: Path) -> None:
    """Twice: in the step, and in the look at pictures that is owed since. The third time they are made."""
    settings = {"steps": 14, "save_every": 0, "sample_every": 10}
    finish(tmp_path / "whole", settings)
    for k in range(2):
        job = Job(tmp_path / "broken", settings, twists={0: [partial(leisurely, tmp_path / f"begun {k}")]})
        wait_for(tmp_path / f"begun {k}")
        os.kill(job.ranks[0].pid, signal.SIGTERM)
        assert job.end(20) == [143, 143], job.said
        assert [folder.name for folder in checkpoints(RunFolder(tmp_path / "broken"))] == ["step_00000010"]
        assert not list((tmp_path / "broken" / "samples").glob("*"))
    finish(tmp_path / "broken", settings)
    assert same(tmp_path / "whole", tmp_path / "broken")
    assert len(list((tmp_path / "broken" / "samples").glob("*"))) == 2


# -- kill -9 -----------------------------------------------------------------------------------------------------------


def strike(out: Path, settings: dict[str, Any], draw: random.Random, kind: str) -> int:
    """Start, kill, wait for all to be gone. Returns how many processes were hit."""
    running = out.with_name(f"{out.name} {draw.random()}")
    point = f"{draw.choice(POINTS)}@{draw.randint(1, 3)}" if kind == "save" else ""
    job = Job(out, settings, twists={0: [partial(announced, running), partial(killed_at, point)]})
    if kind != "save":
        wait_for(running)
        time.sleep(draw.uniform(0.0, 0.6 * settings["steps"] * settings["slow"]))
        job.kill(*{"first": [0], "second": [1], "both": [0, 1]}[kind])
    codes = job.end()
    assert None not in codes, "the others of a killed process did not end"
    return codes.count(-9)


def harness(folder: Path, settings: dict[str, Any], kinds: Sequence[str], seed: int) -> int:
    """Returns how many kills hit a running process."""
    draw, hits, out = random.Random(seed), 0, folder / "run0"
    finish(folder / "whole", settings)
    for k, kind in enumerate(kinds):
        hits += strike(out, settings, draw, kind) > 0
        if k % 3 == 2 or k == len(kinds) - 1 or (out / "final").exists():
            finish(out, settings)
            assert same(folder / "whole", out)
            out = folder / f"run{k + 1}"
    return hits


def test_two_kills_of_two_processes(tmp_path: Path) -> None:
    assert harness(tmp_path, SETTINGS, ["second", "save"], seed=0) == 2
    other = {name: value for name, value in SETTINGS.items() if name != "slow"} | {"seed": 1}
    module.train(module.toy(1), module.options(tmp_path / "other", **other))
    assert difference(tmp_path / "whole", tmp_path / "other") > 1e-3  # the comparison can fail


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"accumulate": 2, "precision": "bf16"}, {"recipe": {"phases": 2, "dropout": 0.1}}], ids=str
)
def test_twenty_kills_of_two_processes(tmp_path: Path, changes: dict) -> None:
    kinds = ["first", "second", "both", "save", "save"] * 4
    hits = harness(tmp_path, {**SETTINGS, "steps": 400, "save_every": 20, **changes}, kinds, seed=1)
    print(f"two processes, {changes}: {hits} of {len(kinds)} kills hit a running process")
    assert hits >= 18


# -- another number of processes ---------------------------------------------------------------------------------------


def trained_on(records: Sequence[Path]) -> dict[int, list[tuple[int, int]]]:
    """step -> (position, example) pairs, of the last start that did this step: what a kill undid does not count."""
    out: dict[int, list[tuple[int, int]]] = {}
    for files_of_a_start in records:
        seen: dict[int, list[tuple[int, int]]] = {}
        for file in sorted(files_of_a_start.iterdir()):
            for step, positions, examples in map(ast.literal_eval, file.read_text().splitlines()):
                seen.setdefault(step, []).extend(zip(positions, examples, strict=True))
        out |= seen
    return out


@pytest.mark.parametrize(("sizes", "batch"), [((1, 2, 1), 9), ((2, 3), 10)], ids=str)
def test_the_number_of_processes_may_change(tmp_path: Path, sizes: tuple[int, ...], batch: int) -> None:
    """Killed in a save, gone on with another number: within an epoch no example comes twice and none is left out."""
    settings, records = {**SETTINGS, "batch": batch, "steps": 40, "slow": 0.0, "accumulate": 2}, list[Path]()
    for k, size in enumerate(sizes):
        records.append(tmp_path / f"start{k}")
        records[-1].mkdir()
        twists = {rank: [partial(recorded, records[-1] / str(rank))] for rank in range(size)}
        if k < len(sizes) - 1:
            twists[0].append(partial(killed_at, "before fsync optim.safetensors@2"))
            job = Job(tmp_path / "run", settings, size, twists=twists)
            assert job.end()[0] == -9
        else:
            finish(tmp_path / "run", settings, size, twists=twists)
    steps = trained_on(records)
    assert sorted(steps) == list(range(40))
    pairs = sorted(pair for step in sorted(steps) for pair in steps[step])
    assert [position for position, _ in pairs] == list(range(40 * batch))
    examples = np.array([example for _, example in pairs])
    assert np.array_equal(examples, np.concatenate([Order(50, batch, 0).indices(step) for step in range(40)]))
    for epoch in range(40 * batch // 50):
        assert sorted(examples[50 * epoch : 50 * (epoch + 1)]) == list(range(50))
    del settings["slow"]
    module.train(module.toy(), module.options(tmp_path / "one", **settings))
    assert 0 < difference(tmp_path / "one", tmp_path / "run") < ROUNDING


# -- coming together ---------------------------------------------------------------------------------------------------


def slurm(number: int, **more: str) -> list[dict[str, str]]:
    """The environment of each task of a step of this job, as srun makes it."""
    world = {"SLURM_JOB_ID": str(number), "SLURM_STEP_NUM_TASKS": "2", **more}
    return [{**world, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]


@pytest.mark.parametrize(
    "where",
    [
        {"SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1"},
        {"SLURM_LAUNCH_NODE_IPADDR": "192.0.2.1", "SLURM_STEP_NODELIST": "localhost"},
    ],
    ids=["launch node", "salloc from another machine"],
)
def test_srun_is_enough(tmp_path: Path, where: dict[str, str]) -> None:
    settings = {"steps": 10, "save_every": 0}
    number = 7_000_000 + port(first=20_000 + random.randrange(19_000)) - 20_000
    job = Job(tmp_path / "run", settings, slurm(number, **where))
    assert job.end() == [0, 0], job.said
    module.train(module.toy(), module.options(tmp_path / "one", **settings))
    assert 0 < difference(tmp_path / "one", tmp_path / "run") < ROUNDING


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu[07-09,12],login1", "gpu07"),
        ("n[1,3-4]-ib", "n1-ib"),
        ("a,b[1-2]", "a"),
        ("cn-[001-128]", "cn-001"),
        ("", ""),
    ],
)
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    assert distributed._first_node(nodes) == first


def seasoned() -> None:
    for _ in range(5):
        with distributed.join("cpu") as world:
            assert world.sum([1.0, world.rank]) == [2.0, 1.0]


def test_processes_may_run_again(tmp_path: Path) -> None:
    """The next run does not meet where the last one is still leaving."""
    finish(tmp_path / "run", {"steps": 5}, twists={rank: [seasoned] for rank in range(2)})


@pytest.mark.parametrize(("visible", "device"), [(4, "cuda:3"), (1, "cuda:0")], ids=["all", "its own"])
def test_each_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch, visible: int, device: str) -> None:
    """Also where a scheduler shows it no other, under the number 0."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    assert choose_device("auto", local=3) == torch.device(device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"no cuda:3: this machine has 2"):
        choose_device("auto", local=3)


def test_a_batch_too_small_to_share_is_refused(tmp_path: Path) -> None:
    job = Job(tmp_path / "run", {"batch": 1})
    assert job.end() == [2, 2]
    assert all("cannot be shared by 2 processes" in said for said in job.said)


def impatient() -> None:
    distributed._ARRIVAL = distributed.timedelta(seconds=1)


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_who_waits_in_vain_for_the_others_says_where(tmp_path: Path, rank: int) -> None:
    job = Job(tmp_path / "run", {}, [ranks(2)[rank]], twists={0: [impatient]})
    assert job.end(30) == [2]
    assert "did not find each other at 127.0.0.1:" in job.said[0] and f"(process {rank}: " in job.said[0]
