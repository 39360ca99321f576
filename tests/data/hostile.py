"""A folder as bad as folders get: whatever may lie between pictures, four of each kind."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
ESC = "\x1b[31m\x07"


class Planted(NamedTuple):
    """Names as they must be shown."""

    root: Path
    good: set[str]
    bad: set[str]


def picture(side: int = 16) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 255, (side, side, 3), np.uint8))


def encode(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def huge_png(side: int = 40_000, body: bytes = b"") -> bytes:
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = body or zlib.compress(b"\0" * 4000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def huge_jpeg(side: int = 40_000) -> bytes:
    raw = encode(picture(), "JPEG")
    at = raw.index(b"\xff\xc0") + 5
    return raw[:at] + struct.pack(">HH", side, side) + raw[at + 4 :]


def huge_bmp(side: int = 40_000) -> bytes:
    raw = encode(picture(), "BMP")
    return raw[:18] + struct.pack("<ii", side, side) + raw[26:]


def huge_gif(side: int = 40_000) -> bytes:
    raw = encode(picture(), "GIF")
    at = raw.index(b",\0\0\0\0") + 5  # the first frame
    raw = raw[:at] + struct.pack("<HH", side, side) + raw[at + 4 :]
    return raw[:6] + struct.pack("<HH", side, side) + raw[10:]


def flipped(raw: bytes, at: float = 0.5) -> bytes:
    i = int(len(raw) * at)
    return raw[:i] + bytes([raw[i] ^ 0x55]) + raw[i + 1 :]


def false_stream() -> bytes:
    """A PNG whose checksums are right and whose compressed data is nonsense."""
    return huge_png(16, b"\x78\x9c" + bytes(range(200)))


def strange_files() -> dict[str, bytes]:
    """Twenty-four files that look like pictures from outside, six kinds of four."""
    photo, large = picture(), picture(64)
    whole = {kind: encode(large, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF")}
    cut = {f"cut.{kind.lower()}": raw[: len(raw) // 2] for kind, raw in whole.items()}
    empty = {f"zero{suffix}": b"" for suffix in (".png", ".jpg", ".bmp", ".tiff")}
    text = {f"text{ESC}\n.png": b"I am text", "page.jpg": b"<html>", "list.webp": b"[1]", "log.gif": ESC.encode()}
    huge = {"huge.png": huge_png(), "huge.jpg": huge_jpeg(), "huge.bmp": huge_bmp(), "huge.gif": huge_gif()}
    kinds = {
        "float.tif": encode(photo.convert("F"), "TIFF"),
        "deep.tif": encode(photo.convert("I"), "TIFF"),
        "lab.tif": encode(Image.new("LAB", (8, 8)), "TIFF"),
        "icon.png": encode(photo, "ICO"),
    }
    damaged = {
        "flip.png": flipped(whole["PNG"]),
        "late.png": flipped(whole["PNG"], 0.95),
        "false.png": false_stream(),
        "flip.tif": flipped(encode(large, "TIFF", compression="tiff_deflate")),
    }
    return cut | empty | text | huge | kinds | damaged


def odd_files() -> dict[bytes, bytes]:
    """Ten good pictures that are easily lost."""
    photo, exif = picture(), Image.Exif()
    exif[0x0112] = 6
    more = {"save_all": True, "append_images": [picture(), picture()]}
    return {
        b"bad\xff\xfename.png": encode(photo, "PNG"),
        b"new\nline\x1b[2J.png": encode(photo, "PNG"),
        b"moving.gif": encode(photo, "GIF", **more),
        b"moving.png": encode(photo, "PNG", **more),
        b"tiny.png": encode(picture(1), "PNG"),
        b"ink.jpg": encode(photo.convert("CMYK"), "JPEG"),
        b"deep.png": encode(Image.fromarray(RNG.integers(0, 65535, (16, 16), np.uint16)), "PNG"),
        b"turned.jpg": encode(picture(24).crop((0, 0, 24, 16)), "JPEG", exif=exif),
        b"really a jpeg.PNG": encode(photo, "JPEG"),
        b"clear.png": encode(photo.quantize(8), "PNG", transparency=0),
    }


def plant(root: Path, n: int) -> Planted:
    """`n` files: 40 bad ones (36 for root, who may read everything), ten odd ones, and plain ones in sub-folders."""
    root.mkdir()
    strange, odd = strange_files(), odd_files()
    for name, data in strange.items():
        (root / name).write_bytes(data)
    for name, data in odd.items():
        Path(os.fsdecode(os.path.join(os.fsencode(root), name))).write_bytes(data)
    bad = [*strange]
    for name in ("album.jpg", "folder.png", "a.JPEG", "b.webp"):
        (root / name).mkdir()
        (root / name / "notes.md").write_text("no picture")
    for name in ("pipe.png", "pipe.jpg", "pipe.tif", "pipe.webp"):
        os.mkfifo(root / name)
    for name, target in (("self.png", "self.png"), ("one.jpg", "two.jpg"), ("two.jpg", "one.jpg"), ("loop", ".")):
        (root / name).symlink_to(target)
    bad += ["album.jpg", "folder.png", "a.JPEG", "b.webp", "pipe.png", "pipe.jpg", "pipe.tif", "pipe.webp"]
    bad += ["self.png", "one.jpg", "two.jpg", "loop"]
    for name in ("locked.png", "locked.jpg", "locked.gif", "locked.bmp") if os.geteuid() else ():
        (root / name).write_bytes(encode(picture(), "PNG"))
        (root / name).chmod(0)
        bad.append(name)
    plain = [f"{'abc'[i % 3]}{i % 7}/{i:04d}.png" for i in range(n - len(bad) - len(odd))]
    for name in plain:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(encode(picture(16 + len(name) % 3), "PNG"))
    good = {"bad\\xff\\xfename.png", "new\\nline\\x1b[2J.png"} | {os.fsdecode(name) for name in [*odd][2:]}
    return Planted(root, good | set(plain), {name.replace(ESC, "\\x1b[31m\\x07").replace("\n", "\\n") for name in bad})
