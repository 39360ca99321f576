"""Small rooms: pictures that are known to be different, and a room that has finished its work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sfumato.apps.explorer.room import Options, Room

QUICK = Options(embed=False)


def drawing(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Eight seeded shapes in seeded colours on a seeded ground: no two are alike, and none is its own mirror image."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(rng.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(8):
        x, y = rng.uniform(0, size[0] * 0.8), rng.uniform(0, size[1] * 0.8)
        box = (x, y, x + rng.uniform(0.1, 0.5) * size[0], y + rng.uniform(0.1, 0.5) * size[1])
        (pen.ellipse if rng.uniform() < 0.5 else pen.rectangle)(box, tuple(rng.integers(0, 256, 3).tolist()))
    return image


def folder_of(root: Path, pictures: dict[str, Image.Image]) -> Path:
    """Each under its name, in the format of its suffix."""
    for name, image in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name)
    return root


@contextmanager
def settled(source: Path | str, options: Options = QUICK, **other: object) -> Iterator[Room]:
    """A room whose work is done."""
    room = Room.open(source, replace(options, **other))  # type: ignore[arg-type]
    try:
        room._thread.join(120)
        assert room.progress()["stage"] == ""
        yield room
    finally:
        room.close()


def ids_by_name(room: Room) -> dict[str, int]:
    return {name: i for i, name in enumerate(room.listed.records.names)}
