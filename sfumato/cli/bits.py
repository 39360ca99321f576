"""Bits per dimension of pictures: the strangest first, as a table, a CSV and a strip."""

from __future__ import annotations

import csv
import io
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sfumato.core.likelihood import mean_of
from sfumato.core.losses import Bound
from sfumato.data import Dataset
from sfumato.data.pictures import grid, save_png
from sfumato.engine import files

__all__ = ["Found", "joined", "told"]

WIDE = 640  # pixels of the strip
FORMULA = tuple("=+-@|%＝＋－＠")  # what begins one in some spreadsheet


class Found(NamedTuple):
    """Bits per dimension of every picture."""

    data: Dataset
    flow: Tensor | None  # (N, probes)
    bound: Bound | None
    calls: int  # of the network for the flow, at most

    def order(self) -> list[int]:
        """The strangest first; by the flow where there is one."""
        values = self.flow.mean(1) if self.flow is not None else self.bound.total  # type: ignore[union-attr]
        order: list[int] = values.nan_to_num(nan=float("inf")).argsort(descending=True, stable=True).tolist()
        return order

    def columns(self) -> dict[str, list[str]]:
        """Name -> every picture's value, as text."""
        out = {"name": list(self.data.names)}
        if self.data.labels is not None:
            out["label"] = [self.data.classes[i] for i in self.data.labels]
        if self.flow is not None:
            out["ode"] = _texts(self.flow.mean(1))
            k = self.flow.shape[1]
            out |= {"ode_probe_error": _texts(self.flow.std(1) / k**0.5)} if k > 1 else {}
        if self.bound is not None:
            out |= {"bound": _texts(self.bound.total), "bound_decoder": _texts(self.bound.steps[-1])}
        return out

    def listed(self, most: int) -> list[list[str]]:
        """The head and the strangest pictures."""
        columns = self.columns()
        return [list(columns), *([column[i] for column in columns.values()] for i in self.order()[:most])]

    def write(self, out: Path, most: int) -> list[Path]:
        """images.csv, steps.csv of the bound and strangest.png, each whole or not at all."""
        head, *cells = self.listed(len(self.data))
        files.write_text(out / "images.csv", _csv([head, *([_inert(cell) for cell in row] for row in cells)]))
        if self.bound is not None:
            files.write_text(out / "steps.csv", _csv(_per_step(self.bound)))
        save_png(out / "strangest.png", self.strip(most))
        names = ("images.csv", *(("steps.csv",) if self.bound is not None else ()), "strangest.png")
        return [out / name for name in names]

    def strip(self, most: int) -> Image.Image:
        """The strangest pictures in a row, above the most ordinary ones."""
        order, width = self.order(), max(1, min(most, len(self.data) // 2))
        which = order[:width] + order[: -width - 1 : -1] if len(order) > 1 else order
        sheet = grid((self.data.batch(np.array(which))["image"] + 1) / 2, columns=width)
        factor = max(1, WIDE // sheet.width)
        return sheet.resize((sheet.width * factor, sheet.height * factor), Image.Resampling.NEAREST)


def told(values: Tensor) -> str:
    """Their mean, with its error bar where there are several."""
    of = mean_of(values)
    if len(values) == 1:
        return f"{of.value:.3f} bits per dimension"
    return f"{of.value:.3f} ± {of.error:.3f} bits per dimension (one standard error over {len(values):,} pictures)"


def joined(parts: list[Bound]) -> Bound | None:
    """Of several batches, one; None of none."""
    return Bound(*(torch.cat(rows, -1).cpu() for rows in zip(*parts, strict=True))) if parts else None


def _texts(values: Tensor) -> list[str]:
    return [f"{value:.6f}" for value in values.tolist()]


def _per_step(bound: Bound) -> list[list[str]]:
    """Means over the pictures: the bits and the errors of x0 and eps at every step, noisiest first."""
    n = len(bound.steps)
    means: list[list[float]] = torch.stack([bound.steps, bound.x0, bound.eps]).mean(-1).T.tolist()
    head = [["t", "bits", "x0_error", "eps_error"], ["prior", f"{float(bound.prior.mean()):.9f}", "", ""]]
    return head + [[f"{1 - i / n:.6f}", *(f"{value:.9f}" for value in row)] for i, row in enumerate(means)]


def _csv(cells: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(cells)
    return text.getvalue()


def _inert(cell: str) -> str:
    """Text that no spreadsheet takes for a formula: behind a quote where it begins like one. Numbers stay."""
    with suppress(ValueError):
        float(cell)
        return cell
    return f"'{cell}" if cell.lstrip().startswith(FORMULA) else cell
