"""What goes on behind an open room, stage after stage, each kept on the shelf when it is done."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from sfumato.apps.explorer import copies, layout
from sfumato.apps.explorer.eyes import Clip, Eyes, Lite0Eyes, Sentences, Vectors, opened, sentence_folder
from sfumato.apps.explorer.fulltext import FullText
from sfumato.apps.explorer.listed import Listed
from sfumato.apps.explorer.mapping import described, named, strangeness
from sfumato.apps.explorer.query import Options
from sfumato.apps.explorer.scan import PART, Part, Stopped, kept_parts, scan
from sfumato.apps.explorer.scorers import Scorer, aesthetic, safety
from sfumato.apps.explorer.shelf import Shelf
from sfumato.apps.explorer.space import Space
from sfumato.apps.explorer.table import Ids, Table, clean
from sfumato.data.decode import BadPicture, picture
from sfumato.errors import UserError

__all__ = ["STAGES", "Work"]

STAGES = ("table", "thumbnails", "duplicates", "embeddings", "map", "captions")
FRESH = 2.0  # seconds between two looks of the table at what was found
WATCH = 0.5  # seconds between two looks at what another room does
BATCH = 64


class Reader(Protocol):
    """Sentences to vectors (B, D) of length 1."""

    identity: str

    def read(self, texts: Sequence[str]) -> Vectors: ...


@dataclass
class Meaning:
    """Captions by their meaning: `space` of the distinct ones, and which of them each picture has (-1: none)."""

    reader: Reader
    space: Space
    which: Ids


@dataclass
class Work:
    """The state of a room, written by one thread and read by many: each field is replaced whole."""

    listed: Listed
    options: Options
    shelf: Shelf
    table: Table
    parts: dict[int, Part] = field(default_factory=dict)
    text: FullText | None = None
    eyes: Eyes | None = None
    space: Space | None = None
    meaning: Meaning | None = None
    groups: tuple[copies.Group, ...] | None = None
    mapped: dict[str, Any] = field(default_factory=lambda: {"points": [], "clusters": []})
    stage: str = ""
    done: int = 0
    of: int = 0
    ready: set[str] = field(default_factory=set)
    troubles: list[dict[str, str]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    # -- stages --------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Everything in its order; what fails is said, and the rest goes on."""
        stages: tuple[tuple[str, Callable[[], None]], ...] = (
            ("looking at pictures", self._scan),
            ("looking for copies", self._copies),
            ("computing features", self._features),
            ("drawing the map", self._map),
            ("understanding captions", self._sentences),
        )
        try:
            self._words()
            self._wait()
            for name, stage in stages:
                self._begin(name)
                self._guarded(name, stage)
        except Stopped:
            pass
        finally:
            self.shelf.close()
            self._begin("")

    def _guarded(self, name: str, stage: Callable[[], None]) -> None:
        try:
            stage()
        except Stopped:
            raise
        except UserError as error:
            self._trouble(name, str(error))
        except MemoryError:
            self._trouble(name, "there is not enough memory for this.")
        except Exception as error:  # a defect here must not end the room
            self._trouble(name, f"failed ({type(error).__name__}: {str(error)[:200]})")

    def halted(self) -> bool:
        return self.stop.is_set()

    def _begin(self, stage: str, of: int = 0) -> None:
        self.stage, self.done, self.of = stage, 0, of

    def _show(self, done: int) -> None:
        if self.stop.is_set():
            raise Stopped
        self.done = done

    def _share(self, share: float) -> None:
        self.of = 100
        self._show(int(100 * share))

    def _trouble(self, name: str, reason: str) -> None:
        with self.lock:
            self.troubles.append({"name": name, "reason": reason})

    def _wait(self) -> None:
        """Until no other room computes the same; meanwhile what that one finds is shown here too."""
        while not self.shelf.take_lock():
            self._begin("another window prepares these pictures", len(self.listed.records))
            known = len(self.parts)
            for part in kept_parts(self.shelf, len(self.listed.records))[known:]:
                self.parts[part.number] = part
            if len(self.parts) > known:
                self._refresh()
            self._show(min(len(self.parts) * PART, self.of))
            if self.stop.wait(WATCH):
                raise Stopped

    def _words(self) -> None:
        self._begin("reading captions")
        names = self.listed.records.names
        self.text = FullText(
            (i, text, name) for i, (text, name) in enumerate(zip(self.listed.captions, names, strict=True))
        )

    def _scan(self) -> None:
        self._begin("looking at pictures", len(self.listed.records))
        fresh = 0.0
        for part in scan(self.listed.records, self.shelf, self.halted, self._show):
            if self.stop.is_set():
                raise Stopped
            self.parts[part.number] = part
            if time.monotonic() - fresh > FRESH and part.number * PART > len(self.table_ids):
                self._refresh()
                fresh = time.monotonic()
        if len(self.table_ids) < sum(len(part.ids) for part in self.parts.values()) or "table" not in self.ready:
            self._refresh()
        self.ready |= {"table", "thumbnails"}

    def load_kept(self) -> None:
        """What an earlier room left, at once."""
        for part in kept_parts(self.shelf, len(self.listed.records)):
            self.parts[part.number] = part
        if self.parts:
            self._refresh()
            if len(self.parts) * PART >= len(self.listed.records):
                self.ready |= {"table", "thumbnails"}

    @property
    def table_ids(self) -> Ids:
        return getattr(self, "_table_ids", np.empty(0, np.int64))

    def _refresh(self) -> None:
        """The table is told what was found so far."""
        parts = [self.parts[number] for number in sorted(self.parts)]
        arrow = self.table.arrow
        good = [part.rows for part in parts if len(part.ids)]
        if good:
            self.table.put("facts", arrow.concat_tables(good, promote_options="default"))
        if bad := [id for part in parts for id, _ in part.bad]:
            self.table.drop(bad)
        self._table_ids = np.concatenate([part.ids for part in parts])

    @property
    def _code(self) -> str:
        """Of the pictures that are there: what is computed of all of them together depends on all of them."""
        code = hashlib.blake2b(self.table_ids.tobytes(), digest_size=8)
        for number in sorted(self.parts):
            if len(self.parts[number].ids):
                code.update("".join(self.parts[number].rows.column("sha256").to_pylist()).encode())
        return code.hexdigest()

    def _column(self, name: str) -> list[Any]:
        """Of the good pictures, in the order of their ids."""
        found = [self.parts[number].rows.column(name).to_pylist() for number in sorted(self.parts)
                 if len(self.parts[number].ids)]  # fmt: skip
        return [value for values in found for value in values]

    # -- copies --------------------------------------------------------------------------------------------------------

    def _copies(self) -> None:
        name = f"copies-{copies.RULES}-{self._code}"
        if (kept := self.shelf.get(name)) is not None:
            found = [copies.Group(bool(g["exact"]), tuple(g["ids"])) for g in json.loads(kept["groups"].tobytes())]
        else:
            signs = [self.parts[number].signs for number in sorted(self.parts)]
            found = copies.groups(
                self.table_ids,
                self._column("sha256"),
                self._column("pixel_hash"),
                np.concatenate(signs) if signs else np.empty((0, 32, 32, 3), np.uint8),
                self._share,
            )
            self.shelf.put(name, {"groups": json.dumps(copies.as_json(found)).encode()})
        ids = [id for group in found for id in group.ids]
        arrow = self.table.arrow
        self.table.put(
            "copies",
            arrow.table(
                {
                    "id": arrow.array(ids, arrow.int64()),
                    "group": arrow.array([n for n, group in enumerate(found) for _ in group.ids], arrow.int64()),
                    "copies": arrow.array([len(group.ids) for group in found for _ in group.ids], arrow.int64()),
                }
            ),
        )
        self.groups = tuple(found)
        self.ready |= {"duplicates"}

    # -- features ------------------------------------------------------------------------------------------------------

    def _features(self) -> None:
        if not self.options.embed:
            return
        self._begin("computing features", len(self.table_ids))
        eyes: Eyes = Lite0Eyes() if self.options.clip is None else Clip(self.options.clip)
        code = hashlib.sha256(eyes.identity.encode()).hexdigest()[:12]
        found = []
        for number in sorted(self.parts):
            found.append(self._seen(eyes, code, self.parts[number]))
            self._show(sum(map(len, found)))
        features = np.concatenate(found) if found else np.empty((0, 1), np.float32)
        if not len(features):
            raise UserError("no picture can be looked at, so there are no features.")
        self.eyes, self.space = eyes, Space(self.table_ids, features, raw=eyes.raw, build=self.shelf.build)
        if isinstance(eyes, Clip):
            self.meaning = Meaning(eyes, self.space, np.arange(len(self.table_ids)))
        self.ready |= {"embeddings"}
        self._scores()

    def _seen(self, eyes: Eyes, code: str, part: Part) -> Vectors:
        """(n, D) of a part, from the shelf where it is kept."""
        name = f"seen-{code}-{part.number:05d}"
        kept = self.shelf.get(name)
        if kept is not None and np.array_equal(kept["ids"].view(np.int64), part.ids):
            return kept["vectors"].view(np.float16).reshape(len(part.ids), -1).astype(np.float32)
        before, vectors = self.done, list[Vectors]()
        for start in range(0, len(part.ids), BATCH):
            vectors.append(eyes.look([self._open(eyes, part, int(id)) for id in part.ids[start : start + BATCH]]))
            self._show(before + start)
        out = np.concatenate(vectors).astype(np.float16) if vectors else np.empty((0, 0), np.float16)
        if len(out):
            self.shelf.put(name, {"ids": part.ids, "vectors": out})
        return out.astype(np.float32) if len(out) else np.empty((0, 232), np.float32)

    def _open(self, eyes: Eyes, part: Part, id: int) -> Any:
        content = part.thumbnail(id)
        if eyes.whole or content is None:
            try:
                with picture(self.listed.records.encoded(id), (512, 512)) as image:
                    image.thumbnail((512, 512))
                    return image.copy()
            except BadPicture:  # it could be read a moment ago
                if content is None:
                    raise UserError(
                        f"{self.listed.records.names[id]} can no longer be read: open the room again."
                    ) from None
        return opened(content)

    def _scores(self) -> None:
        """Of pictures by their features."""
        scorers: list[Scorer] = list(self.options.scorers)
        if self.options.aesthetic is not None:
            scorers.append(aesthetic(self.options.aesthetic))
        if self.options.safety is not None:
            scorers.append(safety(self.options.safety))
        if not scorers:
            return
        assert self.space is not None
        arrow, columns = self.table.arrow, dict[str, Any]()
        for scorer in scorers:
            try:
                scores = np.asarray(scorer(self.space.vectors), np.float64)
                columns[scorer.name] = arrow.array(scores, arrow.float64(), mask=~np.isfinite(scores))
            except UserError as error:
                self._trouble(scorer.name, str(error))
        if columns:
            self.table.put("scores", arrow.table({"id": self.space.ids, **columns}))

    # -- map -----------------------------------------------------------------------------------------------------------

    def _map(self) -> None:
        if self.space is None or self.eyes is None:
            return
        space, n = self.space, len(self.space)
        shown = np.unique(np.linspace(0, n - 1, min(n, layout.POINTS)).astype(np.int64))
        name = f"map-{hashlib.sha256(self.eyes.identity.encode()).hexdigest()[:12]}-{self._code}"
        if (kept := self.shelf.get(name)) is None:
            some = Space(space.ids[shown], space.vectors[shown], raw=True, build=space.build)
            near, _ = some.neighbours(10)
            self._share(0.3)
            kept = self.shelf.put(
                name,
                {
                    "plane": layout.plane(some.vectors, near),
                    "clusters": space.clusters(int(np.clip(np.sqrt(n / 20), 2, 40))),
                    "strange": strangeness(space),
                },
            )
        at = kept["plane"].view(np.float32).reshape(-1, 2)
        clusters = kept["clusters"].view(np.int64)
        self._tell_map(space, clusters, kept["strange"].view(np.float32))
        points = [
            [round(float(x), 5), round(float(y), 5), int(c), int(id)]
            for (x, y), c, id in zip(at, clusters[shown], space.ids[shown], strict=True)
        ]
        texts = [self.listed.captions[id] or named(self.listed.records.names[id]) for id in space.ids.tolist()]
        self.mapped = {"points": points, "clusters": described(space, clusters, texts)}
        self.ready |= {"map"}

    def _tell_map(self, space: Space, clusters: Ids, strange: Vectors) -> None:
        arrow = self.table.arrow
        gaps = ~np.isfinite(strange)
        columns = {"id": space.ids, "cluster": clusters, "strangeness": arrow.array(strange.astype(float), mask=gaps)}
        self.table.put("map", arrow.table(columns))

    # -- captions ------------------------------------------------------------------------------------------------------

    def _sentences(self) -> None:
        self.ready |= {"captions"}
        folder = sentence_folder(self.options.sentences)
        if not self.options.embed or self.meaning is not None or folder is None or not any(self.listed.captions):
            return
        reader = Sentences(folder)
        place: dict[str, int] = {}
        rows = [place.setdefault(clean(self.listed.captions[id]), len(place)) if self.listed.captions[id] else -1
                for id in self.table_ids.tolist()]  # fmt: skip
        texts = list(place)
        self._begin("understanding captions", len(texts))
        code = hashlib.sha256("\0".join([reader.identity, *texts]).encode()).hexdigest()[:16]
        kept = [self._read(reader, f"read-{code}-{i:05d}", texts[i * PART : (i + 1) * PART])
                for i in range(-(-len(texts) // PART))]  # fmt: skip
        if kept:
            vectors = np.concatenate(kept)
            space = Space(np.arange(len(texts)), vectors, raw=True, build=self.shelf.build)
            self.meaning = Meaning(reader, space, np.array(rows, np.int64))

    def _read(self, reader: Reader, name: str, texts: Sequence[str]) -> Vectors:
        if (kept := self.shelf.get(name)) is not None:
            return kept["vectors"].view(np.float16).reshape(len(texts), -1).astype(np.float32)
        before, found = self.done, list[Vectors]()
        for start in range(0, len(texts), BATCH):
            found.append(reader.read(texts[start : start + BATCH]))
            self._show(before + start + len(found[-1]))
        out = np.concatenate(found)
        self.shelf.put(name, {"vectors": out.astype(np.float16)})
        return out
