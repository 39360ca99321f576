"""Decode once: pictures from any source into one array, kept on disk for the next start."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from sfumato.data.decode import BadPicture, Missing

__all__ = ["Pixels", "Progress", "cache_folder", "digest", "each", "fill", "lacking", "load", "store"]

VERSION = 1  # raise when decoding changes what a picture becomes
LEFTOVER = 3600  # seconds without a write after which a temporary folder belongs to nobody
IN_MEMORY = 1 << 28  # smaller arrays are read whole, larger ones mapped
Progress = Callable[[int, int], None]
T = TypeVar("T")
R = TypeVar("R")


class Pixels(NamedTuple):
    """Decoded pictures: the array, the rows of the source it holds, and why others are missing."""

    images: NDArray[Any]
    rows: list[int]
    bad: list[tuple[int, str]]
    passing: bool = False  # some are missing that may be there another time: not to be believed then


def cache_folder() -> Path:
    """$SFUMATO_CACHE, else the user's cache folder."""
    if own := os.environ.get("SFUMATO_CACHE"):
        return Path(own) / "data"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "sfumato" / "data"


def digest(parts: Sequence[str]) -> str:
    """The name of a cache entry: changes with any part and with VERSION."""
    code = hashlib.blake2b(f"sfumato {VERSION}".encode(), digest_size=16)
    for part in parts:
        code.update(b"\0" + part.encode("utf-8", "surrogateescape"))
    return code.hexdigest()


def each(work: Callable[[T], R], jobs: Sequence[T], progress: Progress | None = None) -> Iterator[R]:
    """work(job) for all jobs in threads, in order, a bounded number ahead; progress at most ten times a second."""
    threads = min(16, (os.cpu_count() or 1) + 1)
    told = 0.0
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[R]] = deque()
        try:
            for done in range(len(jobs)):
                while len(ahead) < 4 * threads and done + len(ahead) < len(jobs):
                    ahead.append(pool.submit(work, jobs[done + len(ahead)]))
                yield ahead.popleft().result()
                if progress is not None and (done + 1 == len(jobs) or time.monotonic() - told > 0.1):
                    progress(done + 1, len(jobs))
                    told = time.monotonic()
        finally:
            for future in ahead:
                future.cancel()


def fill(
    decode: Callable[[int], NDArray[Any]],
    rows: Sequence[int],
    shape: tuple[int, ...],
    dtype: type,
    progress: Progress | None = None,
    file: BinaryIO | None = None,
) -> Pixels:
    """Decodes `rows` to memory, or one after the other into `file` (an empty .npy), in order, without the bad ones."""

    def attempt(row: int) -> NDArray[Any] | Missing:
        try:
            return decode(row)
        except BadPicture as error:
            return Missing.of(error)

    out: NDArray[Any] = np.empty((len(rows) if file is None else 0, *shape), dtype)
    good: list[int] = []
    bad: list[tuple[int, Missing]] = []
    if file is not None:
        _npy_header(file, (len(rows), *shape), dtype)
    for row, pixels in zip(rows, each(attempt, rows, progress), strict=True):
        if isinstance(pixels, Missing):
            bad.append((row, pixels))
            continue
        if file is None:
            out[len(good)] = pixels
        else:
            file.write(np.ascontiguousarray(pixels).data)
        good.append(row)
    if file is not None:
        _npy_header(file, (len(good), *shape), dtype)
    return lacking(Pixels(out[: len(good)], good, []), bad)


def lacking(pixels: Pixels, bad: Sequence[tuple[int, Missing]]) -> Pixels:
    """The same, with more that could not be had."""
    return pixels._replace(
        bad=sorted(pixels.bad + [(row, missing.reason) for row, missing in bad]),
        passing=pixels.passing or any(missing.passing for _, missing in bad),
    )


