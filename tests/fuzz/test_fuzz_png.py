"""Pictures whose settings someone wrote by hand: `inspect` and `sample --like` repeat them or refuse them."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.cli.request import RANGES, from_settings
from sfumato.data.pictures import read_settings
from sfumato.errors import UserError
from tests.fuzz.bounds import Bounds
from tests.fuzz.hostile import examples, mutated, nested, texts, values

SIGNATURE = b"\x89PNG\r\n\x1a\n"
AFFORDED = 64  # pictures x steps that a test makes
MEGA = 1 << 20


def chunk(kind: bytes, data: bytes, check: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data) if check is None else check)
    )


def plain(text: str, keyword: bytes = b"sfumato") -> bytes:
    return chunk(b"tEXt", keyword + b"\0" + text.encode("latin-1", "replace"))


def packed(text: str, keyword: bytes = b"sfumato") -> bytes:
    return chunk(b"zTXt", keyword + b"\0\0" + zlib.compress(text.encode("latin-1", "replace")))


def worldly(text: str, keyword: bytes = b"sfumato") -> bytes:
    return chunk(b"iTXt", keyword + b"\0\0\0\0\0" + text.encode("utf-8", "replace"))


def worldly_packed(text: str, keyword: bytes = b"sfumato") -> bytes:
    return chunk(b"iTXt", keyword + b"\0\1\0en\0\0" + zlib.compress(text.encode("utf-8", "replace")))


FORMS = (plain, packed, worldly, worldly_packed)


def png(*chunks: bytes, side: int = 2, after: bool = False) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\1\2" * 2))
    return (
        SIGNATURE
        + head
        + (pixels if after else b"")
        + b"".join(chunks)
        + (b"" if after else pixels)
        + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def told(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a real picture says."""
    from sfumato.cli.main import main

    out = tmp_path_factory.mktemp("told")
    words = ["sample", str(trained), "--n", "2", "--steps", "2", "--threads", "1", "--label", "3,5", "--out", str(out)]
    assert main([*words, "--guidance", "2", "--size", "8"]) == 0
    found = read_settings(out / "seed_00000001.png")
    return {"version": 1, **found, "size": list(found["size"])}


@pytest.fixture
def ways(trained: Path, tmp_path: Path, bounds: Bounds) -> Callable[[bytes], int]:
    """`ways(bytes)`: inspect the picture, and sample like it. How many of the two worked."""

    def go(content: bytes) -> int:
        picture = tmp_path / "picture.png"
        picture.write_bytes(content)
        before = bounds.worked
        bounds.command("inspect", picture)
        asked = request(picture)
        if asked is None or asked.n * (asked.steps or 100) <= AFFORDED:
            bounds.command("sample", trained, "--like", picture, "--out", tmp_path / "out", "--threads", 1)
        else:
            refused = {"n": 10**7} if asked.size is None else {"size": "8193"}
            bounds.command(
                "sample", trained, "--like", picture, *(w for k, v in refused.items() for w in (f"--{k}", v))
            )
            assert all(
                low <= getattr(asked, name) <= high
                for name, (low, high) in RANGES.items()
                if getattr(asked, name) is not None
            )
        return bounds.worked - before

    return go


def request(picture: Path) -> Any:
    try:
        return from_settings(read_settings(picture), "")[0]
    except UserError:
        return None


