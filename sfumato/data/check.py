"""`sfumato data check`: everything worth knowing about data before a model is trained on it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.data.arrays import Arrays
from sfumato.data.cache import Progress, each
from sfumato.data.columns import Records, captions, select, unmirrorable
from sfumato.data.decode import BadPicture, Encoded, Header, header, picture
from sfumato.data.fit import Plan, natural_channels
from sfumato.data.options import DataOptions, Skipped, escape, shortlist
from sfumato.data.sources import listing, plan

__all__ = ["Report", "as_dict", "check", "render"]

FLAT = 2.0  # grey levels of 255: a picture with a smaller spread shows nothing
DARK = 1 << 14  # 16-bit pictures that stay below this are probably 10- or 12-bit


@dataclass(frozen=True)
class Report:
    """What data holds and what would be made of it. Names are escaped."""

    source: str
    pictures: int  # usable
    skipped: tuple[Skipped, ...]
    sizes: dict[str, int]  # "640x480" -> count, the most frequent first
    modes: dict[str, int]  # "RGB" -> count
    classes: dict[str, int]
    captions: int | None  # pictures with a caption; None: captions are not used
    duplicates: tuple[tuple[str, ...], ...]  # groups of pictures with the same pixels
    flat: tuple[str, ...]  # pictures of one colour
    columns: tuple[str, ...]  # what --labels and --captions could name
    size: tuple[int, int] | None  # the plan: (width, height)
    channels: int | None
    bits: int
    flip: bool
    cache_bytes: int
    notes: tuple[str, ...]


class _Seen(NamedTuple):
    head: Header
    code: bytes
    spread: float
    channels: int
    peak: int


def check(
    source: str | os.PathLike[str], options: DataOptions | None = None, progress: Progress | None = None
) -> Report:
    """Decodes every picture once, in full. Raises DataError where there is nothing to look at."""
    options = options or DataOptions()
    found = listing(source, options)
    records, labels = select(found.records if isinstance(found, Arrays) else found, options)

    def look(i: int) -> _Seen | str:
        try:
            return _look(records.encoded(i))
        except BadPicture as reason:
            return str(reason)

    seen = list(each(look, range(len(records)), progress))
    good = [(i, one) for i, one in enumerate(seen) if isinstance(one, _Seen)]
    bad = tuple(Skipped(records.names[i], one) for i, one in enumerate(seen) if isinstance(one, str))
    wanted = _planned(found, [one for _, one in good], options)
    counts = Counter() if labels is None else Counter(labels.classes[labels.values[i]] for i, _ in good)
    texts = captions(records, options.captions)
    why = unmirrorable(texts, () if labels is None else labels.classes)
    safe = why is None and (not isinstance(found, Arrays) or found.mirror_safe)
    return Report(
        source=records.what,
        pictures=len(good),
        skipped=(*records.skipped, *bad),
        sizes=_counted(f"{one.head.size[0]}x{one.head.size[1]}" for _, one in good),
        modes=_counted(one.head.mode for _, one in good),
        classes={} if labels is None else {escape(name): counts[name] for name in labels.classes},
        captions=None if texts is None else sum(bool(texts[i]) for i, _ in good),
        duplicates=_duplicates(records, good),
        flat=tuple(records.names[i] for i, one in good if one.spread < FLAT),
        columns=tuple(sorted(records.columns)),
        size=wanted.size if wanted else None,
        channels=wanted.channels if wanted else None,
        bits=16 if wanted and wanted.deep else 8,
        flip=options.flip == "on" or (options.flip == "auto" and safe),
        cache_bytes=wanted.bytes * len(good) if wanted else 0,
        notes=(*records.notes, *_notes(good, why)),
    )


def _look(source: Encoded) -> _Seen:
    head = header(source)
    with picture(source) as image:
        pixels = _plain(image)
    code = hashlib.blake2b(repr((pixels.shape, pixels.dtype.str)).encode() + pixels.tobytes(), digest_size=16)
    step = max(1, min(pixels.shape[:2]) // 64)
    spread = float(pixels[::step, ::step].std(axis=(0, 1)).max()) * 255 / np.iinfo(pixels.dtype).max
    return _Seen(head, code.digest(), spread, natural_channels(pixels), int(pixels.max()))


def _plain(image: Image.Image) -> NDArray[Any]:
    """(H, W, C): 8-bit RGBA or RGB, gray as it is."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[..., None]
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[..., None]
    transparent = "A" in image.mode or "a" in image.mode or "transparency" in image.info
    return np.asarray(image.convert("RGBA" if transparent else "RGB"))


def _planned(found: Records | Arrays, good: Sequence[_Seen], options: DataOptions) -> Plan | None:
    """As decoding would decide; array sources keep their own size."""
    if not good:
        return None
    wanted = plan([one.head for one in good], options)
    used = max(one.channels for one in good)
    channels = options.channels or min(wanted.channels, used if used < 4 or options.alpha == "keep" else 3)
    size = good[0].head.size if isinstance(found, Arrays) and options.wh is None else wanted.size
    return Plan(size, channels, wanted.deep, options.fit)


def _duplicates(records: Records, good: Sequence[tuple[int, _Seen]]) -> tuple[tuple[str, ...], ...]:
    groups: dict[bytes, list[str]] = defaultdict(list)
    for i, one in good:
        groups[one.code].append(records.names[i])
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _notes(good: Sequence[tuple[int, _Seen]], why: str | None) -> list[str]:
    notes = [] if why is None else [why]
    deep = [one.peak for _, one in good if one.head.deep]
    if deep and max(deep) < DARK:
        notes.append(f"the 16-bit pictures reach only {max(deep)} of 65535 and will look black: rescale them first")
    return notes


def as_dict(report: Report) -> dict[str, Any]:
    """For JSON."""
    return {**asdict(report), "skipped": [entry._asdict() for entry in report.skipped]}


def render(report: Report) -> str:
    """For humans."""
    lines = [f"{report.source}: {report.pictures:,} pictures to train on"]

    def row(name: str, text: str) -> None:
        lines.append(f"  {name:<11}{text}")

    row("sizes", _shares(report.sizes))
    row("modes", _shares(report.modes))
    if report.classes:
        row("classes", f"{len(report.classes):,}: {_shares(report.classes)}")
    if report.captions is not None:
        row("captions", f"{report.captions:,} of {report.pictures:,} pictures")
    if report.columns:
        row("columns", shortlist(report.columns, 12))
    if report.size is not None:
        mirrored = "mirrored at random" if report.flip else "never mirrored"
        row(
            "plan",
            f"{report.size[0]} x {report.size[1]}, {report.channels} channel{'s' * (report.channels != 1)}, "
            f"{report.bits} bit, {mirrored}; {report.cache_bytes / 1e6:,.1f} MB decoded",
        )
    for note in report.notes:
        row("note", note)
    if report.duplicates:
        extra = sum(len(group) - 1 for group in report.duplicates)
        row("duplicates", f"{extra:,} pictures are exact copies of others, as {' = '.join(report.duplicates[0][:3])}")
    if report.flat:
        row("one colour", f"{len(report.flat):,}: {shortlist(report.flat, 5)}")
    row("skipped", f"{len(report.skipped):,}")
    lines += [f"    {entry.name}: {entry.reason}" for entry in report.skipped]
    return "\n".join(lines)


def _shares(counts: dict[str, int], limit: int = 6) -> str:
    return shortlist([f"{name} ({n:,})" for name, n in counts.items()], limit) or "none"
