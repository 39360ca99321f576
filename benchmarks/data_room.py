"""The data room on 20,000 pictures: how soon one sees them, what is found of planted copies, how quick 100,000 rows.

    python benchmarks/data_room_base.py room/base --n 20000 --seed 0
    python benchmarks/data_room_base.py room/base --plant room/planted --seed 1
    python benchmarks/data_room.py fresh room/planted   # from nothing; again while it says it was cut short
    python benchmarks/data_room.py again room/planted   # a second opening, in a new process
    python benchmarks/data_room.py copies room/planted  # recall and precision
    python benchmarks/data_room.py rows                 # 100,000 synthetic rows

Each writes its part of benchmarks/results/data_room.json. The cache lies in the folder beside the pictures.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "results" / "data_room.json"
PAGE = 60
LIMIT = 200.0  # seconds of one run: what is done is kept, and the next run goes on


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def save(part: str, found: dict[str, Any]) -> None:
    kept = json.loads(OUT.read_text()) if OUT.exists() else {}
    load = os.getloadavg()[0]
    where = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}",
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0")) or None,
    }
    OUT.write_text(json.dumps({**kept, part: where | found}, indent=1) + "\n")
    print(json.dumps({part: where | found}, indent=1))


def timed(work: Callable[[], Any], repeat: int = 9) -> dict[str, float]:
    """Milliseconds, the median: on the wall (others were running), and of processor time."""
    wall, used = [], []
    for _ in range(repeat):
        start, before = time.perf_counter(), cpu()
        work()
        wall.append(1000 * (time.perf_counter() - start))
        used.append(1000 * (cpu() - before))
    return {"wall": round(sorted(wall)[repeat // 2], 1), "cpu": round(sorted(used)[repeat // 2], 1)}


def opening(source: Path, limit: float = LIMIT) -> dict[str, Any]:
    """Seconds of wall and CPU from Room.open until each thing is there."""
    start = time.perf_counter()
    from sfumato.apps.explorer.room import Query, Room

    imported, used = time.perf_counter() - start, cpu()
    start = time.perf_counter()
    room = Room.open(source)
    listed_cpu = cpu() - used
    out: dict[str, Any] = {"import_s": round(imported, 2), "listed_s": round(time.perf_counter() - start, 2)}
    rows = room.page(Query(), 0, PAGE)
    for row in rows["rows"]:
        room.thumbnail(row["id"])
    out |= {"pictures": rows["total"], "first_page_s": round(time.perf_counter() - start, 2)}
    out |= {"listed_cpu_s": round(listed_cpu, 2), "first_page_cpu_s": round(cpu() - used, 2)}
    waiting = ["table", "thumbnails", "duplicates", "embeddings", "map", "meaning"]
    while waiting and time.perf_counter() - start < limit:
        found = room.progress()
        for name in [name for name in waiting if found["ready"][name]]:
            out[f"{name}_s"] = round(time.perf_counter() - start, 2)
            out[f"{name}_cpu_s"] = round(cpu() - used, 2)
            waiting.remove(name)
        if not found["stage"]:
            break
        time.sleep(0.02)
    out |= {"cut_short_before": waiting, "errors": room.progress()["errors"]}
    room.close()
    return out


def fresh(source: Path) -> None:
    kept = json.loads(OUT.read_text()) if OUT.exists() else {}
    if not kept.get("fresh", {}).get("cut_short_before"):
        shutil.rmtree(os.environ["SFUMATO_CACHE"], ignore_errors=True)
        save("fresh", opening(source))
        return
    runs = [*kept["fresh"].pop("continued", []), opening(source)]
    first = kept["fresh"]
    save("fresh", first | {"continued": runs, "cut_short_before": runs[-1]["cut_short_before"]})


def again(source: Path) -> None:
    save("again", opening(source, 10.0))


def copies(source: Path) -> None:
    """Pairs that the room put into one group, against those that were planted. Pairs of the base that it finds are
    listed with how much they differ at full size: whoever looks at them may judge."""
    from sfumato.apps.explorer.room import Room

    room = Room.open(source)
    while not room.progress()["ready"]["duplicates"]:
        time.sleep(0.05)
    names = room.listed.records.names
    groups = room.duplicates(0, 10**6)["groups"]
    leaks = {tuple(sorted(names[id] for id in group["ids"])) for group in room.leaks(0, 10**6)["groups"]}
    room.close()
    truth = [tuple(row) for row in json.loads((source / "truth.json").read_text())]
    planted = {frozenset(row[:2]): (row[2], row[3]) for row in truth}
    found = {
        frozenset((names[a], names[b]))
        for group in groups
        for i, a in enumerate(group["ids"])
        for b in group["ids"][:i]
    }
    of_base = [sorted(pair) for pair in found - set(planted) if not any("/copy-" in name for name in pair)]
    base = {frozenset(pair) for pair in of_base}
    origin = {row[1]: row[0] for row in truth}
    derived = {pair for pair in found - set(planted) - base
               if frozenset(origin.get(name, name) for name in pair) in base | set(planted)}  # fmt: skip
    wrong = found - set(planted) - base - derived
    kinds = sorted({row[2] for row in truth})
    crossing = {frozenset(row[:2]) for row in truth if row[3] == "test"}
    leaked = {pair for pair in crossing if any(pair <= set(group) for group in leaks)}
    hits = len(found & set(planted))
    save(
        "copies",
        {
            "pictures": len(names),
            "planted": len(planted),
            "recall": hits / len(planted),
            "recall_of": {kind: sum(p in found for p, (k, _) in planted.items() if k == kind)
                          / sum(k == kind for k, _ in planted.values()) for kind in kinds},
            "leaks_recall": len(leaked) / len(crossing),
            "precision": hits / max(1, hits + len(wrong)),
            "precision_with_pairs_of_the_base": hits / max(1, hits + len(wrong) + len(base) + len(derived)),
            "pairs_of_the_base": [[*pair, round(difference(source, *pair), 2)] for pair in sorted(of_base)],
            "wrong": [sorted(pair) for pair in wrong],
            "missed": [[*sorted(pair), planted[pair][0]] for pair in set(planted) - found],
        },
    )  # fmt: skip


def difference(source: Path, first: str, second: str) -> float:
    """Root mean square over all pixels, in levels, of the picture or of its mirror image, whichever is less."""
    import numpy as np
    from PIL import Image

    a, b = (np.asarray(Image.open(source / name).convert("RGB"), np.float64) for name in (first, second))
    return float(min(np.sqrt(np.square(a - c).mean()) for c in (b, b[:, ::-1])))


def rows() -> None:
    """100,000 rows, captions of 8 words from 5,000, vectors of 512 numbers."""
    import numpy as np

    from sfumato.apps.explorer.asking import Asking, Ranking
    from sfumato.apps.explorer.facets import Facets
    from sfumato.apps.explorer.fulltext import FullText
    from sfumato.apps.explorer.query import Filter, Query
    from sfumato.apps.explorer.space import Space
    from sfumato.apps.explorer.table import Table

    n, rng = 100_000, np.random.default_rng(0)
    words = np.array([f"{a}{b}" for a in ("fox", "cat", "sun", "ber", "lin") for b in range(1000)])
    weights = 1 / np.arange(1, len(words) + 1)
    drawn = rng.choice(len(words), (n, 8), p=weights / weights.sum())
    texts = [" ".join(words[row]) for row in drawn]
    names = [f"train/picture-{i:06d}.jpg" for i in range(n)]
    out: dict[str, Any] = {"rows": n}

    def step(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        found = work()
        out[f"{name}_s"] = round(time.perf_counter() - start, 2)
        return found

    table = step("table", lambda: Table({"id": range(n), "name": names, "caption": texts,
                                         "label": [f"class {i % 37}" for i in range(n)]}))  # fmt: skip
    numbers = {f"number {i}": rng.normal(size=n) for i in range(20)}
    table.put("facts", table.arrow.table({"id": np.arange(n), **numbers}))
    text = step("words", lambda: FullText(zip(range(n), texts, names, strict=True)))
    vectors = rng.normal(size=(n, 512)).astype(np.float32)
    space = step("index", lambda: Space(np.arange(n), vectors, raw=True, build=""))
    facets = Facets(table)
    stamps = iter(range(10**6))

    def page(query: Query, ranking: Ranking | None = None) -> int:
        found = Asking(table).answer(query, ranking, text, next(stamps))
        table.rows(found.ids[:PAGE])
        return len(found.ids)

    def like() -> int:
        return page(Query(like=5), Ranking(space.ids, space.cosines(space.vectors[5:6])))

    filters = (Filter("number 3", low=0.5), Filter("label", values=("class 3", "class 5")))
    out |= {
        "page_ms": timed(lambda: page(Query())),
        "sorted_page_ms": timed(lambda: page(Query(sort="number 7", descending=True))),
        "filter_ms": timed(lambda: page(Query(where=filters))),
        "text_rare_ms": timed(lambda: page(Query(text="lin900"))),
        "text_common_ms": timed(lambda: page(Query(text="fox1 -cat3"))),
        "text_common_matches": page(Query(text="fox1 -cat3")),
        "text_phrase_ms": timed(lambda: page(Query(text='"fox1 fox2"'))),
        "facets_first_s": step("facets", lambda: facets(np.arange(n))) and out.pop("facets_s"),
        "facets_ms": timed(lambda: facets(np.arange(0, n, 2))),
        "like_page_ms": timed(like),
        "nearest_8_ms": timed(lambda: space.nearest(space.vectors[5:6], 8)),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    save("rows", out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fresh", "again", "copies", "rows"))
    parser.add_argument("source", type=Path, nargs="?")
    args = parser.parse_args()
    if args.what == "rows":
        rows()
    else:
        os.environ.setdefault("SFUMATO_CACHE", str(args.source.parent / "cache"))
        {"fresh": fresh, "again": again, "copies": copies}[args.what](args.source)
