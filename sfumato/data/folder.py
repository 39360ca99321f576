"""A folder tree of pictures, with metadata files, sidecar captions and sub-folders as classes or splits."""

from __future__ import annotations

import csv
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfumato.data.columns import FOLDER, NAMES, SIDECAR, Column, Records
from sfumato.data.decode import EXTENSIONS
from sfumato.data.options import DataError, Skipped, escape, nearest, need, shortlist

__all__ = ["SPLITS", "folder", "json_lines", "words"]

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SPLITS = {"train", "test", "val", "valid", "validation", "dev"}
CAPTION_CAP = 1 << 16


@dataclass
class _Tree:
    """What a walk found."""

    pictures: list[str] = field(default_factory=list)  # relative paths, as the system spells them
    stats: dict[str, os.stat_result] = field(default_factory=dict)
    texts: set[str] = field(default_factory=set)
    metadata: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)  # extensions that are no pictures
    skipped: list[Skipped] = field(default_factory=list)

    def skip(self, name: str, reason: str) -> None:
        self.skipped.append(Skipped(escape(name), reason))


def folder(root: Path) -> Records:
    """The pictures below `root`, in the order of their names."""
    what = f'the folder "{escape(root)}"'
    tree = _walk(root)
    if not tree.pictures:
        raise DataError(
            f"no pictures in {what}: looked for {', '.join(e[1:] for e in EXTENSIONS)} files in it and its "
            f"sub-folders, and found {_found(tree)}"
        )
    columns, missing = _columns(root, tree)
    tree.skipped.extend(missing)
    paths = [root / name for name in tree.pictures]
    return Records(
        what=what,
        names=_unique(tree.pictures),
        read=paths.__getitem__,
        columns=columns,
        stamps=(os.path.realpath(root), *(_stamp(tree.stats[name]) for name in tree.pictures)),
        skipped=tuple(sorted(tree.skipped)),
    )


def _walk(root: Path) -> _Tree:
    tree = _Tree()
    seen: set[tuple[int, int]] = set()
    for path, below, files in os.walk(root, followlinks=True, onerror=lambda error: _unreadable(root, error, tree)):
        info = os.stat(path)
        if (info.st_dev, info.st_ino) in seen:
            below.clear()
            tree.skip(os.path.relpath(path, root), "is a link to a folder that was read already")
            continue
        seen.add((info.st_dev, info.st_ino))
        for name in below:
            if name.lower().endswith(EXTENSIONS):
                tree.skip(os.path.relpath(os.path.join(path, name), root), "is a folder, not a picture")
        below[:] = sorted(name for name in below if not _hidden(name))
        for name in files:
            if not _hidden(name):
                _sort_out(tree, root, os.path.relpath(os.path.join(path, name), root))
    tree.pictures.sort(key=os.fsencode)
    return tree


def _sort_out(tree: _Tree, root: Path, name: str) -> None:
    """One file into its drawer. Nothing is opened here: a FIFO would wait for ever."""
    base, extension = os.path.split(name)[1].lower(), os.path.splitext(name)[1].lower()
    if extension in EXTENSIONS:
        try:
            info = os.stat(root / name)
        except OSError as error:
            link = os.path.islink(root / name)
            tree.skip(name, "is a broken link" if link else f"cannot be read ({os.strerror(error.errno or 0).lower()})")
            return
        if not stat.S_ISREG(info.st_mode):
            tree.skip(name, "is not a regular file")
            return
        tree.pictures.append(name)
        tree.stats[name] = info
    elif base in METADATA:
        tree.metadata.append(name)
    elif extension == ".txt":
        tree.texts.add(name)
    else:
        tree.others[extension or "(no extension)"] += 1


def _unreadable(root: Path, error: OSError, tree: _Tree) -> None:
    name = os.path.relpath(error.filename, root)
    if name == ".":
        raise DataError(f'the folder "{escape(root)}" cannot be read ({error.strerror}): check its permissions')
    tree.skip(name, f"cannot be read ({(error.strerror or '').lower()})")


def _hidden(name: str) -> bool:
    """Files that systems leave behind: .DS_Store, ._picture.jpg, .thumbnails, __MACOSX, @eaDir."""
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")