def bombs(told: dict[str, Any]) -> dict[str, bytes]:
    """What must be refused by both."""
    text, bomb = json.dumps(told), squeezed(200 * MEGA)
    return {
        "no text": png(),
        "nested 5,000 lists": png(plain('{"version": 1, "request": ' + "[" * 5000 + "]" * 5000 + "}")),
        "nested 900 mappings": png(plain(json.dumps({**told, "request": nested(900)}))),
        "a million brackets": png(plain("[" * (MEGA - 20))),
        "10 MB": png(plain(text + " " * 10 * MEGA)),
        "10 MB of zTXt": png(packed(text + " " * 10 * MEGA)),
        "200 MB of zTXt": png(chunk(b"zTXt", b"sfumato\0\0" + bomb)),
        "200 MB of iTXt": png(chunk(b"iTXt", b"sfumato\0\1\0\0\0" + bomb)),
        "cut zTXt": png(chunk(b"zTXt", b"sfumato\0\0" + zlib.compress(text.encode())[:-9])),
        "broken zTXt": png(chunk(b"zTXt", b"sfumato\0\0" + b"\xff" * 99)),
        "short iTXt": png(chunk(b"iTXt", b"sfumato\0")),
        "iTXt of no UTF-8": png(chunk(b"iTXt", b"sfumato\0\0\0\0\0\xff\xfe")),
        "wrong checksum": png(chunk(b"tEXt", b"sfumato\0" + text.encode(), check=7)),
        "truncated in the text": png(plain(text))[:90],
        "a length of 4 GB": SIGNATURE + struct.pack(">I", 2**32 - 1) + b"tEXt" + b"sfumato\0" + text.encode(),
        "a million chunks": SIGNATURE + chunk(b"abCd", b"") * (MEGA // 2),
        "only a signature": SIGNATURE,
        "no signature": plain(text),
        "NaN": png(plain(json.dumps({**told, "guidance": float("nan")}))),
        "another version": png(plain(json.dumps({**told, "version": 2}))),
        "a list": png(plain(json.dumps([told]))),
        "a number": png(plain("7")),
        "5,000 digits": png(plain(text.replace('"seed": 1', '"seed": ' + "9" * 5000, 1))),
        "text for a number": png(plain(json.dumps({**told, "steps": "1e9"}))),
        "a size of three": png(plain(json.dumps({**told, "size": [1, 2, 3]}))),
        "a request that is a list": png(plain(json.dumps({**told, "request": [["seed", 1]]}))),
    }


def unreasonable(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Requests that `--like` must refuse; `inspect` may show them."""
    return {
        "n": {"n": 10**12, "only": None},
        "n of a text": {"n": "2"},
        "n of a real": {"n": 2.0},
        "batch": {"batch": 10**9},
        "steps": {"steps": 10**9},
        "no steps": {"steps": 0},
        "size": {"size": [10**6, 10**6]},
        "no size": {"size": [0, 0]},
        "a size that does not fit": {"size": [8192, 8192], "n": 65536, "batch": 65536, "only": None},
        "labels": {"labels": ["cat"]},
        "labels of numbers": {"labels": [3, 5]},
        "labels of a text": {"labels": "35"},
        "guidance": {"guidance": 1e9},
        "guidance of nothing": {"guidance": None},
        "threads": {"threads": 10**9},
        "no threads": {"threads": 0},
        "seed": {"seed": -1},
        "seed beyond 64 bits": {"seed": 2**64},
        "only": {"only": 2},
        "only before": {"only": -1},
        "sampler": {"sampler": "os.system"},
        "sampler of a list": {"sampler": ["ddpm"]},
        "spacing": {"spacing": "__class__"},
        "variance": {"variance": "exec"},
        "eta": {"sampler": "ddim", "variance": None, "eta": 7},
        "precision": {"precision": "fp64"},
        "true": {"n": True},
    }


def squeezed(size: int) -> bytes:
    """`size` zeros, deflated, made without holding them."""
    work, block = zlib.compressobj(9), b"\0" * MEGA
    return b"".join([*(work.compress(block) for _ in range(size // MEGA)), work.flush()])


def test_bombs(told: dict[str, Any], ways: Callable[[bytes], int]) -> None:
    for name, content in bombs(told).items():
        assert ways(content) == 0, name


def test_unreasonable_requests(told: dict[str, Any], trained: Path, bounds: Bounds, tmp_path: Path) -> None:
    for name, changes in unreasonable(told).items():
        picture = tmp_path / "picture.png"
        picture.write_bytes(png(plain(json.dumps({**told, "request": {**told["request"], **changes}}))))
        bounds.command("inspect", picture)
        code, *_ = bounds.command("sample", trained, "--like", picture, "--out", tmp_path / "out")
        assert code == 2, name
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("after", [False, True])
def test_every_form_is_read(
    form: Callable[[str], bytes], after: bool, told: dict[str, Any], ways: Callable[[bytes], int]
) -> None:
    assert ways(png(form(json.dumps(told)), after=after)) == 2
    assert ways(png(form("{}"), form(json.dumps(told)), form(json.dumps(told)))) == 2  # the last one counts
    assert ways(png(form(json.dumps(told)), after=after)[:-20]) == (0 if after else 2)  # cut off in or behind the text


def test_no_pixel_is_decoded(told: dict[str, Any], ways: Callable[[bytes], int]) -> None:
    """Settings of a picture of 60,000 x 60,000, after the pixels that are not there."""
    assert ways(png(plain(json.dumps(told)), side=60_000, after=True)) == 2


PARTS = [
    "a",
    "a ",
    " ",
    "Steps: 2",
    "Size: 8x8",
    "Seed: 1",
    ",",
    ":",
    '"',
    '\\"',
    "\\",
    "\n",
    "x: ",
    'a:"',
    "Negative prompt:",
    "é",
    "\x1b[31m",
    "/-",
    "Steps: " + "9" * 30,
    "CFG scale: nan",
    "Size: x",
    "Size: 9x",
]
REGEX = [
    "a" * MEGA,
    " " * MEGA,
    "a " * (MEGA // 2),
    "a:" * (MEGA // 2),
    'a:"' * (MEGA // 3),
    'a:"' + '\\"' * (MEGA // 2),
    "-" * MEGA,
    "\\" * MEGA,
    "a/" * (MEGA // 2),
    ":," * (MEGA // 2),
    "Steps: 2, " + "a" * 500_000 + '"' * 500_000,
    '"' * MEGA,
    "a: " + " " * 900_000 + "Steps: 2",
    "\n" * MEGA,
]


def foreign(text: str) -> bytes:
    return png(worldly(text, b"parameters"))


@pytest.mark.parametrize("length", [MEGA // 16, pytest.param(MEGA - 64, marks=pytest.mark.slow)])
def test_texts_that_make_a_pattern_search_for_long(length: int, ways: Callable[[bytes], int]) -> None:
    for text in REGEX:
        ways(foreign(text[-length:]))


def generated(draw: Callable[..., Any], told: dict[str, Any]) -> bytes:
    form = draw(st.sampled_from(FORMS))
    kind = draw(st.sampled_from(["json"] * 5 + ["values", "foreign", "bytes"]))
    if kind == "json":
        return png(form(json.dumps(draw(mutated(told)))), after=draw(st.booleans()))
    if kind == "values":
        return png(form(json.dumps(draw(values))), form(draw(texts)))
    if kind == "foreign":
        return foreign(
            "".join(draw(st.lists(st.sampled_from(PARTS), max_size=12))) * draw(st.sampled_from([1, 1, 500]))
        )
    content = bytearray(png(form(json.dumps(told))))
    for _ in range(draw(st.integers(1, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


@examples(60)
@given(data=st.data())
def test_spoiled_settings(ways: Callable[[bytes], int], told: dict[str, Any], data: st.DataObject) -> None:
    ways(generated(data.draw, told))


@pytest.mark.slow
@examples(3000)
@given(data=st.data())
def test_spoiled_settings_at_length(ways: Callable[[bytes], int], told: dict[str, Any], data: st.DataObject) -> None:
    ways(generated(data.draw, told))
