"""Two processes are one process with the whole batch, to rounding; and one of them may stop both."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sfumato.engine import RunFolder
from sfumato.engine.state import checkpoints
from tests.engine.compare import difference, metrics, same
from tests.engine.toy import options, toy, train


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def launch(out: Path, settings: dict) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        f"--master_port={port()}",
        "-m",
        "tests.engine.toy",
        str(out),
        repr(settings),
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def finish(process: subprocess.Popen, code: int = 0) -> str:
    out, err = process.communicate(timeout=100)
    assert process.returncode == code, err[-3000:]
    return out + err


@pytest.mark.parametrize("settings", [{"batch": 9, "accumulate": 2}, {"recipe": {"phases": 2}, "clip": 0.05}])
def test_two_processes_equal_one(tmp_path: Path, settings: dict) -> None:
    finish(launch(tmp_path / "two", settings))
    changes = {k: v for k, v in settings.items() if k != "recipe"}
    train(toy(**settings.get("recipe", {})), options(tmp_path / "one", **changes))
    assert 0 < difference(tmp_path / "one", tmp_path / "two") < 2e-5  # float32 sums in another order, 40 steps
    assert [line["order"] for line in metrics(tmp_path / "one")] == [
        line["order"] for line in metrics(tmp_path / "two")
    ]
    losses = [
        [line[name] for name in line if name.endswith("loss")]
        for out in ("one", "two")
        for line in metrics(tmp_path / out)
    ]
    assert losses[: len(losses) // 2] == [pytest.approx(row, rel=1e-5) for row in losses[len(losses) // 2 :]]


def test_two_processes_stop_together_and_resume_to_the_bit(tmp_path: Path) -> None:
    settings = {"batch": 8, "log_every": 5}
    finish(launch(tmp_path / "whole", settings))
    process = launch(tmp_path / "broken", {**settings, "slow": 0.05})
    deadline = time.monotonic() + 60
    while not (tmp_path / "broken" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)  # torchrun passes it on
    process.communicate(timeout=60)
    assert checkpoints(RunFolder(tmp_path / "broken")), "nothing was saved"
    finish(launch(tmp_path / "broken", settings))
    assert same(tmp_path / "whole", tmp_path / "broken")


def test_a_batch_too_small_to_share_is_refused(tmp_path: Path) -> None:
    assert "cannot be shared by 2 processes" in finish(launch(tmp_path, {"batch": 1}), code=1)
