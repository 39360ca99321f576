"""A folder that means harm: real pictures whose names and captions are HTML, SQL, formulas and escape codes."""

from __future__ import annotations

from pathlib import Path

import pytest

CANARY = "canary-ward"  # a folder above the data, and a word inside a picture: neither may ever be told
NAMES = (
    "<img src=x onerror=document.title='owned'>.png",
    "'; DROP TABLE pictures;--.png",
    '" OR 1=1 --.png',
    '=HYPERLINK("http:x","y").png',
    "\x1b[31mred\x1b[0m.png",
    "two\nlines.png",
    "a..%2f..%2fetc%2fpasswd.png",
    "javascript:alert(1).png",
    "ünï — 日本語 🐈.png",
    "%s%n{0}.png",
)
CAPTIONS = (
    "<script>document.title='owned'</script> a temple",
    "'; DROP TABLE pictures; -- a roof",
    "=1+1 formula",
    "\x1b[31m red walls",
    "<img src=x onerror=\"document.title='owned'\"> a flower",
    "<b>bold</b> & petals",
    "a cat 🐈 in a garden",
    "@SUM(A1) sky",
    "-2+3 water",
    "plain words of a roof",
)


def make(root: Path, more: int = 14) -> Path:
    """`root`/canary-ward/pictures with crops of two photographs, a copy, one in other colours, and a broken file."""
    datasets = pytest.importorskip("sklearn.datasets")
    image = pytest.importorskip("PIL.Image")
    photos = [image.fromarray(one) for one in datasets.load_sample_images().images]
    folder = root / CANARY / "pictures"
    folder.mkdir(parents=True)
    names = [*NAMES, *(f"photo {i:02d}.png" for i in range(more))]
    for i, name in enumerate(names):
        whole = photos[i % 2]
        left, top = (i * 53) % (whole.width - 160), (i * 37) % (whole.height - 120)
        whole.crop((left, top, left + 160, top + 120)).save(folder / name)
        if i < len(CAPTIONS):
            (folder / name).with_suffix(".txt").write_text(CAPTIONS[i], encoding="utf8")
    exif = image.Exif()
    exif[0x010E] = CANARY
    photos[1].crop((100, 100, 260, 220)).save(folder / "told.jpg", exif=exif, quality=90)
    (folder / "copy.png").write_bytes((folder / "photo 03.png").read_bytes())
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    return folder
