"""From two sources of pictures to figures with their n, their features, an interval and a floor."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.errors import UserError
from sfumato.metrics.features import Extractor
from sfumato.metrics.figures import METRICS, Seen, scaled, title
from sfumato.metrics.receipt import Figure
from sfumato.metrics.reference import References, key
from sfumato.metrics.shelf import Alone, Look, Processes, Rows, rows_of
from sfumato.metrics.sources import Known, Source
from sfumato.metrics.statistics import Statistics

__all__ = ["Alone", "Known", "Processes", "Source", "measure", "title"]

MARKS = "marks"  # 64 bits of a hash of each picture as four numbers, which float32 holds exactly
COPIES = 0.01  # share of equal pictures that is worth a warning
Show = Callable[[str, int, int], None]


def _quiet(what: str, done: int, total: int) -> None:
    pass


def measure(
    made: Source,
    reference: Source | Known,
    metrics: Sequence[str],
    extractor: Extractor,
    *,
    seed: int = 0,
    batch: int = 64,
    show: Show = _quiet,
    keep: Path | None = None,
    references: Path | None = None,
    world: Processes | None = None,
) -> tuple[Figure, ...]:
    """Figures of all pictures of `made` against all of `reference`; the same for any batch and number of processes, to
    1e-6, and in all processes. The global random generators are left as they are.

    metrics     names of METRICS: fid gives "fid" (at this n) and "fid.infinity" (with its interval), pr "pr.precision"
                and "pr.recall", dc "dc.density" and "dc.coverage"
    extractor   what looks at the pictures, on the device that it is on
    seed        of subsets, of the jackknife's groups and of the floor's halves; not of the pictures
    batch       pictures at once
    show        called with (what is being done, done, total)
    keep        folder in which features stay by position, so that what was interrupted goes on; None: in memory alone
    references  folder with the statistics of reference sets, as metrics.reference.References keeps them
    world       the processes that share the work

    Raises UserError for metrics that these sources do not allow.
    """
    world = world or Alone()
    _refuse(made, reference, metrics)
    probe = _probe(extractor, made if isinstance(reference, Known) else reference, metrics, reference)
    bench = _Bench(extractor, probe, batch, show, keep, world)
    if isinstance(reference, Known):
        real = Seen(extractor.protocol, {}, dict(reference.gaussians), reference.name)
    else:
        real = Seen(extractor.protocol, bench.reference(reference, references), {})
    seen = Seen(extractor.protocol, bench.rows(made, "looking at samples"), {})
    if extractor.scaled:
        seen, real = scaled(seen, real)

    def figures() -> list[Figure]:
        show("comparing", 0, len(metrics))
        found: list[Figure] = []
        for done, name in enumerate(metrics, 1):
            found += METRICS[name].figures(seen, real, name, seed)
            show("comparing", done, len(metrics))
        note = _copies(seen, real)
        return [replace(found[0], warning=" ".join(filter(None, (found[0].warning, note)))), *found[1:]]

    return _shared(figures, world)


def _refuse(made: Source, reference: Source | Known, metrics: Sequence[str]) -> None:
    """Raises UserError for what cannot be before anything is computed."""
    for name in metrics:
        if name not in METRICS:
            raise UserError(f"there is no metric '{name}' of two sets: choose from {', '.join(METRICS)}.")
        sizes = (
            [len(made)] if isinstance(reference, Known) or not METRICS[name].reference else [len(made), len(reference)]
        )
        if min(sizes) < METRICS[name].least:
            few = "one picture has" if min(sizes) == 1 else f"{min(sizes)} pictures have"
            raise UserError(
                f"{name} compares distributions, and {few} none: it needs {METRICS[name].least} or more on both sides. "
                "Single pictures are compared by ssim, psnr and lpips."
            )
    if not metrics:
        raise UserError(f"nothing to measure: choose from {', '.join(METRICS)}.")


def _probe(extractor: Extractor, source: Source, metrics: Sequence[str], reference: Source | Known) -> tuple[str, ...]:
    """The parts to keep: what the extractor gives of one picture, spatial features only if they are asked for. Raises
    UserError for pictures that it cannot read, for metrics whose part it does not give, and for statistics of other
    features."""
    given = _parts(extractor, source.batch(np.zeros(1, np.int64)))
    wanted = {METRICS[name].part for name in metrics}
    seen = Seen(extractor.identity, given, {})
    for name in metrics:
        rows = seen.rows(METRICS[name].part, name)
        known = reference.gaussians.get(METRICS[name].part) if isinstance(reference, Known) else None
        if known is not None and len(known.mean) != rows.shape[1]:
            raise UserError(f"Features of {rows.shape[1]} and of {len(known.mean)} numbers cannot be compared.")
    return tuple(part for part in given if part != "spatial" or part in wanted)


def _parts(extractor: Extractor, pictures: Tensor) -> Rows:
    device = next((tensor.device for tensor in extractor.state_dict().values()), torch.device("cpu"))
    read = extractor(pictures.to(device))
    found = {"features": read.features, "logits": read.logits, "spatial": read.spatial}
    return {part: tensor for part, tensor in found.items() if tensor is not None} | {MARKS: _marks(pictures)}


def _marks(pictures: Tensor) -> Tensor:
    """(B, 4)."""
    rows = pictures.cpu().contiguous().numpy()
    codes = [hashlib.blake2b(f"{row.shape}".encode() + row.tobytes(), digest_size=8).digest() for row in rows]
    return torch.from_numpy(np.frombuffer(b"".join(codes), "<u2").reshape(len(rows), 4).astype(np.float32))


class _Bench:
    """Sets become features here."""

    def __init__(
        self,
        extractor: Extractor,
        parts: tuple[str, ...],
        batch: int,
        show: Show,
        keep: Path | None,
        world: Processes,
    ) -> None:
        self.extractor, self.parts, self.batch = extractor, parts, batch
        self.show, self.keep, self.world = show, keep, world

    def rows(self, source: Source, what: str) -> Rows:
        look: Look = lambda positions: _parts(self.extractor, source.batch(positions))  # noqa: E731
        return rows_of(
            np.arange(len(source)),
            self.parts,
            look,
            keep=self._folder(source),
            batch=self.batch,
            world=self.world,
            show=lambda done, total: self.show(what, done, total),
        )

    def _folder(self, source: Source) -> Path | None:
        settings = {"pictures": source.fingerprint, "features": self.extractor.identity}
        return self.keep / key(settings) if self.keep else None

    def reference(self, source: Source, folder: Path | None) -> Rows:
        """From the cache, or computed into it."""
        cache = References(folder) if folder else None
        kept = self._cached(cache, source)
        have = self.world.gather(torch.tensor([kept is not None]))
        if kept is not None and bool(have.all()):
            self.show("looking at the reference", len(source), len(source))
            return kept
        rows = self.rows(source, "looking at the reference")
        if cache and self.world.rank == 0:
            self._cache(cache, source, rows)
        return rows

    def _settings(self, source: Source, part: str) -> dict[str, str | int | float | bool | None]:
        return {
            "data": source.fingerprint,
            "features": self.extractor.identity,
            "n": len(source),
            "part": part,
        }

    def _cached(self, cache: References | None, source: Source) -> Rows | None:
        if cache is None:
            return None
        found = {part: cache.get(self.extractor.identity, self._settings(source, part)) for part in self.parts}
        rows = {part: statistics.rows for part, statistics in found.items() if statistics is not None}
        return rows if set(rows) == set(self.parts) else None

    def _cache(self, cache: References, source: Source, rows: Rows) -> None:
        """The features that were kept on the way are there twice then: no more."""
        try:
            for part in self.parts:
                of = Statistics(self.extractor.identity, rows[part].shape[1])
                of.add(rows[part], torch.arange(len(source)))
                cache.put(of, self._settings(source, part))
        except OSError as error:
            warnings.warn(f"the statistics of the reference cannot be kept ({error.strerror}).", RuntimeWarning, 2)
            return
        if own := self._folder(source):
            shutil.rmtree(own, ignore_errors=True)


def _copies(made: Seen, real: Seen) -> str:
    """A sentence where pictures are equal, pixel for pixel, and more so than in the reference."""
    own = _numbers(made)
    theirs = _numbers(real) if MARKS in real.parts else np.empty(0, np.uint64)
    n = len(own)
    copies, usual = n - len(np.unique(own)), (len(theirs) - len(np.unique(theirs))) / max(1, len(theirs))
    inside = int(np.isin(own, theirs).sum())
    notes = []
    if copies > max(COPIES, 2 * usual) * n:
        notes.append(f"{copies:,} of {n:,} pictures repeat another one, pixel for pixel.")
    if inside > COPIES * n:
        notes.append(f"{inside:,} of {n:,} pictures are in the reference, pixel for pixel.")
    return " ".join(notes)


def _numbers(seen: Seen) -> NDArray[np.uint64]:
    return np.ascontiguousarray(seen.parts[MARKS].numpy().astype(np.uint16)).view(np.uint64)[:, 0]


def _shared(make: Callable[[], Sequence[Figure]], world: Processes) -> tuple[Figure, ...]:
    """Computed by the first process, told to all."""
    said = json.dumps([asdict(figure) for figure in make()]).encode() if world.rank == 0 else b""
    heard = world.gather(torch.from_numpy(np.frombuffer(said, np.uint8).copy()))
    return tuple(Figure(**one) for one in json.loads(bytes(heard.tolist())))
