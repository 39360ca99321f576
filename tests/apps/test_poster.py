"""The demo's typesetting: specks go, dots stay, the caption tells the truth, the picture holds the ink it was given."""

import json

import numpy as np
import pytest

from sfumato.apps import poster
from sfumato.apps.demo import Demo
from sfumato.data import DataOptions, open_data
from sfumato.errors import UserError


@pytest.fixture(scope="module")
def glyphs():
    data = open_data("glyphs", DataOptions(size=32))
    return [
        (data.classes[label], 1 - data.images[i, :, :, 0].astype(np.float32) / 255)
        for i, label in enumerate(data.labels)
    ]


def test_real_letters_lose_nothing_to_cleaning(glyphs):
    """Every stroke and every dot of 1,354 real letters stays, but for faint grey beyond the strokes' edge."""
    for letter, ink in glyphs:
        assert float(poster.clean(ink, letter).sum()) > 0.97 * float(ink.sum()), letter


def test_specks_go(glyphs):
    for letter, ink in [(c, ink) for c, ink in glyphs if c not in "ij0"][::40]:
        dirty = ink.copy()
        dirty[1:3, 1:3], dirty[29, 28] = 0.8, 1.0
        cleaned = poster.clean(dirty, letter)
        assert not cleaned[0:4, 0:4].any() and not cleaned[29, 28]
        assert np.array_equal(cleaned[4:28], poster.clean(ink, letter)[4:28])


def test_trim_keeps_exactly_the_columns_of_the_letter():
    ink = np.zeros((32, 32), np.float32)
    ink[10:20, 7:15] = 1
    assert poster.trim(ink).shape == (32, 8) and poster.trim(ink).sum() == ink.sum()


def test_the_sheet_shows_every_letter_in_its_ink(glyphs):
    letters = dict(glyphs)
    word = "Quiz"
    row = np.stack([letters[c] for c in word])
    rows = np.stack([row, row])
    sheet = np.asarray(
        poster.draw(rows, row[None].repeat(8, 0), poster.Facts(word, 1_700_000, 130.0, [(1, 1.0), (9, 0.1)]))
    ).astype(int)
    for colour in poster.INKS[:2]:
        near = np.abs(sheet - colour).sum(-1) < 60
        columns = np.flatnonzero(near[: sheet.shape[0] // 2 + 200].any(0))
        assert len(columns) > 300 and near.sum() > 5000


def test_the_history_of_a_run_is_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first, held = {"step": 2, "loss": 0.5, "seconds": 3.0}, {"step": 2, "held/loss": 0.4}
    rows = [first, held, {"step": 4, "loss": 0.2, "seconds": 6.5}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert poster.history(path) == (6.5, [(2, 0.5), (4, 0.2)]) and poster.history(tmp_path / "none") == (None, [])


@pytest.mark.parametrize(("word", "says"), [("", "empty"), ("naïve", "'ï'"), ("a b", "' '"), ("x" * 13, "12")])
def test_words_it_cannot_write_are_refused(word, says):
    with pytest.raises(UserError, match=says):
        Demo(word)
