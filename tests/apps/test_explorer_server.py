"""The data room's server, on a folder that means harm: who may ask, what is answered, and what never is."""

from __future__ import annotations

import csv
import io
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_folder import CANARY, CAPTIONS, NAMES, make
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi")
pytest.importorskip("duckdb")
pytest.importorskip("faiss")
testclient = pytest.importorskip("starlette.testclient")

from sfumato.apps.explorer.query import Filter, Options, Query  # noqa: E402
from sfumato.apps.explorer.room import Room  # noqa: E402
from sfumato.apps.explorer.web import server  # noqa: E402
from sfumato.apps.explorer.web.asked import query_of  # noqa: E402
from sfumato.apps.explorer.web.guard import Key  # noqa: E402
from sfumato.apps.explorer.web.plain import unpathed  # noqa: E402
from sfumato.apps.explorer.web.serve import bound  # noqa: E402
from sfumato.errors import UserError  # noqa: E402

PORT = 8642
STATIC = Path(server.__file__).parent / "static"
READS = ("session", "progress", "outliers", "map", "captions", "sources", "columns", "changed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("room"))


@pytest.fixture(scope="module")
def room(folder: Path) -> Iterator[Room]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_CACHE", str(folder.parent / "cache"))
        one = Room.open(str(folder), Options())
        until = time.monotonic() + 120
        while not one.progress()["ready"]["table"] or one.progress()["stage"]:
            assert time.monotonic() < until
            time.sleep(0.05)
        yield one
        one.close()


@pytest.fixture(scope="module")
def key() -> Key:
    return Key(PORT)


@pytest.fixture(scope="module")
def stranger(room: Room, key: Key, folder: Path) -> Any:
    """A client that knows the port and nothing else."""
    app = server.create(room, key, name=folder.name, places=[folder.parent, Path.home(), Path.cwd()])
    return testclient.TestClient(app, base_url=f"http://127.0.0.1:{PORT}", raise_server_exceptions=False)


@pytest.fixture
def client(stranger: Any, key: Key) -> Iterator[Any]:
    """The page: it has the cookie, and sends the token."""
    stranger.cookies.set(key.cookie, key.secret)
    stranger.headers["X-Sfumato-Token"] = key.secret
    yield stranger
    stranger.cookies.clear()
    del stranger.headers["X-Sfumato-Token"]


def page(client: Any, n: int = 100, **query: Any) -> dict[str, Any]:
    found = client.post("/api/page", json={"query": query, "first": 0, "n": n})
    assert found.status_code == 200, found.text
    return dict(found.json())


# -- who may ask -------------------------------------------------------------------------------------------------------


def test_without_the_key_nothing_is_told(stranger):
    for path in ("/", "/static/app.js", "/api/session", "/api/thumbnail/0", "/docs", "/openapi.json", "/?key=guess"):
        said = stranger.get(path)
        assert said.status_code == 403 and "terminal" in said.text and len(said.text) < 120
    assert stranger.post("/api/page", json={}).status_code == 403


def test_the_key_opens_the_page_and_leaves_a_cookie(stranger, key):
    said = stranger.get(f"/?key={key.secret}")
    assert said.status_code == 200 and "<title>Data room" in said.text
    cookie = said.headers["set-cookie"]
    assert f"{key.cookie}={key.secret}" in cookie and "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert stranger.get("/api/session").status_code == 200
    stranger.cookies.clear()
    assert key.secret not in repr(key) and len({Key(1).secret for _ in range(50)}) == 50


@pytest.mark.parametrize("host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1:1", "127.0.0.1", "", "localhost"])
def test_another_host_is_turned_away(client, host):
    """DNS rebinding: the browser believes it talks to evil.example."""
    assert client.get("/api/session", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", f"https://127.0.0.1:{PORT}", "http://127.0.0.1:1"])
def test_another_origin_is_turned_away(client, origin):
    for said in (
        client.get("/api/session", headers={"Origin": origin}),
        client.post("/api/page", json={}, headers={"Origin": origin}),
    ):
        assert said.status_code == 403 and "access-control-allow-origin" not in said.headers


def test_what_browsers_say_of_foreign_pages_is_heard(client):
    assert client.get("/api/session", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.get("/api/thumbnail/0", headers={"Sec-Fetch-Site": "same-site"}).status_code == 403
    assert client.get("/api/session", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200
    assert client.get("/api/session", headers={"Origin": f"http://localhost:{PORT}"}).status_code == 200


def test_what_is_sent_needs_the_token(client, key):
    for path in ("page", "facets", "ids", "export", "like", "nearest", "duplicates", "leaks"):
        for wrong in ("", "guess", key.secret[:-1]):
            said = client.post(f"/api/{path}", content=b"{}", headers={"X-Sfumato-Token": wrong})
            assert said.status_code == 403, path
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH"):
        said = client.request(method, "/api/page")
        assert said.status_code == 405 and not [name for name in said.headers if name.startswith("access-control")]


def test_every_answer_tells_browsers_to_be_careful(client, stranger):
    for path in ("/", "/static/app.js", "/api/session", "/api/thumbnail/0", "/api/thumbnail/x", "/nowhere"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self';")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer" and "server" not in headers


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_is_whole_and_needs_nobody_else(client):
    """Every file that is named is there; no address is foreign; nothing is inline that the policy would refuse."""
    html = (STATIC / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", html)
    for one in [*STATIC.glob("*.js"), *STATIC.glob("*.css"), STATIC / "index.html"]:
        text = one.read_text(encoding="utf8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//cdn|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
        for name in re.findall(r"""from "\./([\w.]+)"|(?:src|href)="/static/([\w.]+)\"""", text):
            assert client.get(f"/static/{name[0] or name[1]}").status_code == 200
        assert len(text.splitlines()) <= 400
    html_ids = set(re.findall(r'id="([\w-]+)"', html))
    used = {name for one in STATIC.glob("*.js") for name in re.findall(r'\$\("([\w-]+)"\)', one.read_text("utf8"))}
    made = {name for one in STATIC.glob("*.js") for name in re.findall(r'id: "([\w-]+)"', one.read_text("utf8"))}
    assert used <= html_ids | made


@pytest.mark.parametrize(
    "path",
    ["/static/../server.py", "/static/..%2fserver.py", "/static/%2e%2e/server.py", "/static//etc/passwd", "/static/"],
)
def test_no_other_file_is_served(client, path):
    said = client.get(path)
    assert said.status_code == 404 and "import" not in said.text and "root:" not in said.text


@pytest.mark.parametrize("id", ["..%2f..%2fetc%2fpasswd", "-1", "1e3", "99999999", "x", "9" * 30, "%00", "0.5"])
def test_a_picture_is_a_number_that_is_there(client, id):
    for path in ("thumbnail", "picture", "judge"):
        said = client.get(f"/api/{path}/{id}")
        assert said.status_code in (400, 404) and "root:" not in said.text and "Traceback" not in said.text


# -- answers -----------------------------------------------------------------------------------------------------------


def test_rows_are_the_folder(client, folder):
    found = page(client)
    pictures = [one for one in folder.iterdir() if one.suffix in (".png", ".jpg") and one.name != "broken.png"]
    assert found["total"] == len(pictures) == len(found["rows"])
    told = {row["caption"] for row in found["rows"]}
    for caption in CAPTIONS:  # what is not printable may be escaped; the rest is as it was written
        if caption.isprintable():
            assert caption in told
    named = {row["name"] for row in found["rows"]}
    assert {name for name in NAMES if name.isprintable()} <= named
    assert not [name for name in named if not name.isprintable()]


def test_words_filters_and_order_reach_the_room(client):
    assert {row["caption"] for row in page(client, text="roof")["rows"]} == {CAPTIONS[1], CAPTIONS[9]}
    for harm in ("'; DROP TABLE pictures;--", '" OR 1=1', "roof*) --", "%", "\\", "AND OR NOT", "💥", "-", '"', "("):
        page(client, text=harm)
    rows = page(client, sort="brightness", descending=True)["rows"]
    values = [row["brightness"] for row in rows]
    assert values == sorted(values, reverse=True) and len(set(values)) > 5
    low, high = values[8], values[3]
    kept = page(client, where=[{"column": "brightness", "low": low, "high": high}])
    assert {row["id"] for row in kept["rows"]} == {row["id"] for row in rows if low <= row["brightness"] <= high}
    assert page(client)["total"] == len(rows)


def test_facets_count_what_the_query_finds(client):
    found = client.post("/api/facets", json={"query": {"text": "roof"}}).json()
    histograms = [one for one in found.values() if one["kind"] == "histogram"]
    assert histograms and all(sum(one["counts"]) + one["empty"] == 2 for one in histograms)
    assert all(len(one["edges"]) == len(one["counts"]) + 1 for one in histograms if one["counts"])


def test_copies_are_found_and_all_ids_can_be_asked_for(client):
    rows = {row["name"]: row["id"] for row in page(client)["rows"]}
    groups = client.post("/api/duplicates", json={"first": 0, "n": 50}).json()["groups"]
    pair = {rows["copy.png"], rows["photo 03.png"]}
    assert any(pair <= set(one["ids"]) and one["kind"] == "exact" for one in groups)
    assert set(client.post("/api/ids", json={"query": {}}).json()["ids"]) == set(rows.values())


def test_a_dropped_picture_finds_itself(client, folder):
    content = (folder / "photo 05.png").read_bytes()
    like = client.post("/api/like", content=content).json()["like"]
    found = page(client, like=like)["rows"][0]
    assert found["name"] == "photo 05.png"
    nearest = client.post("/api/nearest", content=content).json()
    assert nearest[0]["name"] == "photo 05.png" and nearest[0]["distance"] < 1e-3
    distances = [one["distance"] for one in nearest]
    assert distances == sorted(distances)


def test_what_is_dropped_must_be_a_picture_of_reasonable_size(client, monkeypatch):
    for content in (b"", b"no picture", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x89PNG\r\n\x1a\n" + bytes(99)):
        said = client.post("/api/like", content=content)
        assert said.status_code == 400 and said.json()["error"].endswith(".")
    monkeypatch.setattr(server, "LARGEST", 1000)
    assert client.post("/api/like", content=bytes(1001)).status_code == 400


def test_exports_hold_the_selection_and_no_formula(client):
    rows = page(client)["rows"]
    ids = [row["id"] for row in rows]
    for kind in ("csv", "parquet", "txt"):
        said = client.post("/api/export", json={"query": {"ids": ids}, "kind": kind})
        assert said.status_code == 200 and f'filename="pictures.{kind}"' in said.headers["content-disposition"]
        if kind == "csv":
            lines = list(csv.reader(io.StringIO(said.content.decode("utf-8-sig"))))
            assert len(lines) == len(ids) + 1
            assert not [
                cell for line in lines[1:] for cell in line if re.match(r"[=@\t\r]|[+-](?!\d*\.?\d+(e|$))", cell)
            ]
        elif kind == "txt":
            assert said.text.splitlines() == [row["name"] for row in rows]
        else:
            table = pytest.importorskip("pyarrow.parquet").read_table(io.BytesIO(said.content))
            assert table.num_rows == len(ids) and set(table["id"].to_pylist()) == set(ids)
    one = client.post("/api/export", json={"query": {"ids": ids[:1]}, "kind": "txt"})
    assert one.text == rows[0]["name"] + "\n"
    assert client.post("/api/export", json={"query": {}, "kind": "exe"}).status_code == 400


def test_pictures_are_encoded_again_without_what_they_carried(client):
    image = pytest.importorskip("PIL.Image")
    for row in page(client)["rows"]:
        for path in ("thumbnail", "picture"):
            said = client.get(f"/api/{path}/{row['id']}")
            assert said.headers["content-type"] in ("image/png", "image/jpeg", "image/webp")
            assert CANARY.encode() not in said.content
            with image.open(io.BytesIO(said.content)) as shown:
                shown.load()
                assert not dict(shown.getexif())
                assert path == "thumbnail" or shown.size == (row["width"], row["height"])


def test_no_answer_tells_where_the_data_lies(client, folder):
    said = [client.get(f"/api/{path}").text for path in READS]
    said += [client.post("/api/page", json={"query": {}, "n": 100}).text]
    said += [
        client.post("/api/export", json={"query": {}, "kind": kind}).content.decode("latin1") for kind in ("csv", "txt")
    ]
    said += [client.get("/api/judge/0").text, client.post("/api/page", json={"query": {"sort": "nowhere"}}).text]
    for text in said:
        assert CANARY not in text and str(folder.parent) not in text and str(Path.home()) + "/" not in text
    assert "broken.png" in client.get("/api/progress").text


@pytest.mark.parametrize(
    "asked",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"query": []}',
        b'{"query": {"evil": 1}}',
        b'{"query": {"where": [{"column": "nowhere", "low": 0}]}}',
        b'{"query": {"where": [{"column": "name", "low": 0}]}}',
        b'{"query": {"where": [{"column": "\\"; DROP TABLE pictures; --", "values": ["x"]}]}}',
        b'{"query": {"sort": "id; DROP TABLE pictures"}}',
        b'{"query": {"like": 123456789}}',
        b'{"query": {"ids": ["0"]}}',
        b'{"query": {}, "first": -1}',
        b'{"query": {}, "n": 100000000}',
        b'{"query": {"text": "' + b"x" * 5000 + b'"}}',
        b'{"query": {"where": [{"column": "width", "low": NaN}]}}',
    ],
)
def test_what_cannot_be_asked_is_a_sentence(client, asked):
    before = page(client)["total"]
    said = client.post("/api/page", content=asked)
    assert said.status_code == 400 and 10 < len(said.json()["error"]) < 400
    assert page(client)["total"] == before


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*Query.__dataclass_fields__, "column", "low", "values"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON)
@settings(max_examples=300, deadline=None)
def test_anything_asked_is_a_query_or_a_sentence(found):
    try:
        query = query_of(found)
    except UserError:
        return
    assert isinstance(query, Query) and all(isinstance(one, Filter) for one in query.where)


def test_a_query_arrives_as_it_was_asked():
    asked = {
        "text": "a roof",
        "where": [{"column": "width", "low": 1, "high": 2.5}, {"column": "label", "values": ["x", None]}],
        "sort": "width",
        "descending": True,
        "ids": [3, 1],
    }
    assert query_of(json.loads(json.dumps(asked))) == Query(
        text="a roof",
        where=(Filter("width", 1.0, 2.5), Filter("label", values=("x", None))),
        sort="width",
        descending=True,
        ids=(3, 1),
    )


def test_a_defect_is_told_without_details(client, room, monkeypatch):
    def fail() -> None:
        raise RuntimeError(f"/home/{CANARY}/secret")

    monkeypatch.setattr(type(room), "map", lambda self: fail())
    app = server.create(room, Key(PORT, "k"), name="x")
    said = testclient.TestClient(app, base_url=f"http://127.0.0.1:{PORT}", raise_server_exceptions=False).get(
        "/api/map", headers={"Cookie": f"{Key(PORT).cookie}=k"}
    )
    assert said.status_code == 500 and CANARY not in said.text and "terminal" in said.json()["error"]


# -- small parts -------------------------------------------------------------------------------------------------------


def test_sentences_lose_their_paths():
    here = Path("/data/ward 7")
    assert unpathed("there is no '/data/ward 7/scans/a.png' here.", [here]) == "there is no 'scans/a.png' here."
    assert unpathed("cannot read /home/anna/x/y.txt (denied).", []) == "cannot read y.txt (denied)."
    for same in ("3/4 of all", "bits/dim", "a folder /tmp", "see docs/data-room.md", "http://127.0.0.1:1/a/b"):
        assert unpathed(same, []) == same


def test_a_taken_port_gives_the_next():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with bound(port) as door:
            host, other = door.getsockname()
            assert host == "127.0.0.1" and port < other < port + 50
    with bound(0) as door:
        assert door.getsockname()[1] > 1023
