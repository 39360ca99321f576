"""From the bytes of a stranger to a picture: few formats, sizes checked before decoding, every failure a reason."""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from sfumato.data.fit import Plan, conform, has_alpha
from sfumato.data.options import escape

__all__ = [
    "BYTE_CAP",
    "EXTENSIONS",
    "BadPicture",
    "Encoded",
    "Header",
    "Member",
    "Missing",
    "decode",
    "header",
    "open_file",
    "picture",
    "room",
]

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
PIXEL_CAP = 64_000_000
BYTE_CAP = 1 << 28
GRAY = ("1", "L", "LA", "La")
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
LASTING = (errno.EACCES, errno.EPERM)  # the file must change before it can be read
NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a FIFO would wait for ever


class BadPicture(Exception):
    """Why a picture cannot be used; `passing` if the same bytes may be readable another time."""

    def __init__(self, reason: str, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


class Missing(NamedTuple):
    """What is kept of a BadPicture: an exception would keep the bytes of its picture in memory."""

    reason: str
    passing: bool

    @classmethod
    def of(cls, error: BadPicture) -> Missing:
        return cls(str(error), error.passing)


@dataclass(frozen=True)
class Member:
    """A picture inside of an archive: what it declares to be unpacked, in bytes, and how to open it."""

    size: int
    open: Callable[[], BinaryIO]


Encoded = bytes | Path | Member | NDArray[Any]  # what a source hands over for one example


class Header(NamedTuple):
    """What a file says of itself."""

    size: tuple[int, int]  # (width, height), upright
    mode: str  # PIL's name: L, RGB, I;16 ...
    gray: bool
    alpha: bool

    @property
    def deep(self) -> bool:
        return self.mode.startswith("I;16")


class _Budget:
    """Lets threads in while the sum of their needs stays within `limit`; whoever needs more goes alone."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used, self.free = limit, 0, threading.Condition()

    @contextmanager
    def take(self, need: int) -> Iterator[None]:
        need = min(need, self.limit)
        with self.free:
            self.free.wait_for(lambda: self.used + need <= self.limit)
            self.used += need
        try:
            yield
        finally:
            with self.free:
                self.used -= need
                self.free.notify_all()


# Memory does not grow with the number of threads: together they hold no more than the largest picture allowed. Taken
# in this order, so that they cannot wait for each other.
BYTES, PIXELS = _Budget(BYTE_CAP), _Budget(PIXEL_CAP)
# Freed blocks of this size go back to the system, smaller ones stay with each thread.
Image.core.set_block_size(1 << 26)  # type: ignore[attr-defined]


def room(packed: int) -> int:
    """Bytes that so many packed bytes may unpack to: pictures hardly shrink when they are packed, bombs do."""
    return max(BYTE_CAP, 100 * packed)


def header(source: Encoded) -> Header:
    """Size and mode without decoding. Raises BadPicture."""
    with _opened(source) as image:
        # PIL turns TIFF itself; the `getexif` of its PNG class would decode the picture
        turned = image.format != "TIFF" and Image.Image.getexif(image).get(0x0112, 1) in (5, 6, 7, 8)
        size = image.size[::-1] if turned else image.size
        return Header(size, image.mode, image.mode in GRAY or image.mode.startswith("I;16"), has_alpha(image))


@contextmanager
def picture(source: Encoded, at_least: tuple[int, int] | None = None) -> Iterator[Image.Image]:
    """The decoded picture, upright, first frame. A JPEG many times larger than `at_least` is decoded at a fraction of
    its size. Raises BadPicture, also for what fails inside."""
    with _opened(source, whole=True) as image:
        if at_least is not None and image.format == "JPEG":
            image.draft(None, (4 * max(at_least), 4 * max(at_least)))
        with PIXELS.take(image.width * image.height), closing(image):  # freed before others are let in
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            yield image


def decode(source: Encoded, plan: Plan) -> NDArray[Any]:
    """(H, W, C) of the plan. Raises BadPicture."""
    with picture(source, plan.size) as image:
        return conform(image, plan)


@contextmanager
def _opened(source: Encoded, *, whole: bool = False) -> Iterator[Image.Image]:
    """An image opened lazily; whatever goes wrong inside becomes a BadPicture with a reason for humans."""
    try:
        with ExitStack() as stack:
            if isinstance(source, np.ndarray):
                yield from_array(source)
                return
            file, size = _file(source)
            stack.enter_context(file)
            if size > BYTE_CAP:
                raise BadPicture(f"{size / 1e6:,.0f} MB, more than the cap of {BYTE_CAP / 1e6:,.0f} MB")
            if not size:
                raise BadPicture("empty file")
            stack.enter_context(BYTES.take(size))
            if whole or isinstance(source, Member):  # archives may hold more than they declare: never read on
                file = stack.enter_context(io.BytesIO(file.read(size + 1)))
            yield _image(file, whole=whole)
    except (BadPicture, MemoryError):
        raise
    except Exception as error:
        passing = isinstance(error, OSError) and error.errno is not None and error.errno not in LASTING
        raise BadPicture(_reason(error), passing=passing) from error


def from_array(pixels: NDArray[Any]) -> Image.Image:
    """(H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8; gray also uint16."""
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, opened without ever waiting for it. Raises OSError, and BadPicture for anything else."""
    handle = os.open(path, os.O_RDONLY | NO_WAITING)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BadPicture("not a regular file", passing=True)
    return os.fdopen(handle, "rb")


def _file(source: bytes | Path | Member) -> tuple[BinaryIO, int]:
    """(file, bytes)."""
    if isinstance(source, Path):
        file = open_file(source)
        return file, os.fstat(file.fileno()).st_size
    if isinstance(source, Member):
        return source.open(), source.size
    return io.BytesIO(source), len(source)


def _image(file: BinaryIO, *, whole: bool) -> Image.Image:
    image = Image.open(file, formats=FORMATS)
    if max(image.width * image.height, _tile(image)) > PIXEL_CAP:
        raise BadPicture(_too_large(image.size))
    if not (image.mode in GRAY or image.mode in COLOUR or image.mode.startswith("I;16")):
        raise BadPicture(f"pixels of the kind {image.mode} are not supported: save it as 8-bit or 16-bit")
    if whole and image.format == "PNG":  # PIL checks the checksums of compressed data only here
        image.verify()
        file.seek(0)
        image = Image.open(file, formats=FORMATS)
    return image


def _tile(image: Image.Image) -> int:
    """Pixels of one tile of a TIFF: it may be larger than the picture, and is unpacked whole."""
    if not isinstance(image, TiffImageFile):
        return 0
    wide, high = image.tag_v2.get(322), image.tag_v2.get(323)
    return wide * high if isinstance(wide, int) and isinstance(high, int) else 0


def _too_large(size: tuple[int, int] | None) -> str:
    what = f"{size[0]:,} x {size[1]:,} pixels" if size else "so many pixels"
    return f"declares {what}, more than the cap of {PIXEL_CAP // 1_000_000} megapixels"


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return _too_large(None)
    if isinstance(error, UnidentifiedImageError):
        return "not a picture, or one of an unknown format"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({os.strerror(error.errno).lower()})"
    text = " ".join(str(error).split()) or type(error).__name__
    return f"damaged ({escape(text[:120])})"
