"""Reading .parquet without believing what it says of itself: what is unpacked is counted while it comes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from sfumato.data.decode import room
from sfumato.data.options import need

__all__ = ["Shard", "open_shard", "plain_columns", "unpack"]

ROWS = 1 << 20  # any file may declare so many; more only if it has a byte for each
BATCH = 1 << 27  # bytes that are unpacked in one go
GROUP_CAP = 4 << 30  # bytes of one column of a row group: they are in memory while it is read
PLAIN = ("int", "uint", "float", "double", "bool", "string", "large_string", "dictionary<values=string")


class Shard(NamedTuple):
    """What a .parquet file says of itself."""

    path: str
    size: int  # bytes
    metadata: Any
    schema: Any
    groups: range

    def declared(self, group: int) -> int:
        """Bytes that a row group unpacks to. What pyarrow knows of its columns is not asked: where that is damaged it
        ends the process."""
        return int(self.metadata.row_group(group).total_byte_size)


def open_shard(path: str | os.PathLike[str], purpose: str) -> Shard:
    """Raises pyarrow's errors, OSError, and ValueError for rows that cannot be there."""
    size = os.path.getsize(path)
    with need("pyarrow.parquet", "parquet", purpose).ParquetFile(path) as file:
        if file.metadata.num_rows > max(ROWS, size):
            raise ValueError(f"it declares {file.metadata.num_rows:,} rows in {size:,} bytes")
        shard = Shard(os.fspath(path), size, file.metadata, file.schema_arrow, range(file.num_row_groups))
        if any(shard.declared(group) > GROUP_CAP for group in shard.groups):
            raise ValueError(f"it has row groups of more than {GROUP_CAP >> 30} GB: smaller ones are needed")
        return shard


@contextmanager
def _reading(shard: Shard, coded: Sequence[str] = ()) -> Iterator[Any]:
    """The open file. Of the columns `coded`, values that are stored once for many rows are in memory once. pyarrow
    keeps pages until the file is closed, and their memory until it is asked to give it back."""
    arrow = need("pyarrow", "parquet", "reading .parquet")
    with arrow.parquet.ParquetFile(shard.path, metadata=shard.metadata, read_dictionary=list(coded)) as file:
        yield file
    arrow.default_memory_pool().release_unused()


def plain_columns(shard: Shard, without: str = "") -> dict[str, list[Any]]:
    """Columns of texts and numbers. Raises ValueError where they are larger than the file allows."""
    names = [field.name for field in shard.schema if str(field.type).startswith(PLAIN) and field.name != without]
    texts = [name for name in names if "string" in str(shard.schema.field(name).type)]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    with _reading(shard, texts) as file:
        for group in shard.groups if names else ():
            _within(shard.declared(group), room(shard.size))
            table = file.read_row_group(group, columns=names)
            for name in names:
                columns[name] += [value for part in table.column(name).chunks for value in _listed(part)]
    return columns


def _listed(part: Any) -> list[Any]:
    if not str(part.type).startswith("dictionary"):
        return list(part.to_pylist())
    values = part.dictionary.to_pylist()
    return [None if i is None else values[i] for i in part.indices.to_pylist()]


def unpack(shard: Shard, group: int, column: str) -> Iterator[Any]:
    """One column of a row group, in pieces. Raises ValueError where it holds more than it may."""
    limit, seen = min(GROUP_CAP, room(shard.size)), 0
    _within(shard.declared(group), limit)
    rows = max(1, min(256, BATCH // max(_widest(shard, group, column), 1)))
    with _reading(shard) as file:
        for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=[column]):
            _within(seen := seen + batch.nbytes, limit)
            yield batch.column(0)


def _widest(shard: Shard, group: int, column: str) -> int:
    """Bytes of the largest value that many rows may share, 0 if none is shared."""
    compute = need("pyarrow.compute", "parquet", "reading .parquet")
    with _reading(shard, [column]) as file:
        for batch in file.iter_batches(batch_size=1, row_groups=[group], columns=[column]):
            found = batch.column(0)
            found = found.field(0) if str(found.type).startswith("struct") else found
            if str(found.type).startswith("dictionary"):
                return int(compute.max(compute.binary_length(found.dictionary)).as_py() or 0)
    return 0


def _within(found: int, limit: int) -> None:
    if found > limit:
        raise ValueError(f"it unpacks to {found / 1e6:,.0f} MB or more, and {limit / 1e6:,.0f} MB are allowed here")
