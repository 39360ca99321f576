"""What one picture is, in numbers: decoded once, on a thread of its own, from bytes that nobody vouches for."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.data.decode import BYTE_CAP, BadPicture, Encoded, Member, header, open_file, picture
from sfumato.data.fit import has_alpha
from sfumato.errors import UserError

__all__ = ["SIGN", "THUMB", "Look", "look", "opaque", "small", "thumbnail", "uploaded", "whole"]

THUMB = 128  # pixels of a thumbnail's longer side
SIGN = 32  # pixels a side of the small square picture that copies are found by
SEEN = 256  # pixels of the longer side at which pictures are judged: how sharp they look, not how many pixels they have
SHOWN = 2048  # pixels of the longer side of a picture shown whole
IN_MEMORY = 1 << 24  # bytes of a file that are read once and kept while it is decoded


class Look(NamedTuple):
    """What was seen of a picture: facts for the table, an encoded thumbnail, the sign (SIGN, SIGN, 3) uint8."""

    row: dict[str, Any]
    thumb: bytes
    sign: NDArray[np.uint8]


def look(source: Encoded) -> Look:
    """Decodes a picture once. Raises BadPicture.

    A JPEG many times larger than is needed here is decoded at a fraction of its size. Then `pixel_hash` is the hash of
    its file: only whole pictures are compared pixel by pixel.
    """
    kind, size, content, code = _read(source)
    head = header(content)
    with picture(content, (THUMB, THUMB)) as image:
        whole = image.size == head.size
        pixels = _code(image) if whole else code
        clear = has_alpha(image) and image.convert("RGBA").getchannel("A").histogram()[255] < image.width * image.height
        row = {
            "width": head.size[0],
            "height": head.size[1],
            "bytes": size,
            "format": image.format or kind,
            "mode": head.mode,
            "sha256": code,
            "pixel_hash": pixels,
            "aspect": head.size[0] / head.size[1],
            "megapixels": head.size[0] * head.size[1] / 1e6,
            "bits_per_pixel": 8 * size / (head.size[0] * head.size[1]),
            "alpha": clear,
        }
        flat = small(opaque(image), SEEN)
        thumb = small(flat, THUMB)
        shown = thumbnail(small(image, THUMB) if clear else thumb)
        sign = np.asarray(thumb.resize((SIGN, SIGN), Image.Resampling.BOX))
        return Look(row | _colours(sign) | _detail(flat), shown, sign)


def _read(source: Encoded) -> tuple[str, int, Encoded, str]:
    """(kind, bytes, what to decode, SHA-256): small files are read once."""
    if isinstance(source, np.ndarray):
        return "array", source.nbytes, source, hashlib.sha256(source.tobytes()).hexdigest()
    if isinstance(source, bytes):
        return "bytes", len(source), source, hashlib.sha256(source).hexdigest()
    try:
        with source.open() if isinstance(source, Member) else open_file(source) as file:
            content = file.read(IN_MEMORY + 1)
            if len(content) <= IN_MEMORY:
                return "file", len(content), content, hashlib.sha256(content).hexdigest()
            return _streamed(source, content, file)
    except BadPicture:
        raise
    except OSError as error:
        raise BadPicture(f"cannot be read ({(error.strerror or 'damaged').lower()})") from error
    except Exception as error:  # archives fail in any way
        raise BadPicture(f"damaged ({type(error).__name__})") from error


def _streamed(source: Path | Member, first: bytes, file: Any) -> tuple[str, int, Encoded, str]:
    code, size = hashlib.sha256(first), len(first)
    while piece := file.read(IN_MEMORY):
        code.update(piece)
        size += len(piece)
        if size > BYTE_CAP:
            raise BadPicture(f"more than the cap of {BYTE_CAP / 1e6:,.0f} MB")
    return "file", size, source, code.hexdigest()


def _code(image: Image.Image) -> str:
    """Hash of the pixels with their size and kind."""
    whole = image if image.mode in ("L", "RGB", "RGBA") or image.mode.startswith("I;16") else image.convert("RGBA")
    code = hashlib.blake2b(f"{whole.mode} {whole.size}".encode(), digest_size=16)
    code.update(whole.tobytes())
    return code.hexdigest()


def opaque(image: Image.Image) -> Image.Image:
    """8-bit RGB, transparent pictures on white."""
    if image.mode.startswith("I;16"):
        deep = np.asarray(image.convert("F") if image.mode == "I;16" else image)
        image = Image.fromarray((deep.astype(np.float32) / 257).round().astype(np.uint8))
    if has_alpha(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def small(image: Image.Image, side: int) -> Image.Image:
    """At most `side` pixels on the longer side; never enlarged."""
    scale = side / max(image.size)
    if scale >= 1:
        return image
    if image.mode not in ("RGB", "RGBA", "L"):
        image = image.convert("RGBA")
    wide, high = (max(1, round(scale * n)) for n in image.size)
    image = image.reduce(int(1 / scale)) if scale <= 0.5 else image
    return image if image.size == (wide, high) else image.resize((wide, high), Image.Resampling.BILINEAR)


def thumbnail(image: Image.Image) -> bytes:
    """JPEG, or WebP where the picture is transparent; nothing but pixels."""
    out = io.BytesIO()
    bare = image.copy()
    bare.info = {}
    if image.mode == "RGB":
        bare.save(out, "JPEG", quality=85)
    else:
        bare.convert("RGBA").save(out, "WEBP", quality=80, method=1)
    return out.getvalue()


def whole(source: Encoded) -> tuple[bytes, str]:
    """(content, mime type) of a picture encoded again, upright, at most SHOWN pixels a side, nothing but pixels. Raises
    BadPicture."""
    with picture(source, (SHOWN // 4, SHOWN // 4)) as image:
        clear = has_alpha(image)
        bare = small(image.convert("RGBA") if clear else opaque(image), SHOWN).copy()
    bare.info = {}
    out = io.BytesIO()
    if clear or bare.width * bare.height <= 1 << 20:
        bare.save(out, "PNG", compress_level=1)
        return out.getvalue(), "image/png"
    bare.save(out, "JPEG", quality=92)
    return out.getvalue(), "image/jpeg"


def uploaded(content: bytes, *, whole: bool) -> Image.Image:
    """A picture from outside as the room's own are seen: by its thumbnail, or larger. Raises UserError."""
    try:
        if whole:
            with picture(content, (512, 512)) as image:
                return small(opaque(image), 512).copy()
        return opaque(Image.open(io.BytesIO(look(content).thumb)))
    except BadPicture as reason:
        raise UserError(f"the picture cannot be read: {reason}.") from None


