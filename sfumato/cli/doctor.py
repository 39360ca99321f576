"""`sfumato doctor`: what this machine can do, and what is missing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from sfumato.cli.main import version
from sfumato.cli.parse import parse
from sfumato.cli.show import rows, size

__all__ = ["extras", "run", "warnings_of"]

Row = tuple[str, str]
CACHES = ("data", "evaluation", "own", "rooms")  # folders of the cache, each made again where it is missed


@dataclass(frozen=True)
class Doctor:
    """What this machine can do, and what is missing: versions, devices, threads, bf16, extras, disk."""


def run(args: list[str]) -> int:
    parse(Doctor, "doctor", args)
    for part in (_software, _devices, _speed, _extras, _places):
        for name, value in part():
            print(rows([(f"{name:9}", value)], indent=""), flush=True)
    for warning in warnings_of(_torch(), _installed("torchvision"), _free(Path.cwd())):
        print(f"warning    {warning}")
    return 0


def _torch() -> tuple[str, bool]:
    """torch's version and whether it was built for a GPU."""
    import torch

    return torch.__version__, torch.version.cuda is not None or torch.version.hip is not None


def _software() -> Iterator[Row]:
    torch, gpu = _torch()
    yield "sfumato", version()
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "torch", f"{torch} ({'with GPU support' if gpu else 'CPU only'})"


def _devices() -> Iterator[Row]:
    import torch

    yield "cpu", f"{os.cpu_count()} cores; torch uses {torch.get_num_threads()} threads"
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        yield f"cuda:{i}", f"{card.name}, {size(card.total_memory)}"
    if torch.backends.mps.is_available():
        yield "mps", "Apple GPU"
    elif not torch.cuda.is_available():
        yield "gpu", "none that torch can use: --device auto means cpu"


def _speed() -> Iterator[Row]:
    """A small convolution, as U-Nets are made of, by threads and by precision."""
    import torch

    before = torch.get_num_threads()
    counts = sorted({1, 2, before} & set(range(1, (os.cpu_count() or 1) + 1)))
    try:
        times = {n: _convolution(torch.float32, threads=n) for n in counts}
        best = min(times, key=lambda n: times[n])
        listed = ", ".join(f"{1e3 * t:.1f} ms with {n}" for n, t in times.items())
        yield "threads", f"{listed}: {best} {'is' if best == 1 else 'are'} best now (training times both and chooses)"
        gain = times[best] / _convolution(torch.bfloat16, threads=best)
        verdict = "--precision bf16 pays" if gain > 1.15 else "--precision fp32 is better"
        yield "bf16", f"{gain:.1f} x the speed of fp32 on the cpu: {verdict}"
    finally:
        torch.set_num_threads(before)


def _convolution(dtype: object, *, threads: int) -> float:
    import torch

    assert isinstance(dtype, torch.dtype)
    torch.set_num_threads(threads)
    x = torch.ones(8, 64, 32, 32, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(64, 64, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return _best(lambda: torch.nn.functional.conv2d(x, weight, padding=1))


def _best(work: Callable[[], object], repeats: int = 12) -> float:
    """The seconds of the fastest of some calls, the first two left out."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[2:])


def _extras() -> Iterator[Row]:
    for extra, packages in extras().items():
        missing = [name for name in packages if _installed(name) is None]
        get = f'pip install "sfumato[{extra}]"   (missing: {", ".join(missing)})'
        yield f"[{extra}]", get if missing else "installed"


def extras() -> dict[str, list[str]]:
    """The packages of each optional part, as the installed package declares them."""
    out: dict[str, list[str]] = {}
    for line in metadata.requires("sfumato") or [] if _installed("sfumato") else []:
        found = re.match(r"""([\w.-]+).*extra == ['"]([\w-]+)['"]""", line)
        if found and found[2] != "dev":
            out.setdefault(found[2], []).append(found[1])
    return out


def _places() -> Iterator[Row]:
    from sfumato.data.cache import cache_folder

    home = cache_folder().parent
    kinds = {kind: _weight(home / kind) for kind in CACHES}
    listed = ", ".join(f"{kind} {size(used)}" for kind, used in kinds.items() if used) or "empty"
    yield "cache", f"{home} ({listed}; {', '.join(CACHES)} may be deleted; SFUMATO_CACHE moves them)"
    yield "disk", f"{size(_free(Path.cwd()))} free here"


def _weight(folder: Path) -> int:
    """Bytes of the files in it."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0


def _free(path: Path) -> int:
    return shutil.disk_usage(path).free


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def warnings_of(torch: tuple[str, bool], torchvision: str | None, free: int) -> list[str]:
    """What may go wrong later."""
    out = []
    if torchvision is not None and not torch[1] and not torchvision.endswith("+cpu"):
        out.append(
            f"torchvision {torchvision} was built for a GPU and torch {torch[0]} was not: packages that import "
            "torchvision fail. sfumato never imports it."
        )
    if free < 2e9:
        out.append(f"only {size(free)} of disk are free here: a run keeps checkpoints, each 4 times the model's size.")
    return out
