"""`open_data`: from what the user typed to a Dataset."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from sfumato.data import arrays, glyphs, tables
from sfumato.data.cache import Pixels, Progress, digest, each, fill, lacking, load, store
from sfumato.data.columns import Labels, Records, captions, select, unmirrorable
from sfumato.data.dataset import Dataset
from sfumato.data.decode import EXTENSIONS, BadPicture, Encoded, Header, Missing, decode, header
from sfumato.data.fit import Plan, natural_channels, natural_size
from sfumato.data.folder import folder
from sfumato.data.options import DataError, DataOptions, Skipped, escape, nearest, shortlist
from sfumato.data.watch import Files

__all__ = ["dataset", "listing", "open_data", "plan"]

NAMED = 50  # bad pictures in a refusal
T = TypeVar("T")
EMBEDDED = ("digits", "glyphs", *(f"glyphs:{name}" for name in glyphs.SETS))


def open_data(
    source: str | os.PathLike[str], options: DataOptions | None = None, progress: Progress | None = None
) -> Dataset:
    """The examples of `digits`, `glyphs`, a folder, a picture, .parquet, .npz, .zip or hf:NAME, decoded, at one size.

    `progress(done, total)` is called while pictures are decoded. Raises DataError.
    """
    options = options or DataOptions()
    return dataset(listing(source, options), options, progress)


def listing(source: str | os.PathLike[str], options: DataOptions) -> Records | arrays.Arrays:
    """What a source holds, before pictures are decoded."""
    name = os.fspath(source)
    if name == "digits":
        return arrays.digits()
    if name.split(":")[0] == "glyphs" and not os.path.exists(name):
        return glyphs.glyphs(name.partition(":")[2] or "letters", options.wh or (32, 32))
    if name.startswith("hf:"):
        return tables.hugging_face(name[3:], options.split)
    return _on_disk(name)


def _on_disk(name: str) -> Records | arrays.Arrays:
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            shards = tables.shards(path)
            return tables.parquet(shards, f'the folder "{escape(name)}"') if shards else folder(path)
        if not path.exists():
            raise DataError(_not_there(name, path))
        if not path.is_file():
            raise DataError(f'"{escape(name)}" is neither a file nor a folder: give a folder of pictures')
    except OSError as error:
        raise DataError(
            f'"{escape(name)}" cannot be read ({os.strerror(error.errno or 0).lower()}): '
            "check the name and its permissions"
        ) from error
    kind = path.suffix.lower()
    if kind in EXTENSIONS:
        files = Files.of(f'the picture "{escape(name)}"', [path])
        return Records(
            what=files.what,
            names=(escape(path.name),),
            read=lambda i: path,
            stamps=(os.path.realpath(path), *files.stamps),
            files=files,
        )
    if kind in READERS:
        return READERS[kind](path)
    raise DataError(
        f'"{escape(name)}" is no data that can be read: give a folder of pictures, a picture, '
        f"{shortlist(READERS)}, hf:NAME, {' or '.join(EMBEDDED[:2])}"
    )


READERS: dict[str, Callable[[Path], Records | arrays.Arrays]] = {
    ".parquet": lambda path: tables.parquet([path], f'"{escape(path)}"'),
    ".npz": arrays.npz,
    ".zip": tables.archive,
}


def _not_there(name: str, path: Path) -> str:
    """There is no such thing; the nearest names around it."""
    parent = path.parent
    beside = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    hint = nearest(path.name, beside) or ("" if os.sep in name else nearest(name, EMBEDDED))
    where = "" if parent.is_dir() else f'; the folder "{escape(parent)}" does not exist either'
    return f'there is no folder or file "{escape(name)}"{hint}{where}: give a folder of pictures, or digits or glyphs'


def dataset(found: Records | arrays.Arrays, options: DataOptions, progress: Progress | None = None) -> Dataset:
    """Decodes a listing."""
    if isinstance(found, arrays.Arrays):
        return _from_arrays(found, options)
    records, labels = select(found, options)
    pixels = _pixels(records, options, progress)
    bad = tuple(Skipped(records.names[row], reason) for row, reason in pixels.bad)
    return _assemble(
        records.take(pixels.rows),
        labels and labels.at(pixels.rows),
        pixels.images,
        options,
        skipped=(*records.skipped, *bad),
        fingerprint=_key(records, options),
    )


def _assemble(
    records: Records,
    labels: Labels | None,
    images: NDArray[Any],
    options: DataOptions,
    *,
    skipped: tuple[Skipped, ...],
    fingerprint: str,
    mirror_safe: bool = True,
    **known: Any,
) -> Dataset:
    texts = captions(records, options.captions)
    notes = records.notes
    if mirror_safe and (why := unmirrorable(texts, () if labels is None else labels.classes)) is not None:
        mirror_safe, notes = False, (*notes, why)
    if options.strict and skipped:
        raise DataError(
            f"{records.what}: {_count(skipped)} cannot be used and --strict refuses to skip "
            f"{'it' if len(skipped) == 1 else 'them'}: "
            + "; ".join(f"{entry.name} ({entry.reason})" for entry in skipped[:NAMED])
            + (f"; and {len(skipped) - NAMED:,} more" if len(skipped) > NAMED else "")
            + ". Repair or remove them; sfumato data check lists them"
        )
    if not len(images):
        reasons = [f"{n} x {reason}" for reason, n in Counter(entry.reason for entry in skipped).most_common()]
        raise DataError(
            f"{records.what}: none of {_count(skipped)} could be used: {shortlist(reasons, 4)}. See sfumato data check"
        )
    return Dataset(
        images=images,
        names=records.names,
        labels=None if labels is None else labels.values,
        classes=() if labels is None else labels.classes,
        captions=texts,
        mirror_safe=mirror_safe,
        flip=options.flip == "on" or (options.flip == "auto" and mirror_safe),
        skipped=skipped,
        notes=notes,
        fingerprint=fingerprint,
        files=None if records.files is None else records.files.take(records.rows),
        **known,
    )


def _count(skipped: Sequence[Skipped]) -> str:
    return f"{len(skipped):,} picture{'s' * (len(skipped) != 1)}"


def _from_arrays(found: arrays.Arrays, options: DataOptions) -> Dataset:
    """Pictures that a file holds decoded keep their own size unless another one is asked for."""
    records, labels = select(found.records, options)
    images, masks = found.images, found.masks
    if len(records) < len(images):
        rows = np.array(records.rows, np.int64)
        images, masks = images[rows], None if masks is None else masks[rows]
    wanted = _array_plan(images, options)
    if images.shape[1:] != wanted.row:
        source, images = images, np.empty((len(images), *wanted.row), wanted.dtype)
        for i, pixels in enumerate(each(lambda i: decode(source[i], wanted), range(len(source)))):
            images[i] = pixels
        masks = None if masks is None else _masks(masks, wanted)
    families = records.columns.get("family")
    return _assemble(
        records,
        labels,
        images,
        options,
        skipped=records.skipped,
        mirror_safe=found.mirror_safe,
        masks=masks,
        families=None if families is None else tuple(families),
        fingerprint=_key(records, options),
    )


def _array_plan(images: NDArray[Any], options: DataOptions) -> Plan:
    own = (images.shape[2], images.shape[1])
    used = natural_channels(images)
    channels = options.channels or (used if used < 4 or options.alpha == "keep" else 3)
    return Plan(options.wh or own, channels, images.dtype == np.uint16 and channels == 1, options.fit)


def _masks(masks: NDArray[np.uint8], plan: Plan) -> NDArray[np.uint8]:
    """Masks follow their pictures; a pixel belongs if more than half of it did."""
    plan = replace(plan, channels=1, deep=False)
    return np.stack([(decode(mask * np.uint8(255), plan)[..., 0] > 127).astype(np.uint8) for mask in masks])


class _Surprise(Exception):
    """A picture needs more channels than planned."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels


