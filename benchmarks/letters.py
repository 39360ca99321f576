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


def rms(distance: torch.Tensor, pixels: int) -> list[float]:
    return [round(float(v) / pixels**0.5, 4) for v in (distance.median(), distance.min())]


def measure(run: Path, *, each: int, guidance: float, steps: int) -> dict[str, object]:
    """The rows of the report."""
    data = open_data("glyphs", DataOptions(size=32))
    batch = data.batch(torch.arange(len(data)).numpy(), None)
    images, labels, group = batch["image"], batch["label"], groups(data.classes)
    families = sorted(set(data.families))
    held = torch.tensor([families.index(f) % 2 == 1 for f in data.families])
    net = train(images[~held], labels[~held], len(data.classes), epochs=60, batch=64, augment=True)
    pictures, asked, seconds = samples(run, each, guidance, steps)
    said, flat = read(net, pictures), images.flatten(1)
    right = group[said] == group[asked]
    nearest = torch.cdist(pictures.flatten(1), flat).min(1).values
    own = torch.cdist(flat, flat).fill_diagonal_(float("inf")).min(1).values
    return {
        "glyphs": {"trained on": int((~held).sum()), "held out": int(held.sum()), "families held out": families[1::2]},
        "held-out families read right": round(
            float((group[read(net, images[held])] == group[labels[held]]).float().mean()), 4
        ),
        "samples": len(pictures),
        "samples read as asked": round(float(right.float().mean()), 4),
        "misread": {data.classes[c]: int((~right[asked == c]).sum()) for c in range(62) if not right[asked == c].all()},
        "rms distance to the nearest glyph (median, least), values in [-1, 1]": rms(nearest, flat.shape[1]),
        "the same between glyphs": rms(own, flat.shape[1]),
        "seconds to sample": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--each", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out")
    o = parser.parse_args()
    report("letters", measure(o.run, each=o.each, guidance=o.guidance, steps=o.steps), o.out)


if __name__ == "__main__":
    main()
