"""Folder trees as people have them, and as an enemy would make them."""

import json
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sfumato.data import DataError, DataOptions, open_data
from sfumato.data.options import escape

SIZE = DataOptions(size=(24, 16))


def save(path: Path | str, pixels: np.ndarray, **options) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def test_tree_in_order_with_any_spelling(tmp_path, corners):
    for name in (
        "b/two.PNG",
        "a/one.png",
        "c/deep/er/Three.WebP",
        "z.TiFf",
        ".hidden/x.png",
        "__MACOSX/._z.png",
        ".y.png",
    ):
        save(tmp_path / name, corners, format=None if "W" not in name else "WEBP", lossless=True)
    data = open_data(tmp_path, SIZE)
    assert data.names == ("a/one.png", "b/two.PNG", "c/deep/er/Three.WebP", "z.TiFf") and data.skipped == ()
    assert (data.images == corners).all() and data.labels is None and data.captions is None
    assert data.flip and data.mirror_safe and data.shape == (3, 16, 24)


def test_sub_folders_are_classes_when_asked(tmp_path, corners):
    for name in ("fox/a.png", "bear/x/b.png", "bear/c.png", "stray.png"):
        save(tmp_path / name, corners)
    data = open_data(tmp_path, DataOptions(size=16, labels="folder"))
    assert data.classes == ("bear", "fox")
    labels = dict(zip(data.names, data.labels.tolist(), strict=True))
    assert labels == {"bear/c.png": 0, "bear/x/b.png": 0, "fox/a.png": 1}
    assert data.skipped == (("stray.png", "has no label"),)
    assert open_data(tmp_path, DataOptions(size=16)).labels is None
    with pytest.raises(DataError, match=r'no column "folders" for labels \(did you mean "folder"\?\)'):
        open_data(tmp_path, DataOptions(labels="folders"))


def test_letters_as_classes_are_not_mirrored(tmp_path, corners):
    for letter in "abc":
        save(tmp_path / letter / "1.png", corners)
    data = open_data(tmp_path, DataOptions(size=16, labels="folder"))
    assert not data.flip and not data.mirror_safe and "letters" in data.notes[0]
    assert open_data(tmp_path, DataOptions(size=16, labels="folder", flip="on")).flip
    assert open_data(tmp_path, DataOptions(size=16)).flip
    assert not open_data(tmp_path, DataOptions(size=16, flip="off")).flip


def test_split_folders(tmp_path, corners):
    for name in ("train/fox/a.png", "train/bear/b.png", "test/fox/c.png"):
        save(tmp_path / name, corners)
    train = open_data(tmp_path, DataOptions(size=16, labels="folder"))
    assert train.names == ("train/bear/b.png", "train/fox/a.png") and train.classes == ("bear", "fox")
    assert "split train: 2 of 3" in train.notes[0]
    assert open_data(tmp_path, DataOptions(size=16, split="test")).names == ("test/fox/c.png",)
    assert len(open_data(tmp_path, DataOptions(size=16, split="all"))) == 3
    with pytest.raises(DataError, match=r'no split "tests" \(did you mean "test"\?\)'):
        open_data(tmp_path, DataOptions(split="tests"))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_metadata(tmp_path, corners, kind):
    for name in ("a.png", "sub/b.png", "c.png"):
        save(tmp_path / name, corners)
    rows = [
        {"file_name": "sub/b.png", "text": "a bear, é", "kind": "bear", "age": 3},
        {"file_name": "a.png", "text": "a fox", "kind": "fox", "age": 5},
        {"file_name": "../../etc/passwd", "text": "", "kind": "", "age": 0},
    ]
    path = tmp_path / f"metadata.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    elif kind == "csv":
        path.write_text(
            "\ufefffile_name,text,kind,age\n"
            + "\n".join(f'{row["file_name"]},"{row["text"]}",{row["kind"]},{row["age"]}' for row in rows)
        )
    else:
        arrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(rows), path)
    data = open_data(tmp_path, DataOptions(size=16))
    assert data.names == ("a.png", "c.png", "sub/b.png") and data.captions == ["a fox", "", "a bear, é"]
    assert data.skipped == (("../../etc/passwd", f"is named in metadata.{kind} but is not there"),)
    kinds = open_data(tmp_path, DataOptions(size=16, labels="kind", captions="none"))
    assert kinds.classes == ("bear", "fox") and kinds.labels.tolist() == [1, 0] and kinds.captions is None
    assert ("c.png", "has no label") in kinds.skipped
    assert open_data(tmp_path, DataOptions(size=16, labels="age")).classes == ("3", "5")


