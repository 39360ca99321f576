"""What a source says of its pictures, before one is opened: the first columns of the table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from sfumato.apps.explorer.domains import address_column, domain
from sfumato.apps.explorer.table import clean
from sfumato.data.arrays import Arrays
from sfumato.data.cache import digest
from sfumato.data.columns import CAPTION_CAP, FOLDER, NAMES, SIDECAR, Records, captions, choose, labels
from sfumato.data.options import DataError, DataOptions
from sfumato.data.sources import listing

__all__ = ["Listed", "listed"]

COLUMNS = 200  # of a source that are shown
OWN = {
    "id", "name", "label", "split", "caption", "domain", "width", "height", "bytes", "format", "mode", "sha256",
    "pixel_hash", "aspect", "megapixels", "bits_per_pixel", "alpha", "gray", "red", "green", "blue", "hue",
    "saturation", "brightness", "contrast", "darkest", "lightest", "entropy", "sharpness", "group", "copies", "cluster",
    "strangeness", "similarity", "aesthetic", "unsafe",
}  # fmt: skip


class Listed(NamedTuple):
    """columns: with `id`, equally long. addresses: the column that `domain` was read from."""

    records: Records
    columns: dict[str, Sequence[Any]]
    captions: list[str]
    addresses: str | None
    fingerprint: str


def listed(source: str | os.PathLike[str], options: DataOptions) -> Listed:
    """Raises DataError where there is nothing to look at."""
    found = listing(source, options)
    records = choose(found.records if isinstance(found, Arrays) else found, options.split)
    texts = captions(records, options.captions) or [""] * len(records)
    addresses = address_column(records.columns)
    columns: dict[str, Sequence[Any]] = {
        "id": range(len(records)),
        "name": records.names,
        "label": _labels(records, options),
        "split": [None if v is None else str(v) for v in records.columns.get("split", [None] * len(records))],
        "caption": [clean(text) or None for text in texts],
        "domain": [None if addresses is None else domain(str(v or "")) for v in records.columns[addresses]]
        if addresses is not None
        else [None] * len(records),
    }
    used = {"split", "label", FOLDER, NAMES, SIDECAR, options.captions or _caption_column(records)}
    for name, values in list(records.columns.items())[:COLUMNS]:
        if name not in used:
            columns[_free(clean(name), columns)] = [_short(value) for value in values]
    rows = "" if records.rows == range(len(records)) else repr(list(records.rows))
    return Listed(records, columns, texts, addresses, digest([rows, *records.names, *records.stamps]))


def _labels(records: Records, options: DataOptions) -> Sequence[str | None]:
    """By name; of folders where the source has no labels of its own."""
    wanted = options.labels or ("label" if "label" in records.columns else FOLDER)
    if wanted not in records.columns or options.labels == "none":
        return [None] * len(records)
    try:
        found = labels(records, wanted)
    except DataError:
        if options.labels is not None:
            raise
        found = None  # a column that is called label and holds none
    out: list[str | None] = [None] * len(records)
    if found is not None:
        for row, value in zip(found.rows, found.values, strict=True):
            out[row] = clean(found.classes[value])
    return out


def _caption_column(records: Records) -> str:
    return next((name for name in ("text", "caption", SIDECAR) if name in records.columns), "")


def _free(name: str, taken: dict[str, Sequence[Any]]) -> str:
    """DuckDB does not tell upper case from lower: a column of ours, or one that is there, gets another name."""
    lower = {other.lower() for other in taken} | OWN
    out, n = name or "(no name)", 1
    while out.lower() in lower:
        out, n = f"{name} (data{'' if n == 1 else f' {n}'})", n + 1
    return out


def _short(value: Any) -> Any:
    """Lists and texts of any length become texts of a bounded one."""
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value)[:CAPTION_CAP]
