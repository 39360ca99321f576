"""What every benchmark shares: rivals run in turn in one process, medians of ratios, and where it was measured."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch


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


def machine() -> dict[str, object]:
    """Where and with what a figure was taken; no names of hosts or users."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit,
    }


def report(name: str, rows: dict[str, object], out: str | None) -> None:
    """Print the rows; with `out`, keep them as JSON with the machine."""
    print(json.dumps(rows, indent=1))
    if out:
        Path(out).write_text(json.dumps({"benchmark": name, "machine": machine(), "results": rows}, indent=1) + "\n")
