"""A folder of 1,000 with every kind of file that is no picture: the good are trained on, the bad are named."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch

from sfumato.cli.main import main
from sfumato.data import DataError, DataOptions, open_data
from sfumato.data.sources import dataset, listing
from tests.data.apart import apart
from tests.data.hostile import Planted, encode, picture, plant, strange_files

SMALL = DataOptions(size=16)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Planted:
    return plant(tmp_path_factory.mktemp("hostile") / "folder", 1000)


@pytest.fixture
def command(capsys):
    """What a command wrote, which must be plain text, and its exit code."""

    def call(*words: object) -> tuple[int, str, str]:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        code = main([str(word) for word in words])
        torch.set_num_threads(before)
        said = capsys.readouterr()
        assert plain(said.out) and plain(said.err.replace("\r", "\n"))
        return code, said.out, said.err

    return call


def plain(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def save(path: Path, side: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(picture(side), "PNG"))
    return path


def test_the_good_are_held_and_the_bad_are_listed(planted):
    data = open_data(planted.root, SMALL)
    assert set(data.names) == planted.good and len(data) == len(planted.good) >= 960
    assert [entry.name for entry in data.skipped if entry.name not in planted.bad] == []
    assert len(data.skipped) == len(planted.bad) == (40 if os.geteuid() else 36), "each once"
    assert {entry.name for entry in data.skipped} == planted.bad
    assert all(plain(name) for name in data.names) and all(plain(a) and plain(b) and b for a, b in data.skipped)
    assert data.batch(range(len(data)))["image"].isfinite().all() and data.changes() == ()
    again = open_data(planted.root, SMALL)  # from the cache
    assert again.names == data.names and again.skipped == data.skipped and (again.images == data.images).all()


def test_strict_names_them_all(planted):
    with pytest.raises(DataError) as refusal:
        open_data(planted.root, DataOptions(size=16, strict=True))
    assert plain(str(refusal.value)) and f"{len(planted.bad)} pictures cannot be used" in str(refusal.value)
    assert all(f"{name} (" in str(refusal.value) for name in planted.bad)


def test_data_check_finds_exactly_them(planted, command):
    code, out, _ = command("data", "check", planted.root, "--json")
    report = json.loads(out)
    assert code == 0 and report["pictures"] == len(planted.good)
    assert sorted(entry["name"] for entry in report["skipped"]) == sorted(planted.bad)
    assert {(entry["name"], entry["reason"]) for entry in report["skipped"]} == set(open_data(planted.root).skipped)
    code, out, _ = command("data", "check", planted.root)
    assert code == 0 and all(f"    {name}: " in out for name in planted.bad)


def test_training_takes_the_good(planted, command, tmp_path):
    words = ("--preset", "tiny", "--steps", 2, "--size", 16, "--batch", 16, "--sample-every", 0, "--precision", "fp32")
    code, _, err = command("train", "ddpm", planted.root, "--out", tmp_path / "run", "--strict", *words)
    assert code == 2 and f"{len(planted.bad)} pictures cannot be used" in err and len(err.splitlines()) == 1
    assert "a.JPEG (is a folder" in err and "zero.tiff (empty file)" in err and "data check" in err
    assert not (tmp_path / "run").exists()
    code, out, err = command("train", "ddpm", planted.root, "--out", tmp_path / "run", *words)
    assert code == 0 and f"{len(planted.bad)} pictures skipped, as " in out
    train, held = open_data(planted.root, SMALL).split(0.02, 0)
    assert f"{len(train)} pictures of 16 x 16" in out and f"{len(held)} held out" in out
    (state,) = (tmp_path / "run" / "checkpoints").glob("step_*/state.json")
    assert f'"data":[{len(train)},' in "".join(state.read_text().split())
    assert len(train) + len(held) == len(planted.good)


def test_no_size_is_believed(tmp_path):
    """Peak memory above the imports, with headers of 40,000 x 40,000 (4.8 GB decoded) in four formats."""
    root = tmp_path / "strange"
    root.mkdir()
    for name, data in strange_files().items():
        (root / name).write_bytes(data)
    save(root / "good.png")
    ended = apart("said = tried(sys.argv[1])", root)
    assert ended.said["names"] == ["good.png"] and len(ended.said["skipped"]) == 24
    assert ended.megabytes < 60, ended.megabytes
    assert plain(ended.err)


def test_what_others_may_not_read(tmp_path):
    """Permissions, as an ordinary user: root would read everything."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "photos"
        for name in ("a.png", "b.png", "c/d.png", "e.png/f.png"):
            save(root / name)
        Path(folder).chmod(0o755)
        for name in ("b.png", "c", "e.png"):
            (root / name).chmod(0)
        code = (
            "root = not os.geteuid()\n"
            "if root: assert len(tried(sys.argv[1], cache=False)['names']) == 4; become(65534)\n"
            "said.append(tried(sys.argv[1], cache=False))\n"
            "if root: os.seteuid(0)\n"
            "os.chmod(sys.argv[1], 0)\n"
            "if root: become(65534)\n"
            "said.append(tried(sys.argv[1], cache=False))\n"
        )
        some, none = apart(code, root).said
        for path in (root, root / "b.png", root / "c", root / "e.png"):
            path.chmod(0o755)
    assert some["names"] == ["a.png"]
    assert some["skipped"] == [[name, "cannot be read (permission denied)"] for name in ("c", "e.png", "b.png")]
    assert "cannot be read (permission denied)" in none["error"]