def test_metadata_in_a_sub_folder_counts_from_there(tmp_path, corners):
    save(tmp_path / "sub" / "a.png", corners)
    (tmp_path / "sub" / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": "here"}')
    assert open_data(tmp_path, SIZE).captions == ["here"]


@pytest.mark.parametrize(
    "text, match",
    [
        ("{", "line 1: is not JSON"),
        ("[1]", "line 1: must be an object"),
        ('{"filename": "a.png"}', r'did you mean "filename"'),
        ("[" * 9999, "not JSON"),
        ("\xff", "not JSON|cannot be read"),
    ],
)
def test_broken_metadata_says_where(tmp_path, corners, text, match):
    save(tmp_path / "a.png", corners)
    (tmp_path / "metadata.jsonl").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=match):
        open_data(tmp_path, SIZE)


def test_sidecars_and_names(tmp_path, corners):
    save(tmp_path / "red_fox-02.png", corners)
    save(tmp_path / "other.jpg", corners)
    (tmp_path / "red_fox-02.txt").write_text("a red\nfox ", encoding="utf-8")
    assert open_data(tmp_path, SIZE).captions == ["", "a red fox"]
    assert open_data(tmp_path, DataOptions(size=16, captions="names")).captions == ["other", "red fox"]
    assert open_data(tmp_path, DataOptions(size=16, captions="none")).captions is None


def test_captions_that_name_a_side_are_not_mirrored(tmp_path, corners):
    save(tmp_path / "a.png", corners)
    (tmp_path / "a.txt").write_text("An arrow to the Left")
    data = open_data(tmp_path, SIZE)
    assert not data.flip and "to the Left" in data.notes[0]
    (tmp_path / "a.txt").write_text("a leftover lunch")
    assert open_data(tmp_path, SIZE).flip


def test_channels_and_size_come_from_the_data(tmp_path, corners, encode):
    gray = np.repeat(corners[..., :1].repeat(4, 0).repeat(4, 1), 3, 2)  # gray, but saved as RGB
    for i in range(40):
        save(tmp_path / f"{i:02d}.png", gray)
    assert open_data(tmp_path).shape == (1, 64, 64)
    assert open_data(tmp_path, DataOptions(channels=3)).shape == (3, 64, 64)
    coloured = gray.copy()
    coloured[30:34, 40:44] = (255, 0, 0)
    save(tmp_path / "37.png", coloured)  # a single one, where no probe looks
    data = open_data(tmp_path)
    assert data.shape == (3, 64, 64) and np.ptp(data.pixels(37), axis=-1).max() > 100
    assert open_data(tmp_path, DataOptions(channels=1)).shape == (1, 64, 64)
    clear = np.dstack([coloured, np.full(gray.shape[:2], 255, np.uint8)])
    save(tmp_path / "38.png", clear)
    assert open_data(tmp_path, DataOptions(alpha="keep")).shape == (3, 64, 64), "alpha that says nothing"
    clear[:20, :, 3] = 9
    save(tmp_path / "38.png", clear)
    assert open_data(tmp_path, DataOptions(alpha="keep")).shape == (4, 64, 64)
    assert open_data(tmp_path).shape == (3, 64, 64)


def test_sixteen_bit_folder(tmp_path):
    deep = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 64 + 1
    save(tmp_path / "a.png", deep)
    save(tmp_path / "b.tif", deep)
    data = open_data(tmp_path)
    assert data.images.dtype == np.uint16 and data.shape == (1, 32, 32) and (data.images[..., 0] == deep).all()
    assert abs(data.batch([0])["image"][0, 0].double().numpy() - (deep / 32767.5 - 1)).max() < 1e-6


def test_one_picture(tmp_path, corners):
    save(tmp_path / "only.png", corners)
    for source in (tmp_path, tmp_path / "only.png"):
        data = open_data(source, SIZE)
        assert len(data) == 1 and data.names == ("only.png",) and (data.images[0] == corners).all()


def test_nothing_to_train_on(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"looked for png, jpg.* and found nothing"):
        open_data(tmp_path / "photos")
    for i in range(12):
        (tmp_path / "photos" / f"{i}.HEIC").touch()
    (tmp_path / "photos" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"found 12 \.heic files, 1 \.txt file"):
        open_data(tmp_path / "photos")
    with pytest.raises(DataError, match=r'no folder or file ".*fotos" \(did you mean "photos"\?\)'):
        open_data(tmp_path / "fotos")
    with pytest.raises(DataError, match='"glyphs"'):
        open_data("glyfs")
    with pytest.raises(DataError, match="does not exist either"):
        open_data(tmp_path / "no" / "such")
    (tmp_path / "a.pdf").touch()
    with pytest.raises(DataError, match="no data that can be read"):
        open_data(tmp_path / "a.pdf")
    (tmp_path / "photos" / "bad.png").write_text("no")
    with pytest.raises(DataError, match="none of 1 picture could be used: 1 x not a picture"):
        open_data(tmp_path / "photos")


