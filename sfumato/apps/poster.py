"""The demo's picture: rows of invented letters in coloured ink on soft paper, how they came out of the noise, the
loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from sfumato.engine.log import duration

__all__ = ["Facts", "clean", "draw", "history", "trim"]

Ink = NDArray[np.float32]  # (H, W) in [0, 1], 1 is ink

PAPER = (247, 241, 229)
GREY = (139, 128, 112)
INKS = (
    (31, 58, 95),
    (166, 60, 44),
    (47, 94, 69),
    (121, 72, 119),
    (184, 119, 35),
    (33, 104, 120),
    (92, 64, 51),
    (146, 43, 86),
)
WIDTH, MARGIN = 1600, 90


class Facts(NamedTuple):
    """What the caption says."""

    word: str
    parameters: int
    seconds: float | None  # of training
    losses: list[tuple[int, float]]


def history(metrics: Path) -> tuple[float | None, list[tuple[int, float]]]:
    """Seconds of training and (step, loss) from a run's metrics.jsonl."""
    if not metrics.is_file():
        return None, []
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf8").splitlines()]
    lines = [line for line in lines if "loss" in line]
    return (lines[-1].get("seconds") if lines else None), [(line["step"], line["loss"]) for line in lines]


# -- letters -----------------------------------------------------------------------------------------------------------


def clean(ink: Ink, letter: str = "") -> Ink:
    """Without specks: connected patches that hold little of the ink. The dots of i, j and some 0 are no specks."""
    least = 0.06 if letter in ("i", "j", "0") else 0.12
    mask = ink > 0.25
    patches = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:  # every patch takes the largest number in it
        spread = _around(patches) * mask
        if (spread == patches).all():
            break
        patches = spread
    total = float(ink[mask].sum())
    kept = [p for p in np.unique(patches[mask]) if float(ink[patches == p].sum()) >= least * total]
    cleaned: Ink = ink * _around(np.isin(patches, kept).astype(np.float32))  # with the soft edge of what stays
    return cleaned


