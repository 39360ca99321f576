"""The pictures of docs/guidance.md, from runs that are not kept: python benchmarks/guidance_pictures.py --help

`--free` is a run of classifier_free on Fashion-MNIST: a hundred pictures at three scales. `--adm` and `--dit`: emoji by
category, eight of each class, seeds in turn, not selected. `--upsampler`: a run that enlarges those of `--emoji` twice.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from fashion import sheet
from guidance import made
from PIL import Image, ImageDraw

from sfumato import Ask, DataOptions, Seeds, load, open_data
from sfumato.core.known import shrunk, spread
from sfumato.papers.adm import Enlarge
from sfumato.samplers.auto import Auto

IMAGES = Path(__file__).parent.parent / "docs" / "images"
EACH, SIDE, GAP, WORDS = 8, 32, 12, 104
SCALES = (1.0, 2.0, 5.0)


def saved(image: Image.Image, name: str, times: int) -> None:
    large = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    large.save(IMAGES / f"{name}.png", optimize=True)


def levels(pictures: torch.Tensor) -> np.ndarray:
    """(N, 3, H, W) in [0, 1] as (N, H, W, 3) uint8."""
    return (pictures * 255).round().byte().movedim(1, -1).numpy()


def scales(free: Path, steps: int) -> None:
    """Three sheets side by side."""
    recipe = load(free)
    sheets = [sheet(made(recipe, 100, Auto(steps), scale=scale)[0], 10) for scale in SCALES]
    wide = sheets[0].width + GAP
    whole = Image.new("L", (len(sheets) * wide - GAP, sheets[0].height), 255)
    for i, one in enumerate(sheets):
        whole.paste(one, (i * wide, 0))
    saved(whole, "guidance", 1)


def classes(runs: list[Path], steps: int, scale: float) -> None:
    """A row for each class, eight pictures of each run."""
    recipes = [load(run) for run in runs]
    names = recipes[0].config.classes
    whole = Image.new("RGB", (len(runs) * (EACH * SIDE + GAP) - GAP, len(names) * SIDE), "white")
    for k, recipe in enumerate(recipes):
        labels = tuple(i // EACH for i in range(EACH * len(names)))
        ask = Ask(n=len(labels), labels=labels, guidance=scale, sampler=Auto(steps))
        *_, last = recipe.sample(ask, rng=Seeds(0))
        for i, tile in enumerate(levels(recipe.picture(last))):
            at = (k * (EACH * SIDE + GAP) + i % EACH * SIDE, i // EACH * SIDE)
            whole.paste(Image.fromarray(tile), at)
    whole = whole.resize((whole.width * 2, whole.height * 2), Image.Resampling.NEAREST)
    named = Image.new("RGB", (whole.width + WORDS, whole.height), "white")
    named.paste(whole, (WORDS, 0))
    draw = ImageDraw.Draw(named)
    for i, name in enumerate(names):
        draw.text((4, 2 * SIDE * i + SIDE - 6), name, fill="black")
    named.save(IMAGES / "classes.png", optimize=True)


def enlarged(run: Path, emoji: Path, steps: int, n: int = 10) -> float:
    """Small, enlarged twice, and as they are; and how far the cells of the second are from the first."""
    recipe = load(run)
    data = open_data(str(emoji), DataOptions(size=(2 * SIDE, 2 * SIDE), labels="none", captions="none", split="test"))
    truth = (data.batch(np.arange(0, len(data), len(data) // n)[:n], None)["image"] + 1) / 2
    low = shrunk(truth, 2)
    *_, last = recipe.sample(Enlarge(n=n, low=low, sampler=Auto(steps)), rng=Seeds(0))
    made = recipe.picture(last)
    rows = [np.concatenate([*levels(row)], axis=1) for row in (spread(low, 2), made, truth)]
    saved(Image.fromarray(np.concatenate(rows)), "upsampled", 2)
    return float((shrunk(made, 2) - low).abs().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("free", "adm", "dit", "upsampler", "emoji"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--scale", type=float, default=2.0, help="guidance of the emoji")
    options = parser.parse_args()
    with torch.no_grad():
        if options.free:
            scales(options.free, options.steps)
        if options.adm and options.dit:
            classes([options.adm, options.dit], options.steps, options.scale)
        if options.upsampler and options.emoji:
            print(f"cells miss the small picture by {enlarged(options.upsampler, options.emoji, options.steps):.4f}")


if __name__ == "__main__":
    main()
