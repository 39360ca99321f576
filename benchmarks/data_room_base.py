"""A base of distinct pictures for the data room's benchmark, and copies planted in it, all from seeds.

    python benchmarks/data_room_base.py room/base --n 20000 --seed 0
    python benchmarks/data_room_base.py room/base --plant room/planted --seed 1

Emoji of one vendor without skin tones, photographs and glyphs, each laid on a ground and recoloured by a palette of
its own: 256 x 256 JPEG at quality 90, in train/ and test/ with metadata.jsonl (text, url). Planting links the base and
adds 100 exact copies, 100 near copies (resized, compressed again, cropped by 5 %, mirrored) and 50 leaks (half of them
exact) and writes truth.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from PIL import Image, ImageDraw, ImageFont

from sfumato.data.glyphs import Font, fonts

SIDE = 256
SHARES = {"glyph": 0.5, "emoji": 0.35, "photo": 0.15}
HOSTS = ("www.flickr.com", "i.pinimg.com", "cats.blogspot.com", "dogs.blogspot.co.uk", "art.wordpress.com", "bbc.co.uk")


def pictures(pack: Path, name: str, keep) -> list[tuple[str, Image.Image]]:
    """(caption, RGBA)."""
    rows = parquet.read_table(pack / name / f"{name}.parquet").to_pylist()
    return [(row["text"], Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGBA")) for row in rows if keep(row)]


def pen_of(font: Font, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font.path), size, layout_engine=ImageFont.Layout.BASIC)


def glyph_shapes() -> list[tuple[str, str]]:
    """(caption, character) of DejaVu Sans, without blanks and drawings that another character has."""
    font = next(font for font in fonts() if font.name == "DejaVuSans")
    pen, seen, out = pen_of(font, 32), set(), []
    for c in sorted(font.characters):
        drawn = Image.new("L", (64, 64))
        ImageDraw.Draw(drawn).text((8, 8), c, 255, pen)
        box = drawn.getbbox()
        code = drawn.crop(box).tobytes() if box else b""
        if box and (drawn.size, code) not in seen:
            seen.add((drawn.size, code))
            out.append((unicodedata.name(c, "a sign").lower(), c))
    return out


def draw_glyph(c: str) -> Image.Image:
    """White, with its shape as alpha, as large as fits."""
    font = next(font for font in fonts() if font.name == "DejaVuSans")
    pen = pen_of(font, 150)
    left, top, right, bottom = pen.getbbox(c)
    pen = pen_of(font, max(20, int(150 * 190 / max(right - left, bottom - top, 60))))
    left, top, right, bottom = pen.getbbox(c)
    out = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(out).text(((SIDE - left - right) / 2, (SIDE - top - bottom) / 2), c, 255, pen)
    white = Image.new("RGBA", (SIDE, SIDE), "white")
    white.putalpha(out)
    return white


def recoloured(shape: Image.Image, rng: np.random.Generator) -> Image.Image:
    """On a ground of its own, its luma led through four colours, mixed with what it was."""
    ground, *stops = rng.integers(0, 256, (5, 3))
    ramp = np.stack([np.interp(np.arange(256), [0, 85, 170, 255], [s[c] for s in stops]) for c in range(3)], 1)
    shape = shape.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    flat = Image.alpha_composite(Image.new("RGBA", shape.size, "white"), shape).convert("RGB")
    toned = Image.fromarray(ramp.astype(np.uint8)[np.asarray(flat.convert("L"))])
    mixed = Image.blend(flat, toned, float(rng.uniform(0.5, 1)))
    mixed.putalpha(shape.getchannel("A"))
    return Image.alpha_composite(Image.new("RGBA", mixed.size, (*map(int, ground), 255)), mixed).convert("RGB")


def make(pack: Path, out: Path, n: int, seed: int) -> None:
    emoji = pictures(pack, "emoji", lambda row: row["vendor"] == "noto" and not row["skin_tone"])
    photos = pictures(pack, "photos", lambda row: True)
    signs = glyph_shapes()
    counts = {kind: round(share * n) for kind, share in SHARES.items()}
    rows: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for split in rows:
        (out / split).mkdir(parents=True, exist_ok=True)
    number = 0
    for kind, shapes in (("glyph", signs), ("emoji", emoji), ("photo", photos)):
        for i in range(counts[kind]):
            rng = np.random.default_rng((seed, number))
            caption, shape = shapes[i % len(shapes)]
            picture = recoloured(draw_glyph(shape) if kind == "glyph" else shape, rng)
            split = "test" if rng.uniform() < 0.1 else "train"
            name = f"{kind}-{number:05d}.jpg"
            picture.save(out / split / name, quality=90)
            rows[split].append({"file_name": name, "text": caption, "url": f"https://{rng.choice(HOSTS)}/{number}.jpg"})
            number += 1
    for split, lines in rows.items():
        (out / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")


def resized(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = int(rng.integers(96, 400))
    return image.resize((side, side), Image.Resampling.LANCZOS)


def same(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image


def cropped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Without 5 % of its width and of its height, from any side."""
    w, h = image.size
    cut = round(0.05 * w), round(0.05 * h)
    left, top = int(rng.integers(0, cut[0] + 1)), int(rng.integers(0, cut[1] + 1))
    return image.crop((left, top, left + w - cut[0], top + h - cut[1]))


def mirrored(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


NEAR = {"resize": (resized, 90), "recompress": (same, None), "crop": (cropped, 90), "mirror": (mirrored, 90)}


def plant(base: Path, out: Path, seed: int) -> None:
    """The base by links, with copies; truth.json: [[original, copy, kind, split of the copy], ...]."""
    rng = np.random.default_rng((seed, 99))
    shutil.rmtree(out, ignore_errors=True)
    names = {split: sorted(path.name for path in (base / split).glob("*.jpg")) for split in ("train", "test")}
    for split in names:
        (out / split).mkdir(parents=True)
        for name in (*names[split], "metadata.jsonl"):
            os.link(base / split / name, out / split / name)
    chosen = iter(rng.permutation(names["train"]).tolist())
    kinds = list(NEAR)
    truth = [copied(base, out, next(chosen), "exact", "train", rng, i) for i in range(100)]
    truth += [copied(base, out, next(chosen), kinds[i % 4], "train", rng, i) for i in range(100)]
    truth += [
        copied(base, out, next(chosen), "exact" if i % 2 else kinds[i // 2 % 4], "test", rng, i) for i in range(50)
    ]
    (out / "truth.json").write_text(json.dumps(truth))


def copied(
    base: Path, out: Path, name: str, kind: str, split: str, rng: np.random.Generator, i: int
) -> tuple[str, str, str, str]:
    copy = f"{split}/copy-{kind}-{i:03d}-{int(rng.integers(1 << 30)):08x}.jpg"
    if kind == "exact":
        shutil.copyfile(base / "train" / name, out / copy)
    else:
        change, quality = NEAR[kind]
        with Image.open(base / "train" / name) as image:
            change(image.convert("RGB"), rng).save(out / copy, quality=quality or int(rng.integers(30, 80)))
    return f"train/{name}", copy, kind, split


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--pack", type=Path, default=os.environ.get("SFUMATO_DATA", "../shared/data"))
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--plant", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.plant:
        plant(args.base, args.plant, args.seed)
    else:
        make(Path(args.pack), args.base, args.n, args.seed)
