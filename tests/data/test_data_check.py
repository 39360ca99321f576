"""The report finds what a person would want to know, and plans what training would do."""

import json

import numpy as np
from PIL import Image

from sfumato.data import DataOptions, open_data
from sfumato.data.check import as_dict, check, render

RNG = np.random.default_rng(0)


def test_report(tmp_path):
    for kind in ("fox", "bear"):
        (tmp_path / kind).mkdir()
        for i in range(5):
            Image.fromarray(RNG.integers(0, 255, (70 + 10 * i, 100, 3), np.uint8)).save(tmp_path / kind / f"{i}.png")
    (tmp_path / "fox" / "copy.bmp").write_bytes(b"")
    Image.open(tmp_path / "fox" / "1.png").save(tmp_path / "fox" / "copy.bmp")
    Image.fromarray(np.full((80, 80, 3), 200, np.uint8)).save(tmp_path / "bear" / "flat.png")
    (tmp_path / "bear" / "bad.png").write_text("no")
    (tmp_path / "fox" / "0.txt").write_text("a fox")
    options = DataOptions(labels="folder")
    report, data = check(tmp_path, options), open_data(tmp_path, options)
    assert report.pictures == len(data) == 12 and report.classes == {"bear": 6, "fox": 6}
    assert report.duplicates == (("fox/1.png", "fox/copy.bmp"),) and report.flat == ("bear/flat.png",)
    assert report.skipped == data.skipped == (("bear/bad.png", "not a picture, or one of an unknown format"),)
    assert report.captions == 1 and report.sizes["100x80"] == 3 and report.modes == {"RGB": 12}
    assert report.channels == data.shape[0] and report.size == data.shape[:0:-1] and report.flip == data.flip
    assert report.cache_bytes == data.images.nbytes
    text = render(report)
    for words in (
        "12 pictures",
        "bear (6)",
        "exact copies",
        "fox/1.png = fox/copy.bmp",
        "64 x 64, 3 channels",
        "bear/bad.png",
    ):
        assert words in text
    assert json.loads(json.dumps(as_dict(report)))["skipped"][0]["name"] == "bear/bad.png"


def test_plan_agrees_with_opening(tmp_path):
    gray = RNG.integers(0, 255, (40, 40), np.uint8)
    Image.fromarray(np.dstack([gray] * 3)).save(tmp_path / "a.png")
    report = check(tmp_path)
    assert (report.channels, report.size, report.bits) == (1, (32, 32), 8) and open_data(tmp_path).shape == (1, 32, 32)
    (tmp_path / "a.png").unlink()
    Image.fromarray(gray.astype(np.uint16)).save(tmp_path / "a.png")
    report = check(tmp_path)
    assert report.bits == 16 and open_data(tmp_path).images.dtype == np.uint16
    assert any("255 of 65535" in note or "of 65535" in note for note in report.notes)


def test_sources_without_files():
    report = check("digits")
    assert report.pictures == 1797 and report.size == (8, 8) and not report.flip and len(report.classes) == 10
    assert report.captions == 1797
    assert check("glyphs").duplicates == ()


def test_a_folder_with_nothing_good_still_gets_a_report(tmp_path):
    (tmp_path / "a.png").write_text("no")
    report = check(tmp_path)
    assert report.pictures == 0 and report.size is None and "a.png: not a picture" in render(report)


def test_pack(data_pack):
    report = check(data_pack / "emoji" / "emoji.parquet", DataOptions(split="test"))
    assert report.pictures == 695 and report.captions == 695 and report.sizes == {"64x64": 695}
    assert "vendor" in report.columns and not report.flip
