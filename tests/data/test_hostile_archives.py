"""Archives that point outside, lie about sizes or unpack to more than memory holds: refused or skipped, with nothing
written outside the cache and little memory taken."""

import bz2
import io
import json
import os
import pickle
import random
import stat
import struct
import sys
import zipfile
import zlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from sfumato.data import DataError, DataOptions, open_data
from tests.data.apart import apart
from tests.data.hostile import encode, huge_png, picture

SMALL = DataOptions(size=16)
GOOD = encode(picture(), "PNG")
ZEROS = bytes(1 << 20)


class Member(NamedTuple):
    name: str
    data: bytes  # as it lies in the archive
    size: int | None = None  # declared; None: that of the data
    method: int = zipfile.ZIP_STORED
    mode: int = stat.S_IFREG | 0o644
    flags: int = 0
    at: int | None = None  # declared place; None: where it lies


def pack(path: Path, *members: Member) -> Path:
    """A .zip byte by byte, since zipfile writes only honest ones."""
    out, directory = io.BytesIO(), b""
    for m in members:
        name, crc = m.name.encode(), zlib.crc32(m.data) if m.method == zipfile.ZIP_STORED else 0
        size = len(m.data) if m.size is None else m.size
        common = struct.pack("<HHHHHIIIHH", 46, m.flags, m.method, 0, 33, crc, len(m.data), size, len(name), 0)
        at = out.tell() if m.at is None else m.at
        if m.at is None:
            out.write(b"PK\3\4" + common + name + m.data)
        directory += b"PK\1\2\x2e\x03" + common + struct.pack("<HHHII", 0, 0, 0, m.mode << 16, at) + name
    start = out.tell()
    out.write(
        directory + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, len(members), len(members), len(directory), start, 0)
    )
    path.write_bytes(out.getvalue())
    return path


def deflated_zeros(megabytes: int) -> bytes:
    """Raw deflate, made quickly: the same flushed block again and again. 10 GB take 10 MB."""
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = engine.compress(ZEROS) + engine.flush(zlib.Z_FULL_FLUSH)
    again = engine.compress(ZEROS) + engine.flush(zlib.Z_FULL_FLUSH)
    return first + again * (megabytes - 1) + engine.flush()


@cache
def lzma_zeros(megabytes: int) -> bytes:
    engine = zipfile.LZMACompressor()
    return b"".join(engine.compress(ZEROS) for _ in range(megabytes)) + engine.flush()


@cache
def bzip2_zeros(megabytes: int) -> bytes:
    engine = bz2.BZ2Compressor()
    return b"".join(engine.compress(ZEROS) for _ in range(megabytes)) + engine.flush()


def window() -> bytes:
    """A megabyte of zeros in LZMA that asks for a window of 4 GB."""
    raw = bytearray(lzma_zeros(1))
    assert raw[:5] == b"\x09\x04\x05\0\x5d", "version, length, and the first property; the window follows"
    raw[5:9] = b"\xff\xff\xff\xff"
    return bytes(raw)


def npy(shape: tuple[int, ...], body: bytes = b"", kind: str = "|u1") -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": kind, "fortran_order": False, "shape": shape})
    return out.getvalue() + body


def test_honest_archives_of_this_maker_are_read(tmp_path):
    """What is refused below is not refused for how it was packed."""
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packed.compress(GOOD) + packed.flush()
    path = pack(tmp_path / "a.zip", Member("a.png", GOOD))
    assert open_data(path, SMALL).names == ("a.png",)
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_LZMA) as file:
        file.writestr("a.png", GOOD)
    assert (open_data(tmp_path / "b.zip", SMALL).images == open_data(path, SMALL).images).all()
    pack(tmp_path / "c.zip", Member("a.png", GOOD), Member("b.png", data, len(GOOD), zipfile.ZIP_DEFLATED))
    assert open_data(tmp_path / "c.zip", SMALL).skipped == (("b.png", "damaged (Bad CRC-32 for file 'b.png')"),)


