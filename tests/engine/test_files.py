"""Damage is found, named and fallen back from; a failed save leaves what was there."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato.engine import RunFolder, files, load, steps
from sfumato.engine.state import _CHECKPOINT, Damaged, check, checkpoints, last_good
from sfumato.errors import UserError
from tests.engine.compare import same
from tests.engine.toy import Pictures, build_toy, options, toy, train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    train(toy(), options(out))
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_our_safetensors_are_everybodys(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = {
        "half": torch.randn(3, 5, generator=draw).half(),
        "brain": torch.randn(4, generator=draw).bfloat16(),
        "double": torch.randn(2, 2, generator=draw).double(),
        "count": torch.tensor(7),
        "yes": torch.tensor([True, False, True]),
        "none": torch.zeros(0, 3),
        "last": torch.randn(2, 3, 4, 4, generator=draw).to(memory_format=torch.channels_last),
        "view": torch.randn(9, 9, generator=draw)[2:5, ::2],
        "bytes": torch.arange(11, dtype=torch.uint8),
    }
    entry = files.write_tensors(tmp_path / "ours.safetensors", tensors)
    assert entry == {
        "size": (tmp_path / "ours.safetensors").stat().st_size,
        "sha256": files.digest(tmp_path / "ours.safetensors"),
    }
    back = load_file(tmp_path / "ours.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[k], tensors[k]) and back[k].dtype == tensors[k].dtype for k in tensors)


def damage(folder: Path, kind: str, draw: random.Random) -> str:
    """Harm one file; returns its name."""
    name = draw.choice([*_CHECKPOINT] if kind == "swapped" else [*_CHECKPOINT, "manifest.json"])
    path = folder / name
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        path.write_bytes(content[: draw.randrange(len(content))])
    elif kind == "flipped":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    elif kind == "emptied":
        path.write_bytes(b"")
    elif kind == "longer":
        path.write_bytes(content + b"\0")
    elif kind == "missing":
        path.unlink()
    elif kind == "swapped":
        other = draw.choice([n for n in _CHECKPOINT if n != name])
        (folder / other).rename(folder / "x")
        path.rename(folder / other)
        (folder / "x").rename(path)
    else:
        name = draw.choice(["model", "ema", "optim"]) + ".safetensors"
        tensors = load_file(folder / name)
        changed = (
            tensors | {"extra": torch.zeros(1)} if kind == "extra key" else {k: torch.zeros(3, 3) for k in tensors}
        )
        save_file(changed, folder / name)
    return name


@pytest.mark.parametrize(
    ("kind", "times"),
    [
        ("truncated", 64),
        ("flipped", 300),
        pytest.param("truncated", 256, marks=pytest.mark.slow),
        pytest.param("flipped", 2000, marks=pytest.mark.slow),
        ("emptied", 8),
        ("longer", 8),
        ("missing", 8),
        ("swapped", 8),
        ("extra key", 8),
        ("wrong shape", 8),
    ],
)
def test_every_damage_is_found_and_named(run: Path, tmp_path: Path, kind: str, times: int) -> None:
    good = checkpoints(RunFolder(run))[0]
    draw = random.Random(kind)
    spare = tmp_path / "spare"
    shutil.copytree(good, spare)
    check(good, _CHECKPOINT, hashes=True)
    for _ in range(times):
        name = damage(good, kind, draw)
        with pytest.raises(Damaged) as caught:
            check(good, _CHECKPOINT, hashes=True)
        assert name in str(caught.value) or kind == "swapped" or name == "manifest.json", str(caught.value)
        said: list[str] = []
        assert last_good(RunFolder(run), said.append) == checkpoints(RunFolder(run))[1] and len(said) == 1
        for mended in _CHECKPOINT if kind == "swapped" else (name,):
            shutil.copy(spare / mended, good / mended)


def test_resuming_from_a_damaged_run_repeats_every_bit(tmp_path: Path) -> None:
    train(toy(), options(tmp_path / "whole"))
    for kind, seed in (("flipped", 1), ("missing", 2), ("truncated", 3)):
        out = tmp_path / kind
        part = steps(toy(), Pictures(), options(out))
        for _ in islice(part, 33):
            pass
        part.close()
        damage(checkpoints(RunFolder(out))[0], kind, random.Random(seed))
        train(toy(), options(out), resume=True)
        log = (out / "log.txt").read_text()
        assert "Falling back" in log and "Resumed from step_00000020" in log
        assert same(tmp_path / "whole", out)


def test_with_nothing_good_left_it_stops(run: Path) -> None:
    for folder in checkpoints(RunFolder(run)):
        (folder / "ema.safetensors").unlink()
    with pytest.raises(UserError, match="None of the 3 checkpoints"):
        train(toy(), options(run, steps=50), resume=True)


def test_loading_names_what_is_wrong(run: Path, tmp_path: Path) -> None:
    model = run / "final" / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[-3] ^= 1
    model.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged: its content"):
        load(run, builder=build_toy, verify=True)
    model.write_bytes(content[:-1])
    with pytest.raises(UserError, match="bytes"):
        load(run, builder=build_toy)
    with pytest.raises(UserError, match="There is no run at"):
        load(tmp_path / "nowhere", builder=build_toy)
    with pytest.raises(UserError, match="is not a run"):
        load(tmp_path, builder=build_toy)
    with pytest.raises(UserError, match="does not fit this model: 'net"):
        load(checkpoints(RunFolder(run))[0], builder=lambda paper, config: build_toy(paper, {**config, "width": 5}))


def test_a_newer_format_is_refused(run: Path) -> None:
    manifest = run / "final" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format":1', '"format":2'))
    with pytest.raises(UserError, match="update sfumato"):
        load(run, builder=build_toy)


def test_two_processes_cannot_share_a_run(tmp_path: Path) -> None:
    first = steps(toy(), Pictures(), options(tmp_path))
    next(first)
    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        train(toy(), options(tmp_path), resume=True)
    first.close()
    train(toy(), options(tmp_path), resume=True)  # the lock went with its owner


def test_leftovers_are_swept_and_rotation_keeps_the_newest(tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / ".tmp-step_00000010"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".tmp-config.yaml").write_bytes(b"half")
    (tmp_path / "config.yaml").write_text("paper: toy\n")
    train(toy(), options(tmp_path, keep=2), resume=True)
    assert [p.name for p in checkpoints(RunFolder(tmp_path))] == ["step_00000040", "step_00000030"]
    assert not list(tmp_path.rglob(".tmp-*"))
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000040\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KB."""
    where = tmp_path / "disk"
    where.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", where], capture_output=True).returncode
    ):
        pytest.skip("mounting a small tmpfs needs root")
    yield where
    subprocess.run(["umount", where], check=True)