def _pixels(records: Records, options: DataOptions, progress: Progress | None) -> Pixels:
    """From the cache, or decoded into it."""
    name = _key(records, options)
    if options.cache and (kept := load(name)) is not None:
        return kept
    heads = headers(records)
    bad = [(i, head) for i, head in enumerate(heads) if isinstance(head, Missing)]
    good = [i for i, head in enumerate(heads) if isinstance(head, Header)]
    if not good:
        return lacking(Pixels(np.empty((0, 1, 1, 1), np.uint8), [], []), bad)
    wanted = plan([head for head in heads if isinstance(head, Header)], options)
    channels = wanted.channels if options.channels else _probe(records, good, wanted)
    while True:
        try:
            return _decoded(records, good, bad, wanted, channels, name if options.cache else None, progress)
        except _Surprise as surprise:
            channels = surprise.channels


def _decoded(
    records: Records,
    good: list[int],
    bad: list[tuple[int, Missing]],
    wanted: Plan,
    channels: int,
    name: str | None,
    progress: Progress | None,
) -> Pixels:
    """With `channels` of the plan's; raises _Surprise where a picture has more."""

    def one(i: int) -> NDArray[Any]:
        pixels = _read(records, i, lambda source: decode(source, wanted))
        if channels < wanted.channels and (used := natural_channels(pixels)) > channels:
            raise _Surprise(used)
        return pixels[..., :channels]

    def build(file: BinaryIO | None) -> Pixels:
        pixels = fill(one, good, (*wanted.row[:2], channels), wanted.dtype, progress, file)
        records.refuse_changed()
        return lacking(pixels, bad)

    return build(None) if name is None else store(name, len(good) * wanted.bytes, build)


def _probe(records: Records, good: list[int], wanted: Plan) -> int:
    """The channels that some pictures need. Often right; decoding starts again where a later picture needs more."""
    most = 1
    for i in good[:: max(1, len(good) // 24)]:
        if most == wanted.channels:
            break
        try:
            most = max(most, natural_channels(_read(records, i, lambda source: decode(source, wanted))))
        except BadPicture:
            continue
    return most


def headers(records: Records) -> list[Header | Missing]:
    """What each picture says of itself, or why it cannot be used."""

    def one(i: int) -> Header | Missing:
        try:
            return _read(records, i, header)
        except BadPicture as error:
            return Missing.of(error)

    return list(each(one, range(len(records))))


def _read(records: Records, i: int, look: Callable[[Encoded], T]) -> T:
    """What `look` finds in picture i. Raises BadPicture, also where it is no longer the file that was listed."""
    try:
        found = look(records.encoded(i))
    except BadPicture as reason:
        if reason.passing or not records.changed(i):
            raise
    else:
        if not records.changed(i):
            return found
    raise BadPicture("was changed while it was read", passing=True)


def plan(heads: Sequence[Header], options: DataOptions) -> Plan:
    """The size and the most channels that these pictures ask for."""
    transparent = options.alpha == "keep" and any(head.alpha for head in heads)
    channels = options.channels or (4 if transparent else 1 if all(head.gray for head in heads) else 3)
    deep = channels == 1 and any(head.deep for head in heads)
    return Plan(options.wh or natural_size([head.size for head in heads]), channels, deep, options.fit)


def _key(records: Records, options: DataOptions) -> str:
    """Changes with the pictures and with how they are read."""
    how = repr((options.wh, options.channels, options.fit, options.alpha))
    return digest([how, repr(list(records.rows)), *records.names, *records.stamps])
