"""Decoded once, and never believed when anything changed."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from PIL import Image

from sfumato.data import DataError, DataOptions, Dataset, cache, open_data

RNG = np.random.default_rng(0)


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(20):
        Image.fromarray(RNG.integers(0, 255, (20, 20, 3), np.uint8)).save(root / f"{i:02d}.png")
    return root


@pytest.fixture
def decoded(monkeypatch):
    """How many pictures were decoded."""
    from sfumato.data import sources

    seen = []
    real = sources.decode
    monkeypatch.setattr(sources, "decode", lambda *args: (seen.append(1), real(*args))[1])
    return seen


def entries(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_hit_equals_decoding(photos, own_cache, decoded):
    plain = open_data(photos, DataOptions(size=16, cache=False))
    assert entries(own_cache) == []
    first = open_data(photos, DataOptions(size=16))
    decoded.clear()
    second = open_data(photos, DataOptions(size=16))
    assert decoded == [] and len(entries(own_cache)) == 1
    assert (plain.images == first.images).all() and (first.images == second.images).all()
    assert plain.names == first.names == second.names and first.fingerprint == second.fingerprint
    assert not any("tmp" in name for name in entries(own_cache))


def test_large_arrays_are_mapped(photos, monkeypatch):
    plain = open_data(photos, DataOptions(size=16, cache=False))
    monkeypatch.setattr(cache, "IN_MEMORY", 100)
    for _ in range(2):
        data = open_data(photos, DataOptions(size=16))
        assert isinstance(data.images, np.memmap) and (data.images == plain.images).all()
        assert np.array_equal(data.batch([3, 1])["image"], plain.batch([3, 1])["image"])


def test_every_change_is_seen(photos, decoded):
    def read(**options):
        decoded.clear()
        data = open_data(photos, DataOptions(**{"size": 16, **options}))
        return data, len(decoded)

    base, _ = read()
    assert read()[1] == 0
    new = Image.fromarray(RNG.integers(0, 255, (20, 20, 3), np.uint8))
    before = os.stat(photos / "03.png")
    new.save(photos / "03.png")
    os.utime(photos / "03.png", ns=(before.st_atime_ns, before.st_mtime_ns))  # the time is forged
    changed, n = read()
    assert n >= 20 and (changed.images[3] != base.images[3]).any() and (changed.images[4] == base.images[4]).all()
    new.save(photos / "99.png")
    added, n = read()
    assert n >= 21 and len(added) == 21
    (photos / "00.png").unlink()
    removed, n = read()
    assert n >= 20 and removed.names[0] == "01.png"
    os.rename(photos / "01.png", photos / "0x.png")
    assert read()[1] >= 20
    for options in ({"size": 12}, {"fit": "pad"}, {"channels": 1}, {"alpha": "keep"}):
        assert read(**options)[1] >= 20, options
        assert read(**options)[1] == 0, options
    assert read(flip="off")[1] == 0, "what does not change pixels does not decode"


@pytest.mark.parametrize("damage", ["missing", "swap"])
def test_a_damaged_entry_is_rebuilt(photos, own_cache, damage):
    good = open_data(photos, DataOptions(size=16))
    entry = own_cache / entries(own_cache)[0]
    if damage == "missing":
        (entry / "images.npy").unlink()
    else:
        (entry / "images.npy").write_bytes(b"\0" * (entry / "images.npy").stat().st_size)
    again = open_data(photos, DataOptions(size=16))
    assert (again.images == good.images).all()
    assert cache.load(entry.name) is not None


@pytest.mark.parametrize("mapped", [False, True])
def test_no_flipped_bit_or_cut_of_an_entry_is_believed(photos, own_cache, monkeypatch, mapped):
    """Every bit of the index and of the array's header, and the array cut or grown; its pixels are not checked."""
    (photos / "07.png").write_bytes(b"no picture")
    monkeypatch.setattr(cache, "IN_MEMORY", 100 if mapped else 1 << 28)
    whole = open_data(photos, DataOptions(size=16))
    entry = own_cache / entries(own_cache)[0]

    def believed() -> bool:
        return cache.load(entry.name) is not None

    assert believed() and isinstance(cache.load(entry.name).images, np.memmap) == mapped
    for name, most in (("index.json", 1 << 20), ("images.npy", 128)):
        raw = (entry / name).read_bytes()
        for i in range(min(len(raw), most)):
            flip = bytearray(raw)
            flip[i] ^= 1 << i % 8
            (entry / name).write_bytes(flip)
            assert not believed() or json.loads(flip) == json.loads(raw), (name, i)
        for harm in (b"", raw[:-1], raw[: len(raw) // 2], raw[:60], raw + b"\0", b"[" * 100_000, b"null", b"\x93NUMPY"):
            (entry / name).write_bytes(harm)
            assert not believed(), (name, harm[:20])
        again = open_data(photos, DataOptions(size=16))
        assert (again.images == whole.images).all() and again.names == whole.names and again.skipped == whole.skipped
        assert believed(), "built anew"
    assert len(entries(own_cache)) == 1


@pytest.mark.filterwarnings("ignore:decoded pictures are kept in memory:RuntimeWarning")
def test_many_at_once_on_a_damaged_entry(photos, own_cache):
    """Each takes it away and builds it; whoever is overtaken is right too."""
    whole = open_data(photos, DataOptions(size=16))
    entry = own_cache / entries(own_cache)[0]
    ready = Barrier(4)

    def read(_: int) -> Dataset:
        ready.wait()
        return open_data(photos, DataOptions(size=16))

    with ThreadPoolExecutor(4) as pool:
        for _ in range(6):
            os.truncate(entry / "images.npy", 500)
            for found in pool.map(read, range(4)):
                assert (found.images == whole.images).all() and found.names == whole.names
    assert cache.load(entry.name) is not None and len(entries(own_cache)) == 1


def test_full_disk_falls_back_to_memory(photos, own_cache, monkeypatch):
    plain = open_data(photos, DataOptions(size=16, cache=False))
    real = os.fsync

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(RuntimeWarning, match="kept in memory.*No space left"):
        data = open_data(photos, DataOptions(size=16))
    monkeypatch.setattr(os, "fsync", real)
    assert (data.images == plain.images).all() and entries(own_cache) == []


def test_a_cache_that_cannot_be_made(photos, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "file"))
    with pytest.warns(RuntimeWarning, match="SFUMATO_CACHE"):
        assert len(open_data(photos, DataOptions(size=16))) == 20


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full semantics of tmpfs")
def test_a_really_full_disk(photos, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)], capture_output=True).returncode:
        pytest.skip("cannot mount a small disk here")
    code = (
        "import os, shutil, sys, warnings, collections; from sfumato.data import open_data, DataOptions\n"
        "Usage = collections.namedtuple('Usage', 'total used free')\n"
        "shutil.disk_usage = lambda path: Usage(1 << 40, 0, 1 << 40)\n"  # others take the room meanwhile
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    data = open_data(sys.argv[1], DataOptions(size=128))\n"
        "print(len(data), [str(w.message)[:40] for w in seen], os.listdir(os.environ['SFUMATO_CACHE'] + '/data'))"
    )
    try:
        run = subprocess.run(
            [sys.executable, "-c", code, str(photos)],
            capture_output=True,
            text=True,
            env={**os.environ, "SFUMATO_CACHE": str(small)},
            check=False,
        )
    finally:
        subprocess.run(["umount", str(small)], check=False)
    assert run.stdout.strip() == "20 ['decoded pictures are kept in memory: the'] []", run.stderr


def test_all_bad_is_not_remembered_as_empty(photos):
    for path in photos.iterdir():
        path.write_bytes(path.read_bytes()[:60])
    for _ in range(2):
        with pytest.raises(DataError, match="none of 20 pictures could be used"):
            open_data(photos)


def test_two_processes_at_once(photos, own_cache):
    code = "import sys; from sfumato.data import *; print(open_data(sys.argv[1], DataOptions(size=16)).images.sum())"
    runs = [subprocess.Popen([sys.executable, "-c", code, str(photos)], stdout=subprocess.PIPE) for _ in range(2)]
    sums = {run.communicate()[0] for run in runs}
    assert len(sums) == 1 and all(run.returncode == 0 for run in runs) and len(entries(own_cache)) == 1


def test_leftovers_of_killed_processes_are_taken_away(photos, own_cache):
    old, new = own_cache / "abc.tmp-old", own_cache / "abc.tmp-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "images.npy").write_bytes(b"half")
    for path in (old / "images.npy", old):
        os.utime(path, (1, 1))
    open_data(photos, DataOptions(size=16))
    assert not old.exists() and new.exists()


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.delenv("SFUMATO_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "sfumato" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder().parts[-3:] == (".cache", "sfumato", "data")
