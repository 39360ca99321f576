"""What a room keeps: there at once the next time, whole or made again, whatever happened to it."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from sfumato.apps.explorer import scan, shelf
from sfumato.apps.explorer.query import Query
from sfumato.apps.explorer.room import Room
from sfumato.apps.explorer.shelf import Shelf
from sfumato.data.decode import Encoded
from tests.apps.rooms import QUICK, drawing, folder_of, settled

N = 24


@pytest.fixture
def photos(tmp_path):
    return folder_of(tmp_path / "photos", {f"{i:02d}.png": drawing(i, (60, 40)) for i in range(N)})


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 4 pictures, so that a few make several."""
    for module in (scan, sys.modules["sfumato.apps.explorer.room"], sys.modules["sfumato.apps.explorer.work"]):
        monkeypatch.setattr(module, "PART", 4)


@pytest.fixture
def looked(monkeypatch):
    """How many pictures were decoded."""
    seen: list[Encoded] = []
    real = scan.look
    monkeypatch.setattr(scan, "look", lambda source: (seen.append(source), real(source))[1])
    return seen


def table_of(room):
    return room.page(Query(), 0, 100)["rows"], room.duplicates()["groups"], [room.thumbnail(i) for i in range(N)]


def test_the_second_time_nothing_is_decoded(photos, looked):
    with settled(photos) as room:
        first = table_of(room)
    assert len(looked) == N
    room = Room.open(photos, QUICK)
    assert room.progress()["ready"]["table"]  # before the work behind has begun
    room._thread.join()
    assert table_of(room) == first and len(looked) == N
    room.close()


def test_a_changed_picture_makes_another_room(photos, looked):
    with settled(photos):
        pass
    drawing(99, (60, 40)).save(photos / "03.png")
    with settled(photos) as room:
        assert len(looked) == 2 * N and room.changed() == []
        drawing(98, (61, 40)).save(photos / "04.png")
        assert [row["name"] for row in room.changed()] == ["04.png"]


def pieces(own_cache):
    return sorted(path for path in own_cache.rglob("*") if path.is_file() and path.name != "lock")


@pytest.mark.parametrize("how", ["cut", "flip", "empty", "gone", "garbage"])
def test_any_damage_is_mended(photos, own_cache, small_parts, how):
    """One file after the other, each kind of damage: the room is what it was."""
    with settled(photos) as room:
        expected = table_of(room)
    rng = np.random.default_rng(0)
    for path in pieces(own_cache):
        content = path.read_bytes()
        if how == "gone":
            path.unlink()
        elif how == "flip" and content:
            broken = bytearray(content)
            broken[int(rng.integers(len(broken)))] ^= 0xFF
            path.write_bytes(broken)
        else:
            path.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(how, rng.bytes(len(content))))
        with settled(photos) as room:
            assert table_of(room) == expected, path.name
            assert not room.progress()["errors"]


def test_a_piece_of_another_build_is_not_believed(own_cache):
    first, second = Shelf("one"), Shelf("two")
    first.put("piece", {"a": b"content"})
    assert first.get("piece")["a"].tobytes() == b"content" and second.get("piece") is None
    for path in first.folder.glob("piece*"):  # the index of one build beside the table of another
        (second.folder / path.name).write_bytes(path.read_bytes())
    assert second.get("piece") is None


def test_versions_of_the_format_are_builds(own_cache, monkeypatch):
    Shelf("one").put("piece", {"a": b"x"})
    monkeypatch.setattr(shelf, "VERSION", 2)
    assert Shelf("one").get("piece") is None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_disk_is_a_sentence_and_the_room_works(photos, monkeypatch, code):
    def full(path, content):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(shelf.files, "write_bytes", full)
    with settled(photos) as room:
        assert room.page(Query(), 0, 1)["total"] == N and len(room.thumbnail(3)[0]) > 100
        found = room.progress()
        assert found["errors"] == [] and "SFUMATO_CACHE" in found["notes"][0]


def test_without_a_cache_nothing_is_written(photos, own_cache):
    with settled(photos, cache=False) as room:
        assert room.page(Query(), 0, 1)["total"] == N
    assert pieces(own_cache) == []


def test_two_rooms_at_once(photos, small_parts, looked, monkeypatch):
    """The second waits for the first, shows what that one finds, and decodes nothing."""
    slow = scan.look
    monkeypatch.setattr(scan, "look", lambda source: (time.sleep(0.02), slow(source))[1])
    first = Room.open(photos, QUICK)
    while not first.work.parts:
        time.sleep(0.005)
    second = Room.open(photos, QUICK)
    assert second.page(Query(), 0, 1)["total"] == N
    for room in (first, second):
        room._thread.join(60)
    assert len(looked) == N
    assert table_of(first) == table_of(second)
    first.close()
    second.close()


CHILD = """
import sys, time
from sfumato.apps.explorer import scan, room, work
scan.PART = room.PART = work.PART = 4
real = scan.look
scan.look = lambda source: (time.sleep(0.01), real(source))[1]
opened = room.Room.open(sys.argv[1], room.Options(embed=False))
print("open", flush=True)
opened._thread.join()
print("done", flush=True)
"""


def test_kill_at_any_time_leaves_a_cache_that_is_gone_on_with(photos, small_parts, looked):
    with settled(photos, cache=False) as room:
        expected = table_of(room)
    looked.clear()
    for wait in (0.03, 0.1, 0.2):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(photos)], stdout=subprocess.PIPE, text=True)
        child.stdout.readline()
        time.sleep(wait)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    kept = len(list(Shelf(room.listed.fingerprint).folder.glob("part-*.json")))
    with settled(photos) as room:
        assert table_of(room) == expected
        assert len(looked) == N - 4 * kept


def test_seals_hold_no_path(photos, own_cache):
    """What is kept tells nothing of where it was."""
    with settled(photos):
        pass
    for path in pieces(own_cache):
        assert str(photos).encode() not in path.read_bytes()
        if path.suffix == ".json":
            assert json.loads(path.read_bytes())["build"]
