"""Rooms of all kinds: odd sources, hostile ones, queries of every sort, likeness, the map, a run that judges."""

import io
import json
import math
import threading
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.apps.explorer.layout import plane
from sfumato.apps.explorer.query import Filter, Query
from sfumato.apps.explorer.room import Options, Room
from sfumato.apps.explorer.space import Space
from sfumato.errors import UserError
from tests.apps.rooms import QUICK, drawing, folder_of, ids_by_name, settled

FULL = Options()


def test_one_picture(tmp_path):
    with settled(folder_of(tmp_path, {"only.png": drawing(1)}), FULL) as room:
        assert room.page(Query(), 0, 10)["total"] == 1
        assert room.progress()["ready"]["map"] and not room.progress()["errors"]
        assert len(room.map()["points"]) == 1 and room.duplicates()["total"] == 0
        assert room.nearest(room.picture(0)[0], 5)[0]["id"] == 0
        assert all(not check["rows"] for name, check in room.outliers().items() if name == "strange")
        assert room.captions()["captioned"] == 0 and room.sources()["column"] is None
        with pytest.raises(UserError, match="needs captions"):
            room.page(Query(meaning="a cat"), 0, 1)


def test_equal_pictures(tmp_path):
    """All the same: one group, a map without a division by zero."""
    with settled(folder_of(tmp_path, {f"{i}.png": drawing(1) for i in range(12)}), FULL) as room:
        found = room.duplicates()
        assert found["total"] == 1 and len(found["groups"][0]["ids"]) == 12 and found["groups"][0]["kind"] == "exact"
        assert all(math.isfinite(v) for point in room.map()["points"] for v in point)
        assert room.page(Query(group=0), 0, 1)["total"] == 12
        assert not room.progress()["errors"]


def test_mixed_sizes_and_kinds(tmp_path):
    pictures = {"a.png": drawing(1, (1, 1)), "b.jpg": drawing(2, (900, 30)), "c.webp": drawing(3, (7, 300))}
    pictures |= {"d.gif": drawing(4).quantize(16), "e.png": drawing(5).convert("RGBA")}
    pictures |= {"f.bmp": drawing(6).convert("L")}
    with settled(folder_of(tmp_path, pictures), FULL) as room:
        assert not room.progress()["errors"] and room.progress()["ready"]["map"]
        for id, row in enumerate(room.page(Query(), 0, 10)["rows"]):
            content, mime = room.thumbnail(id)
            assert mime in ("image/jpeg", "image/webp") and max(Image.open(io.BytesIO(content)).size) <= 128
            assert Image.open(io.BytesIO(room.picture(id)[0])).size == (row["width"], row["height"])


def test_hostile_names_and_captions_do_nothing(tmp_path):
    names = ["'; DROP TABLE pictures; --.png", "<img src=x onerror=alert(1)>.png", "\x1b[31mred.png", "new\nline.png",
             "=cmd|'.png", "кошка 🎉.png", b"byte-\xff.png".decode("utf-8", "surrogateescape")]  # fmt: skip
    folder_of(tmp_path, {name: drawing(i) for i, name in enumerate(names)})
    rows = [{"file_name": names[0], "text": '"; DROP TABLE pictures; --', 'a"b': 1, "width": 5, "Width": 6, "ID": 7},
            {"file_name": names[1], "text": "<script>\x1b[2J\ud800", 'a"b': "x", "select": [1, {"a": 2}]}]  # fmt: skip
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with settled(tmp_path, FULL) as room:
        page = room.page(Query(), 0, 100)
        assert page["total"] == len(names) and not room.progress()["errors"]
        json.dumps(page).encode()  # plain, and no half characters
        assert all(c.isprintable() for row in page["rows"] for c in row["name"])
        assert page["rows"][ids_by_name(room)[names[0]]]["width"] == 160
        columns = room.columns()
        assert {'a"b', "select", "Width (data)", "width (data 2)", "ID (data)"} <= set(columns)
        assert room.page(Query(where=(Filter('a"b', values=("x",)),), sort='a"b'), 0, 5)["total"] == 1
        assert room.page(Query(where=(Filter("name", values=("x'); DROP TABLE pictures; --",)),)), 0, 5)["total"] == 0
        assert room.page(Query(text="'; DROP TABLE pictures"), 0, 5)["total"] == 1
        for bad in ("name; DROP TABLE pictures", 'a" DESC', "nothing", ""):
            query = Query(sort=bad) if bad else Query(where=(Filter("", low=0),))
            with pytest.raises(UserError, match="no column"):
                room.page(query, 0, 5)
        room.facets(Query())
        assert room.export(Query(), "csv") and room.export(Query(), "parquet")