def _around(x: NDArray[Any]) -> NDArray[Any]:
    """The largest of each pixel and its eight neighbours."""
    padded = np.pad(x, 1)
    moved = [np.roll(padded, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return np.asarray(np.max(moved, 0)[1:-1, 1:-1])


def trim(ink: Ink) -> Ink:
    """The columns that hold ink."""
    columns = np.flatnonzero((ink > 0.2).any(0))
    return ink[:, columns[0] : columns[-1] + 1] if len(columns) else ink[:, :8]


def _enlarged(ink: Ink, height: int) -> Image.Image:
    """At `height` rows, smooth between the pixels."""
    pad = np.pad(ink, ((0, 0), (2, 2)))
    size = (round(pad.shape[1] * height / pad.shape[0]), height)
    large = Image.fromarray(pad.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray((np.clip(np.asarray(large), 0, 1) * 255).astype(np.uint8))


def _crisp(ink: Ink, height: int) -> Ink:
    """At `height` rows, with edges as sharp as the new size allows and the pixels' staircase rounded off."""
    pixel = height / ink.shape[0]
    soft = _enlarged(ink, height).filter(ImageFilter.GaussianBlur(0.42 * pixel))
    edge = (np.asarray(soft, np.float32) / 255 - 0.40) * pixel / 1.6 + 0.5
    crisp: Ink = np.clip(edge, 0, 1).astype(np.float32)
    return crisp


def _set(row: list[Ink], height: int) -> Ink:
    """One word of trimmed letters, set with even gaps."""
    letters = [_crisp(ink, height) for ink in row]
    gap = np.zeros((height, round(height * 0.015)), np.float32)
    return np.concatenate([part for letter in letters for part in (letter, gap)][:-1], 1)


# -- the sheet ---------------------------------------------------------------------------------------------------------


def draw(rows: NDArray[np.float32], strip: NDArray[np.float32], facts: Facts) -> Image.Image:
    """rows (R, L, H, W) finished letters; strip (M, L, H, W) one row at M moments of its making."""
    room = WIDTH - 2 * MARGIN
    lines = [[trim(clean(ink, letter)) for ink, letter in zip(row, facts.word, strict=True)] for row in rows]
    height = min(250, int(256 * room / max(_set(line, 256).shape[1] for line in lines)))
    words = [trim(_set(line, height)) for line in lines]
    pitch = round(height * 0.80)
    below = MARGIN + pitch * len(words) + round(height * 0.35)
    sheet = _paper(WIDTH, below + 390)
    for i, word in enumerate(words):
        _print(
            sheet, word, ((WIDTH - word.shape[1]) // 2, MARGIN + i * pitch - round(height * 0.12)), INKS[i % len(INKS)]
        )
    _strip(sheet, strip, below, room)
    _curve(sheet, facts.losses, (WIDTH - MARGIN - 330, below + 40, WIDTH - MARGIN, below + 210))
    _caption(sheet, facts, below + 290)
    return sheet


def _paper(width: int, height: int) -> Image.Image:
    """Warm paper with a little grain and darker edges."""
    rng = np.random.default_rng(0)
    fine = Image.fromarray(rng.normal(0, 1, (height // 2, width // 2)).astype(np.float32))
    grain = np.asarray(fine.resize((width, height), Image.Resampling.BICUBIC))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    shade = 1.0 - 0.035 * (x**2 + y**2) + 0.008 * grain
    return Image.fromarray(np.clip(np.array(PAPER) * shade[..., None], 0, 255).astype(np.uint8))


def _print(sheet: Image.Image, ink: Ink, at: tuple[int, int], colour: tuple[int, int, int]) -> None:
    """Lay ink on the paper, a little lighter in places as a hand press would."""
    rng = np.random.default_rng(ink.shape[1])
    small = Image.fromarray(rng.normal(0, 1, (ink.shape[0] // 12 + 2, ink.shape[1] // 12 + 2)).astype(np.float32))
    cloud = np.asarray(small.resize((ink.shape[1], ink.shape[0]), Image.Resampling.BICUBIC))
    mask = Image.fromarray((ink * np.clip(0.93 + 0.05 * cloud, 0, 1) * 255).astype(np.uint8))
    sheet.paste(Image.new("RGB", mask.size, colour), at, mask)


def _strip(sheet: Image.Image, strip: NDArray[np.float32], top: int, room: int) -> None:
    """The first letters of the word on their way out of the noise, left to right."""
    moments, letters = strip.shape[:2]
    pitch = min(122, (room - 400) // moments)
    side = pitch - 10
    for m in range(moments):
        for k in range(min(letters, 2)):
            tile = np.asarray(
                Image.fromarray((np.clip(strip[m, k], 0, 1) * 255).astype(np.uint8)).resize(
                    (side, side), Image.Resampling.NEAREST
                )
            )
            _print(sheet, (tile / 255).astype(np.float32), (MARGIN + m * pitch, top + 40 + k * (side - 12)), INKS[0])


def _curve(sheet: Image.Image, points: list[tuple[int, float]], box: tuple[int, int, int, int]) -> None:
    if len(points) < 2:
        return
    pen, (left, top, right, bottom) = ImageDraw.Draw(sheet), box
    step, loss = np.array(points, float).T
    y = np.log(np.maximum(loss, 1e-6))
    x = left + (right - left) * step / step[-1]
    y = top + (bottom - top) * (y.max() - y) / max(float(np.ptp(y)), 1e-9)
    pen.line([(left, top), (left, bottom), (right, bottom)], fill=GREY, width=2)
    pen.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=INKS[1], width=3, joint="curve")
    pen.text((right, top), f"loss {loss[0]:.2f} to {loss[-1]:.3f}", fill=GREY, font=_font(20), anchor="ra")
    pen.text((right, bottom + 8), f"{int(step[-1]):,} steps", fill=GREY, font=_font(20), anchor="ra")


def _caption(sheet: Image.Image, facts: Facts, top: int) -> None:
    took = f", trained for {duration(facts.seconds)} on a CPU" if facts.seconds else ""
    pen = ImageDraw.Draw(sheet)
    pen.text(
        (MARGIN, top),
        f"“{facts.word}” in letters that no font has: each row from one noise.",
        fill=(70, 62, 52),
        font=_font(26),
    )
    pen.text(
        (MARGIN, top + 36),
        f"A diffusion model of {facts.parameters / 1e6:.1f} M parameters{took}.  sfumato demo --word {facts.word}",
        fill=GREY,
        font=_font(20),
    )


def _font(size: int) -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
