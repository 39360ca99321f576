"""Every format and mode comes back with the pixels that went in, upright; strangers' files cannot do harm."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from sfumato.data.decode import BadPicture, decode, header
from sfumato.data.fit import Plan, natural_channels, natural_size

PLAN = Plan((24, 16), 3)


@pytest.mark.parametrize(
    "kind, options",
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PNG", {"optimize": True}),
    ],
)
def test_lossless_formats_are_exact(corners, encode, kind, options):
    assert (decode(encode(corners, kind, **options), PLAN) == corners).all()


@pytest.mark.parametrize(
    "kind, options",
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("WEBP", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True, "subsampling": 0}),
    ],
)
def test_lossy_formats_are_close(corners, encode, kind, options):
    inside = np.s_[2:6, 2:10]  # away from the edges between colours
    got = decode(encode(corners, kind, **options), PLAN).astype(int)
    for y in (0, 8):
        for x in (0, 12):
            assert abs(got[y:, x:][inside] - corners[y:, x:][inside]).max() <= 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_exif_orientation_is_undone(corners, encode, kind, orientation):
    # TIFF 6.0: orientation 6 means that row 0 of the file is the right-hand side and column 0 the top, and so on
    stored = {
        1: corners,
        2: corners[:, ::-1],
        3: corners[::-1, ::-1],
        4: corners[::-1],
        5: corners.swapaxes(0, 1),
        6: np.rot90(corners),
        7: corners[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(corners, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    data = encode(np.ascontiguousarray(stored), kind, exif=exif, **options)
    assert header(data).size == (24, 16)
    assert abs(decode(data, PLAN).astype(int) - corners)[2:6, 2:10].max() <= (6 if kind == "JPEG" else 0)
    assert abs(decode(data, PLAN).astype(int) - corners)[10:14, 14:22].max() <= (6 if kind == "JPEG" else 0)


def test_gray_palette_and_one_bit(corners, encode):
    gray = corners[..., 1]
    assert (decode(encode(gray), Plan((24, 16), 1))[..., 0] == gray).all()
    assert (decode(encode(gray), PLAN) == gray[..., None]).all()
    assert (decode(encode(Image.fromarray(corners).quantize(4)), PLAN) == corners).all()
    assert (decode(encode(Image.fromarray(corners).quantize(4), "GIF"), PLAN) == corners).all()
    bits = gray > 100
    assert (decode(encode(Image.fromarray(bits)), Plan((24, 16), 1))[..., 0] == bits * 255).all()
    rgb_of_gray = np.repeat(gray[..., None], 3, 2)
    assert (decode(encode(rgb_of_gray), Plan((24, 16), 1))[..., 0] == gray).all(), "gray survives the way over RGB"


def test_cmyk(encode):
    ink = np.zeros((16, 24, 4), np.uint8)
    ink[:, :12, 0] = 255  # cyan | paper
    for kind in ("TIFF", "JPEG"):
        got = decode(encode(Image.fromarray(ink, "CMYK"), kind), PLAN).astype(int)
        assert abs(got[8, 4] - (0, 255, 255)).max() <= 3
        assert abs(got[8, 20] - 255).max() <= 3


def test_alpha_on_white_or_kept(corners, encode):
    alpha = np.full((16, 24, 1), 255, np.uint8)
    alpha[:8], alpha[8:, 12:] = 0, 51
    data = encode(np.concatenate([corners, alpha], 2))
    kept = decode(data, Plan((24, 16), 4))
    assert (kept[..., 3:] == alpha).all() and (kept[8:, :, :3] == corners[8:]).all()
    white = decode(data, PLAN).astype(float)
    assert (white[:8] == 255).all() and (white[8:, :12] == corners[8:, :12]).all()
    assert abs(white[8:, 12:] - (corners[8:, 12:] * 0.2 + 255 * 0.8)).max() <= 1


def test_palette_with_transparency(corners, encode):
    picture = Image.fromarray(corners).quantize(4)
    clear = picture.getpixel((0, 0))
    for kind in ("PNG", "GIF"):
        got = decode(encode(picture, kind, transparency=clear), PLAN)
        assert (got[:8, :12] == 255).all() and (got[8:] == corners[8:]).all()


def test_animation_gives_its_first_frame(corners, encode):
    first, second = Image.fromarray(corners), Image.fromarray(corners[::-1].copy())
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        data = encode(first, kind, save_all=True, append_images=[second], **options)
        assert abs(decode(data, PLAN).astype(int) - corners).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits(encode, kind):
    deep = np.arange(16 * 24, dtype=np.uint16).reshape(16, 24) * 170 + 3
    data = encode(deep, kind)
    assert header(data).deep and header(data).gray
    exact = decode(data, Plan((24, 16), 1, deep=True))
    assert exact.dtype == np.uint16 and (exact[..., 0] == deep).all()
    assert (decode(data, Plan((24, 16), 1))[..., 0] == np.rint(deep / 257)).all()
    flat = decode(encode(np.full((40, 60), 54321, np.uint16), kind), Plan((24, 16), 1, deep=True))
    assert (flat == 54321).all(), "resizing keeps a constant"
    eight = decode(encode(np.full((16, 24), 200, np.uint8)), Plan((24, 16), 1, deep=True))
    assert (eight == 200 * 257).all()


def test_big_endian_sixteen_bits():
    deep = np.arange(16 * 24, dtype=np.uint16).reshape(16, 24) * 170
    tags = [
        (256, 3, 1, 24),
        (257, 3, 1, 16),
        (258, 3, 1, 16),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (277, 3, 1, 1),
        (278, 3, 1, 16),
        (279, 4, 1, deep.nbytes),
    ]
    entries = b"".join(
        struct.pack(">HHI", *tag[:3]) + (struct.pack(">HH", tag[3], 0) if tag[1] == 3 else struct.pack(">I", tag[3]))
        for tag in tags
    )
    data = (
        b"MM\0*"
        + struct.pack(">I", 8 + deep.nbytes)
        + deep.astype(">u2").tobytes()
        + struct.pack(">H", len(tags))
        + entries
        + b"\0\0\0\0"
    )
    assert (decode(data, Plan((24, 16), 1, deep=True))[..., 0] == deep).all()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_what_fits_keeps_its_values(data):
    h, w, c = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)), data.draw(st.sampled_from([1, 3, 4]))
    pixels = data.draw(arrays(np.uint8, (h, w, c)))
    for fit in ("crop", "pad", "stretch"):
        assert (decode(pixels, Plan((w, h), c, fit=fit)) == pixels).all()
    assert natural_channels(pixels) <= c
    assert natural_channels(np.repeat(pixels[..., :1], 3, -1)) == 1


def test_crop_pad_stretch(corners, encode):
    wide = np.concatenate([np.zeros((16, 16, 3), np.uint8), corners[:, :16], np.zeros((16, 16, 3), np.uint8)], 1)
    assert (decode(encode(wide), Plan((16, 16), 3)) == corners[:, :16]).all(), "the centre"
    bars = decode(encode(corners), Plan((24, 24), 3, fit="pad"))
    assert (bars[4:20] == corners).all()
    edge = np.concatenate([corners[0], corners[-1], corners[:, 0], corners[:, -1]]).mean(0)
    assert abs(bars[:4] - edge).max() <= 0.5 and abs(bars[20:] - edge).max() <= 0.5
    squeezed = decode(encode(corners.repeat(3, 1)), Plan((24, 16), 3, fit="stretch")).astype(int)
    assert abs(squeezed[:, [0, 5, 18, 23]] - corners[:, [0, 5, 18, 23]]).max() <= 1
    kept = decode(encode(np.dstack([corners, np.full((16, 24), 255, np.uint8)])), Plan((24, 24), 4, fit="pad"))
    assert (kept[:4, :, 3] == 0).all() and (kept[4:20, :, :3] == corners).all()


def test_shrinking_averages_and_does_not_alias(encode):
    checks = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)
    assert abs(decode(encode(checks), Plan((16, 16), 1)).astype(int) - 128).max() <= 1
    ramp = np.tile(np.linspace(0, 255, 640).astype(np.uint8), (640, 1))
    for kind in ("PNG", "JPEG"):  # a JPEG of this factor is decoded at a fraction of its size
        got = decode(encode(ramp, kind), Plan((32, 32), 1))[16, 2:-2, 0].astype(float)
        assert abs(got - np.interp((np.arange(2, 30) + 0.5) * 20 - 0.5, np.arange(640), ramp[0])).max() <= 2


def test_hidden_colour_does_not_bleed(encode):
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[..., 2] = 255  # transparent blue
    picture[:, 32:] = (255, 0, 0, 255)  # solid red
    small = decode(encode(picture), Plan((15, 15), 4))
    assert (small[small[..., 3] > 8][:, 2] <= 1).all()


def test_natural_size():
    assert natural_size([(28, 28)] * 9) == (28, 28)
    assert natural_size([(32, 32)]) == (32, 32)
    assert natural_size([(28, 28), (30, 31)]) == (16, 16)
    assert natural_size([(640, 480), (100, 70), (70, 100)]) == (64, 64)
    assert natural_size([(6000, 4000)]) == (256, 256)
    assert natural_size([(3, 5)]) == (8, 8)


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0" * 64))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8_001, 10_000, 40_000])
def test_bombs_are_refused_by_their_header(side):
    for ask in (header, lambda data: decode(data, PLAN)):
        with pytest.raises(BadPicture, match="cap of 64 megapixels"):
            ask(_png(side, side))


def test_reasons(corners, encode, tmp_path):
    png = encode(corners)
    flipped = bytearray(encode(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)))
    flipped[len(flipped) // 2] ^= 1
    bad = {
        "empty": (b"", "empty file"),
        "text": (b"hello", "not a picture"),
        "cut": (png[: len(png) // 2], "damaged"),
        "flipped": (bytes(flipped), "damaged"),
        "cut jpeg": (encode(corners, "JPEG")[:-90], "damaged"),
        "cut webp": (encode(corners, "WEBP")[:-9], "damaged"),
        "float": (encode(Image.new("F", (4, 4)), "TIFF"), "kind F"),
        "eps": (encode(corners, "EPS"), "not a picture"),
        "ico": (encode(corners, "ICO"), "not a picture"),
        "missing": (tmp_path / "no.png", "no such file"),
        "folder": (tmp_path, "not a regular file"),
    }
    for name, (data, reason) in bad.items():
        with pytest.raises(BadPicture, match=reason):
            decode(data, PLAN)
            pytest.fail(name)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"]), st.data())
def test_damage_is_a_reason_or_a_picture(kind, data):
    import io

    out = io.BytesIO()
    Image.fromarray(np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3)).save(out, kind)
    raw = bytearray(out.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = bytes(raw)[: data.draw(st.integers(1, len(raw)))]
    try:
        assert decode(raw, PLAN).shape == (16, 24, 3)
    except BadPicture as reason:
        assert str(reason)