def test_pipes_in_every_place(tmp_path):
    """A FIFO that is opened to read waits for ever: as metadata, as a caption, and put there after the listing."""
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    for name in ("a.txt", "metadata.csv", "metadata.jsonl"):
        os.mkfifo(tmp_path / name)
    data = open_data(tmp_path, SMALL)
    assert data.captions == ["", ""] and data.names == ("a.png", "b.png")
    assert data.skipped == tuple((name, "is not a regular file") for name in ("metadata.csv", "metadata.jsonl"))
    found = listing(tmp_path, SMALL)
    (tmp_path / "b.png").unlink()
    os.mkfifo(tmp_path / "b.png")
    late = dataset(found, DataOptions(size=16, cache=False))
    assert late.names == ("a.png",) and ("b.png", "not a regular file") in late.skipped


def test_trees_of_any_depth(tmp_path):
    """Deeper than Python recurses, with links to itself."""
    home = os.getcwd()
    os.chdir(tmp_path)
    top = save(tmp_path / "top.png")
    try:
        for _ in range(1100):
            os.mkdir("d")
            os.chdir("d")
        os.symlink(tmp_path, "back.png")
        os.link(top, "deep.png")
        data = open_data(tmp_path, SMALL)
    finally:
        os.chdir(tmp_path)
        subprocess.run(["rm", "-rf", "d"], check=True)
        os.chdir(home)
    assert len(data) == 2 and data.names[1] == "top.png" and data.names[0].endswith("/d/deep.png")
    assert [reason for _, reason in data.skipped] == ["is a link to a folder that was read already"]


def test_folders_called_like_pictures(tmp_path):
    save(tmp_path / "album.jpg" / "a.png")
    (tmp_path / "empty.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to(tmp_path)
    data = open_data(tmp_path, SMALL)
    assert data.names == ("album.jpg/a.png",)
    assert dict(data.skipped) == {
        "empty.jpg": "is a folder, not a picture",
        "loop.jpg": "is a link to a folder that was read already",
    }


def test_metadata_that_lies(tmp_path):
    save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "p.png")
    names = ["a.png", "p.png", "q.png", "q.png", "../../etc/passwd", "\ud800\x1b[2J.png", None]
    rows = [{"file_name": name, "label": "\x1b[31mred", "text": "\x1b[2J left"} for name in names]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = open_data(tmp_path, SMALL)
    assert data.classes == ("\\x1b[31mred",) and all(map(plain, data.notes)) and data.notes
    lost = "is named in metadata.jsonl but is not there"
    assert dict(data.skipped) == {
        "p.png": "is not a regular file",
        **dict.fromkeys(("q.png", "../../etc/passwd", "\\ud800\\x1b[2J.png", "None"), lost),
    }
    assert len(data.skipped) == 5


@pytest.mark.parametrize(
    "name, text, match",
    [
        ("metadata.csv", "file_name,text\na.png,a fox, running\n", "line 2 has more values than there are columns"),
        ("metadata.csv", 'file_name,text\na.png,"a fox\n', "cannot be read"),
        ("metadata.jsonl", '{"file_name": "' + "x" * (1 << 20) + '"}', "line 1: is longer than 1,048,576 characters"),
        ("metadata.csv", "file_name,text\n" + "x" * (1 << 21), "line 2: is longer than"),
        ("metadata.parquet", "PAR1\x1b[31mPAR1", "cannot be read"),
        ("metadata.jsonl", '{"file_name": "a.png", \x1b[31m}', "line 1: is not JSON"),
    ],
)
def test_metadata_that_is_refused(tmp_path, name, text, match):
    save(tmp_path / "a.png")
    (tmp_path / name).write_text(text)
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=match) as refusal:
        open_data(tmp_path, SMALL)
    assert plain(str(refusal.value))
