"""Pictures with known corners, and a cache of its own for each test."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = np.array([[[220, 20, 30], [20, 200, 40]], [[10, 40, 210], [240, 230, 20]]], np.uint8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> Path:
    """Decoded pictures of a test are seen by no other test and by no user."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SFUMATO_CACHE", str(folder))
    return folder / "data"


@pytest.fixture
def corners() -> np.ndarray:
    """(16, 24, 3): four quadrants of four colours; no rotation or mirror image equals another."""
    return COLOURS.repeat(8, 0).repeat(12, 1)


@pytest.fixture
def encode():
    """encode(image, format, **options) -> bytes."""

    def one(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        out = io.BytesIO()
        image.save(out, kind, **options)
        return out.getvalue()

    return one
