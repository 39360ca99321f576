"""Files that are whole or absent: written beside, forced to the disk, renamed into place.

Tensors are written in the safetensors format (an 8-byte length, a JSON header, the bytes) straight from memory, and
hashed on the way.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

__all__ = [
    "TEMPORARY",
    "at_point",
    "digest",
    "publish",
    "remove",
    "sweep",
    "sync_folder",
    "temporary",
    "write_bytes",
    "write_tensors",
    "write_text",
]

TEMPORARY = ".tmp-"
_PIECE = 1 << 24
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

_kill, _, _nth = os.environ.get("SFUMATO_KILL_AT", "").partition("@")
_passed: Counter[str] = Counter()


def at_point(name: str) -> None:
    """A named moment of a save. Tests end the process here: SFUMATO_KILL_AT="NAME" or "NAME@NTH"."""
    if name == _kill:
        _passed[name] += 1
        if _passed[name] == int(_nth or 1):
            os.kill(os.getpid(), signal.SIGKILL)


def _sync(file: IO[bytes], name: str) -> None:
    file.flush()
    at_point(f"before fsync {name}")
    os.fsync(file.fileno())
    at_point(f"after fsync {name}")


def sync_folder(folder: Path) -> None:
    """Force a folder's list of names to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes) -> dict[str, Any]:
    """Write and fsync one file. Returns its manifest entry: size and SHA-256."""
    with path.open("wb") as file:
        file.write(content)
        _sync(file, path.name)
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def write_text(path: Path, text: str) -> None:
    """Replace a small file by a whole new one."""
    beside = path.with_name(TEMPORARY + path.name)
    write_bytes(beside, text.encode())
    at_point(f"before rename {path.name}")
    beside.replace(path)
    at_point(f"after rename {path.name}")
    sync_folder(path.parent)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write and fsync a safetensors file. Returns its manifest entry: size and SHA-256."""
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # wide types first: all aligned
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": _DTYPES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    hashed = hashlib.sha256()
    with path.open("wb") as file:
        for piece in _pieces(len(text).to_bytes(8, "little") + text, (tensors[name] for name in names)):
            hashed.update(piece)
            file.write(piece)
        at_point(f"written {path.name}")
        _sync(file, path.name)
    return {"size": 8 + len(text) + end, "sha256": hashed.hexdigest()}


def _pieces(header: bytes, tensors: Iterator[Tensor]) -> Iterator[memoryview]:
    yield memoryview(header)
    for tensor in tensors:
        raw = memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        for start in range(0, len(raw), _PIECE):
            yield raw[start : start + _PIECE]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def temporary(target: Path) -> Iterator[Path]:
    """A fresh folder beside `target`, removed if the block fails."""
    folder = target.with_name(TEMPORARY + target.name)
    remove(folder)
    folder.mkdir()
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def publish(folder: Path, target: Path) -> None:
    """Rename a written folder into place, in place of an older one."""
    sync_folder(folder)
    at_point("before rename folder")
    if target.exists():
        old = target.with_name(TEMPORARY + "old-" + target.name)
        remove(old)
        target.rename(old)
        at_point("between renames")
    folder.rename(target)
    at_point("after rename folder")
    sync_folder(target.parent)
    remove(target.with_name(TEMPORARY + "old-" + target.name))


def remove(folder: Path) -> None:
    """Delete a folder so that a half-deleted one is never taken for whole: rename it first."""
    if not folder.exists():
        return
    if not folder.name.startswith(TEMPORARY):
        away = folder.with_name(TEMPORARY + "gone-" + folder.name)
        shutil.rmtree(away, ignore_errors=True)
        folder.rename(away)
        at_point("half removed")
        folder = away
    shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Delete what an interrupted save left in `folder`."""
    for left in folder.glob(TEMPORARY + "*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
