"""Parquet, zip and Hugging Face data."""

import io
import json
import sys
import types
import zipfile

import numpy as np
import pytest
from PIL import Image

from sfumato.data import DataError, DataOptions, open_data

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (20, 16, 16, 3), np.uint8)


def png(i: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS[i]).save(out, "PNG")
    return out.getvalue()


def write(path, rows, **options):
    metadata = options.pop("metadata", None)
    table = pa.Table.from_pylist(rows)
    pq.write_table(table.replace_schema_metadata(metadata) if metadata else table, path, **options)
    return path


@pytest.mark.parametrize("struct", [True, False])
def test_pictures_in_both_layouts(tmp_path, struct):
    rows = [
        {
            "n": i,
            "image": {"bytes": png(i), "path": f"p/{i:02d}.png"} if struct else png(i),
            "text": f"t{i}",
            "label": i % 3,
            "tags": ["x"],
        }
        for i in range(20)
    ]
    data = open_data(write(tmp_path / "a.parquet", rows, row_group_size=3))
    assert (data.images == PIXELS).all() and data.captions == [f"t{i}" for i in range(20)]
    assert data.labels.tolist() == [i % 3 for i in range(20)] and data.classes == ("0", "1", "2")
    assert data.names[3] == ("p/03.png" if struct else "row-03")
    assert open_data(tmp_path / "a.parquet", DataOptions(labels="text")).classes[1] == "t1"


def test_bad_rows_are_named(tmp_path):
    rows = [{"image": {"bytes": png(i), "path": f"/home/me/{i}.png"}} for i in range(4)]
    rows[1]["image"]["bytes"], rows[2]["image"]["bytes"] = b"no", None
    data = open_data(write(tmp_path / "a.parquet", rows))
    assert data.names == ("0.png", "3.png"), "no folders of another machine"
    assert data.skipped == (
        ("1.png", "not a picture, or one of an unknown format"),
        ("2.png", "the row holds no picture"),
    )


def test_names_of_classes_from_hugging_face(tmp_path):
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    rows = [{"image": {"bytes": png(i), "path": None}, "label": [1, 0][i % 2]} for i in range(4)]
    path = write(tmp_path / "a.parquet", rows, metadata={"huggingface": json.dumps(features)})
    assert open_data(path).classes == ("cat", "dog") and open_data(path).labels.tolist() == [1, 0, 1, 0]


def test_a_folder_of_shards(tmp_path):
    for k, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")):
        write(tmp_path / f"{name}.parquet", [{"image": {"bytes": png(3 * k + i), "path": None}} for i in range(3)])
    data = open_data(tmp_path)
    assert len(data) == 6 and len(open_data(tmp_path, DataOptions(split="all"))) == 9
    assert (open_data(tmp_path, DataOptions(split="test")).images == PIXELS[6:9]).all()
    assert len(set(data.names)) == 6


def test_tables_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match=r"no column of encoded pictures.*it has a"):
        open_data(write(tmp_path / "a.parquet", [{"a": 1}]))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"cannot be read as \.parquet"):
        open_data(tmp_path / "b.parquet")
    raw = bytearray(write(tmp_path / "c.parquet", [{"image": png(i)} for i in range(4)]).read_bytes())
    for i in range(0, len(raw), 37):
        (tmp_path / "d.parquet").write_bytes(bytes(raw[:i]) + bytes([raw[i] ^ 0x5A]) + bytes(raw[i + 1 :]))
        try:
            open_data(tmp_path / "d.parquet", DataOptions(cache=False))
        except DataError as error:
            assert "\n" not in str(error)


def test_emoji(data_pack):
    path = data_pack / "emoji" / "emoji.parquet"
    held = open_data(path, DataOptions(split="test", labels="vendor", alpha="keep"))
    assert len(held) == 695 and held.shape == (4, 64, 64) and set(held.classes) == {"noto", "twemoji", "fluent"}
    rows = pq.read_table(path, filters=[("split", "=", "test")]).to_pylist()
    for i in (0, 300, 694):
        picture = Image.open(io.BytesIO(rows[i]["image"]["bytes"])).convert("RGBA")
        assert (held.pixels(i) == np.asarray(picture)).all() and held.captions[i] == rows[i]["text"]
        assert held.names[i] == rows[i]["image"]["path"] and held.classes[held.labels[i]] == rows[i]["vendor"]
    white = open_data(path, DataOptions(split="test"))
    clear = held.images[..., 3] == 0
    assert (white.images[clear] == 255).all() and not white.skipped


def test_photos(data_pack):
    data = open_data(data_pack / "photos" / "photos.parquet", DataOptions(size=64))
    assert len(data) == 284 and data.shape == (3, 64, 64) and data.captions[0] == "a frog" and not data.skipped


def _zip(path, members: dict[str, bytes], **options):
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def test_zip(tmp_path):
    labels = json.dumps({"labels": [["00/a.png", 1], ["00/b.png", 0]]}).encode()
    path = _zip(
        tmp_path / "a.zip",
        {"00/b.png": png(1), "00/a.png": png(0), "dataset.json": labels, "c.txt": b"", "x.png": b"?"},
    )
    data = open_data(path)
    assert data.names == ("00/a.png", "00/b.png") and (data.images == PIXELS[:2]).all()
    assert data.labels.tolist() == [1, 0]
    assert data.skipped == (("x.png", "has no label"),)


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:\\evil.png", "..\\evil.png"])
def test_zips_that_point_outside_are_refused(tmp_path, name):
    with pytest.raises(DataError, match="points outside"):
        open_data(_zip(tmp_path / "a.zip", {"good.png": png(0), name: png(1)}))
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip"}


def test_zips_without_pictures(tmp_path):
    with pytest.raises(DataError, match="no pictures"):
        open_data(_zip(tmp_path / "b.zip", {"a.txt": b"hello"}))
    (tmp_path / "c.zip").write_bytes(b"PK no")
    with pytest.raises(DataError, match=r"cannot be read as \.zip"):
        open_data(tmp_path / "c.zip")


def test_missing_packages_name_their_extra(monkeypatch, tmp_path):
    for module, source, extra in (
        ("datasets", "hf:mnist", "hf"),
        ("pyarrow.parquet", "a.parquet", "parquet"),
        ("sklearn.datasets", "digits", "demo"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        (tmp_path / "a.parquet").write_bytes(b"PAR1")
        with pytest.raises(DataError, match=rf'pip install "sfumato\[{extra}\]"'):
            open_data(source if "." not in source else tmp_path / source)


def test_hugging_face_errors_are_sentences(monkeypatch):
    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("cannot reach\nhuggingface.co")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=offline))
    with pytest.raises(DataError, match=r"hf:me/none cannot be loaded \(cannot reach huggingface.co\)"):
        open_data("hf:me/none")
