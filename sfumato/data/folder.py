"""A folder tree of pictures, with metadata files, sidecar captions and sub-folders as classes or splits."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfumato.data.arrow import open_shard, plain_columns
from sfumato.data.columns import CAPTION_CAP, FOLDER, NAMES, SIDECAR, Column, Records
from sfumato.data.decode import EXTENSIONS, BadPicture, open_file
from sfumato.data.options import DataError, Skipped, escape, nearest, shortlist
from sfumato.data.watch import Files, stamp

__all__ = ["SPLITS", "folder", "json_lines", "unique", "words"]

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SPLITS = {"train", "test", "val", "valid", "validation", "dev"}
LINE_CAP = 1 << 20  # of a metadata file


@dataclass
class _Tree:
    """What a walk found."""

    pictures: list[str] = field(default_factory=list)  # relative paths, as the system spells them
    stamps: dict[str, str] = field(default_factory=dict)
    texts: set[str] = field(default_factory=set)
    metadata: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)  # extensions that are no pictures
    folders: list[str] = field(default_factory=list)  # that are called like pictures
    bad: dict[str, str] = field(default_factory=dict)  # relative path: reason

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return tuple(sorted(Skipped(escape(name), reason) for name, reason in self.bad.items()))


def folder(root: Path) -> Records:
    """The pictures below `root`, in the order of their names."""
    what = f'the folder "{escape(root)}"'
    tree = _walk(root)
    if not tree.pictures:
        raise DataError(
            f"no pictures in {what}: looked for {', '.join(e[1:] for e in EXTENSIONS)} files in it and its "
            f"sub-folders, and found {_found(tree)}"
        )
    columns = _columns(root, tree)
    paths = [root / name for name in tree.pictures]
    stamps = tuple(tree.stamps[name] for name in tree.pictures)
    return Records(
        what=what,
        names=unique(tree.pictures),
        read=paths.__getitem__,
        columns=columns,
        stamps=(os.path.realpath(root), *stamps),
        files=Files(what, os.path.abspath(root), tuple(tree.pictures), stamps),
        skipped=tree.skipped,
    )


def _walk(root: Path) -> _Tree:
    """Folders in the order of their names, each one once, links followed."""
    tree = _Tree()
    seen: set[tuple[int, int]] = set()
    ahead = [""]
    while ahead:
        place = ahead.pop()
        try:
            info = os.stat(root / place)
            with os.scandir(root / place) as entries:
                found = sorted((entry for entry in entries if not _hidden(entry.name)), key=lambda entry: entry.name)
        except OSError as error:
            if not place:
                raise
            tree.bad[place] = _unreadable(error)
            continue
        if (info.st_dev, info.st_ino) in seen:
            tree.bad[place] = "is a link to a folder that was read already"
            continue
        seen.add((info.st_dev, info.st_ino))
        below = [entry.name for entry in found if not _sort_out(tree, entry, os.path.join(place, entry.name))]
        ahead += [os.path.join(place, name) for name in reversed(below)]
    tree.pictures.sort(key=os.fsencode)
    for name in tree.folders:
        if not any(picture.startswith(name + os.sep) for picture in tree.pictures):
            tree.bad.setdefault(name, "is a folder, not a picture")
    return tree


def _sort_out(tree: _Tree, entry: os.DirEntry[str], name: str) -> bool:
    """One file into its drawer; False for a folder. Nothing is opened here: a FIFO would wait for ever."""
    base, extension = entry.name.lower(), os.path.splitext(entry.name)[1].lower()
    try:
        info = os.stat(entry.path)
    except OSError as error:
        if extension in EXTENSIONS or base in METADATA:
            tree.bad[name] = "is a broken link" if entry.is_symlink() else _unreadable(error)
        return True
    if stat.S_ISDIR(info.st_mode):
        if extension in EXTENSIONS:
            tree.folders.append(name)
        return False
    if extension in EXTENSIONS or base in METADATA:
        if not stat.S_ISREG(info.st_mode):
            tree.bad[name] = "is not a regular file"
        elif extension in EXTENSIONS:
            tree.pictures.append(name)
            tree.stamps[name] = stamp(info)
        else:
            tree.metadata.append(name)
    elif extension == ".txt":
        tree.texts.add(name)
    else:
        tree.others[extension or "(no extension)"] += 1
    return True


def _unreadable(error: OSError) -> str:
    return f"cannot be read ({os.strerror(error.errno or 0).lower()})"


def _hidden(name: str) -> bool:
    """Files that systems leave behind: .DS_Store, ._picture.jpg, .thumbnails, __MACOSX, @eaDir."""
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")


def _found(tree: _Tree) -> str:
    kinds = [f"{n:,} {extension} file{'s' * (n > 1)}" for extension, n in tree.others.most_common()]
    if tree.texts:
        kinds.append(f"{len(tree.texts):,} .txt file{'s' * (len(tree.texts) > 1)}")
    kinds += [f"{name} ({reason})" for name, reason in tree.skipped]
    return shortlist(kinds, 5) if kinds else "nothing"


def unique(names: list[str]) -> tuple[str, ...]:
    """Escaped with forward slashes; two names that look the same once escaped are told apart by a number."""
    seen: Counter[str] = Counter()
    out = []
    for name in names:
        text = escape(name.replace(os.sep, "/"))
        seen[text] += 1
        out.append(text if seen[text] == 1 else f"{text}#{seen[text]}")
    return tuple(out)


def _columns(root: Path, tree: _Tree) -> dict[str, Column]:
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
    rows = _metadata(root, tree)
    for name in sorted({key for row in rows.values() for key in row} - {"file_name"}):
        columns[name] = [rows.get(picture, {}).get(name) for picture in tree.pictures]
    return columns


def words(name: str) -> str:
    """'photos/red_fox-02.jpg' to 'red fox'."""
    stem = os.path.splitext(os.path.split(escape(name))[1])[0]
    return " ".join(word for word in re.split(r"[\W_]+", stem) if word and not word.isdigit()) or stem


def _caption(path: Path) -> str:
    try:
        with open_file(path) as file:
            return " ".join(file.read(CAPTION_CAP).decode("utf-8-sig", "replace").split())
    except (OSError, BadPicture):
        return ""


def _metadata(root: Path, tree: _Tree) -> dict[str, dict[str, Any]]:
    """Rows of all metadata files by the picture they describe; `file_name` counts from the metadata file's folder.
    Pictures that are not there become bad."""
    rows: dict[str, dict[str, Any]] = {}
    known = set(tree.pictures)
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
                tree.bad.setdefault(picture, f"is named in {escape(name)} but is not there")
    return rows


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of a metadata file."""
    try:
        if path.suffix.lower() == ".parquet":
            columns = plain_columns(open_shard(path, "reading metadata.parquet"))
            rows = zip(*columns.values(), strict=True)
            yield from ((f"row {i}", dict(zip(columns, row, strict=True))) for i, row in enumerate(rows))
        elif path.suffix.lower() == ".csv":
            yield from _csv_rows(path)
        else:
            yield from json_lines(path)
    except DataError:
        raise
    except Exception as error:  # pyarrow's errors share no base with a promise
        raise DataError(f'"{escape(path)}" cannot be read ({escape(str(error))}): repair it or take it away') from error


def _lines(path: Path) -> Iterator[str]:
    with open_file(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as file:
        for i in itertools.count(1):
            line = file.readline(LINE_CAP)
            if len(line) == LINE_CAP:
                raise DataError(f'"{escape(path)}", line {i}: is longer than {LINE_CAP:,} characters: shorten it')
            if not line:
                return
            yield line


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for i, row in enumerate(csv.DictReader(_lines(path), strict=True), 2):
        if None in row:
            raise ValueError(f"line {i} has more values than there are columns: put text with commas in quotes")
        yield f"line {i}", row


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of each line of a JSON lines file."""
    for i, line in enumerate(_lines(path), 1):
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
