"""From the bytes of a stranger to a picture: few formats, sizes checked before decoding, every failure a reason."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from sfumato.data.fit import Plan, conform, has_alpha

__all__ = ["EXTENSIONS", "BadPicture", "Encoded", "Header", "decode", "header", "picture"]

Encoded = bytes | Path | NDArray[Any]  # what a source hands over for one example
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
PIXEL_CAP = 64_000_000
BYTE_CAP = 1 << 29
GRAY = ("1", "L", "LA", "La")
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")


class BadPicture(Exception):
    """Why a picture cannot be used."""


class Header(NamedTuple):
    """What a file says of itself."""

    size: tuple[int, int]  # (width, height), upright
    mode: str  # PIL's name: L, RGB, I;16 ...
    gray: bool
    alpha: bool

    @property
    def deep(self) -> bool:
        return self.mode.startswith("I;16")


def header(source: Encoded) -> Header:
    """Size and mode without decoding. Raises BadPicture."""
    with _Opened(source) as image:
        turned = image.format != "TIFF" and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # PIL turns TIFF itself
        size = image.size[::-1] if turned else image.size
        return Header(size, image.mode, image.mode in GRAY or image.mode.startswith("I;16"), has_alpha(image))


def picture(source: Encoded, at_least: tuple[int, int] | None = None) -> Image.Image:
    """The decoded picture, upright, first frame. A JPEG many times larger than `at_least` is decoded at a fraction of
    its size. Raises BadPicture."""
    with _Opened(source, verify=True) as image:
        if at_least is not None and image.format == "JPEG":
            image.draft(None, (4 * max(at_least), 4 * max(at_least)))
        image.load()
        return ImageOps.exif_transpose(image)


def decode(source: Encoded, plan: Plan) -> NDArray[Any]:
    """(H, W, C) of the plan. Raises BadPicture."""
    image = picture(source, plan.size)
    try:
        return conform(image, plan)
    except (OSError, ValueError) as error:
        raise BadPicture(_reason(error)) from error


class _Opened:
    """An image opened lazily; whatever goes wrong inside becomes a BadPicture with a reason for humans."""

    def __init__(self, source: Encoded, *, verify: bool = False) -> None:
        self.source, self.verify = source, verify

    def __enter__(self) -> Image.Image:
        self.file: BinaryIO | None = None
        try:
            if isinstance(self.source, np.ndarray):
                return from_array(self.source)
            self.file = _file(self.source, whole=self.verify)
            return _open(self.file, verify=self.verify)
        except Exception as error:
            self.__exit__(type(error), error)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *rest: object) -> None:
        if self.file is not None:
            self.file.close()
        if isinstance(error, Exception) and not isinstance(error, BadPicture | MemoryError):
            raise BadPicture(_reason(error)) from error


def from_array(pixels: NDArray[Any]) -> Image.Image:
    """(H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8; gray also uint16."""
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)


def _file(source: bytes | Path, *, whole: bool) -> BinaryIO:
    if isinstance(source, Path):
        info = os.stat(source)
        if not stat.S_ISREG(info.st_mode):
            raise BadPicture("not a regular file")
        if info.st_size > BYTE_CAP:
            raise BadPicture(f"{info.st_size / 1e6:,.0f} MB, more than the cap of {BYTE_CAP / 1e6:,.0f} MB")
        if not whole:
            return open(source, "rb")
        source = source.read_bytes()
    if not source:
        raise BadPicture("empty file")
    return io.BytesIO(source)


def _open(file: BinaryIO, *, verify: bool) -> Image.Image:
    image = Image.open(file, formats=FORMATS)
    if image.width * image.height > PIXEL_CAP:
        raise BadPicture(_too_large(image.size))
    if not (image.mode in GRAY or image.mode in COLOUR or image.mode.startswith("I;16")):
        raise BadPicture(f"pixels of the kind {image.mode} are not supported: save it as 8-bit or 16-bit")
    if verify and image.format == "PNG":  # PIL checks the checksums of compressed data only here
        image.verify()
        file.seek(0)
        image = Image.open(file, formats=FORMATS)
    return image


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
    text = str(error) or type(error).__name__
    return f"damaged ({' '.join(text.split())[:120]})"
