"""Pictures and masks that a command is given, read as training data are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sfumato.data.decode import BadPicture, decode, header, picture
from sfumato.data.fit import FITS, Plan, gray
from sfumato.errors import UserError
from sfumato.recipe import Recipe

__all__ = ["Given", "read", "read_mask"]

HALF = 128  # from this level on a mask is white


class Given(NamedTuple):
    """A picture at the run's size and in its colours."""

    pixels: Tensor  # (C, H, W) in [0, 1]: levels / 255
    size: tuple[int, int]  # (width, height) of the file
    notes: tuple[str, ...]  # what was changed


def plan_of(recipe: Recipe, fit: str, size: Sequence[int] | None = None) -> Plan:
    """What pictures become; `size` (high, wide) where that is not the run's. Raises UserError for a run of other
    things."""
    shape = (recipe.config.shape[0], *(size or recipe.config.shape[1:]))
    if len(shape) != 3 or shape[0] not in (1, 3, 4):
        raise UserError(f"this run makes {' x '.join(map(str, shape))} numbers, not pictures.")
    return Plan((shape[2], shape[1]), shape[0], fit=fit)


def read(path: Path, recipe: Recipe, fit: str = "crop", size: Sequence[int] | None = None) -> Given:
    """Decoded within the caps that hold for data, at the run's size or another (high, wide). Raises UserError."""
    plan = plan_of(recipe, fit, size)
    try:
        told = header(_file(path))
        pixels = torch.from_numpy(decode(path, plan).copy()).movedim(-1, 0) / 255
    except BadPicture as error:
        raise UserError(f"'{path.name}' cannot be used: {error}.") from None
    notes = []
    if told.size != plan.size:
        notes.append(
            f"note: '{path.name}' is {_by(told.size)}, the run {'takes' if size else 'is'} {_by(plan.size)}: "
            f"{WORDS[fit]}{'' if size else ', as in training'}."
        )
    if plan.channels == 1 and not told.gray:
        notes.append(f"note: '{path.name}' is turned gray, as the run's pictures are.")
    return Given(pixels, told.size, tuple(notes))


WORDS = {"crop": "resized and cropped", "pad": "resized and padded", "stretch": "stretched"}


def read_all(paths: Sequence[Path], recipe: Recipe, fit: str) -> tuple[Tensor, tuple[str, ...]]:
    """(B, C, H, W), and what was changed."""
    given = [read(path, recipe, fit) for path in paths]
    return torch.stack([one.pixels for one in given]), tuple(note for one in given for note in one.notes)


def read_mask(path: Path, like: Given, recipe: Recipe, fit: str = "crop") -> Tensor:
    """(H, W) bool, True where it is white (128 of 255 or more): what will be made. It has the size of the picture's
    file and follows it to that of the run, where a pixel is made if half of it is. Raises UserError."""
    plan = plan_of(recipe, fit)
    try:
        told = header(_file(path))
        if told.size != like.size:
            sizes = f"the mask is {_by(told.size)} and the picture {_by(like.size)}"
            raise UserError(f"{sizes}: give a mask of the picture's size.")
        with picture(path) as image:
            white = Image.fromarray((np.asarray(gray(_opaque(image))) >= HALF).astype(np.uint8) * 255)
            return torch.from_numpy(np.asarray(FITS[fit](white, plan.size)) >= HALF)
    except BadPicture as error:
        raise UserError(f"'{path.name}' cannot be used: {error}.") from None


def _opaque(image: Image.Image) -> Image.Image:
    return (
        Image.fromarray((np.asarray(image).astype(np.float64) / 257).astype(np.uint8))
        if image.mode[0] == "I"
        else image
    )


def _file(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"there is no picture '{path}': give a PNG, JPEG, WebP, BMP, TIFF or GIF.")
    return path


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
