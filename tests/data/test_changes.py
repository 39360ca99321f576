"""Files that go or change while they are listed, decoded and trained on are noticed and named."""

import io
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data import DataError, DataOptions, Dataset, open_data
from sfumato.data.sources import dataset, listing
from sfumato.data.watch import Files
from tests.data.hostile import encode, picture

SMALL = DataOptions(size=16)
MEMORY = DataOptions(size=16, cache=False)


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(picture(), "PNG"))


@pytest.fixture
def photos(tmp_path) -> Path:
    for i in range(12):
        save(tmp_path / "photos" / "ab"[i % 2] / f"{i:02d}.png")
    save(tmp_path / "photos" / "new\nline.png")
    return tmp_path / "photos"


def test_what_is_gone_or_changed_is_named(photos):
    data = open_data(photos, SMALL)
    assert data.changes() == () and len(data) == 13
    (photos / "a" / "00.png").unlink()
    save(photos / "a" / "02.png")
    os.replace(photos / "b" / "01.png", photos / "b" / "03.png")  # another file under the name
    (photos / "new\nline.png").write_bytes(b"")
    found = {
        "a/00.png": "is gone",
        "a/02.png": "was changed",
        "b/01.png": "is gone",
        "b/03.png": "was changed",
        "new\\nline.png": "was changed",
    }
    assert dict(data.changes()) == found and len(data.changes()) == 5
    train, held = data.split(0.4)
    assert {**dict(train.changes()), **dict(held.changes())} == found
    for part in (train, held, data.take([2, 0])):
        assert dict(part.changes()) == {name: why for name, why in found.items() if name in part.names}


def test_examples_stay_what_they_were(photos):
    data = open_data(photos, SMALL)
    before = data.batch(range(13))["image"].clone()
    shutil.rmtree(photos)
    assert (data.batch(range(13))["image"] == before).all()


def test_forged_times_are_seen(photos):
    data, path = open_data(photos, SMALL), photos / "a" / "00.png"
    info, raw = os.stat(path), bytearray(path.read_bytes())
    raw[-30] ^= 1
    path.write_bytes(bytes(raw))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert os.stat(path).st_size == info.st_size and data.changes() == (("a/00.png", "was changed"),)


def test_all_at_once_is_one_entry(photos, tmp_path):
    data = open_data(photos, SMALL)
    what = f'the folder "{photos}"'
    os.rename(photos, tmp_path / "elsewhere")
    assert data.changes() == ((what, "is gone"),) and data.split(0.3)[0].changes() == ((what, "is gone"),)
    photos.write_bytes(b"a file now")
    assert data.changes() == ((what, "has lost all 13 files"),)
    photos.unlink()
    photos.mkdir()  # the place where a disk was mounted
    assert data.changes() == ((what, "has lost all 13 files"),)
    photos.rmdir()
    photos.symlink_to(photos)
    assert data.changes() == ((what, "cannot be read (too many levels of symbolic links)"),)
    photos.unlink()
    os.rename(tmp_path / "elsewhere", photos)
    assert data.changes() == ()


def test_a_relative_folder_is_found_from_anywhere(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos.parent)
    data = open_data("photos", SMALL)
    monkeypatch.chdir("/")
    assert data.changes() == ()
    (photos / "a" / "00.png").unlink()
    assert data.changes() == (("a/00.png", "is gone"),)


def npz(path: Path) -> None:
    np.savez(path, image=np.random.default_rng(0).integers(0, 255, (9, 16, 16, 3), np.uint8))


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for i in range(9):
            file.writestr(f"{i}.png", encode(picture(), "PNG"))


def parquet(path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"image": [encode(picture(), "PNG") for _ in range(9)]}), path)


@pytest.mark.parametrize("name, write", [("a.npz", npz), ("a.zip", archive), ("a.parquet", parquet), ("a.png", save)])
def test_one_file_with_all_examples(tmp_path, name, write):
    path = tmp_path / "data" / name
    path.parent.mkdir()
    write(path)
    data = open_data(path, SMALL)
    parts = (data, *data.split(0.5)) if len(data) > 1 else (data,)
    assert all(part.changes() == () for part in parts)
    os.utime(path, ns=(1, 1))
    assert all(part.changes() == ((name, "was changed"),) for part in parts)
    path.unlink()
    assert all(part.changes() == ((name, "is gone"),) for part in parts)
    path.parent.rmdir()
    ((what, reason),) = data.changes()
    assert reason == "is gone" and str(path) in what


def test_shards(tmp_path):
    names = [f"train-0000{i}-of-00003.parquet" for i in range(3)]
    for name in names:
        parquet(tmp_path / name)
    data = open_data(tmp_path, SMALL)
    (tmp_path / names[1]).unlink()
    assert len(data) == 27 and data.changes() == ((names[1], "is gone"),)


def test_what_has_no_files():
    digits = open_data("digits")
    assert digits.changes() == () == digits.split(0.1)[0].changes()
    assert Dataset(np.zeros((1, 4, 4, 1), np.uint8), ("a",)).changes() == ()


