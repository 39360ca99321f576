"""Where a room keeps what it computed: pieces that are whole or absent, each sealed with the build it belongs to.

A piece is never changed once it is written, so that a process that is killed leaves only whole pieces behind, and two
rooms on one shelf cannot harm each other: they would write the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.data.cache import cache_folder, digest
from sfumato.data.options import escape
from sfumato.engine import files

try:
    import fcntl
except ImportError:  # Windows: rooms do not wait for each other there; pieces are safe without
    fcntl = None  # type: ignore[assignment]

__all__ = ["Bytes", "Shelf"]

VERSION = 1  # raise when a piece changes its meaning
LEFTOVER = 3600  # seconds after which a half-written file belongs to nobody
Bytes = NDArray[np.uint8]


class Shelf:
    """Pieces by name; each holds several files as arrays of bytes. Without a folder, or where the disk is full or
    read-only, pieces are kept in memory, and `trouble` says so in a sentence."""

    def __init__(self, fingerprint: str, *, keep: bool = True) -> None:
        self.build = digest([f"room {VERSION}", fingerprint])
        self.memory: dict[str, dict[str, Bytes]] = {}
        self.trouble = ""
        self.folder: Path | None = cache_folder().parent / "rooms" / self.build if keep else None
        self._lock: int | None = None
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._sweep(self.folder)
            except OSError as error:
                self._complain(error)

    def get(self, name: str, *, verify: Collection[str] | None = None) -> dict[str, Bytes] | None:
        """The files of a piece, mapped; None where it is absent, damaged or of another build. Where `verify` names
        files, only the sizes of others are compared: of large ones whose entries have checks of their own."""
        if name in self.memory:
            return self.memory[name]
        if self.folder is None:
            return None
        try:
            seal = json.loads((self.folder / f"{name}.json").read_bytes())
            if seal["build"] != self.build:
                return None
            return {
                part: self._mapped(f"{name}.{part}", int(kept[0]), str(kept[1]), verify is None or part in verify)
                for part, kept in seal["files"].items()
            }
        except Exception:  # damage can look like anything
            return None

    def put(self, name: str, pieces: Mapping[str, bytes | NDArray[Any]], *, lasting: bool = True) -> dict[str, Bytes]:
        """Keeps a piece, on disk unless it is not `lasting`. Returns what `get` would."""
        raw = {part: _bytes(content) for part, content in pieces.items()}
        if self.folder is not None and lasting and not self.trouble:
            try:
                self._write(self.folder, name, raw)
                if (kept := self.get(name, verify=())) is not None:
                    return kept
            except OSError as error:
                self._complain(error)
        self.memory[name] = raw
        return raw

    def _write(self, folder: Path, name: str, raw: Mapping[str, Bytes]) -> None:
        seal: dict[str, Any] = {"build": self.build, "files": {}}
        for part, content in raw.items():
            path = folder / f"{name}.{part}"
            beside = path.with_name(f"{files.TEMPORARY}{os.getpid()}-{path.name}")
            files.write_bytes(beside, content.tobytes())
            beside.replace(path)
            seal["files"][part] = [len(content), _hash(content)]
        beside = folder / f"{files.TEMPORARY}{os.getpid()}-{name}.json"
        files.write_bytes(beside, json.dumps(seal).encode())
        beside.replace(folder / f"{name}.json")
        files.sync_folder(folder)

    def _mapped(self, name: str, size: int, code: str, verify: bool) -> Bytes:
        assert self.folder is not None
        path = self.folder / name
        if path.stat().st_size != size:
            raise ValueError(f"{name} is cut off")
        content = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
        if verify and _hash(content) != code:
            raise ValueError(f"{name} is damaged")
        return content

    def path(self, name: str) -> Path | None:
        """Of a file that is managed by others and may be rebuilt at any time; None where there is no disk."""
        return None if self.folder is None or self.trouble else self.folder / name

    def take_lock(self) -> bool:
        """Whether this room may compute; another one that does so already goes on, and this one watches it."""
        if self.folder is None or self.trouble or fcntl is None or self._lock is not None:
            return True
        try:
            handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        except OSError as error:
            self._complain(error)
            return True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return False
        self._lock = handle
        return True

    def close(self) -> None:
        """Lets others compute."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _complain(self, error: OSError) -> None:
        where = escape(self.folder or "")
        self.trouble = (
            f"what is computed here is kept in memory only: the cache {where} cannot be written "
            f"({(error.strerror or 'damaged').lower()}). Set SFUMATO_CACHE to a folder with room."
        )

    @staticmethod
    def _sweep(folder: Path) -> None:
        """Takes away what killed processes left half-written."""
        for path in folder.glob(f"{files.TEMPORARY}*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > LEFTOVER:
                    path.unlink()


def _bytes(content: bytes | NDArray[Any]) -> Bytes:
    if isinstance(content, np.ndarray):
        return np.ascontiguousarray(content).reshape(-1).view(np.uint8)
    return np.frombuffer(content, np.uint8)


def _hash(content: Bytes) -> str:
    return hashlib.blake2b(content.data if len(content) else b"", digest_size=16).hexdigest()
