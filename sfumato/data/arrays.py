"""Pictures that come decoded: .npz files and the digits of scikit-learn."""

from __future__ import annotations

import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.data.columns import Column, Records
from sfumato.data.decode import room
from sfumato.data.folder import json_lines
from sfumato.data.options import DataError, escape, nearest, need, shortlist
from sfumato.data.packed import open_member
from sfumato.data.watch import Files

__all__ = ["Arrays", "digits", "npz"]

BYTE_CAP = 8 << 30  # of an unpacked .npz
PER_ROW = ("label", "text", "caption", "split")
WANTED = ("image", "mask", "classes", *PER_ROW)
ADM = {"arr_0": "image", "arr_1": "label"}  # the names in files of samples by ADM and those who follow it


@dataclass(frozen=True)
class Arrays:
    """Decoded pictures (N, H, W, C) uint8, or uint16 when gray, and what is known of them."""

    records: Records
    images: NDArray[Any]
    masks: NDArray[np.uint8] | None = None
    mirror_safe: bool = True


def digits() -> Arrays:
    """1,797 handwritten digits, 8 x 8, ink 255 on 0 (scikit-learn, UCI Optical Recognition of Handwritten Digits)."""
    found = need("sklearn.datasets", "demo", "the digits of scikit-learn").load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)[..., None]
    label = [int(value) for value in found.target]
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    columns: dict[str, Column] = {"label": label, "text": [f"the digit {words[i]}" for i in label]}
    records = Records(
        what="digits",
        names=tuple(f"digit-{i:04d}" for i in range(len(images))),
        columns=columns,
        read=images.__getitem__,
        classes=tuple("0123456789"),
        stamps=("digits 1",),
    )
    return Arrays(records, images, mirror_safe=False)


def npz(path: Path) -> Arrays:
    """`image` (N, H, W), (N, H, W, C) or (N, C, H, W) with label, text, mask, split where they exist; captions also
    from captions.jsonl beside the file; or ADM's `arr_0` and `arr_1` as image and label. Nothing is unpickled, and
    sizes are checked before anything is unpacked."""
    what = f'"{escape(path)}"'
    try:
        files = Files.of(what, [path])
        with zipfile.ZipFile(path) as archive:
            members = {m.filename.removesuffix(".npy"): m for m in archive.infolist() if m.filename.endswith(".npy")}
            _check_sizes(archive, path, what)
            if "image" not in members:
                members |= {ours: members[theirs] for theirs, ours in ADM.items() if theirs in members}
            known = {name: _array(archive, members[name]) for name in WANTED if name in members}
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise DataError(
            f"{what} cannot be read as .npz ({_short(error)}): write it again with numpy.savez, without objects"
        ) from error
    if "image" not in known:
        kind = next((f", and {name} cannot be trained on here" for name in ("video", "volume") if name in members), "")
        raise DataError(
            f'{what} has no array "image"{nearest("image", members)}: it has {shortlist(members) or "nothing"}{kind}'
        )
    images = _images(known["image"], what)
    columns: dict[str, Column] = {
        name: _per_row(known[name], len(images), name, what) for name in PER_ROW if name in known
    }
    if "text" not in columns and (beside := path.with_name("captions.jsonl")).is_file():
        columns["text"] = _captions(beside, len(images))
    width = len(str(len(images) - 1))
    records = Records(
        what=what,
        names=tuple(f"{escape(path.stem)}-{i:0{width}d}" for i in range(len(images))),
        read=images.__getitem__,
        columns=columns,
        classes=tuple(str(name) for name in known.get("classes", ())),
        stamps=(os.path.realpath(path), *files.stamps),
        files=files,
    )
    records.refuse_changed()
    return Arrays(records, images, _masks(known.get("mask"), images, what))


def _check_sizes(archive: zipfile.ZipFile, path: Path, what: str) -> None:
    """Refuses what would unpack to more than memory should hold, and arrays that are not as long as their member."""
    total, cap = sum(m.file_size for m in archive.infolist()), min(BYTE_CAP, room(path.stat().st_size))
    if total > cap:
        raise DataError(
            f"{what} unpacks to {total / 1e6:,.0f} MB, more than the cap of {cap / 1e6:,.0f} MB for its size: "
            "use a folder or .parquet"
        )
    for member in archive.infolist():
        if member.filename.endswith(".npy"):
            _check_header(archive, member, what)


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, what: str) -> None:
    with open_member(archive, member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        size = math.prod(shape, start=dtype.itemsize)
        if dtype.hasobject or min(shape, default=0) < 0 or file.tell() + size != member.file_size:
            name = escape(member.filename)
            fault = "objects" if dtype.hasobject else "less or more than it declares"
            raise DataError(f"{what}: {name} holds {fault}: write it again with numpy.savez and plain arrays")


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    with open_member(archive, member) as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def _images(images: NDArray[Any], what: str) -> NDArray[Any]:
    """Any usual layout and type to (N, H, W, C), uint8 or (gray) uint16."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim == 4 and images.shape[3] not in (1, 3, 4) and images.shape[1] in (1, 3, 4):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim != 4 or images.shape[3] not in (1, 3, 4) or not images.size:
        raise DataError(
            f"{what}: image has the shape {images.shape}, but (N, H, W) or (N, H, W, C) with C = 1, 3 or 4 is needed"
        )
    if images.dtype == np.bool_:
        return np.asarray(images * np.uint8(255))
    if images.dtype.kind == "f" and images.min() >= 0 and images.max() <= 1:
        return np.asarray(np.rint(images * 255), np.uint8)
    if images.dtype == np.uint16:
        return images if images.shape[3] == 1 else np.asarray(np.rint(images / 257), np.uint8)
    if images.dtype != np.uint8:
        raise DataError(f"{what}: image is {images.dtype}, but uint8, uint16 or floats from 0 to 1 are needed")
    return np.ascontiguousarray(images)


def _per_row(values: NDArray[Any], n: int, name: str, what: str) -> Column:
    if values.shape not in ((n,), (n, 1)):
        raise DataError(
            f"{what}: {name} has the shape {values.shape}, but there are {n:,} images: give one value for each"
        )
    return [
        value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values.reshape(n).tolist()
    ]


def _captions(path: Path, n: int) -> Column:
    """Line i describes image i."""
    rows = [row for _, row in json_lines(path)]
    texts = [row.get("text", row.get("caption", "")) for row in rows]
    if len(texts) != n:
        raise DataError(f'"{escape(path)}" has {len(texts):,} lines for {n:,} images: give one line for each')
    return texts


def _masks(masks: NDArray[Any] | None, images: NDArray[Any], what: str) -> NDArray[np.uint8] | None:
    if masks is None:
        return None
    if masks.shape not in (images.shape[:3], (*images.shape[:3], 1)):
        raise DataError(
            f"{what}: mask has the shape {masks.shape}, but the images are {images.shape[:3]}: they must agree"
        )
    return (masks.reshape(images.shape[:3]) > 0).astype(np.uint8)


def _short(error: Exception) -> str:
    return escape(" ".join(str(error).split())[:120]) or type(error).__name__
