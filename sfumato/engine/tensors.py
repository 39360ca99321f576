"""Safetensors files, which may be anyone's: opened, read, compared with what a model needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sfumato.errors import UserError

__all__ = ["Damaged", "compare", "opened", "read_tensors"]

HEADER = 8 << 20  # bytes: fifty thousand tensors
REAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Damaged(UserError):
    """A file is not what its manifest says."""


@contextmanager
def opened(path: Path, device: torch.device | str = "cpu") -> Iterator[Any]:
    """A safetensors file. Raises Damaged for whatever is wrong with it, also while it is read."""
    try:
        with path.open("rb") as raw:
            claimed = int.from_bytes(raw.read(8), "little")
        if claimed > HEADER:
            raise ValueError(f"its header is larger than {HEADER:,} bytes")
        with safe_open(path, framework="pt", device=str(device)) as file:
            yield file
    except torch.OutOfMemoryError:
        raise
    except (OSError, SafetensorError, ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise Damaged(f"{path} is damaged: {(str(error).splitlines() or ['it cannot be read'])[0]}.") from None


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped into memory (private: writing to them leaves the file alone)."""
    with opened(path, device) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def compare(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: Path | str) -> None:
    """Raises UserError unless names, shapes and kinds of numbers agree."""
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or extra:
        what = f"has no '{missing[0]}'" if missing else f"has '{extra[0]}', which the model has not"
        raise UserError(f"{where} does not fit this model: it {what} ({len(missing)} missing, {len(extra)} too many).")
    for name, tensor in wanted.items():
        there, here = found[name], tensor
        for a, b in ((tuple(there.shape), tuple(here.shape)), (_kind(there), _kind(here))):
            if a != b:
                raise UserError(f"{where} does not fit this model: '{name}' is {a} there and {b} here.")


def _kind(tensor: Tensor) -> str:
    return "real" if tensor.dtype in REAL else str(tensor.dtype).removeprefix("torch.")
