"""From any picture to the size and channels of a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["FITS", "Plan", "conform", "natural_channels", "natural_size"]

LADDER = (8, 16, 32, 48, 64, 96, 128, 192, 256)  # sides that halve well; larger only when asked
LANCZOS = Image.Resampling.LANCZOS


@dataclass(frozen=True)
class Plan:
    """What every picture becomes."""

    size: tuple[int, int]  # (width, height)
    channels: int  # 1, 3, 4; alpha is laid on white unless there are 4
    deep: bool = False  # uint16; only gray
    fit: str = "crop"

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        return np.uint16 if self.deep else np.uint8

    @property
    def row(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.size[1], self.size[0], self.channels

    @property
    def bytes(self) -> int:
        """Of one picture."""
        return int(np.prod(self.row)) * (2 if self.deep else 1)


def natural_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """A square size for pictures of these (width, height): the median short side, rounded down on a ladder of sides
    that halve well. 28 stays 28 when every picture is 28 x 28."""
    if set(sizes) == {(28, 28)}:
        return 28, 28
    short = float(np.median([min(size) for size in sizes]))
    side = max([side for side in LADDER if side <= short], default=LADDER[0])
    return side, side


def natural_channels(pixels: NDArray[Any]) -> int:
    """How many channels (..., C) really uses: 4 if anything is transparent, 3 if anything has a colour, else 1."""
    if pixels.shape[-1] == 4 and pixels[..., 3].min() < 255:
        return 4
    first = pixels[..., 0]
    coloured = pixels.shape[-1] > 1 and any((pixels[..., c] != first).any() for c in (1, 2))
    return 3 if coloured else 1


def conform(picture: Image.Image, plan: Plan) -> NDArray[Any]:
    """The picture as (H, W, C) of the plan. An opaque picture that already fits keeps its exact values."""
    picture = FITS[plan.fit](_with_channels(picture, plan), plan.size)
    pixels = np.asarray(picture)
    if plan.deep:
        pixels = np.rint(pixels.clip(0, 65535)).astype(np.uint16)
    return pixels.reshape(plan.row)


def _with_channels(picture: Image.Image, plan: Plan) -> Image.Image:
    """To L, RGB, RGBA, or F with values 0..65535 where the plan is deep."""
    if picture.mode.startswith("I;16"):
        deep = picture.convert("F") if picture.mode == "I;16" else _native(picture)
        if plan.deep:
            return deep
        picture = Image.fromarray(np.rint(np.asarray(deep) / 257).astype(np.uint8))
    if has_alpha(picture):
        picture = _as(picture, "RGBA")
        if plan.channels == 4:
            return picture
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    if plan.channels == 1:
        picture = gray(picture)
        return picture.convert("F").point(lambda x: x * 257.0 + 0) if plan.deep else picture
    return _as(picture, "RGB" if plan.channels == 3 else "RGBA")


def _as(picture: Image.Image, mode: str) -> Image.Image:
    """In this mode, without a copy where it is that already."""
    return picture if picture.mode == mode else picture.convert(mode)


def gray(picture: Image.Image) -> Image.Image:
    """Luma; an RGB picture that is already gray keeps its exact values (PIL's weights sum to 65536)."""
    return picture if picture.mode == "L" else _as(picture, "RGB").convert("L")


def has_alpha(picture: Image.Image) -> bool:
    """Whether the picture may be transparent somewhere."""
    return picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info


def _native(picture: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(picture).astype(np.float32))


def crop(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The centre of the picture, as large as the shape of `size` allows, resized in one step."""
    (w, h), (wide, high) = picture.size, size
    scale = min(w / wide, h / high)
    left, top = (w - scale * wide) / 2, (h - scale * high) / 2
    if scale == 1:
        x, y = int(left), int(top)
        return picture.crop((x, y, x + wide, y + high))
    return _resize(picture, size, (left, top, min(w, left + scale * wide), min(h, top + scale * high)))


def pad(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The whole picture in the middle; around it the mean colour of its border (transparent where alpha is kept)."""
    (w, h), (wide, high) = picture.size, size
    scale = min(wide / w, high / h)
    inner = max(1, min(wide, round(w * scale))), max(1, min(high, round(h * scale)))
    small = _resize(picture, inner, (0, 0, w, h))
    out = Image.new(picture.mode, size, _border(small))
    out.paste(small, ((wide - inner[0]) // 2, (high - inner[1]) // 2))
    return out


def stretch(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The whole picture, its shape ignored."""
    return _resize(picture, size, (0, 0, *picture.size))


FITS: dict[str, Callable[[Image.Image, tuple[int, int]], Image.Image]] = {"crop": crop, "pad": pad, "stretch": stretch}


def _resize(picture: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    """Antialiased; large factors go through an exact box reduction first. Alpha is premultiplied by PIL."""
    return picture.resize(size, LANCZOS, box=box, reducing_gap=3.0)


def _border(picture: Image.Image) -> float | tuple[int, ...]:
    pixels = np.asarray(picture, np.float64).reshape(picture.height, picture.width, -1)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).mean(0)
    if picture.mode == "F":
        return float(edge[0])
    whole = tuple(int(c) for c in np.rint(edge))
    return (*whole[:3], 0) if picture.mode == "RGBA" else whole if len(whole) > 1 else whole[0]
