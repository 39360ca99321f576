"""The tables of docs/guidance.md, from what was measured: python benchmarks/guidance_page.py

Fills what lies between `<!-- NAME -->` and `<!-- end -->` from benchmarks/results/{guidance,adm,dit}.json and the
receipts of emoji_adm and emoji_dit; the words around them are written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sfumato.metrics.receipt import Receipt

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "guidance.md"
WAYS = {
    "free": "`classifier_free`, `--guidance`",
    "classifier": "`ddpm` without classes, `--classifier-scale`",
    "both": "`classifier_free`, both scales",
    "real": "real pictures",
}


def aligned(head: str, rows: list[list[str]]) -> str:
    titles = head.split(", ")
    return "\n".join(f"| {' | '.join(row)} |" for row in [titles, ["---"] * len(titles), *rows]) + "\n"


def scales(rows: dict[str, Any]) -> str:
    out = []
    for name, row in sorted(rows.items(), key=lambda pair: [*WAYS, pair[0].split()[0]].index(pair[0].split()[0])):
        kind, _, scale = name.partition(" ")
        if kind in WAYS:
            seconds = f"{row['seconds']:.0f}" if "seconds" in row else ""
            cells = [f"{row['accuracy']:.3f}", *(f"{row[key]:.2f}" for key in ("frechet", "precision", "recall"))]
            out.append([WAYS[kind], scale.replace(" ", " and "), *cells, seconds])
    return aligned("steered, scale, accuracy, Frechet distance, precision, recall, processor seconds", out)


def discriminator(rows: dict[str, Any]) -> str:
    """A row a scale."""
    found: dict[str, list[dict[str, float]]] = {}
    for name, row in rows.items():
        if name.startswith("discriminator "):
            found.setdefault(name.split()[1], []).append(row)
    out = []
    for scale, three in found.items():
        mean = {key: sum(row[key] for row in three) / len(three) for key in ("precision", "recall")}
        each = " / ".join(f"{row['frechet']:.2f}" for row in three)
        fine = " / ".join(f"{row['lite0']:.0f}" for row in three)
        out.append([scale, each, fine, *(f"{mean[key]:.2f}" for key in ("precision", "recall"))])
    return aligned("scale, Frechet distance of three seeds, in features of lite0, precision, recall", out)


def backbones() -> str:
    out = []
    for name in ("adm", "dit"):
        receipt = Receipt.read(ROOT / "benchmarks" / "receipts" / f"emoji_{name}" / "lite0_auto_20.json")
        found = {figure.metric: figure for figure in receipt.figures}
        fid, kid = found["fid"], found["kid"]
        cells = [name, f"{receipt.cost['training']['parameters']:,}", f"{fid.value:.0f} (floor {fid.floor:.1f})"]
        cells += [f"{kid.value:.2f} ± {kid.error:.2f}"]
        out.append([*cells, *(f"{found[f'pr.{key}'].value:.3f}" for key in ("precision", "recall"))])
    return aligned("backbone, parameters, Frechet distance, KID, precision, recall", out)


def speed(adm: dict[str, Any], dit: dict[str, Any]) -> str:
    rows = {
        "ADM at 64 x 64, training step of one picture": [adm[f"train {kind}"] for kind in ("fp32", "bf16")],
        "DiT-S/2, training step": [dit[f"train {kind}"] for kind in ("fp32", "bf16")],
        "DiT-XL/2, forwards": [dit[f"forward {kind}"] for kind in ("fp32", "bf16")],
        "one product of 2,048 x 1,152 by 1,152": [dit[f"multiply {kind}"] for kind in ("fp32", "bf16")],
    }
    out = []
    for name, pair in rows.items():
        out.append([name, *(f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})" for row in pair)])
    calls = {"one guided call": "guided", "two calls": "two calls"}
    for name, key in calls.items():
        row = adm[f"sampling {key}"]
        out.append(
            [
                f"{name}, against one batch of twice the size",
                f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
                "",
            ]
        )
    return aligned("faster by, float32, bfloat16", out)


def filled(page: str) -> str:
    """The page with its tables as they are now."""
    results = ROOT / "benchmarks" / "results"
    found, adm, dit = (
        json.loads((results / f"{name}.json").read_text())["results"] for name in ("guidance", "adm", "dit")
    )
    tables = {
        "scales": scales(found),
        "discriminator": discriminator(found),
        "backbones": backbones(),
        "speed": speed(adm, dit),
    }
    for name, table in tables.items():
        before, _, rest = page.partition(f"<!-- {name} -->\n")
        page = f"{before}<!-- {name} -->\n\n{table}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
