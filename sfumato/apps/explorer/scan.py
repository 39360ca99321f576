"""Every picture of a source looked at once, in parts that are kept as they are done."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.apps.explorer.facts import SIGN, Look, look
from sfumato.apps.explorer.shelf import Bytes, Shelf
from sfumato.apps.explorer.table import Ids, arrow_column
from sfumato.data.cache import each
from sfumato.data.columns import Records
from sfumato.data.decode import BadPicture, Missing
from sfumato.data.options import need

__all__ = ["PART", "Part", "Stopped", "kept_parts", "scan"]

PART = 512  # pictures


class Stopped(Exception):
    """The room was closed."""


@dataclass(frozen=True)
class Part:
    """Pictures `number * PART` and on: a row of facts and a sign for each good one, thumbnails one after the other."""

    number: int
    rows: Any  # Arrow table
    ids: Ids
    at: NDArray[np.int64]  # where each thumbnail begins, and at last where they end
    checks: NDArray[np.int64]  # CRC-32 of each thumbnail
    thumbs: Bytes
    signs: NDArray[np.uint8]  # (good, SIGN, SIGN, 3)
    bad: tuple[tuple[int, str], ...]

    def thumbnail(self, id: int) -> bytes | None:
        """None where there is none, or where it was damaged on disk."""
        i = int(np.searchsorted(self.ids, id))
        if i == len(self.ids) or self.ids[i] != id:
            return None
        content = self.thumbs[self.at[i] : self.at[i + 1]].tobytes()
        return content if zlib.crc32(content) == self.checks[i] else None


def scan(records: Records, shelf: Shelf, halted: Callable[[], bool], show: Callable[[int], None]) -> Iterator[Part]:
    """The parts in order, from the shelf where they are kept; `show` is told how many pictures were looked at.
    Raises Stopped."""
    for number in range(-(-len(records) // PART)):
        part = _kept(shelf, number)
        if part is None:
            part = _made(records, shelf, number, halted, show)
        show(min((number + 1) * PART, len(records)))
        yield part


def kept_parts(shelf: Shelf, n: int) -> list[Part]:
    """The parts of `n` pictures that are on the shelf, from the first on."""
    out = []
    for number in range(-(-n // PART)):
        if (part := _kept(shelf, number)) is None:
            break
        out.append(part)
    return out


def _made(records: Records, shelf: Shelf, number: int, halted: Callable[[], bool], show: Callable[[int], None]) -> Part:
    ids = range(number * PART, min((number + 1) * PART, len(records)))

    def one(id: int) -> Look | Missing:
        if halted():
            raise Stopped
        try:
            found = look(records.encoded(id))
        except BadPicture as reason:
            return Missing.of(reason)
        return Missing("was changed while it was read", True) if records.changed(id) else found

    looks = dict(zip(ids, each(one, ids, lambda done, of: show(ids.start + done)), strict=True))
    good = {id: found for id, found in looks.items() if isinstance(found, Look)}
    bad = [(id, found) for id, found in looks.items() if isinstance(found, Missing)]
    pieces = {
        "facts": _facts(good),
        "thumbs": b"".join(found.thumb for found in good.values()),
        "signs": b"".join(found.sign.tobytes() for found in good.values()),
        "bad": json.dumps([[id, missing.reason] for id, missing in bad]).encode(),
    }
    # what failed for a passing reason is tried again the next time
    kept = shelf.put(_name(number), pieces, lasting=not any(missing.passing for _, missing in bad))
    return _read(number, kept)


def _facts(good: dict[int, Look]) -> bytes:
    """Arrow's stream format."""
    arrow = need("pyarrow", "explore", "the data room")
    columns = {"id": arrow.array(list(good), arrow.int64())}
    sizes = [len(found.thumb) for found in good.values()]
    for name in next(iter(good.values())).row if good else ():
        columns[name] = arrow_column([found.row[name] for found in good.values()])
    columns["thumb_size"] = arrow.array(sizes, arrow.int64())
    columns["thumb_check"] = arrow.array([zlib.crc32(found.thumb) for found in good.values()], arrow.int64())
    table = arrow.table(_of_one_kind(columns))
    sink = arrow.BufferOutputStream()
    with arrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _of_one_kind(columns: dict[str, Any]) -> dict[str, Any]:
    """A column of nothing but gaps is of numbers here, so that parts can be joined."""
    arrow = need("pyarrow", "explore", "the data room")
    return {
        name: column.cast(arrow.float64())
        if name == "hue" or arrow.types.is_floating(column.type)
        else column
        for name, column in columns.items()
    }  # fmt: skip


def _kept(shelf: Shelf, number: int) -> Part | None:
    """Facts are verified here, thumbnails one by one when they are asked for, signs by their use."""
    kept = shelf.get(_name(number), verify=("facts", "bad"))
    try:
        return None if kept is None else _read(number, kept)
    except Exception:  # damage can look like anything
        return None


def _read(number: int, kept: dict[str, Bytes]) -> Part:
    arrow = need("pyarrow", "explore", "the data room")
    table = arrow.ipc.open_stream(arrow.py_buffer(kept["facts"].tobytes())).read_all()
    sizes = table.column("thumb_size").to_numpy()
    at = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    signs = kept["signs"].reshape(len(sizes), SIGN, SIGN, 3)
    if at[-1] != len(kept["thumbs"]):
        raise ValueError("the thumbnails are not those of the facts")
    return Part(
        number,
        table.drop_columns(["thumb_size", "thumb_check"]),
        table.column("id").to_numpy(),
        at,
        table.column("thumb_check").to_numpy(),
        kept["thumbs"],
        signs,
        tuple((int(id), str(reason)) for id, reason in json.loads(kept["bad"].tobytes())),
    )


def _name(number: int) -> str:
    return f"part-{number:05d}"
