"""Can the demo's letters be read, and are they copies? python benchmarks/letters.py demo/run

A classifier of real glyphs, trained on half of the font families, must read the other half; then it reads 10 samples
of each of the 62 letters and digits. Letters that differ in size alone count as the same: cC iI1l kK oO0 pP sS uU vV
wW xX zZ, and iI1l."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from classifier import read, train
from timing import report

from sfumato import Ask, DataOptions, Seeds, load, open_data
from sfumato.samplers.ancestral import DDIM

MERGED = ("cC", "kK", "oO0", "pP", "sS", "uU", "vV", "wW", "xX", "zZ", "Il1")


def groups(classes: tuple[str, ...]) -> torch.Tensor:
    """The group of every class."""
    return torch.tensor([next((100 + i for i, g in enumerate(MERGED) if c in g), k) for k, c in enumerate(classes)])


def samples(run: Path, each: int, guidance: float, steps: int):
    recipe = load(run)
    classes = recipe.config.classes
    pictures, labels, seconds = [], [], 0.0
    for k in range(each):
        asked = tuple(range(len(classes)))
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            *_, state = recipe.sample(
                Ask(n=len(asked), labels=asked, guidance=guidance, sampler=DDIM(steps)), rng=Seeds(1000 * (k + 1))
            )
        seconds += time.perf_counter() - begin
        pictures.append(recipe.picture(state) * 2 - 1)
        labels.append(torch.tensor(asked))
    return torch.cat(pictures), torch.cat(labels), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--each", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out")
    options = parser.parse_args()
    data = open_data("glyphs", DataOptions(size=32))
    batch = data.batch(torch.arange(len(data)).numpy(), None)
    images, labels, group = batch["image"], batch["label"], groups(data.classes)
    families = sorted(set(data.families))
    held = torch.tensor([families.index(f) % 2 == 1 for f in data.families])
    net = train(images[~held], labels[~held], len(data.classes), epochs=60, batch=64, augment=True)
    right = (group[read(net, images[held])] == group[labels[held]]).float().mean()
    pictures, asked, seconds = samples(options.run, options.each, options.guidance, options.steps)
    said = read(net, pictures)
    distance = torch.cdist(pictures.flatten(1), images.flatten(1)).min(1).values
    own = torch.cdist(images.flatten(1), images.flatten(1)).fill_diagonal_(float("inf")).min(1).values
    report(
        "letters",
        {
            "families": {"trained on": int((~held).sum()), "held out": int(held.sum()), "names": families},
            "held-out families read right": round(float(right), 4),
            "samples": len(pictures),
            "samples read as asked": round(float((group[said] == group[asked]).float().mean()), 4),
            "worst letters": {
                data.classes[c]: round(float((group[said[asked == c]] == group[c]).float().mean()), 2)
                for c in range(len(data.classes))
                if (group[said[asked == c]] != group[c]).any()
            },
            "rms distance to the nearest training glyph (median, least), of 2": [
                round(float(v) / images[0].numel() ** 0.5, 4) for v in (distance.median(), distance.min())
            ],
            "the same between training glyphs": [
                round(float(v) / images[0].numel() ** 0.5, 4) for v in (own.median(), own.min())
            ],
            "seconds to sample": round(seconds, 1),
        },
        options.out,
    )


if __name__ == "__main__":
    main()
