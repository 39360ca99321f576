"""What every benchmark shares: rivals run in turn in one process, medians of ratios, and where it was measured."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from sfumato.engine.plan import processor


def alternate(
    rivals: dict[str, Callable[[], object]],
    *,
    rounds: int = 9,
    calls: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per call of each rival in each round, forwards and backwards in turn; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for r in range(rounds + 1):
        for name in list(rivals)[:: 1 if r % 2 else -1]:
            begin = clock()
            for _ in range(calls):
                rivals[name]()
            if r:
                seconds[name].append((clock() - begin) / calls)
    return seconds


def ratios(seconds: dict[str, list[float]], base: str, of: str) -> tuple[float, float, float]:
    """(median, low, high) over the rounds of seconds of `base` / seconds of `of`: above 1, `of` is faster."""
    row = [b / o for b, o in zip(seconds[base], seconds[of], strict=True)]
    return statistics.median(row), min(row), max(row)


def commit() -> str:
    """The commit that the working tree is of."""
    words = ["git", "rev-parse", "--short=9", "HEAD"]
    return subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()


def machine(*peers: str) -> dict[str, object]:
    """Where and with what a figure was taken, with the versions of the peers; no names of hosts or users."""
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **{peer: version(peer) for peer in peers},
        "python": platform.python_version(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
    }


def report(name: str, rows: dict[str, object], out: str | None) -> None:
    """Print the rows; with `out`, keep them as JSON with the machine."""
    print(json.dumps(rows, indent=1))
    if out:
        Path(out).write_text(json.dumps({"benchmark": name, "machine": machine(), "results": rows}, indent=1) + "\n")
