"""Tables and archives that hold encoded pictures: .parquet, Hugging Face datasets, .zip."""

from __future__ import annotations

import bisect
import itertools
import json
import os
import re
import stat
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from sfumato.data.arrow import Shard, open_shard, plain_columns, unpack
from sfumato.data.columns import FOLDER, NAMES, Column, Records
from sfumato.data.decode import EXTENSIONS, BadPicture, Encoded, Member, room
from sfumato.data.folder import SPLITS, unique, words
from sfumato.data.options import DataError, Skipped, escape, need, shortlist
from sfumato.data.packed import open_member
from sfumato.data.watch import Files

__all__ = ["archive", "hugging_face", "parquet", "shards"]

KEPT = 1 << 28  # bytes of row groups that stay in memory besides the last one
IMAGE_NAMES = ("image", "img", "picture", "jpg", "png", "webp")
MANIFEST_CAP = 1 << 26
UNIX = 3  # ZipInfo.create_system


def shards(root: Path) -> list[Path]:
    """The .parquet files of a folder that is a table (as Hugging Face lays them out); none if it holds pictures."""
    for place in (root, root / "data"):
        found = sorted(path for path in place.glob("*.parquet") if path.name != "metadata.parquet" and path.is_file())
        if found and not any(path.suffix.lower() in EXTENSIONS for path in place.iterdir()):
            return found
    return []


