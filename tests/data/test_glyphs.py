"""Letters: which are drawn, where they stand, and that no two names share a drawing."""

import string
import unicodedata
from functools import cache

import numpy as np
import pytest

from sfumato.data import DataError, DataOptions, Dataset, open_data
from sfumato.data.glyphs import BASELINE, CAPITAL, fonts

LOOK_ALIKES = ("cC", "oO0", "sS", "uU", "vV", "wW", "xX", "zZ", "kK", "pP", "Il1")


@cache
def letters(size: int = 32) -> Dataset:
    return open_data("glyphs", DataOptions(size=size))


def ink(data: Dataset) -> np.ndarray:
    return 255 - data.images[..., 0].astype(int)


def test_the_set():
    data = letters()
    assert data.classes == tuple(string.ascii_lowercase + string.ascii_uppercase + string.digits)
    assert data.shape == (1, 32, 32) and not data.mirror_safe and not data.flip
    used = {name.split("/")[0] for name in data.names}
    assert len(used) == len(fonts()) == 22 and len(data) == 22 * 62 - 10
    assert np.bincount(data.labels).tolist() == [22] * 52 + [21] * 10
    assert set(data.families) == {
        "DejaVu Sans",
        "DejaVu Sans Mono",
        "DejaVu Serif",
        "STIX",
        "Computer Modern",
        "Computer Modern Sans",
        "Computer Modern Typewriter",
    }


def test_no_symbol_fonts():
    for word in ("STIXNonUni", "Siz", "LastResort", "cmex", "cmsy", "Display"):
        assert not [font for font in fonts() if word in font.name]


def test_names_captions_and_labels_agree():
    data = letters()
    for i, name in enumerate(data.names):
        character = chr(int(name.split("U+")[1], 16))
        assert data.classes[data.labels[i]] == character and data.captions[i] == unicodedata.name(character).lower()


@pytest.mark.parametrize("size", [16, 28, 32, 64])
def test_no_drawing_twice_none_blank_none_cut(size):
    data = letters(size)
    assert len({pixels.tobytes() for pixels in data.images}) == len(data)
    dark = ink(data)
    assert (dark.max((1, 2)) > 127).all()
    if size >= 28:
        edge = np.concatenate([dark[:, 0], dark[:, -1], dark[:, :, 0], dark[:, :, -1]], 1)
        assert edge.max() == 0, data.names[int(edge.max(1).argmax())]


def test_letters_stand_on_one_line_at_one_size():
    data, flat = letters(64), "HEIx"
    rows = ink(data).max(2) > 127
    for i, label in enumerate(data.labels):
        if data.classes[label] in flat:
            top, bottom = np.flatnonzero(rows[i])[[0, -1]]
            assert abs(bottom + 1 - BASELINE * 64) <= 1.5, data.names[i]
            if data.classes[label] != "x":
                assert abs(bottom + 1 - top - CAPITAL * 64) <= 2, data.names[i]
    centre = ink(data).max(1) > 8
    left, right = centre.argmax(1), 63 - centre[:, ::-1].argmax(1)
    assert abs(left + right - 63).max() <= 2, "centred from left to right"


def test_size_is_only_resolution():
    small, large = ink(letters(32)), ink(letters(64)).reshape(-1, 32, 2, 32, 2).mean((2, 4))
    assert abs(small - large).mean() < 8, "the same drawing but for half a pixel of the baseline"


def test_letters_can_be_told_apart():
    """Whole held-out families are read by their nearest neighbour: drawings are under the right names."""
    data = letters()
    pixels = ink(data).reshape(len(data), -1).astype(np.float32)
    pixels = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
    alike = {c: group for group in LOOK_ALIKES for c in group}
    group = np.array([hash(alike.get(data.classes[label], data.classes[label])) for label in data.labels])
    families = np.array(data.families)
    right = {}
    for family in ("DejaVu Serif", "DejaVu Sans", "STIX"):
        held = families == family
        nearest = (pixels[held] @ pixels[~held].T).argmax(1)
        right[family] = (group[~held][nearest] == group[held]).mean()
    assert min(right.values()) > 0.8, right
    similarity = pixels @ pixels.T
    similarity[group[:, None] == group[None]] = 0
    assert similarity.max() < 0.995, [data.names[i] for i in np.unravel_index(similarity.argmax(), similarity.shape)]


def test_other_sets():
    latin = open_data("glyphs:latin", DataOptions(size=16))
    assert len(latin.classes) > 600 and {"é", "ß", "Ł"} <= set(latin.classes)
    assert all(text.startswith("latin ") for text in latin.captions) and set(string.ascii_letters) <= set(latin.classes)
    assert len({pixels.tobytes() for pixels in latin.images}) == len(latin)
    with pytest.raises(DataError, match=r'glyphs:latn \(did you mean "latin"\?\)'):
        open_data("glyphs:latn")
    with pytest.raises(DataError, match="size of 8 or more"):
        open_data("glyphs", DataOptions(size=4))


@pytest.mark.slow
def test_every_named_glyph():
    data = open_data("glyphs:all")
    assert len(data.classes) > 5000 and len({pixels.tobytes() for pixels in data.images}) == len(data)
    dark = ink(data)
    edge = np.concatenate([dark[:, 0], dark[:, -1], dark[:, :, 0], dark[:, :, -1]], 1)
    assert (edge.max(1) > 0).mean() < 0.01


def test_a_set_has_one_fingerprint_and_colour_on_demand():
    assert letters().fingerprint == open_data("glyphs", DataOptions(size=32)).fingerprint
    assert letters().fingerprint != letters(64).fingerprint
    colour = open_data("glyphs", DataOptions(size=32, channels=3))
    assert colour.shape == (3, 32, 32) and (colour.images == letters().images).all()