def test_broken_files_are_listed_and_the_rest_shown(tmp_path):
    folder_of(tmp_path, {f"{i}.png": drawing(i) for i in range(3)})
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:300])
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    with settled(tmp_path) as room:
        assert room.page(Query(), 0, 10)["total"] == 3
        errors = {error["name"]: error["reason"] for error in room.progress()["errors"]}
        assert set(errors) == {"empty.png", "text.jpg", "cut.png", "gone.png"} and all(errors.values())
        bad = ids_by_name(room)["cut.png"]
        for ask in (room.thumbnail, room.picture):
            with pytest.raises(UserError, match="cannot be shown"):
                ask(bad)
            with pytest.raises(UserError, match="there is no picture"):
                ask(10**6)


def test_a_folder_of_nothing_but_broken_files(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with settled(tmp_path, FULL) as room:
        assert room.page(Query(), 0, 10) == {"total": 0, "rows": []} and room.duplicates()["total"] == 0
        assert room.map()["points"] == [] and room.captions()["pictures"] == 0
        assert room.export(Query(), "csv") and room.facets(Query()) is not None


def test_no_source_is_a_sentence(tmp_path):
    for source in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError):
            Room.open(source, QUICK)
    with pytest.raises(UserError, match="no run"):
        Room.open(folder_of(tmp_path, {"a.png": drawing(1)}), Options(run=tmp_path / "runs"))


def test_archives_and_arrays(tmp_path):
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for i in range(3):
            out = io.BytesIO()
            drawing(i).save(out, "PNG")
            archive.writestr(f"kind{i % 2}/{i}.png", out.getvalue())
    images = np.stack([np.asarray(drawing(i, (24, 24))) for i in range(3)])
    np.savez(tmp_path / "p.npz", image=images, label=np.array([1, 0, 1]), split=np.array(["train", "test", "train"]))
    with settled(tmp_path / "p.zip") as room:
        assert [row["label"] for row in room.page(Query(), 0, 5)["rows"]] == ["kind0", "kind0", "kind1"]
    with settled(tmp_path / "p.npz") as room:
        rows = room.page(Query(), 0, 5)["rows"]
        assert [row["split"] for row in rows] == ["train", "test", "train"] and rows[0]["format"] == "array"
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(room.picture(1)[0]))), images[1])


def test_the_emoji_of_the_pack(data_pack, tmp_path):
    """A real table: captions, columns, transparent pictures; the nearest caption of a meaning."""
    import pyarrow.parquet as parquet

    rows = parquet.read_table(data_pack / "emoji" / "emoji.parquet", filters=[("vendor", "=", "noto")]).slice(0, 80)
    parquet.write_table(rows, tmp_path / "emoji.parquet")
    with settled(tmp_path / "emoji.parquet", FULL) as room:
        assert room.page(Query(text="grinning"), 0, 50)["total"] == sum(
            "grinning" in text for text in rows.column("text").to_pylist()
        )
        facet = room.facets(Query())["category"]
        assert sum(n for _, n in facet["values"]) + facet["others"] == 80
        if room.progress()["ready"]["meaning"]:
            best = room.page(Query(meaning="somebody weeps"), 0, 8)["rows"]
            assert any("cry" in row["caption"] or "tear" in row["caption"] for row in best)
            assert best[0]["similarity"] >= best[-1]["similarity"]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """Three kinds of drawings by their colour, with captions and a number."""
    cache = pytest.MonkeyPatch()
    cache.setenv("SFUMATO_CACHE", str(tmp_path_factory.mktemp("gallery-cache")))
    root, rows = tmp_path_factory.mktemp("gallery"), []
    rng = np.random.default_rng(0)
    for i in range(60):
        kind = i % 3
        image = Image.new("RGB", (64, 64), [(200, 30, 30), (30, 200, 30), (30, 30, 200)][kind])
        noise = rng.integers(-25, 25, (64, 64, 3)) * (1 + kind)
        Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8)).save(root / f"{i:02d}.png")
        rows.append({"file_name": f"{i:02d}.png", "text": f"a {['red', 'green', 'blue'][kind]} square", "n": i})
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with settled(root, FULL) as room:
        yield room
    cache.undo()


def test_queries_go_together(gallery):
    page = gallery.page(Query(text="red", where=(Filter("n", low=10, high=40),), sort="n", descending=True), 2, 3)
    expected = [i for i in range(40, 9, -1) if i % 3 == 0]
    assert page["total"] == len(expected) and [row["n"] for row in page["rows"]] == expected[2:5]
    assert gallery.page(Query(text="square -red -blue"), 0, 0)["total"] == 20
    assert [row["id"] for row in gallery.page(Query(ids=(5, 3, 3, 999)), 0, 9)["rows"]] == [3, 5]
    assert gallery.page(Query(where=(Filter("n", values=(3, 4.0, "5", "x")),)), 0, 9)["total"] == 3
    assert gallery.page(Query(where=(Filter("domain", values=(None,)),)), 0, 9)["total"] == 60
    assert gallery.page(Query(), 50, 100)["rows"][-1]["id"] == 59 and gallery.page(Query(), 99, 9)["rows"] == []
    with pytest.raises(UserError, match="no numbers"):
        gallery.page(Query(where=(Filter("caption", low=1),)), 0, 1)