def test_a_full_disk_leaves_the_old_checkpoint(small_disk: Path) -> None:
    out = small_disk / "run"
    sound = 0
    for fill in range(50):
        shutil.rmtree(out, ignore_errors=True)
        (small_disk / "ballast").unlink(missing_ok=True)
        part = steps(toy(), Pictures(), options(out))
        for _ in islice(part, 10):
            pass
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        (small_disk / "ballast").write_bytes(b"\0" * max(0, free - 4096 * (fill % 8) - 97 * fill))
        try:
            list(islice(part, 12))
            continue  # there was room enough
        except UserError as problem:
            assert "No space left" in str(problem)
            if "latest" in str(problem):  # the checkpoint itself had room
                continue
            assert "could not be saved" in str(problem)
        except OSError as problem:
            raise AssertionError("a traceback for a full disk") from problem
        finally:
            part.close()
        assert [p.name for p in checkpoints(RunFolder(out))] == ["step_00000010"]
        check(out / "checkpoints" / "step_00000010", _CHECKPOINT, hashes=True)
        assert not list((out / "checkpoints").glob(".tmp-*"))
        sound += 1
    assert sound > 20


def left_whole(out: Path, step: int) -> None:
    """The checkpoint of `step` is the newest, good, and goes on after the next start, which sweeps what lies about."""
    assert checkpoints(RunFolder(out))[0].name == f"step_{step:08d}"
    check(checkpoints(RunFolder(out))[0], _CHECKPOINT, hashes=True)
    train(toy(), options(out), resume=True)
    assert not list(out.rglob(".tmp-*")) and checkpoints(RunFolder(out))[0].name == "step_00000040"


@pytest.fixture
def ordinary() -> Iterator[Path]:
    """A folder of a user who may not write everywhere."""
    where = Path(tempfile.mkdtemp())
    where.chmod(0o777)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield where
    os.seteuid(before)
    shutil.rmtree(where)


@pytest.mark.parametrize("folder", ["checkpoints", "."])
def test_a_folder_that_becomes_read_only(ordinary: Path, folder: str) -> None:
    out = ordinary / "run"
    part = steps(toy(), Pictures(), options(out, log_every=100))
    for _ in islice(part, 15):
        pass
    (out / folder).chmod(0o555)
    if folder == ".":
        (out / "checkpoints").chmod(0o555)
    with pytest.raises(UserError, match=r"could not be saved: Permission denied\. Earlier checkpoints are intact"):
        list(part)
    part.close()
    if folder == ".":
        with pytest.raises(UserError, match=r"Permission denied|cannot be written|Cannot write"):
            train(toy(), options(out), resume=True)
    (out / "checkpoints").chmod(0o755)
    out.chmod(0o755)
    left_whole(out, 10)


@pytest.mark.parametrize("what", ["run", "run/checkpoints"])
@pytest.mark.parametrize("log_every", [1, 100])
def test_a_folder_that_vanishes(tmp_path: Path, what: str, log_every: int) -> None:
    """Moved away in the middle of a run: the run ends and says so, nothing is written into the void, and what was moved
    goes on."""
    part = steps(toy(), Pictures(), options(tmp_path / "run", log_every=log_every))
    for _ in islice(part, 15):
        pass
    (tmp_path / what).rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"(could not be saved|cannot be written): No such file or directory"):
        list(part)
    part.close()
    assert not (tmp_path / what).exists()
    (tmp_path / "away").rename(tmp_path / what)
    left_whole(tmp_path / "run", 10)


def test_a_grid_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    part = steps(toy(), Pictures(), options(tmp_path, sample_every=10))
    for _ in islice(part, 15):
        pass
    shutil.rmtree(tmp_path / "samples")
    assert list(part)[-1].step == 40
    assert "The grid of step 20 could not be written: No such file or directory." in (tmp_path / "log.txt").read_text()


def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="Choose another --out"):
        train(toy(), options(tmp_path / "file" / "run"))


def test_the_private_part_stays_private(run: Path) -> None:
    """No path, host or user in what is shared."""
    shared = (run / "final" / "config.yaml").read_text() + (run / "config.yaml").read_text()
    manifest = json.loads((run / "final" / "manifest.json").read_text())
    assert set(manifest["files"]) == {"model.safetensors", "config.yaml"}
    assert os.uname().nodename not in shared.replace("\n", " ").split() and str(run) not in shared and "/" not in shared