def test_members_that_are_no_files(tmp_path):
    kinds = {"link.png": stat.S_IFLNK, "disk.png": stat.S_IFBLK, "tty.png": stat.S_IFCHR, "pipe.png": stat.S_IFIFO}
    odd = [Member(name, b"/etc/passwd", mode=kind | 0o777) for name, kind in kinds.items()]
    locked = Member("locked.png", GOOD, flags=1)
    data = open_data(pack(tmp_path / "a.zip", Member("a\x1b[2J.png", GOOD), *odd, locked), SMALL)
    assert data.names == ("a\\x1b[2J.png",)
    reasons = {"link.png": "is a link", "locked.png": "is encrypted"}
    assert dict(data.skipped) == {**dict.fromkeys(kinds, "is not a regular file"), **reasons}


def test_equal_names(tmp_path):
    """The last one is meant, as for every unpacker; names that look equal once escaped are told apart."""
    other = encode(picture(), "PNG")
    members = [Member("z.png", GOOD), Member("a\n.png", GOOD), Member("z.png", other), Member("a\\n.png", GOOD)]
    data = open_data(pack(tmp_path / "a.zip", *members), SMALL)
    assert data.names == ("a\\n.png", "a\\n.png#2", "z.png") and len(data.skipped) == 1
    assert data.skipped == (("z.png", "is there twice: the last one is taken"),)
    (tmp_path / "b.png").write_bytes(other)
    assert (data.pixels(2) == open_data(tmp_path / "b.png", SMALL).pixels(0)).all()


@pytest.mark.parametrize("text", ["[1, 2]", "[" * 100_000, '{"labels": 3}', "\x1b[31m", '{"labels": [["a.png", {}]]}'])
def test_labels_that_cannot_be_read(tmp_path, text):
    path = pack(tmp_path / "a.zip", Member("a.png", GOOD), Member("dataset.json", text.encode()))
    with pytest.raises(DataError, match=r"dataset\.json in .* cannot be read|is no class") as refusal:
        open_data(path, SMALL)
    assert str(refusal.value).isprintable()


class Case(NamedTuple):
    name: str
    refused: str = ""  # part of the sentence
    skipped: str = ""  # or the reason of the one that is skipped beside good.png
    megabytes: int = 40  # the most that may be taken besides


def zips(root: Path) -> list[Case]:
    good, z, lie = Member("good.png", GOOD), zipfile.ZIP_DEFLATED, "damaged (Bad CRC-32"
    ten_gigabytes, large, garbage = deflated_zeros(10_000), deflated_zeros(120), deflated_zeros(8)
    zeros, same = lzma_zeros(100), 0
    cases = {
        "up.zip": ([Member("../up.png", GOOD)], Case("", "points outside")),
        "top.zip": ([Member("/tmp/top.png", GOOD)], Case("", "points outside")),
        "drive.zip": ([Member("C:\\top.png", GOOD)], Case("", "points outside")),
        "bomb.zip": ([Member("bomb.png", ten_gigabytes, 4_000_000_000, z)], Case("", "to 4,000 MB")),
        "quiet.zip": ([Member("quiet.png", ten_gigabytes, 900, z)], Case("", skipped=lie)),
        "large.zip": (
            [Member(f"{i}.png", large, 120 << 20, z) for i in range(3)],
            Case("", skipped=lie, megabytes=300),
        ),
        "garbage.zip": (
            [Member(f"{i}.png", garbage, 8 << 20, z) for i in range(60)],
            Case("", skipped=lie, megabytes=300),
        ),
        "lzma.zip": ([Member("lzma.png", zeros, 900, zipfile.ZIP_LZMA)], Case("", skipped=lie, megabytes=90)),
        "window.zip": ([Member("a.png", window(), 1 << 20, zipfile.ZIP_LZMA)], Case("", skipped="damaged")),
        "bzip2.zip": (
            [Member("bzip2.png", bzip2_zeros(100), 900, zipfile.ZIP_BZIP2)],
            Case("", skipped="is packed in"),
        ),
        "quoted.zip": ([Member(f"{i}.png", GOOD, at=same) for i in range(9999)], Case("", "members overlap")),
        "labels.zip": ([Member("dataset.json", ten_gigabytes, 99 << 20, z)], Case("", "dataset.json in")),
        "huge.zip": ([Member("huge.png", huge_png())], Case("", skipped="declares so many pixels")),
        "wide.zip": ([Member("wide.png", huge_png(4000, zlib.compress(bytes(10))))], Case("", skipped="damaged")),
    }
    for name, (members, _) in cases.items():
        pack(root / name, good, *members)
    return [case._replace(name=name) for name, (_, case) in cases.items()]