def _npy_header(file: BinaryIO, shape: tuple[int, ...], dtype: type) -> None:
    """numpy pads headers so that the first dimension may still change in place."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    )


@dataclass(frozen=True)
class Entry:
    """A folder of the cache: images.npy, and index.json (which rows of the source it holds, why not the rest), sealed
    together with the shape of the array by a hash."""

    folder: Path

    def read(self) -> Pixels | None:
        """What is kept here, or None if nothing whole is."""
        try:
            index = json.loads((self.folder / "index.json").read_bytes())
            path = self.folder / "images.npy"
            size = path.stat().st_size
            images = np.load(path, mmap_mode=None if size <= IN_MEMORY else "r", allow_pickle=False)
            if index.pop("seal") != _seal(index, images.shape, images.dtype, size):
                return None
            return Pixels(images, index["rows"], [(row, why) for row, why in index["bad"]], index["passing"])
        except Exception:  # damage can look like anything
            return None

    def write(self, pixels: Pixels, size: int) -> None:
        """The index of an array that lies here in `size` bytes."""
        index = {"version": VERSION, "rows": pixels.rows, "bad": pixels.bad, "passing": pixels.passing}
        shape = (len(pixels.rows), *pixels.images.shape[1:])
        with open(self.folder / "index.json", "wb") as file:
            file.write(json.dumps({**index, "seal": _seal(index, shape, pixels.images.dtype, size)}).encode())
            _flush(file)


def _seal(index: dict[str, Any], shape: tuple[int, ...], dtype: np.dtype[Any], size: int) -> str:
    return digest([json.dumps([index, shape, dtype.str, size], sort_keys=True)])


def load(name: str) -> Pixels | None:
    """The cache entry `name`, if it is there, whole and to be believed."""
    kept = Entry(cache_folder() / name).read()
    return None if kept is None or kept.passing else kept


def store(name: str, size: int, build: Callable[[BinaryIO | None], Pixels]) -> Pixels:
    """Builds an entry of about `size` bytes on disk: in a temporary folder that is renamed when it is whole. Where the
    disk is full or read-only the pictures are kept in memory instead, with a warning."""
    root = cache_folder()
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        _sweep(root)
        if shutil.disk_usage(root).free < 1.02 * size + (1 << 20):
            raise OSError(28, os.strerror(28))
        temporary = Path(tempfile.mkdtemp(prefix=f"{name}.tmp-", dir=root))
    except OSError as error:
        return _in_memory(build, root, error)
    try:
        return _write(temporary, root / name, build)
    except OSError as error:
        return _in_memory(build, root, error)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Takes away what killed processes left half-written."""
    for folder in root.glob("*.tmp-*"):
        with contextlib.suppress(OSError):  # another process may be sweeping too
            if all(time.time() - path.stat().st_mtime > LEFTOVER for path in (folder, *folder.iterdir())):
                shutil.rmtree(folder, ignore_errors=True)


def _write(temporary: Path, final: Path, build: Callable[[BinaryIO | None], Pixels]) -> Pixels:
    with open(temporary / "images.npy", "w+b") as file:
        pixels = build(file)
        _flush(file)
        size = os.fstat(file.fileno()).st_size
    Entry(temporary).write(pixels, size)
    sync_folder(temporary)
    if final.exists() and load(final.name) is None:
        shutil.rmtree(final, ignore_errors=True)
    try:
        os.rename(temporary, final)
    except OSError:
        if (kept := Entry(final).read()) is not None:  # another process was faster
            return kept
        raise
    sync_folder(final.parent)
    if (kept := Entry(final).read()) is None:
        raise OSError(5, "the cache cannot be read back")
    return kept


def _in_memory(build: Callable[[BinaryIO | None], Pixels], root: Path, error: OSError) -> Pixels:
    warnings.warn(
        f"decoded pictures are kept in memory: the cache {root} cannot be written ({error.strerror}). "
        "Set SFUMATO_CACHE to a folder with room.",
        RuntimeWarning,
        stacklevel=3,
    )
    return build(None)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes a rename inside `folder` survive a power cut, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