def _found(tree: _Tree) -> str:
    kinds = [f"{n:,} {extension} file{'s' * (n > 1)}" for extension, n in tree.others.most_common()]
    if tree.texts:
        kinds.append(f"{len(tree.texts):,} .txt file{'s' * (len(tree.texts) > 1)}")
    kinds += [f"{entry.name} ({entry.reason})" for entry in tree.skipped]
    return shortlist(kinds, 5) if kinds else "nothing"


def _stamp(info: os.stat_result) -> str:
    return f"{info.st_size} {info.st_mtime_ns} {info.st_ctime_ns}"


def _unique(names: list[str]) -> tuple[str, ...]:
    """Escaped with forward slashes; two names that look the same once escaped are told apart by a number."""
    seen: Counter[str] = Counter()
    out = []
    for name in names:
        text = escape(name.replace(os.sep, "/"))
        seen[text] += 1
        out.append(text if seen[text] == 1 else f"{text}#{seen[text]}")
    return tuple(out)


def _columns(root: Path, tree: _Tree) -> tuple[dict[str, Column], list[Skipped]]:
    columns: dict[str, Column] = {NAMES: [words(name) for name in tree.pictures]}
    tops = [name.split(os.sep)[:-1] for name in tree.pictures]
    if any(tops) and {top[0].lower() for top in tops if top} <= SPLITS and all(tops):
        columns["split"] = [escape(top[0]) for top in tops]
        tops = [top[1:] for top in tops]
    if any(tops):
        columns[FOLDER] = [escape(top[0]) if top else None for top in tops]
    sidecars = [os.path.splitext(name)[0] + ".txt" for name in tree.pictures]
    if tree.texts.intersection(sidecars):
        columns[SIDECAR] = [_caption(root / name) if name in tree.texts else "" for name in sidecars]
    rows, missing = _metadata(root, tree)
    for name in sorted({key for row in rows.values() for key in row} - {"file_name"}):
        columns[name] = [rows.get(picture, {}).get(name) for picture in tree.pictures]
    return columns, missing


def words(name: str) -> str:
    """'photos/red_fox-02.jpg' to 'red fox'."""
    stem = os.path.splitext(os.path.split(escape(name))[1])[0]
    return " ".join(word for word in re.split(r"[\W_]+", stem) if word and not word.isdigit()) or stem


def _caption(path: Path) -> str:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return ""
        with open(path, "rb") as file:
            return " ".join(file.read(CAPTION_CAP).decode("utf-8-sig", "replace").split())
    except OSError:
        return ""


def _metadata(root: Path, tree: _Tree) -> tuple[dict[str, dict[str, Any]], list[Skipped]]:
    """Rows of all metadata files by the picture they describe; `file_name` counts from the metadata file's folder."""
    rows: dict[str, dict[str, Any]] = {}
    missing, known = [], set(tree.pictures)
    for name in sorted(tree.metadata):
        for place, row in _rows(root / name):
            if "file_name" not in row:
                raise DataError(
                    f'{escape(name)} in "{escape(root)}", {place}: has no `file_name`'
                    f"{nearest('file_name', row)}: each row must name its picture"
                )
            picture = os.path.normpath(os.path.join(os.path.dirname(name), str(row["file_name"])))
            if picture in known:
                rows[picture] = row
            else:
                missing.append(Skipped(escape(str(row["file_name"])), f"is named in {escape(name)} but is not there"))
    return rows, missing


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of a metadata file."""
    try:
        if path.suffix == ".parquet":
            table = need("pyarrow.parquet", "parquet", "reading metadata.parquet").read_table(path)
            yield from ((f"row {i}", row) for i, row in enumerate(table.to_pylist()))
        elif path.suffix == ".csv":
            with open(path, encoding="utf-8-sig", newline="") as file:
                yield from ((f"line {i}", row) for i, row in enumerate(csv.DictReader(file, strict=True), 2))
        else:
            yield from json_lines(path)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f'"{escape(path)}" cannot be read ({error}): repair it or take it away') from error


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of each line of a JSON lines file."""
    with open(path, encoding="utf-8-sig") as file:
        for i, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f'"{escape(path)}", line {i}: is not JSON ({error}): repair the line') from error
            if not isinstance(row, dict):
                raise DataError(
                    f'"{escape(path)}", line {i}: must be an object in braces, such as '
                    '{"file_name": "a.png", "text": "a fox"}'
                )
            yield f"line {i}", row