def arrays(root: Path) -> list[Case]:
    ten_gigabytes, z, few = deflated_zeros(10_000), zipfile.ZIP_DEFLATED, npy((2, 8, 8), bytes(128))

    class Harm:
        def __reduce__(self):
            return os.system, (f"touch {root}/harm",)

    out = io.BytesIO()
    np.save(out, np.array([Harm()], object), allow_pickle=True)
    declared = npy((4000, 1000, 1000))
    cases = {
        "bomb.npz": ([Member("image.npy", ten_gigabytes, 4_000_000_000, z)], Case("", "more than the cap of")),
        "quiet.npz": ([Member("image.npy", ten_gigabytes, 192, z)], Case("", "cannot be read as .npz")),
        "lzma.npz": ([Member("image.npy", lzma_zeros(100), 900, zipfile.ZIP_LZMA)], Case("", "cannot be read", "", 90)),
        "bzip2.npz": ([Member("image.npy", bzip2_zeros(100), 900, zipfile.ZIP_BZIP2)], Case("", "is packed in a way")),
        "pickle.npz": ([Member("image.npy", out.getvalue())], Case("", "holds objects")),
        "beside.npz": ([Member("image.npy", few), Member("label.npy", out.getvalue())], Case("", "holds objects")),
        "raw.npz": ([Member("image", declared)], Case("", 'no array "image"')),
        "lie.npz": ([Member("image.npy", declared)], Case("", "less or more than it declares")),
        "code.npz": ([Member("image.npy", pickle.dumps(Harm()))], Case("", "cannot be read as .npz")),
    }
    for name, (members, _) in cases.items():
        pack(root / name, *members)
    return [case._replace(name=name) for name, (_, case) in cases.items()]