def _colours(sign: NDArray[np.uint8]) -> dict[str, Any]:
    """Mean colour 0..255, hue in degrees (weighted by chroma), saturation 0..1, whether there is any colour."""
    r, g, b = np.ascontiguousarray(sign.reshape(-1, 3).T, np.float32)
    red, green, blue = float(r.mean()), float(g.mean()), float(b.mean())
    top = np.maximum(np.maximum(r, g), b)
    chroma = top - np.minimum(np.minimum(r, g), b)
    # the angle in the plane of chroma, whose corners are red 0, green 120, blue 240
    hue = float(np.degrees(np.arctan2((green - blue) * 3**0.5 / 2, red - (green + blue) / 2))) % 360
    gray = float(chroma.max()) <= 12 or float(chroma.mean()) < 1.5
    return {
        "red": red, "green": green, "blue": blue, "hue": None if gray else hue,
        "saturation": float((chroma / np.maximum(top, 1)).mean()), "gray": gray,
    }  # fmt: skip


def _detail(flat: Image.Image) -> dict[str, Any]:
    """Of the luma: mean and standard deviation 0..1, its 5th and 95th percentile, entropy in bits, and how sharp it
    is: log10(1 + variance of the Laplacian in squared levels), at no more than SEEN pixels a side."""
    luma = flat.convert("L")
    counts = np.array(luma.histogram(), np.float64)
    share = counts / counts.sum()
    levels = np.arange(256) / 255
    mean = float(share @ levels)
    low, high = np.searchsorted(np.cumsum(share), [0.05, 0.95])
    some = share[share > 0]
    return {
        "brightness": mean,
        "contrast": float(np.sqrt(max(share @ (levels - mean) ** 2, 0.0))),
        "darkest": float(low) / 255,
        "lightest": float(min(high, 255)) / 255,
        "entropy": float(-(some @ np.log2(some))) + 0.0,
        "sharpness": _sharpness(np.asarray(luma)),
    }


def _sharpness(luma: NDArray[np.uint8]) -> float:
    if min(luma.shape) < 3:
        return 0.0
    x = luma.astype(np.int16)
    laplacian = x[1:-1, :-2] + x[1:-1, 2:] + x[:-2, 1:-1] + x[2:, 1:-1] - 4 * x[1:-1, 1:-1]
    flat = laplacian.ravel().astype(np.float32)
    return float(np.log10(1 + max(float(flat @ flat) / flat.size - float(flat.mean()) ** 2, 0.0)))