@pytest.mark.parametrize(
    "options, match",
    [
        ({"size": 0}, "size 0 is not possible"),
        ({"size": (64, 100_000)}, "not possible"),
        ({"channels": 2}, "channels"),
        ({"fit": "cover"}, "choose crop, pad, stretch"),
        ({"flip": "yes"}, "flip"),
        ({"alpha": "black"}, "alpha"),
    ],
)
def test_impossible_wishes(options, match):
    with pytest.raises(DataError, match=match):
        DataOptions(**options)


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0" * 64))
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def hostile(tmp_path, corners, encode) -> tuple[Path, set[str], set[str]]:
    """(folder, names of the good, names of the bad): twelve bad ones, ten odd but good ones, twenty plain ones."""
    root, raw = tmp_path / "hostile", os.fsencode(tmp_path / "hostile")
    root.mkdir()
    noise = encode(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    damaged = bytearray(noise)
    damaged[len(noise) // 2] ^= 0x40
    good = {f"plain{i:02d}.png": encode(corners) for i in range(20)}
    exif = Image.Exif()
    exif[0x0112] = 6
    good |= {
        "anim.gif": encode(
            Image.fromarray(corners), "GIF", save_all=True, append_images=[Image.fromarray(corners[::-1].copy())]
        ),
        "tiny.png": encode(np.zeros((1, 1, 3), np.uint8)),
        "ink.jpg": encode(Image.new("CMYK", (9, 9)), "JPEG"),
        "deep.png": encode(np.full((9, 9), 40_000, np.uint16)),
        "turned.jpg": encode(corners, "JPEG", exif=exif),
        "palette.png": encode(Image.fromarray(corners).quantize(4), transparency=0),
        "really a jpeg.png": encode(corners, "JPEG"),
        "thin.bmp": encode(np.zeros((1, 500, 3), np.uint8), "BMP"),
    }
    bad = {
        "cut.png": noise[: len(noise) // 2],
        "zero.jpg": b"",
        "text.png": b"I am text",
        "huge.png": _png_header(40_000, 40_000),
        "float.tif": encode(Image.new("F", (4, 4)), "TIFF"),
        "damaged.png": bytes(damaged),
        "cut.jpeg": encode(np.frombuffer(noise[:7500], np.uint8).reshape(50, 50, 3), "JPEG")[:900],
    }
    for name, data in (good | bad).items():
        (root / name).write_bytes(data)
    names = {b"bad\xff\xfename.png": "bad\\xff\\xfename.png", b"new\nline\x1b[31m.png": "new\\nline\\x1b[31m.png"}
    for name in names:
        Path(os.fsdecode(os.path.join(raw, name))).write_bytes(encode(corners))
    (root / "folder.jpg").mkdir()
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "round.png").symlink_to(root / "round.png")
    (root / "gone.webp").symlink_to(root / "nowhere")
    os.mkfifo(root / "pipe.png")
    strange = {"folder.jpg", "loop", "round.png", "gone.webp", "pipe.png"}
    return root, set(good) | set(names.values()), set(bad) | strange


def test_hostile_folder(hostile):
    root, good, bad = hostile
    data = open_data(root, DataOptions(size=16))
    assert set(data.names) == good
    assert {entry.name for entry in data.skipped} == bad and all(entry.reason for entry in data.skipped)
    assert all(name.isprintable() and name.isascii() for name in data.names)
    assert data.batch(range(len(data)))["image"].isfinite().all()
    again = open_data(root, DataOptions(size=16))  # from the cache: the same list
    assert again.skipped == data.skipped and (again.images == data.images).all()
    with pytest.raises(DataError) as refusal:
        open_data(root, DataOptions(size=16, strict=True))
    assert all(name in str(refusal.value) for name in bad) and "\n" not in str(refusal.value)


def test_a_linked_folder_is_read_once(tmp_path, corners):
    save(tmp_path / "real" / "a.png", corners)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    (tmp_path / "data" / "same").symlink_to(tmp_path / "real", target_is_directory=True)
    data = open_data(tmp_path / "data", SIZE)
    assert data.names == ("link/a.png",) and [entry.name for entry in data.skipped] == ["same"]


def test_strict_accepts_good_data(tmp_path, corners):
    save(tmp_path / "a.png", corners)
    assert len(open_data(tmp_path, DataOptions(size=16, strict=True))) == 1


@settings(max_examples=200)
@given(st.one_of(st.binary(max_size=40), st.text(max_size=40)))
def test_escaped_names_are_one_printable_line(name):
    assert escape(name).isprintable() and escape("plain.png") == "plain.png"


def test_progress_reaches_the_end(tmp_path, corners):
    for i in range(30):
        save(tmp_path / f"{i}.png", corners)
    told: list[tuple[int, int]] = []
    with warnings.catch_warnings():
        open_data(tmp_path, SIZE, lambda done, total: told.append((done, total)))
    assert told[-1] == (30, 30) and told == sorted(told)
