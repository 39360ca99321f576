"""`sfumato data explore`: a server that begins, answers and ends as it says; mistakes are sentences."""

from __future__ import annotations

import http.client
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

for package in ("duckdb", "faiss", "fastapi", "uvicorn", "pyarrow"):
    pytest.importorskip(package)

ROOT = Path(__file__).parent.parent.parent
ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)/\?key=(\S+)")


def started(place: Path, *words: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "BROWSER": "nothing-of-that-name"}
    environment["SFUMATO_CACHE"] = str(place / "cache")
    command = [sys.executable, "-m", "sfumato", "data", "explore", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def room(place: Path, photos: Path) -> Iterator[tuple[subprocess.Popen[str], int, str, list[str]]]:
    """A room whose port was taken: the process, its port and key, and what it said."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = started(place, photos, "--labels", "folder", "--port", taken.getsockname()[1], "--no-open")
        said = []
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if "Ctrl-C" in line:
                break
        found = ADDRESS.search("".join(said))
        assert found, (said, process.stderr and process.stderr.read())
        yield process, int(found[1]), found[2], said
        process.kill()
        process.communicate()


def get(port: int, path: str, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def test_it_says_where_it_is_and_answers_there(room, photos):
    process, port, key, said = room
    assert process.poll() is None
    assert re.search(rf"port \d+ is taken: this room has {port}\.", "".join(said))
    assert photos.name in "".join(said) and str(photos.parent) not in "".join(said)
    cookie = f"sfumato-{port}={key}"
    status, content = get(port, "/api/session", Cookie=cookie)
    assert status == 200 and json.loads(content)["name"] == photos.name
    assert get(port, "/api/session")[0] == 403
    assert get(port, "/api/session", Cookie=cookie, Host="evil.example")[0] == 403
    with socket.socket() as elsewhere:  # other addresses of this machine are not listened to
        elsewhere.settimeout(2)
        assert elsewhere.connect_ex(("127.0.0.2", port)) != 0


def test_ctrl_c_ends_it_with_one_line(room):
    """Runs last of this room."""
    process = room[0]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == ""
    assert out.strip().splitlines() == ["the data room is closed; what it computed is kept for the next time."]


MISTAKES = [
    ([], "data explore photos/"),
    (["NOWHERE"], "give a folder of pictures"),
    (["PHOTOS", "--prot", "80"], "did you mean '--port'?"),
    (["PHOTOS", "--port", "99999"], "65,535"),
    (["PHOTOS", "--run", "NOWHERE"], "give the folder of a run"),
]


@pytest.mark.parametrize(("words", "hint"), MISTAKES, ids=[" ".join(words) or "nothing" for words, _ in MISTAKES])
def test_mistakes_are_sentences(mistake, photos, place, words, hint):
    known = {"PHOTOS": str(photos), "NOWHERE": str(place / "nowhere")}
    assert hint in mistake("data", "explore", *(known.get(word, word) for word in words))


@pytest.mark.parametrize("missing", ["duckdb", "faiss", "fastapi", "uvicorn"])
def test_a_missing_package_is_named_with_the_command_that_brings_it(mistake, photos, monkeypatch, missing):
    whole = importlib.import_module

    def without(name: str, package: str | None = None) -> Any:
        if name.split(".")[0] == missing:
            raise ImportError(name)
        return whole(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    assert 'pip install "sfumato[explore]"' in mistake("data", "explore", photos)


def test_the_help_names_both_verbs(command):
    said = command("data", "--help")
    assert said.code == 0 and "data check DATA" in said.out and "data explore DATA" in said.out
    assert {"--run", "--clip", "--text", "--port", "--no-open", "--strict"} <= set(said.out.split())