def tables(root: Path) -> list[Case]:
    """Small files of values stored once and used by many rows, of pages of zeros, of rows without content."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    once = {"compression": "zstd", "dictionary_pagesize_limit": 1 << 30, "store_schema": False}
    pages = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}

    def repeated(value: bytes | str, kind, rows: int):
        return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value], kind))

    def write(name: str, columns: dict, options: dict) -> None:
        pq.write_table(pa.table(columns), root / name, **options)

    goods, zero = pa.array([GOOD] * 500, pa.binary()), pa.array([bytes(100 << 20)] * 3, pa.binary())
    write("shared.parquet", {"image": repeated(bytes(10 << 20), pa.binary(), 500)}, once)
    write("words.parquet", {"image": goods, "text": repeated("x" * (5 << 20), pa.string(), 500)}, once)
    write("zeros.parquet", {"image": zero}, pages)
    write("rows.parquet", {"image": pa.nulls(9_000_000, pa.binary())}, pages)
    cells = [GOOD, huge_png(), b"", None, b"\x1b[31m", bytes(1 << 20), pickle.dumps(1)]
    write("cells.parquet", {"image": pa.array(cells, pa.binary())}, pages)
    few = "none of 500 pictures could be used"
    return [
        Case("shared.parquet", few, megabytes=700),
        Case("words.parquet", megabytes=200),
        Case("zeros.parquet", "none of 3 pictures could be used"),
        Case("rows.parquet", "it declares 9,000,000 rows in"),
        Case("cells.parquet", skipped="declares so many pixels"),
    ]


def test_archives_that_mean_harm(tmp_path, own_cache):
    """All of them in one process with seventeen threads: nothing is written but the cache, little is in memory."""
    cases = [*zips(tmp_path), *arrays(tmp_path), *tables(tmp_path)]
    before = sorted(path.name for path in tmp_path.iterdir())
    ended = apart(
        "os.chdir(sys.argv[1]); os.cpu_count = lambda: 16\n"
        "for name in sys.argv[2:]: before = peak(anew=True); said.append((tried(name), peak() - before))",
        tmp_path,
        *[case.name for case in cases],
    )
    for case, (said, megabytes) in zip(cases, ended.said, strict=True):
        print(f"{case.name:16}{megabytes:6.0f} MB  {said.get('error') or said['skipped'][:1]}")
        assert json.dumps(said, ensure_ascii=False).isprintable(), case
        assert ("error" in said) == bool(case.refused) and case.refused in said.get("error", ""), (case, said)
        if case.skipped:
            assert case.skipped in said["skipped"][0][1] and said["names"][0] in ("good.png", "row-0"), (case, said)
        assert megabytes < case.megabytes or not sys.platform.startswith("linux"), (case, megabytes)
    outside = {path for path in ended.wrote if not path.startswith(str(own_cache.parent))}
    assert outside <= {"/proc/self/clear_refs"}, "nothing is written outside of the cache"
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "no member was unpacked, no pickle ran"


@pytest.mark.slow
def test_seventeen_large_pictures_at_once(tmp_path):
    """25 megapixels or 100 MB each: two are decoded at a time, however many threads there are."""
    flat = encode(Image.new("RGB", (5000, 5000)), "PNG", compress_level=1)
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(flat)
    ended = apart("os.cpu_count = lambda: 16; said = len(tried(sys.argv[1])['names'])", tmp_path)
    assert ended.said == 8 and 100 < ended.megabytes < 600, ended.megabytes


def sample(kind: str, path: Path) -> None:
    """A small whole archive with pictures, labels and texts."""
    cells = [encode(picture(), "PNG") for _ in range(4)]
    if kind == "zip":
        members = {f"a/{i}.png": cell for i, cell in enumerate(cells)}
        members["dataset.json"] = json.dumps({"labels": [[f"a/{i}.png", i % 2] for i in range(4)]}).encode()
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in members.items():
                file.writestr(name, data)
    elif kind == "npz":
        images = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), np.uint8)
        np.savez_compressed(path, image=images, label=np.arange(4), text=list("abcd"))
    else:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        rows = [{"image": {"bytes": c, "path": f"{i}.png"}, "text": f"t{i}", "label": i} for i, c in enumerate(cells)]
        pq.write_table(pa.Table.from_pylist(rows), path)


def mutate(raw: bytes, rng: random.Random) -> bytes:
    """One to eight bytes changed, half of them near the end, where archives keep their directory; some are cut."""
    out = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        i = rng.randrange(len(out)) if rng.random() < 0.5 else max(0, len(out) - 1 - rng.randrange(600))
        out[i] = rng.choice((0, 255, out[i] ^ 1 << rng.randrange(8), rng.randrange(256)))
    return bytes(out[: rng.randrange(len(out))] if rng.random() < 0.1 else out)


def mutated(folder: Path, kind: str, n: int) -> dict[str, int]:
    """How many of `n` damaged archives gave data, and how many a sentence."""
    sample(kind, folder / f"whole.{kind}")
    raw, rng, found = (folder / f"whole.{kind}").read_bytes(), random.Random(0), {"data": 0, "sentence": 0}
    for _ in range(n):
        (folder / f"a.{kind}").write_bytes(mutate(raw, rng))
        try:
            data = open_data(folder / f"a.{kind}", DataOptions(cache=False))
            assert all(name.isprintable() for name in (*data.names, *map(" ".join, data.skipped)))
            found["data"] += 1
        except DataError as error:
            assert str(error).isprintable()
            found["sentence"] += 1
    return found


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "kind, n",
    [("zip", 100), *(pytest.param(kind, 3000, marks=pytest.mark.slow) for kind in ("zip", "npz", "parquet"))],
)
def test_mutated_archives_give_data_or_a_sentence(tmp_path, kind, n):
    """In a process of its own where a library in C is behind it, which could end the process."""
    if kind != "parquet":
        found = mutated(tmp_path, kind, n)
    else:
        code = (
            "import warnings; from pathlib import Path; from tests.data.test_hostile_archives import mutated\n"
            "warnings.simplefilter('ignore'); said = mutated(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))"
        )
        ended = apart(code, tmp_path, kind, str(n))
        found = ended.said
        assert ended.megabytes < 300
    print(kind, found)
    assert sum(found.values()) == n and min(found.values()) > n / 50