def test_likeness_puts_the_like_first(gallery):
    rows = gallery.page(Query(like=4), 0, 20)["rows"]
    assert rows[0]["id"] == 4 and rows[0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert all(row["id"] % 3 == 1 for row in rows)
    handle = gallery.like_picture(gallery.picture(7)[0])
    assert handle < 0 and gallery.page(Query(like=handle), 0, 1)["rows"][0]["id"] == 7
    content = torch.from_numpy(np.array(Image.open(io.BytesIO(gallery.picture(8)[0])))).permute(2, 0, 1) / 255
    near = gallery.nearest(content, 3)
    assert near[0]["id"] == 8 and near[0]["distance"] < 0.01 and all(one["id"] % 3 == 2 for one in near)
    for bad in (b"", b"no picture"):
        with pytest.raises(UserError, match="cannot be read"):
            gallery.like_picture(bad)
    with pytest.raises(UserError, match="to compare with"):
        gallery.page(Query(like=-77), 0, 1)
    with pytest.raises(UserError, match="channels"):
        gallery.nearest(torch.zeros(2, 8, 8), 1)


def test_facets_count_every_picture_once(gallery):
    query = Query(text="red")
    for name, facet in gallery.facets(query).items():
        of_values = [n for _, n in facet.get("values", [])] + [facet.get("others", 0)]
        counted = facet["counts"] if facet["kind"] == "histogram" else of_values
        assert sum(counted) + facet["empty"] == 20, name
    numbers = [row["sharpness"] for row in gallery.page(query, 0, 99)["rows"]]
    facet = gallery.facets(query)["sharpness"]
    assert facet["counts"] == np.histogram(numbers, facet["edges"])[0].tolist()


def test_the_map_keeps_kinds_together(gallery):
    found = gallery.map()
    at = np.array([point[:2] for point in found["points"]])
    kind = np.array([point[3] % 3 for point in found["points"]])
    assert at.min() >= 0 and at.max() <= 1 and sum(cluster["size"] for cluster in found["clusters"]) == 60
    near = np.argsort(np.square(at[:, None] - at[None]).sum(2), 1)[:, 1:6]
    assert (kind[near] == kind[:, None]).mean() > 0.95
    assert {cluster["words"][0] for cluster in found["clusters"] if cluster["words"]} <= {"red", "green", "blue"}
    assert gallery.page(Query(cluster=0), 0, 1)["total"] == found["clusters"][0]["size"]


def test_a_map_is_the_same_every_time():
    x = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    space = Space(np.arange(200), x, raw=False, build="")
    near, _ = space.neighbours(8)
    assert np.array_equal(plane(space.vectors, near), plane(space.vectors, near))
    assert (near != np.arange(200)[:, None]).all() and np.array_equal(space.clusters(5), space.clusters(5))


def test_neighbours_are_those_of_a_plain_search():
    x = np.random.default_rng(1).normal(size=(300, 24)).astype(np.float32)
    space = Space(np.arange(0, 600, 2), x, raw=True, build="")
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    near, values = space.neighbours(5)
    assert np.array_equal(near, np.argsort(-cosines, 1, kind="stable")[:, :5])
    assert values == pytest.approx(np.sort(cosines, 1)[:, :-6:-1], abs=1e-5)
    ids, similarity = space.nearest(space.vector(14), 1)
    assert ids.tolist() == [14] and similarity[0] == pytest.approx(1, abs=1e-5) and space.vector(15) is None
    with pytest.raises(UserError, match="another network"):
        space.told(np.zeros((1, 25), np.float32))
    with pytest.raises(UserError, match="damaged"):
        Space(np.arange(2), np.full((2, 3), np.nan, np.float32), raw=True, build="")


def test_many_threads_may_ask(gallery):
    """While each reads, others do: every answer is the whole one."""
    wrong = []

    def ask(i):
        for j in range(8):
            page = gallery.page(Query(text=("red", "green", "blue")[(i + j) % 3], sort="n"), 0, 99)
            if [row["n"] for row in page["rows"]] != list(range((i + j) % 3, 60, 3)):
                wrong.append((i, j))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_closed_room_stops_in_time(tmp_path):
    room = Room.open(folder_of(tmp_path, {f"{i:03d}.png": drawing(i, (400, 400)) for i in range(60)}), FULL)
    room.close()
    assert not room._thread.is_alive()
    room.close()
