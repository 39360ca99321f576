"""What this machine can do: device, precision, threads, and how long a run will take."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sfumato.errors import UserError

__all__ = [
    "choose_device",
    "choose_precision",
    "choose_threads",
    "micro_batches",
    "out_of_memory",
    "processor",
    "switch_checkpointing",
    "timed",
    "using_threads",
]


def choose_device(name: str, local: int = 0) -> torch.device:
    """`auto`: the local rank's GPU, Apple's, or the CPU. Raises UserError for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"There is no device called '{name}': use auto, cpu, cuda, cuda:1 or mps.") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            why = "no GPU was found" if torch.version.cuda else "this PyTorch was built without CUDA"
            raise UserError(f"A GPU was asked for, but {why}: use --device cpu, or install a CUDA build of torch.")
        there = torch.cuda.device_count()
        own = local if there > 1 else 0  # a scheduler may show each process no other GPU than its own
        device = torch.device("cuda", own if device.index is None else device.index)
        if (device.index or 0) >= there:
            raise UserError(f"There is no {device}: this machine has {there} GPU(s).")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("An Apple GPU was asked for, but there is none that this PyTorch can use: use --device cpu.")
    elif device.type not in ("cpu", "mps"):
        raise UserError(f"'{name}' is not supported: use auto, cpu, cuda, cuda:1 or mps.")
    return device


def processor() -> str:
    """The processor's name, never the host's."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            found = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        found = ""
    return found or platform.machine()


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """float32, or bfloat16 for autocast. `auto`: bfloat16 where it is faster."""
    if name == "auto":
        name = "bf16" if _bf16_pays(device) else "fp32"
    return torch.bfloat16 if name == "bf16" else torch.float32


def _bf16_pays(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and _cpu_has_bf16() and _convolution(torch.bfloat16) < 0.8 * _convolution(torch.float32)


def _cpu_has_bf16() -> bool:
    """Without instructions for it bfloat16 is emulated: slower by an order of magnitude, not worth a trial."""
    facts: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(facts.get("avx512_bf16") or facts.get("amx_bf16") or facts.get("bf16"))


def _convolution(dtype: torch.dtype) -> float:
    x, w = torch.ones(4, 64, 32, 32, dtype=dtype), torch.ones(64, 64, 3, 3, dtype=dtype)
    return timed(lambda: torch.nn.functional.conv2d(x, w, padding=1), repeat=5)


def timed(work: Callable[[], object], *, repeat: int = 1, warm: int = 1) -> float:
    """Seconds of the fastest of `repeat` calls, after `warm` calls that do not count."""
    for _ in range(warm):
        work()
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def choose_threads(work: Callable[[], object], *, patience: float = 3.0) -> tuple[int, float]:
    """(threads, seconds of one call). Halves the number as long as that is faster: on a busy core two threads can be
    14 times slower than one, because each waits for the other at every operation.
    """
    most = threads = torch.get_num_threads()
    started, best = time.perf_counter(), timed(work)
    try:
        while threads > 1 and time.perf_counter() - started < patience:
            torch.set_num_threads(threads // 2)
            seconds = timed(work, repeat=2)
            torch.set_num_threads(threads)
            best = min(best, timed(work, warm=0))
            if seconds > best:
                break
            threads, best = threads // 2, seconds
    finally:
        torch.set_num_threads(most)
    return threads, best


def micro_batches(seconds: float, batch: int, *, answer: float = 2.0) -> int:
    """Into how many parts to split a step of so many seconds, that a signal is answered within `answer` of them."""
    return next((k for k in range(1, batch + 1) if batch % k == 0 and seconds <= k * answer), batch)


@contextmanager
def using_threads(n: int | None) -> Iterator[None]:
    """Within the block torch computes with n threads (None: as before)."""
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_SHORT = re.compile(
    r"can't allocate memory|not enough memory|out of memory"  # CPU on Linux, on Windows, CUDA and MPS
    r"|_STATUS_ALLOC_FAILED|bad_alloc|could not create a primitive$"  # cuBLAS and cuDNN, C++, oneDNN
)


def out_of_memory(error: BaseException) -> bool:
    """True for a GPU's, for Python's and for the CPU allocator's."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and bool(_SHORT.search(str(error)))
    )


def switch_checkpointing(networks: tuple[nn.Module, ...]) -> bool:
    """Recompute activations in backward, where a network can."""
    able = [network for network in networks if hasattr(network, "checkpointing")]
    for network in able:
        network.checkpointing = True  # type: ignore[assignment]
    return bool(able)
