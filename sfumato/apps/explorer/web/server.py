"""The data room's server: what a Room answers, as JSON and re-encoded pictures, behind the guard.

A mistake that the Room explains is a sentence (400), a defect is one without details (500; the terminal has them). No
answer holds a path of this machine.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.concurrency import run_in_threadpool

from sfumato.apps.explorer.query import Query
from sfumato.apps.explorer.room import Room
from sfumato.apps.explorer.web.asked import first_and_n, object_of, query_of, spelled
from sfumato.apps.explorer.web.guard import Guard, Key
from sfumato.apps.explorer.web.plain import listed, plain, unpathed
from sfumato.errors import UserError

__all__ = ["create"]

LARGEST = 64 << 20  # bytes of a picture that is dropped, or of a question
PAGE = 500
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
KINDS = {"csv": "text/csv", "parquet": "application/vnd.apache.parquet", "txt": "text/plain"}
Answer = Callable[[dict[str, Any]], Any]


def create(room: Room, key: Key, *, name: str, run: str = "", places: Iterable[Path] = ()) -> Guard:
    """The application. `name` and `run` are what data and run are called on the page; of `places`, folders of this
    machine, no answer speaks."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    session = {"token": key.secret, "stamp": secrets.token_hex(4), "name": name, "run": run}
    hide = partial(unpathed, places=tuple(places))
    app.add_exception_handler(UserError, partial(_mistake, hide))
    app.add_exception_handler(Exception, _defect)
    _page(app)
    _reads(app, room, session, hide)
    _questions(app, room, hide)
    _pictures(app, room)
    return Guard(app, key)


# -- answers -----------------------------------------------------------------------------------------------------------


class Told(Response):
    """Compact JSON, UTF-8; numbers that JSON lacks are null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(plain(content), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


async def _mistake(hide: Callable[[str], str], request: Request, error: Exception) -> Response:
    return JSONResponse({"error": hide(" ".join(str(error).split()))}, 400)


async def _defect(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "something in the data room failed: the terminal says more."}, 500)


async def body_of(request: Request) -> bytes:
    """All of it, up to a limit. Raises UserError."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > LARGEST:
            raise UserError(f"that is more than {LARGEST >> 20} MB: give a smaller picture.")
    return bytes(content)


def _page(app: FastAPI) -> None:
    """The files of static/, read once: no path of a request is ever opened."""
    static = {one.name: one.read_bytes() for one in files(__package__).joinpath("static").iterdir() if one.is_file()}

    @app.get("/")
    def index() -> Response:
        return Response(static["index.html"], media_type="text/html")

    @app.get("/static/{file}")
    def asset(file: str) -> Response:
        kind = TYPES.get(Path(file).suffix)
        if file not in static or kind is None:
            return PlainTextResponse("There is no such file.", 404)
        return Response(static[file], media_type=kind, headers={"Cache-Control": "no-cache"})


def _reads(app: FastAPI, room: Room, session: dict[str, str], hide: Callable[[str], str]) -> None:
    def said(work: Callable[[], Any]) -> Callable[[], Response]:
        return lambda: Told(listed(work(), hide))

    app.get("/api/session")(said(lambda: session))
    app.get("/api/progress")(said(room.progress))
    app.get("/api/outliers")(said(room.outliers))
    app.get("/api/map")(said(room.map))
    app.get("/api/captions")(said(room.captions))
    app.get("/api/sources")(said(room.sources))
    app.get("/api/columns")(said(room.columns))
    app.get("/api/changed")(said(room.changed))

    @app.get("/api/judge/{id}")
    def judge(id: str) -> Response:
        return Told(listed(room.judge(spelled(id)), hide))


def _questions(app: FastAPI, room: Room, hide: Callable[[str], str]) -> None:
    """What is sent as JSON, since a selection may be longer than any address."""

    def answers(path: str, answer: Answer) -> None:
        async def asked(request: Request) -> Response:
            found = object_of(await body_of(request))
            return Told(listed(await run_in_threadpool(answer, found), hide))

        app.post(path)(asked)

    answers("/api/page", lambda found: room.page(query_of(found.get("query", {})), *first_and_n(found, PAGE)))
    answers("/api/facets", lambda found: _facets(room, query_of(found.get("query", {}))))
    answers("/api/ids", lambda found: {"ids": _ids(room, query_of(found.get("query", {})))})
    answers("/api/duplicates", lambda found: room.duplicates(*first_and_n(found, PAGE)))
    answers("/api/leaks", lambda found: room.leaks(*first_and_n(found, PAGE)))

    @app.post("/api/export")
    async def export(request: Request) -> Response:
        found = object_of(await body_of(request))
        return await run_in_threadpool(_export, room, query_of(found.get("query", {})), found.get("kind"))


def _pictures(app: FastAPI, room: Room) -> None:
    def shown(content: bytes, kind: str) -> Response:
        return Response(content, media_type=kind, headers={"Cache-Control": "private, max-age=86400, immutable"})

    @app.get("/api/thumbnail/{id}")
    def thumbnail(id: str) -> Response:
        return shown(*room.thumbnail(spelled(id)))

    @app.get("/api/picture/{id}")
    def picture(id: str) -> Response:
        return shown(*room.picture(spelled(id)))

    @app.post("/api/like")
    async def like(request: Request) -> Response:
        content = await body_of(request)
        return Told({"like": await run_in_threadpool(room.like_picture, content)})

    @app.post("/api/nearest")
    async def nearest(request: Request) -> Response:
        content = await body_of(request)
        return Told(await run_in_threadpool(room.nearest, content, 12))


# -- facets ----------------------------------------------------------------------------------------------------------


def _facets(room: Room, query: Query) -> dict[str, Any]:
    """Of what the query finds; a column that is filtered shows what there is without its own filter, so that the filter
    can be widened."""
    found = room.facets(query)
    for one in query.where:
        others = tuple(other for other in query.where if other.column != one.column)
        wider = room.facets(replace(query, where=others)).get(one.column)
        if wider is not None:
            found[one.column] = wider
    return found


# -- selections --------------------------------------------------------------------------------------------------------


def _rows(room: Room, query: Query) -> Iterable[dict[str, Any]]:
    first, total = 0, 1
    while first < total:
        page = room.page(query, first, 10_000)
        total = page["total"]
        if not page["rows"]:
            return
        yield from page["rows"]
        first += len(page["rows"])


def _ids(room: Room, query: Query) -> list[int]:
    return [row["id"] for row in _rows(room, query)]


def _export(room: Room, query: Query, kind: object) -> Response:
    """A file to keep. The list of names has one on each line, without what would break the line."""
    if kind not in KINDS:
        raise UserError("a selection is exported as csv, parquet or txt.")
    if kind == "txt":
        content = "".join(f"{row['name']}\n" for row in _rows(room, query)).encode("utf8", "backslashreplace")
    else:
        content = room.export(query, cast(Any, kind))
    headers = {"Content-Disposition": f'attachment; filename="pictures.{kind}"'}
    return Response(content, media_type=KINDS[str(kind)], headers=headers)