def parquet(paths: Sequence[Path], what: str) -> Records:
    """Rows with encoded pictures (a struct of bytes and path, or a binary column); plain columns describe them."""
    try:
        files = Files.of(what, paths)
        opened = [open_shard(path, "reading .parquet") for path in paths]
        schema = opened[0].schema
        image = _image_column(schema, what)
        groups = _Groups(opened, image)
        parts = [plain_columns(shard, without=image) for shard in opened]
        columns: dict[str, Column] = {name: [value for part in parts for value in part[name]] for name in parts[0]}
        inner = groups.paths() if _is_struct(schema.field(image).type) else [None] * len(groups)
    except DataError:
        raise
    except Exception as error:  # pyarrow's errors share no base with a promise
        raise DataError(f"{what} cannot be read as .parquet ({_short(error)}): write it again") from error
    if "split" not in columns and (sides := _sides(paths, opened)):
        columns["split"] = sides
    if all(inner):
        columns[NAMES] = [words(str(path)) for path in inner]
    return Records(
        what=what,
        names=_names(inner),
        read=groups.read,
        columns=columns,
        stamps=(*map(os.path.realpath, paths), *files.stamps),
        files=files,
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


class _Groups:
    """Pictures by row, from the row groups read last."""

    def __init__(self, shards: Sequence[Shard], image: str) -> None:
        self.arrow = need("pyarrow", "parquet", "reading .parquet")
        self.image, self.kind = image, shards[0].schema.field(image).type
        self.places = [(shard, group) for shard in shards for group in shard.groups]
        rows = [shard.metadata.row_group(group).num_rows for shard, group in self.places]
        self.starts: list[int] = [0, *itertools.accumulate(rows)]
        self.kept: OrderedDict[int, Any] = OrderedDict()
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return self.starts[-1]

    def read(self, row: int) -> Member:
        place = bisect.bisect_right(self.starts, row) - 1
        with self.lock:
            found = self._group(place)
            if isinstance(found, str):
                raise BadPicture(found)
            cell = found[row - self.starts[place]].as_buffer()
        if cell is None:
            raise BadPicture("the row holds no picture")
        return Member(cell.size, lambda: self.arrow.BufferReader(cell))

    def _group(self, place: int) -> Any:
        """The encoded pictures of a row group, or why it cannot be read: that is kept too, not found out again."""
        if place not in self.kept:
            while len(self.kept) > 1 and sum(getattr(kept, "nbytes", 0) for kept in self.kept.values()) > KEPT:
                self.kept.popitem(last=False)
            try:
                self.kept[place] = self.arrow.chunked_array(self._column(place, "bytes"))
            except BadPicture as reason:
                self.kept[place] = str(reason)
        return self.kept[place]

    def paths(self) -> list[str | None]:
        """The path beside each picture's bytes."""
        if not any(inner.name == "path" for inner in self.kind):
            return [None] * len(self)
        parts = (part for place in range(len(self.places)) for part in self._column(place, "path"))
        return [path for part in parts for path in part.to_pylist()]

    def _column(self, place: int, part: str) -> list[Any]:
        """Arrays, one after the other. Raises BadPicture."""
        shard, group = self.places[place]
        name = f"{self.image}.{part}" if _is_struct(self.kind) else self.image
        try:
            found = list(unpack(shard, group, name))
            for column in found:
                column.validate(full=True)
            parts = [column.field(part) for column in found] if _is_struct(self.kind) else found
        except Exception as error:
            raise BadPicture(f"row group {group} cannot be read ({_short(error)})") from error
        if sum(map(len, parts)) != self.starts[place + 1] - self.starts[place]:
            raise BadPicture(f"row group {group} cannot be read (it has fewer rows than it declares)")
        return parts


def _names(paths: Sequence[str | None]) -> tuple[str, ...]:
    """The pictures' own names where they have them, without folders of the machine they come from."""
    width = len(str(max(len(paths) - 1, 0)))
    plain = [f"row-{i:0{width}d}" for i in range(len(paths))]
    inner = [escape(p[1:] if p.startswith("/") else p) if p else "" for p in (path or "" for path in paths)]
    if any(path and (path.startswith(("/", "~")) or re.match(r"[A-Za-z]:|\\", path)) for path in paths):
        inner = [re.split(r"[\\/]", name)[-1] for name in inner]
    return tuple(inner) if all(inner) and len(set(inner)) == len(inner) else tuple(plain)


def _sides(paths: Sequence[Path], shards: Sequence[Shard]) -> list[str] | None:
    """Splits that the shards' names tell: train-00000-of-00002.parquet."""
    if len(paths) < 2:
        return None
    stems = [path.stem.split("-")[0] for path in paths]
    if not set(stems) <= SPLITS:
        return None
    return [stem for stem, shard in zip(stems, shards, strict=True) for _ in range(shard.metadata.num_rows)]


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
    """A .zip of pictures, read in place, nothing is unpacked to disk; labels from dataset.json (StyleGAN, EDM) or the
    first folder. Raises DataError for an archive that was made to do harm."""
    what = f'"{escape(path)}"'
    try:
        files = Files.of(what, [path])
        file = zipfile.ZipFile(path)
    except Exception as error:
        raise DataError(f"{what} cannot be read as .zip ({_short(error)}): pack it again") from error
    members = sorted((m for m in file.infolist() if not m.filename.endswith("/")), key=lambda m: m.filename)
    _refuse_harm(members, file.start_dir, what)
    last = {m.filename: m for m in members}  # of equal names an unpacker keeps the last
    inside = [m for m in members if m.filename.lower().endswith(EXTENSIONS) and not _hidden(m.filename)]
    reasons = [_unfit(m) if m is last[m.filename] else "is there twice: the last one is taken" for m in inside]
    pictures = [m for m, why in zip(inside, reasons, strict=True) if why is None]
    if not pictures:
        raise DataError(
            f"no pictures in {what}: looked for {', '.join(e[1:] for e in EXTENSIONS)} and found "
            f"{shortlist([m.filename for m in members], 5) or 'nothing'}"
        )
    tops = [PurePosixPath(m.filename).parts[:-1] for m in pictures]
    columns: dict[str, Column] = {NAMES: [words(m.filename) for m in pictures]}
    if any(tops):
        columns[FOLDER] = [escape(top[0]) if top else None for top in tops]
    if "dataset.json" in last and (labelled := _manifest(file, last["dataset.json"], what)):
        columns["label"] = [labelled.get(m.filename) for m in pictures]
    return Records(
        what=what,
        names=unique([m.filename for m in pictures]),
        columns=columns,
        read=lambda row: Member(pictures[row].file_size, lambda: open_member(file, pictures[row])),
        stamps=(os.path.realpath(path), *files.stamps),
        files=files,
        skipped=tuple(Skipped(escape(m.filename), why) for m, why in zip(inside, reasons, strict=True) if why),
    )


def _refuse_harm(members: Sequence[zipfile.ZipInfo], end: int, what: str) -> None:
    """Raises DataError for names that point outside, for members that share bytes, and for bombs."""
    spans = sorted((m.header_offset, m.compress_size) for m in members)
    if any(start + 30 + size > after for (start, size), (after, _) in itertools.pairwise([*spans, (end, 0)])):
        raise DataError(f"{what} is refused: its members overlap, as in an archive made to fill the memory")
    for m in members:
        parts = PurePosixPath(m.filename.replace("\\", "/")).parts
        if ".." in parts or m.filename.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", m.filename):
            raise DataError(f'{what} is refused: its member "{escape(m.filename)}" points outside of the archive')
        if m.file_size > room(m.compress_size):
            raise DataError(
                f'{what} is refused: its member "{escape(m.filename)}" would unpack from {m.compress_size / 1e6:,.1f} '
                f"to {m.file_size / 1e6:,.0f} MB, as in an archive made to fill the memory"
            )


def _unfit(member: zipfile.ZipInfo) -> str | None:
    """Why a member is no picture that can be read, before it is opened."""
    kind = stat.S_IFMT(member.external_attr >> 16) if member.create_system == UNIX else 0
    if kind not in (0, stat.S_IFREG):
        return "is a link" if kind == stat.S_IFLNK else "is not a regular file"
    return "is encrypted" if member.flag_bits & 1 else None


def _manifest(file: zipfile.ZipFile, member: zipfile.ZipInfo, what: str) -> dict[str, Any]:
    """Labels by name from dataset.json."""
    try:
        if member.file_size > MANIFEST_CAP:
            raise ValueError(f"{member.file_size / 1e6:,.0f} MB are too many")
        if (reason := _unfit(member)) is not None:
            raise ValueError(f"it {reason}")
        with open_member(file, member) as manifest:
            return dict(json.loads(manifest.read()).get("labels") or ())
    except Exception as error:
        raise DataError(f"dataset.json in {what} cannot be read ({_short(error)}): write it again") from error


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _short(error: Exception) -> str:
    return escape(" ".join(str(error).split())[:160]) or type(error).__name__
