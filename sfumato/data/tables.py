"""Tables and archives that hold encoded pictures: .parquet, Hugging Face datasets, .zip."""

from __future__ import annotations

import bisect
import itertools
import json
import os
import re
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from sfumato.data.columns import FOLDER, NAMES, Column, Records
from sfumato.data.decode import BYTE_CAP, EXTENSIONS, BadPicture, Encoded
from sfumato.data.folder import SPLITS, words
from sfumato.data.options import DataError, Skipped, escape, need, shortlist

__all__ = ["archive", "hugging_face", "parquet", "shards"]

GROUP_CAP = 4 << 30  # bytes of one row group, held in memory while it is decoded
GROUPS_KEPT = 3
IMAGE_NAMES = ("image", "img", "picture", "jpg", "png", "webp")
MANIFEST_CAP = 1 << 28


def shards(root: Path) -> list[Path]:
    """The .parquet files of a folder that is a table (as Hugging Face lays them out); none if it holds pictures."""
    for place in (root, root / "data"):
        found = sorted(path for path in place.glob("*.parquet") if path.name != "metadata.parquet" and path.is_file())
        if found and not any(path.suffix.lower() in EXTENSIONS for path in place.iterdir()):
            return found
    return []


def parquet(paths: Sequence[Path], what: str) -> Records:
    """Rows with encoded pictures (a struct of bytes and path, or a binary column); plain columns describe them."""
    pq = need("pyarrow.parquet", "parquet", "reading .parquet")
    try:
        files = [pq.ParquetFile(path) for path in paths]
        schema = files[0].schema_arrow
        image = _image_column(schema, what)
        groups = _Groups(files, image, what)
        plain = [field.name for field in schema if field.name != image and _plain(field.type)]
        tables = [file.read(columns=plain) for file in files]
        columns: dict[str, Column] = {
            name: [value for table in tables for value in table.column(name).to_pylist()] for name in plain
        }
        inner = groups.paths() if _is_struct(schema.field(image).type) else [None] * len(groups)
    except DataError:
        raise
    except Exception as error:  # pyarrow's errors share no base with a promise
        raise DataError(f"{what} cannot be read as .parquet ({_short(error)}): write it again") from error
    if "split" not in columns and (sides := _sides(paths, files)):
        columns["split"] = sides
    if all(inner):
        columns[NAMES] = [words(str(path)) for path in inner]
    stamps = [f"{os.path.realpath(path)} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in paths]
    return Records(
        what=what,
        names=_names(inner),
        read=groups.read,
        columns=columns,
        stamps=tuple(stamps),
        classes=_class_names(schema.metadata or {}),
    )


def _image_column(schema: Any, what: str) -> str:
    """The column that holds pictures: by its type, and by its name where several could."""
    able = [field.name for field in schema if _is_struct(field.type) or _is_binary(field.type)]
    for name in (*IMAGE_NAMES, *able):
        if name in able:
            return str(name)
    raise DataError(
        f"{what} has no column of encoded pictures (binary, or a struct with bytes): it has {shortlist(schema.names)}"
    )


def _is_binary(kind: Any) -> bool:
    return str(kind) in ("binary", "large_binary")


def _is_struct(kind: Any) -> bool:
    return str(kind).startswith("struct<") and any(inner.name == "bytes" and _is_binary(inner.type) for inner in kind)


def _plain(kind: Any) -> bool:
    return str(kind).startswith(
        ("int", "uint", "float", "double", "bool", "string", "large_string", "dictionary<values=string")
    )


class _Groups:
    """Pictures by row, from the few row groups read last."""

    def __init__(self, files: Sequence[Any], image: str, what: str) -> None:
        self.files, self.image = files, image
        self.struct = _is_struct(files[0].schema_arrow.field(image).type)
        self.places = [(file, group) for file in files for group in range(file.num_row_groups)]
        meta = [file.metadata.row_group(group) for file, group in self.places]
        if any(group.total_byte_size > GROUP_CAP for group in meta):
            raise DataError(f"{what} has row groups of more than {GROUP_CAP >> 30} GB: write it with smaller ones")
        self.starts: list[int] = [0, *itertools.accumulate(group.num_rows for group in meta)]
        self.kept: OrderedDict[int, list[Any]] = OrderedDict()
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return self.starts[-1]

    def read(self, row: int) -> bytes:
        place = bisect.bisect_right(self.starts, row) - 1
        with self.lock:
            if place not in self.kept:
                self.kept[place] = self._column(place, "bytes")
                if len(self.kept) > GROUPS_KEPT:
                    self.kept.popitem(last=False)
            found = self.kept[place][row - self.starts[place]].as_py()
        if found is None:
            raise BadPicture("the row holds no picture")
        return bytes(found)

    def paths(self) -> list[str | None]:
        """The path beside each picture's bytes."""
        if not any(inner.name == "path" for inner in self.files[0].schema_arrow.field(self.image).type):
            return [None] * len(self)
        return [value.as_py() for place in range(len(self.places)) for value in self._column(place, "path")]

    def _column(self, place: int, part: str) -> Any:
        file, group = self.places[place]
        try:
            name = f"{self.image}.{part}" if self.struct else self.image
            column = file.read_row_group(group, columns=[name]).column(0).combine_chunks()
            column.validate(full=True)
        except Exception as error:
            raise BadPicture(f"row group {group} is damaged ({_short(error)})") from error
        if len(column) != self.starts[place + 1] - self.starts[place]:
            raise BadPicture(f"row group {group} is damaged (it has fewer rows than it declares)")
        return column.field(part) if self.struct else column


def _names(paths: Sequence[str | None]) -> tuple[str, ...]:
    """The pictures' own names where they have them, without folders of the machine they come from."""
    width = len(str(max(len(paths) - 1, 0)))
    plain = [f"row-{i:0{width}d}" for i in range(len(paths))]
    inner = [escape(p[1:] if p.startswith("/") else p) if p else "" for p in (path or "" for path in paths)]
    if any(path and (path.startswith(("/", "~")) or re.match(r"[A-Za-z]:|\\", path)) for path in paths):
        inner = [re.split(r"[\\/]", name)[-1] for name in inner]
    return tuple(inner) if all(inner) and len(set(inner)) == len(inner) else tuple(plain)


def _sides(paths: Sequence[Path], files: Sequence[Any]) -> list[str] | None:
    """Splits that the shards' names tell: train-00000-of-00002.parquet."""
    if len(paths) < 2:
        return None
    stems = [path.stem.split("-")[0] for path in paths]
    if not set(stems) <= SPLITS:
        return None
    return [stem for stem, file in zip(stems, files, strict=True) for _ in range(file.metadata.num_rows)]


def _class_names(metadata: dict[bytes, bytes]) -> tuple[str, ...]:
    """Names of the column `label` that the `datasets` library leaves in the schema."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return tuple(str(name) for name in features["label"]["names"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()


def hugging_face(name: str, split: str | None) -> Records:
    """`hf:NAME` or `hf:NAME:CONFIG` through the datasets library."""
    library = need("datasets", "hf", "hf:NAME")
    where, _, config = name.partition(":")
    try:
        table = library.load_dataset(where, config or None, split=split or "train")
        features = table.features
        image = next((key for key, kind in features.items() if isinstance(kind, library.Image)), None)
        if image is None:
            raise DataError(f"hf:{escape(name)} has no column of pictures: it has {shortlist(features)}")
        table = table.cast_column(image, library.Image(decode=False))
        plain = [key for key, kind in features.items() if isinstance(kind, library.Value | library.ClassLabel)]
        columns: dict[str, Column] = {key: list(table[key]) for key in plain}
    except DataError:
        raise
    except Exception as error:  # network, name, licence, builder: the library's own words say it best
        raise DataError(
            f"hf:{escape(name)} cannot be loaded ({_short(error)}): check the name, the split and the "
            "connection, or give a folder or .parquet"
        ) from error
    columns["split"] = [split or "train"] * len(table)  # chosen already
    label = features.get("label")
    return Records(
        what=f"hf:{escape(name)}",
        names=tuple(f"row-{i}" for i in range(len(table))),
        columns=columns,
        read=_cell(table, image),
        stamps=(str(table._fingerprint), name, split or ""),
        classes=tuple(label.names) if isinstance(label, library.ClassLabel) else (),
    )


def _cell(table: Any, image: str) -> Callable[[int], Encoded]:
    lock = threading.Lock()

    def read(row: int) -> Encoded:
        with lock:
            cell = table[row][image]
        if cell is None or not (cell["bytes"] or cell["path"]):
            raise BadPicture("the row holds no picture")
        return bytes(cell["bytes"]) if cell["bytes"] else Path(cell["path"])

    return read


def archive(path: Path) -> Records:
    """A .zip of pictures, read in place; labels from dataset.json (StyleGAN, EDM) or the first folder."""
    what = f'"{escape(path)}"'
    try:
        file = zipfile.ZipFile(path)
        members = sorted((m for m in file.infolist() if not m.is_dir()), key=lambda m: m.filename)
        manifest = json.loads(file.read("dataset.json")) if _small(file, "dataset.json") else {}
        labelled = dict(manifest.get("labels") or ())
    except Exception as error:
        raise DataError(f"{what} cannot be read as .zip ({_short(error)}): pack it again") from error
    for member in members:
        parts = PurePosixPath(member.filename.replace("\\", "/")).parts
        if ".." in parts or member.filename.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", member.filename):
            raise DataError(f'{what} is refused: its member "{escape(member.filename)}" points outside of the archive')
    pictures = [m for m in members if m.filename.lower().endswith(EXTENSIONS) and not _hidden(m.filename)]
    large = [m for m in pictures if m.file_size > BYTE_CAP or m.flag_bits & 1]
    pictures = [m for m in pictures if m not in large]
    if not pictures:
        raise DataError(
            f"no pictures in {what}: looked for {', '.join(e[1:] for e in EXTENSIONS)} and found "
            f"{shortlist([m.filename for m in members], 5) or 'nothing'}"
        )
    tops = [PurePosixPath(m.filename).parts[:-1] for m in pictures]
    columns: dict[str, Column] = {NAMES: [words(m.filename) for m in pictures]}
    if any(tops):
        columns[FOLDER] = [escape(top[0]) if top else None for top in tops]
    if labelled:
        columns["label"] = [labelled.get(m.filename) for m in pictures]
    return Records(
        what=what,
        names=tuple(escape(m.filename) for m in pictures),
        columns=columns,
        read=lambda row: _member(file, pictures[row]),
        stamps=(os.path.realpath(path), str(path.stat().st_size), str(path.stat().st_mtime_ns)),
        skipped=tuple(Skipped(escape(m.filename), "is encrypted or declares too many bytes") for m in large),
    )


def _small(file: zipfile.ZipFile, name: str) -> bool:
    return name in file.namelist() and file.getinfo(name).file_size <= MANIFEST_CAP


def _member(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    try:
        return file.read(member)
    except Exception as error:
        raise BadPicture(f"damaged ({_short(error)})") from error


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _short(error: Exception) -> str:
    return escape(" ".join(str(error).split())[:160]) or type(error).__name__
