"""The page of the trained papers, from benchmarks/results/papers.json: python benchmarks/papers_page.py

Writes docs/papers.md, and with --runs one picture with a row of samples of every kept run."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from sfumato import Ask, Seeds, load

ROOT = Path(__file__).parent.parent
TITLES = {
    "fashion_ddpm": "ddpm",
    "fashion_improved_ddpm": "improved_ddpm",
    "fashion_vp": "score_sde, VP",
    "fashion_subvp": "score_sde, sub-VP",
    "fashion_ve": "score_sde, VE",
    "fashion_cld": "cld",
    "fashion_edm": "edm",
    "fashion_flow": "flow_matching",
    "fashion_consistency": "consistency, upon edm",
}
HEAD = """\
# The pixel-space papers, trained

One network ({size:.1f} M parameters), one data set (Fashion-MNIST, 60,000 pictures of 28 x 28, mirrored at random, no
labels), one budget: {steps:,} steps of batch 32, which take ten minutes on one quiet core of two (consistency: half as
many steps, each with four passes, upon the edm run). One seed each, but where others are named. The weights are in
`benchmarks/runs/` (bfloat16) and open with `sfumato sample benchmarks/runs/NAME`, but for VP and sub-VP, whose figures
alone are kept; `make run-NAME` trains one again.

![A row of samples of every run, not selected](images/papers.png)

## How good, in how many network calls

Frechet distance of {n:,} samples to the 10,000 test pictures in the features of a small classifier trained on this set
({accuracy:.1%} of the test pictures read right): **no FID**, comparable within this table only. The floor, as many
training pictures, is **{floor}**. Samplers: `auto` (cld: `sscs`); consistency its own.

"""
SEEDS = """
The same with other seeds of training, so that differences between papers can be read:

"""
BITS = """
## How probable they find the test pictures

Bits per dimension of the same test pictures with the standard error ([likelihood.md](likelihood.md) says what the two
columns are and why they have no order; that of cld is an upper bound).

"""
END = """
Measured with `benchmarks/papers.py` on {cpu}, torch {torch}, {date}; this page is written by
`benchmarks/papers_page.py`.
"""
COMMON = ("auto", "sscs")


def table(rows: dict[str, Any], calls: list[int]) -> str:
    head = ["paper", "parameters", *(f"{n} calls" for n in calls), "another way"]
    out = f"| {' | '.join(head)} |\n{'|---' * len(head)}|\n"
    for name, title in TITLES.items():
        if name not in rows:
            continue
        found = {tuple(k.split(", ")): v for k, v in rows[name]["frechet"].items()}
        cells = [next((str(v) for (k, c), v in found.items() if k in COMMON and c == str(n)), "") for n in calls]
        rest = "; ".join(f"{k} {c}: {v}" for (k, c), v in found.items() if k not in COMMON)
        out += f"| {' | '.join([title, format(rows[name]['parameters'], ','), *cells, rest])} |\n"
    return out


def seeds(rows: dict[str, Any], calls: list[int]) -> str:
    """Runs that differ by the seed alone: fashion_edm, fashion_edm_s1, ..."""
    out = ""
    for name, title in TITLES.items():
        found = [row for other, row in rows.items() if other == name or re.fullmatch(rf"{name}_s\d+", other)]
        if len(found) > 1:
            cells = [[row["frechet"][f"auto, {n}"] for row in found] for n in calls]
            out += f"| {title} | {' | '.join(' '.join(f'{v:.2f}' for v in cell) for cell in cells)} |\n"
    if not out:
        return ""
    head = ["paper", *(f"{n} calls" for n in calls)]
    return f"{SEEDS}| {' | '.join(head)} |\n{'|---' * len(head)}|\n{out}"


def likelihoods(rows: dict[str, Any]) -> str:
    out = "| paper | flow | bound of the chain |\n|---|---|---|\n"
    for name, title in TITLES.items():
        found = rows.get(name, {}).get("bits per dimension")
        if found:
            both = (found["ode"], found["bound"])
            cells = [f"{v[0]:.3f} ± {v[1]:.3f}" if isinstance(v, list) else "none" for v in both]
            out += f"| {title} | {' | '.join(cells)} |\n"
    return out


def strip(runs: Path, names: list[str], columns: int = 20) -> Image.Image:
    """A row of the first pictures of every run, by its own sampler."""
    side, label = 28, 14
    sheet = Image.new("L", (columns * side, len(names) * (side + label)), 255)
    draw = ImageDraw.Draw(sheet)
    for i, name in enumerate(names):
        recipe = load(runs / name)
        with torch.no_grad():
            for state in recipe.sample(Ask(n=columns), rng=Seeds(0)):
                last = state
        tiles = (255 * (1 - recipe.picture(last)[:, 0])).round().byte()
        top = i * (side + label)
        draw.text((2, top + 1), TITLES[name], fill=60)
        for k, tile in enumerate(tiles):
            sheet.paste(Image.fromarray(tile.numpy()), (k * side, top + label))
    return sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="draw the picture from the runs in this folder")
    options = parser.parse_args()
    kept = json.loads((ROOT / "benchmarks/results/papers.json").read_text())
    rows = kept["results"]
    first = rows["fashion_ddpm"]
    text = HEAD.format(
        size=first["parameters"] / 1e6,
        steps=first["steps"],
        n=rows["n"],
        accuracy=rows["classifier accuracy"],
        floor=rows["floor"],
    )
    text += table(rows, [10, 20, 50])
    text += seeds(rows, [10, 20, 50])
    text += BITS + likelihoods(rows) + END.format(**kept["machine"])
    (ROOT / "docs/papers.md").write_text(text)
    if options.runs:
        strip(options.runs, [name for name in TITLES if name in rows]).save(
            ROOT / "docs/images/papers.png", optimize=True
        )


if __name__ == "__main__":
    main()
