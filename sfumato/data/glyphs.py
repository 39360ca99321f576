"""Letters and symbols drawn from the fonts that matplotlib ships: real, labelled data without a download.

Dark ink (0) on white (255), as in a book. In every font capitals are 0.55 of the picture's height and stand on one
baseline at 0.7, so that pictures can be set side by side as words; the ink is centred from left to right.
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sfumato.data.arrays import Arrays
from sfumato.data.cache import each
from sfumato.data.columns import Column, Records
from sfumato.data.options import DataError, nearest, need, shortlist

__all__ = ["BASELINE", "CAPITAL", "SETS", "Font", "fonts", "glyphs"]

CAPITAL = 0.55  # height of H, of the picture's shorter side
BASELINE = 0.70  # from the top, of the picture's height
MARGIN = 1 / 32  # free of ink on all sides
SCALE = 8  # glyphs are drawn this much larger and averaged: exact grey edges, no hinting
LETTERS = string.ascii_lowercase + string.ascii_uppercase + string.digits

# They draw other things in the place of letters (STIXNonUni, Siz, cmex, cmsy), placeholders, or a few arrows (Display)
REFUSED = ("STIXNonUni", "Siz", "LastResort", "cmex10", "cmsy10", "Display")
READ_AS_LETTERS = {"cmmi10": frozenset(string.digits)}  # its old-style 0 is drawn like o, its 1 like a small I
FAMILIES = {
    "DejaVuSansMono": "DejaVu Sans Mono",
    "DejaVuSans": "DejaVu Sans",
    "DejaVuSerif": "DejaVu Serif",
    "STIXGeneral": "STIX",
    "cmss": "Computer Modern Sans",
    "cmtt": "Computer Modern Typewriter",
    "cm": "Computer Modern",
}


class Font(NamedTuple):
    """A font file, its family, and the characters it draws under their Unicode names."""

    path: Path
    family: str
    characters: frozenset[str]

    @property
    def name(self) -> str:
        return self.path.stem


def _letters(font: Font) -> list[str]:
    return [c for c in LETTERS if c in font.characters]


def _latin(font: Font) -> list[str]:
    if font.name.startswith("cm"):
        return []
    return sorted(c for c in font.characters if unicodedata.name(c, "").startswith("LATIN ") and c.isalpha())


def _all(font: Font) -> list[str]:
    return sorted(font.characters) if font.name.startswith("DejaVu") else []


SETS: dict[str, Callable[[Font], list[str]]] = {"letters": _letters, "latin": _latin, "all": _all}


def glyphs(which: str, size: tuple[int, int]) -> Arrays:
    """The set `which` at `size` (width, height): letters (a-z A-Z 0-9), latin (every Latin letter of DejaVu and STIX)
    or all (every named glyph of DejaVu). Blanks, exact duplicates and drawings that another name has are left out."""
    if which not in SETS:
        raise DataError(f"there is no set glyphs:{which}{nearest(which, SETS)}: choose {shortlist(SETS)}")
    if min(size) < 8:
        raise DataError(f"glyphs of {size[0]} x {size[1]} pixels cannot be read: ask for a size of 8 or more")
    drawn = list(
        _distinct(
            [
                sample
                for font in each(lambda font: list(_draw(font, SETS[which](font), size)), fonts())
                for sample in font
            ]
        )
    )
    images = np.stack([sample.pixels for sample in drawn])[..., None]
    known = sorted({sample.character for sample in drawn}, key=lambda c: (LETTERS.find(c) % 4096, c))
    place = {character: i for i, character in enumerate(known)}
    columns: dict[str, Column] = {
        "label": [place[sample.character] for sample in drawn],
        "text": [unicodedata.name(sample.character).lower() for sample in drawn],
        "family": [sample.font.family for sample in drawn],
        "font": [sample.font.name for sample in drawn],
    }
    records = Records(
        what="glyphs" if which == "letters" else f"glyphs:{which}",
        columns=columns,
        classes=tuple(known),
        names=tuple(f"{sample.font.name}/U+{ord(sample.character):04X}" for sample in drawn),
        read=images.__getitem__,
        stamps=(f"glyphs 1 {which} {size}",),
    )
    return Arrays(records, images, mirror_safe=False)


@cache
def fonts() -> tuple[Font, ...]:
    """The usable fonts of matplotlib, by name."""
    folder = Path(need("matplotlib", "demo", "drawing glyphs").get_data_path()) / "fonts" / "ttf"
    open_font = need("matplotlib.ft2font", "demo", "drawing glyphs").FT2Font
    paths = [path for path in sorted(folder.glob("*.ttf")) if not any(word in path.stem for word in REFUSED)]
    if not paths:
        raise DataError("matplotlib is installed without its fonts, so there are no glyphs: reinstall matplotlib")
    return tuple(
        Font(
            path,
            next(family for stem, family in FAMILIES.items() if path.stem.startswith(stem)),
            frozenset(c for c in map(chr, open_font(path).get_charmap()) if unicodedata.name(c, ""))
            - READ_AS_LETTERS.get(path.stem, frozenset()),
        )
        for path in paths
        if any(path.stem.startswith(stem) for stem in FAMILIES)
    )


@dataclass(frozen=True)
class _Sample:
    font: Font
    character: str
    pixels: NDArray[Any]


def _draw(font: Font, characters: list[str], size: tuple[int, int]) -> Iterator[_Sample]:
    """Each character on the common baseline; one that would leave the picture there is drawn smaller, in the middle."""
    if not characters:
        return
    points = SCALE * min(size) * CAPITAL / -_ink(_face(font, 1000), "H")[1] * 1000
    face, baseline = _face(font, points), SCALE * round(BASELINE * size[1])
    inner = tuple(SCALE * side * (1 - 2 * MARGIN) for side in size)
    edge = SCALE * size[1] * MARGIN
    for character in characters:
        left, top, right, bottom = _ink(face, character)
        if right <= left or bottom <= top:
            continue
        if right - left <= inner[0] and edge <= baseline + top and baseline + bottom <= SCALE * size[1] - edge:
            used, y = face, float(baseline)
        else:
            used = _face(font, 0.96 * points * min(inner[0] / (right - left), inner[1] / (bottom - top)))
            left, top, right, bottom = _ink(used, character)
            y = (SCALE * size[1] - top - bottom) / 2
        yield _Sample(font, character, _render(used, character, (SCALE * size[0] - left - right) / 2, y, size))


def _face(font: Font, points: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font.path, points, layout_engine=ImageFont.Layout.BASIC)


def _ink(face: ImageFont.FreeTypeFont, character: str) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the ink around the origin; getbbox would count the space to the next letter."""
    mask, (x, y) = face.getmask2(character, "L", anchor="ls")
    left, top, right, bottom = mask.getbbox() or (0, 0, 0, 0)
    return left + x, top + y, right + x, bottom + y


def _render(face: ImageFont.FreeTypeFont, character: str, x: float, y: float, size: tuple[int, int]) -> NDArray[Any]:
    canvas = Image.new("L", (SCALE * size[0], SCALE * size[1]), 255)
    ImageDraw.Draw(canvas).text((x, y), character, fill=0, font=face, anchor="ls")
    return np.asarray(canvas.reduce(SCALE))


def _distinct(samples: list[_Sample]) -> Iterator[_Sample]:
    """The first of each drawing, by code point: Latin A stays, Greek and Cyrillic A that look like it go."""
    seen: set[bytes] = set()
    for sample in sorted(samples, key=lambda sample: (sample.character, sample.font.name)):
        pixels = sample.pixels.tobytes()
        if sample.pixels.min() < 128 and pixels not in seen:
            seen.add(pixels)
            yield sample
