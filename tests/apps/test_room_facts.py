"""What one picture is found to be: numbers with known values, and files that are none."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from sfumato.apps.explorer.facts import look, whole
from sfumato.apps.explorer.outliers import outliers, robust
from sfumato.data.decode import BadPicture
from tests.apps.rooms import drawing, folder_of, ids_by_name, settled


def seen(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return look(out.getvalue())


def flat(colour, size=(64, 48)):
    return Image.new("RGB", size, colour)


@pytest.mark.parametrize(
    ("colour", "hue"), [((255, 0, 0), 0), ((255, 255, 0), 60), ((0, 255, 0), 120), ((0, 0, 255), 240)]
)
def test_hue_of_pure_colours(colour, hue):
    row = seen(flat(colour)).row
    assert row["hue"] == pytest.approx(hue, abs=0.01) and row["saturation"] == pytest.approx(1)
    assert (row["red"], row["green"], row["blue"]) == pytest.approx(colour)
    assert not row["gray"] and row["entropy"] == 0 and row["sharpness"] == 0 and row["contrast"] == pytest.approx(0)


def test_gray_has_no_hue():
    row = seen(flat((90, 90, 90))).row
    assert row["gray"] and row["hue"] is None and row["brightness"] == pytest.approx(90 / 255)


def test_half_black_half_white():
    pixels = np.zeros((64, 64), np.uint8)
    pixels[:, 32:] = 255
    row = seen(Image.fromarray(pixels)).row
    assert row["brightness"] == pytest.approx(0.5) and row["contrast"] == pytest.approx(0.5)
    assert row["entropy"] == pytest.approx(1) and (row["darkest"], row["lightest"]) == (0, 1)
    # the Laplacian is 255 beside the edge on one side and -255 on the other: two of 62 columns
    assert row["sharpness"] == pytest.approx(np.log10(1 + 255**2 * 2 / 62), rel=1e-6)


def test_sharpness_falls_with_blur(data_pack):
    """Of real photographs, with the standard deviation of a Gaussian in pixels."""
    import pyarrow.parquet as parquet

    cells = parquet.read_table(data_pack / "photos" / "photos.parquet").column("image").to_pylist()[::40]
    for cell in cells:
        image = Image.open(io.BytesIO(cell["bytes"])).convert("RGB")
        values = [seen(image.filter(ImageFilter.GaussianBlur(s))).row["sharpness"] for s in (0, 0.5, 1, 2, 4, 8)]
        assert values == sorted(values, reverse=True) and values[0] > values[-1] + 0.5


def test_sharpness_is_of_how_a_picture_looks_not_of_its_size():
    small = drawing(1, (256, 256))
    large = small.resize((1024, 1024), Image.Resampling.NEAREST)
    assert seen(large).row["sharpness"] == pytest.approx(seen(small).row["sharpness"], abs=0.02)


def test_size_alpha_and_hashes():
    image = drawing(1, (90, 30))
    a, b = seen(image), seen(image, compress_level=0)
    assert (a.row["width"], a.row["height"], a.row["aspect"], a.row["alpha"]) == (90, 30, 3, False)
    assert a.row["pixel_hash"] == b.row["pixel_hash"] and a.row["sha256"] != b.row["sha256"]
    assert a.row["pixel_hash"] != seen(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).row["pixel_hash"]
    clear = image.convert("RGBA")
    assert not seen(clear).row["alpha"]
    clear.putpixel((3, 3), (0, 0, 0, 10))
    assert seen(clear).row["alpha"]
    assert a.sign.shape == (32, 32, 3)


def test_a_turned_photograph_is_shown_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    row = seen(drawing(1, (90, 30)), "JPEG", exif=exif).row
    assert (row["width"], row["height"]) == (30, 90)


def test_a_large_jpeg_is_not_compared_by_its_pixels():
    """It is decoded at a fraction: two files with equal pixels there are near copies, and called no more than that."""
    image = drawing(1, (3000, 2000))
    a, b = seen(image, "JPEG", quality=90), seen(image, "JPEG", quality=90, comment=b"another file")
    assert a.row["pixel_hash"] == a.row["sha256"] != b.row["pixel_hash"]
    assert (a.row["width"], a.row["height"]) == (3000, 2000) and np.array_equal(a.sign, b.sign)


def test_deep_and_strange_pictures_are_looked_at():
    deep = Image.fromarray((np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16))
    assert seen(deep).row["brightness"] == pytest.approx(0.5, abs=0.01)
    assert seen(drawing(1).convert("CMYK"), "TIFF").row["width"] == 160
    assert seen(drawing(1).quantize(8)).row["width"] == 160
    assert seen(Image.new("1", (1, 1))).row["megapixels"] == 1e-6


@pytest.mark.parametrize(
    "content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"GIF89a" + b"\xff" * 20]
)
def test_what_is_no_picture_is_a_reason(content):
    with pytest.raises(BadPicture):
        look(content)


def test_pictures_are_shown_without_what_they_carried():
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    out = io.BytesIO()
    drawing(1, (2000, 1500)).save(out, "JPEG", exif=exif, comment=b"secret comment")
    content, mime = whole(out.getvalue())
    assert mime == "image/jpeg" and b"secret" not in content and b"secret" not in look(out.getvalue()).thumb
    assert Image.open(io.BytesIO(content)).size == (2000, 1500)


def test_robust_scores_are_those_of_the_source():
    """Iglewicz and Hoaglin's example: the median and the median distance, not moved by the outlier itself."""
    x = np.array([2.1, 2.6, 2.4, 2.5, 2.3, 2.1, 2.3, 2.6, 8.2, 8.3])
    z = robust(x)
    assert z == pytest.approx(0.6745 * (x - 2.45) / np.median(np.abs(x - 2.45)))
    assert (np.abs(z) > 3.5).tolist() == [False] * 8 + [True] * 2
    assert robust(np.array([1.0, 1, 1, 1, 5]))[-1] > 3 and not robust(np.ones(5)).any() and not len(robust(np.empty(0)))


def test_unknown_values_are_no_outliers():
    values = np.array([np.nan, 0.9, 0.9, 0.02])
    found = outliers(np.arange(4), {"lightest": values}, np.zeros(4, bool))
    assert [row["id"] for row in found["dark"]["rows"]] == [3]


def test_planted_outliers_are_found(tmp_path):
    pictures = {f"good-{i:02d}.png": drawing(i, (128, 128)) for i in range(30)}
    noise = np.random.default_rng(0).integers(0, 8, (128, 128, 3)).astype(np.uint8)
    pictures |= {
        "dark.png": Image.fromarray(noise),
        "light.png": Image.fromarray(255 - noise),
        "blurred.png": drawing(40, (128, 128)).filter(ImageFilter.GaussianBlur(25)),
        "empty.png": flat((10, 120, 200), (128, 128)),
        "wide.png": drawing(41, (640, 40)),
        "huge.png": drawing(42, (1500, 1500)),
        "gray.png": drawing(43, (128, 128)).convert("L"),
    }
    with settled(folder_of(tmp_path, pictures)) as room:
        at, found = ids_by_name(room), room.outliers()
        names = {check: {row["id"] for row in of["rows"]} for check, of in found.items()}
        for check, name in (
            ("dark", "dark"), ("light", "light"), ("blurred", "blurred"), ("empty", "empty"), ("shape", "wide"),
            ("size", "huge"), ("gray", "gray"),
        ):  # fmt: skip
            assert at[f"{name}.png"] in names[check], check
        good = {at[f"good-{i:02d}.png"] for i in range(30)}
        assert not good & (names["dark"] | names["light"] | names["shape"] | names["size"] | names["gray"])