def test_it_never_raises(tmp_path):
    """Names that no system call takes."""
    lost = Files("odd", str(tmp_path), ("x" * 5000, "y/" * 3000, "a/../b"), ("", "", ""))
    assert [reason for _, reason in lost.changes(("x", "y", "z"))] == [
        "cannot be read (file name too long)",
        "cannot be read (file name too long)",
        "is gone",
    ]


# While the data is read ------------------------------------------------------------------------------------------


def test_changes_between_listing_and_decoding(photos, own_cache):
    """Bytes that were not there when the folder was listed are neither trained on nor kept under the old name."""
    found = listing(photos, SMALL)
    Image.new("RGB", (16, 16), "red").save(photos / "a" / "00.png")
    (photos / "a" / "02.png").unlink()
    (photos / "a" / "04.png").write_bytes(b"no picture any more")
    data = dataset(found, SMALL)
    assert len(data) == 10 and dict(data.skipped) == {
        "a/00.png": "was changed while it was read",
        "a/02.png": "cannot be read (no such file or directory)",
        "a/04.png": "was changed while it was read",
    }
    again, plain = open_data(photos, SMALL), open_data(photos, MEMORY)
    assert len(again) == 11 and again.names == plain.names and (again.images == plain.images).all()
    assert (again.pixels(0) == (255, 0, 0)).all()


def test_a_folder_that_was_away_for_a_moment(photos, tmp_path):
    """A disk that is gone while it is read and comes back as it was: what was missing then is not missing for ever."""
    whole = open_data(photos, MEMORY)
    found = listing(photos, SMALL)
    os.rename(photos / "a", tmp_path / "away")
    part = dataset(found, SMALL)
    assert len(part) == 7 and len(part.skipped) == 6
    os.rename(tmp_path / "away", photos / "a")
    for _ in range(2):
        again = open_data(photos, SMALL)
        assert again.fingerprint == part.fingerprint, "nothing tells the listings apart"
        assert again.names == whole.names and again.skipped == () and (again.images == whole.images).all()


def test_a_folder_that_was_another_for_a_moment(photos, tmp_path):
    """The same name, size and place, other pictures: nothing of them is kept."""
    whole, found = open_data(photos, MEMORY), listing(photos, SMALL)
    os.rename(photos / "a", tmp_path / "away")
    for path in (tmp_path / "away").iterdir():
        save(photos / "a" / path.name)
    (photos / "a" / "00.png").write_bytes(b"no picture")
    part = dataset(found, SMALL)
    assert {reason for _, reason in part.skipped} == {"was changed while it was read"} and len(part.skipped) == 6
    os.rename(photos / "a", tmp_path / "other")
    os.rename(tmp_path / "away", photos / "a")
    again = open_data(photos, SMALL)
    assert again.fingerprint == part.fingerprint and (again.images == whole.images).all() and again.skipped == ()


def test_bad_pictures_are_remembered(photos, own_cache, monkeypatch):
    """Only what may pass is looked at again."""
    (photos / "a" / "00.png").write_bytes(b"no picture")
    first = open_data(photos, SMALL)
    from sfumato.data import sources

    monkeypatch.setattr(sources, "store", None)  # it would be called to decode again
    assert open_data(photos, SMALL).skipped == first.skipped != ()


@pytest.mark.parametrize("name, write", [("a.zip", archive), ("a.parquet", parquet), ("a.png", save)])
def test_one_file_that_changes_while_it_is_read(tmp_path, own_cache, name, write):
    write(tmp_path / name)
    found = listing(tmp_path / name, SMALL)
    os.utime(tmp_path / name, ns=(1, 1))
    with pytest.raises(DataError, match=r"a\.\w+\" was changed while it was read: start again when it is complete"):
        dataset(found, SMALL)
    assert list(own_cache.iterdir()) == [] and len(open_data(tmp_path / name, SMALL)) >= 1


def test_growing_and_shrinking_archives(tmp_path):
    """A listed archive that is cut, or replaced by another, gives an error and no picture of the wrong name."""
    for harm in (lambda path: os.truncate(path, 300), lambda path: (path.unlink(), archive(path))):
        archive(tmp_path / "a.zip")
        found = listing(tmp_path / "a.zip", MEMORY)
        harm(tmp_path / "a.zip")
        with pytest.raises(DataError, match=r"was changed while it was read|none of 9 pictures"):
            dataset(found, MEMORY)


def test_a_link_to_a_picture_that_changes(photos, tmp_path):
    out = io.BytesIO(encode(picture(), "PNG"))
    (tmp_path / "outside.png").write_bytes(out.getvalue())
    (photos / "link.png").symlink_to(tmp_path / "outside.png")
    data = open_data(photos, SMALL)
    (tmp_path / "outside.png").write_bytes(b"")
    assert data.changes() == (("link.png", "was changed"),)
