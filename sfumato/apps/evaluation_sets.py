"""Two sets of pictures or videos in files, one measured against the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.apps.evaluation import (
    Store,
    about_reference,
    is_run,
    keep_receipt,
    looker,
    made_here,
    read_reference,
    statistics_suffice,
)
from sfumato.core.random import key
from sfumato.data import DataOptions, Dataset
from sfumato.data.arrays import Arrays
from sfumato.data.decode import Header
from sfumato.data.options import SIDE_CAP
from sfumato.data.sources import headers, listing
from sfumato.engine.distributed import World
from sfumato.engine.plan import choose_device
from sfumato.errors import UserError
from sfumato.metrics.clip import Clip, clip_score
from sfumato.metrics.evaluation import Show, measure
from sfumato.metrics.features import Extractor
from sfumato.metrics.figures import METRICS
from sfumato.metrics.matched import PAIRED, Judge, Matching, compare, judge, match
from sfumato.metrics.perceptual import open_lpips
from sfumato.metrics.receipt import Figure, Receipt
from sfumato.metrics.sources import Clips, Known, Pictures, Source, holds
from sfumato.metrics.video import Video

__all__ = ["Helpers", "evaluate_sets"]

NAMED = 8  # pictures without a partner that are named


@dataclass(frozen=True)
class Helpers:
    """Weights that somebody has: of LPIPS, as TRUNK:FILE, and a folder with a CLIP."""

    lpips: str = ""
    clip: Path | None = None

    def judges(self, metrics: Sequence[str]) -> dict[str, Judge]:
        """Those of pairs that are asked for. Raises UserError."""
        found = {name: PAIRED[name] for name in metrics if name in PAIRED}
        if "lpips" in metrics:
            trunk, colon, file = self.lpips.partition(":")
            if not colon:
                raise UserError(
                    "lpips needs the weights of its trunk, as torchvision has them: --lpips alex:FILE, vgg:FILE or "
                    "squeeze:FILE. Nothing is downloaded."
                )
            found["lpips"] = judge(*open_lpips(trunk, Path(file)))
        return found

    def reader(self, metrics: Sequence[str]) -> Clip | None:
        """The CLIP, if it is asked for. Raises UserError."""
        if "clip" not in metrics:
            return None
        if self.clip is None:
            raise UserError("clip needs a CLIP on this machine: --clip FOLDER, as transformers saves one.")
        return Clip(self.clip)


def _quiet(what: str, done: int, total: int) -> None:
    pass


def evaluate_sets(
    made: str,
    reference: str,
    *,
    metrics: Sequence[str] = ("fid", "kid"),
    features: str | Extractor = "lite0",
    resize: str | None = None,
    n: int | None = None,
    seed: int = 0,
    options: DataOptions | None = None,
    helpers: Helpers | None = None,
    batch: int | None = None,
    device: str = "auto",
    cache: bool = True,
    out: Path | None = None,
    show: Show = _quiet,
    say: Callable[[str], None] = lambda line: None,
    world: World | None = None,
) -> Receipt:
    """Measures the pictures of `made` against those of `reference`: whatever open_data reads, an .npz of statistics as
    the reference, or two .npz of videos for fvd. Sets of two sizes are brought to the smaller width and height, which
    `say` is told. The receipt is written if `out`, a file or a folder, says where.

    n        pictures of `made`, chosen by the hash of their names and `seed`; None: all
    helpers  weights for lpips and clip

    Raises UserError.
    """
    world, options, helpers = world or World(), options or DataOptions(), helpers or Helpers()
    start, store, where = time.monotonic(), Store.usual(cache), choose_device(device, world.local)
    judges, clip = helpers.judges(metrics), helpers.reader(metrics)
    sets = [name for name in metrics if name in METRICS]
    options = replace(options, flip="off")
    if "fvd" in metrics:
        one, other = _videos(made, reference, metrics)
    else:
        statistics = statistics_suffice(metrics, features)
        one, other = _pictures(made, reference, metrics, options, show, say, statistics)
    one = _chosen(one, n, seed, say, made)
    size = batch or 64
    figures: tuple[Figure, ...] = ()
    if sets:
        extractor = _video(features) if "fvd" in metrics else looker(features, other, store, where, show, world, resize)
        figures += measure(
            one,
            other,
            sets,
            extractor,
            seed=0,
            batch=size,
            show=show,
            keep=store.keep,
            references=store.references,
            world=world,
        )
    shown = {"batch": size, "keep": store.keep, "world": world}
    if judges:
        if isinstance(other, Known):
            raise UserError(f"{', '.join(judges)} compare pictures, and the reference holds statistics alone.")
        pairs = match(one.names, other.names)
        _tell_pairs(pairs, made, reference, say)
        figures += compare(one, other, pairs, judges, show=_named(show, "comparing pairs"), **shown)  # type: ignore[arg-type]
    if clip is not None:
        captions = _captions(one, made)
        figures += (clip_score(one, captions, clip, show=_named(show, "reading captions"), **shown),)  # type: ignore[arg-type]
    order = {name: place for place, name in enumerate(metrics)}
    figures = tuple(sorted(figures, key=lambda figure: order[figure.metric.partition(".")[0]]))
    told = about_reference(one, made, options)
    samples = {"name": told["name"], "fingerprint": told["fingerprint"], "n": len(one), "size": told.get("pixels", "")}
    cost = {"measuring": round(time.monotonic() - start, 3)}
    receipt = Receipt(figures, samples, about_reference(other, reference, options), cost, made_here(where))
    if out is not None and world.main:
        keep_receipt(receipt, out)
    world.barrier()
    return receipt


def _named(show: Show, what: str) -> Callable[[int, int], None]:
    return lambda done, total: show(what, done, total)


# -- reading -----------------------------------------------------------------------------------------------------------

Say = Callable[[str], None]


def _videos(made: str, reference: str, metrics: Sequence[str]) -> tuple[Source, Source | Known]:
    """Two files of videos. Raises UserError."""
    if set(metrics) != {"fvd"}:
        raise UserError("fvd looks at videos, the other metrics at pictures: ask for fvd alone.")
    for name in (made, reference):
        if "video" not in holds(Path(name)):
            raise UserError(f"fvd compares two .npz files with an array video (N, frames, H, W, C): '{name}' is none.")
    one, other = Clips.read(Path(made)), Clips.read(Path(reference))
    if one.video.shape[1:4] != other.video.shape[1:4]:
        raise UserError(
            f"videos of {_by(one)} cannot be compared with videos of {_by(other)} (frames x height x width): bring "
            "them to one length and size first."
        )
    return one, other


def _by(clips: Clips) -> str:
    return " x ".join(map(str, clips.video.shape[1:4]))


def _video(features: str | Extractor) -> Extractor:
    if isinstance(features, Extractor):
        return features
    if not Path(features).suffix:
        raise UserError("fvd needs an I3D network as a TorchScript file: --features i3d_torchscript.pt")
    return Video(Path(features))


def _pictures(
    made: str,
    reference: str,
    metrics: Sequence[str],
    options: DataOptions,
    show: Show,
    say: Say,
    statistics: bool,
) -> tuple[Source, Source | Known]:
    """Two sets of pictures, of one size and of as many channels."""
    captions = options.captions or (None if "clip" in metrics else "none")
    options = replace(options, captions=captions, labels=options.labels or "none")
    sizes = [_sizes(source, options) for source in (made, reference)]
    one = read_reference(made, replace(options, size=options.size or _only(sizes[0])), show)
    other = read_reference(reference, replace(options, size=options.size or _only(sizes[1])), show, statistics)
    if isinstance(one, Known):
        raise UserError(f"'{made}' holds statistics, which can be a reference only: give it second.")
    if isinstance(other, Known):
        return one, other
    if one.data.shape != other.data.shape:
        channels: Any = max(one.data.shape[0], other.data.shape[0])
        high, wide = (min(a, b) for a, b in zip(one.data.shape[1:], other.data.shape[1:], strict=True))
        say(
            f"{_shown(one.data, made)} and {_shown(other.data, reference)} are of two kinds: both are read at "
            f"{wide} x {high} ({FITS[options.fit]}); --size asks for another."
        )
        common = replace(options, size=(wide, high), channels=channels)
        again = [read_reference(source, common, show) for source in (made, reference)]
        assert isinstance(again[0], Pictures) and isinstance(again[1], Pictures)
        one, other = again[0], again[1]
    for source, data, own in zip((made, reference), (one.data, other.data), sizes, strict=True):
        if len(own) > 1:
            high, wide = data.shape[1:]
            say(f"{source} holds pictures of {len(own)} sizes: all are read at {wide} x {high} ({FITS[options.fit]}).")
    return one, other


FITS = {
    "crop": "the short side resized, the middle cut out",
    "pad": "the long side resized, the rest filled",
    "stretch": "stretched to it",
}


def _shown(data: Dataset, source: str) -> str:
    channels, high, wide = data.shape
    return f"{source} ({wide} x {high}, {channels} channel{'s' * (channels > 1)})"


def _sizes(source: str, options: DataOptions) -> set[tuple[int, int]]:
    """The sizes (width, height) of its pictures; nothing where they come as an array."""
    if is_run(Path(source)) or Path(source).suffix == ".npz":
        return set()
    found = listing(source, options)
    return set() if isinstance(found, Arrays) else {head.size for head in headers(found) if isinstance(head, Header)}


def _only(sizes: set[tuple[int, int]]) -> tuple[int, int] | None:
    """The size that all pictures have: they are compared as they are. None: they have several."""
    return next(iter(sizes)) if len(sizes) == 1 and max(max(one) for one in sizes) <= SIDE_CAP else None


def _chosen(one: Source, n: int | None, seed: int, say: Say, source: str) -> Source:
    """n of them, by the hash of their names: a larger n adds to them."""
    if n is not None and n > len(one):
        say(f"{source} holds {len(one):,} pictures, fewer than --n {n:,}: all are taken.")
    if n is None or n >= len(one):
        return one
    luck = np.array([key("evaluate", seed, name) for name in one.names], np.int64)
    places = np.sort(np.argsort(luck, kind="stable")[:n])
    if isinstance(one, Clips):
        return Clips(one.video[places])
    assert isinstance(one, Pictures)
    return Pictures(one.data.take(places))


def _tell_pairs(pairs: Matching, made: str, reference: str, say: Say) -> None:
    say(f"{len(pairs.left):,} pairs of equal names")
    for source, names in zip((made, reference), pairs.alone, strict=True):
        if names:
            more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
            say(f"without a partner in {source}: {', '.join(names[:NAMED])}{more}")


def _captions(one: Source, source: str) -> Sequence[str]:
    assert isinstance(one, Pictures)
    return one.data.captions or [""] * len(one)
