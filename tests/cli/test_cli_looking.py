"""The verbs that only look: papers, cite, inspect, data check, doctor."""

from __future__ import annotations

import hashlib
import json

import sfumato
from sfumato.cli.cite import bibtex
from sfumato.cli.doctor import extras, warnings_of
from sfumato.cli.papers import Entry, entries
from sfumato.cli.show import amount, duration, size
from sfumato.registry import papers


def test_papers_lists_every_paper_as_its_docstring_says(command):
    said = command("papers")
    assert [e.name for e in entries()] == list(papers())
    for e in entries():
        assert all(text and text in said.out for text in (e.name, e.title, e.year, e.arxiv))


def test_a_paper_in_full(command):
    said, found = command("papers", "ddpm"), sfumato.paper("ddpm")
    assert found.doc.strip() in said.out
    for name, preset in found.presets.items():
        assert f"  {name} " in said.out and preset.note in said.out and f"{preset.training.steps:,} steps" in said.out
    assert "network.widths" in said.out


def test_cite(command, run):
    by_name, by_run = command("cite", "ddpm"), command("cite", run)
    assert by_name == by_run and by_name.code == 0
    assert "@article{ho2020ddpm," in by_name.out and "Ho and Jain and Abbeel" in by_name.out
    assert "eprint = {2006.11239}" in by_name.out and by_name.out.count("{") == by_name.out.count("}")
    assert "eprint" not in bibtex(Entry("x", "T", "A, B", "2020", "", ""))


def test_inspect_run(command, run):
    said = command("inspect", run)
    digest = hashlib.sha256((run / "final" / "model.safetensors").read_bytes()).hexdigest()[:12]
    assert said.code == 0
    for text in (
        "ddpm, preset tiny",
        "1 x 16 x 16",
        "3: aster, rose, tulip",
        "40 steps of 16",
        "network.widths 16 16",
        digest,
        "step_00000040",
    ):
        assert text in said.out, text
    assert command("inspect", run / "final").code == 0 and digest in command("inspect", run / "final").out


def test_inspect_finds_a_flipped_bit(command, run, tmp_path):
    import shutil

    copy = shutil.copytree(run, tmp_path / "copy")
    file = copy / "checkpoints" / "step_00000040" / "optim.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    said = command("inspect", copy)
    assert said.code == 2 and "optim.safetensors is damaged" in said.out and said.out.count("whole (SHA-256") == 1


def test_inspect_file_and_picture(command, run, tmp_path, mistake):
    said = command("inspect", run / "final" / "model.safetensors")
    recipe = sfumato.load(run)
    count = sum(t.numel() for t in recipe.state_dict().values())
    assert (
        said.code == 0
        and f"{len(recipe.state_dict())} tensors, {count:,} numbers" in said.out
        and "16 x 16 x 3 x 3" in said.out
    )
    assert command("inspect", run / "final" / "model.safetensors", "--all").out.count("F32") == len(recipe.state_dict())
    assert command("sample", run, "--n", 2, "--steps", 3, "--out", tmp_path, "--guidance", 2).code == 0
    said = command("inspect", tmp_path / "seed_00000001.png")
    assert said.code == 0 and all(text in said.out for text in ("ddpm-tiny", "guidance", "seeds 0 to 1", "rose"))
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 64)
    assert "no whole .safetensors" in mistake("inspect", tmp_path / "x.safetensors")


def test_data_check(command, photos):
    said = command("data", "check", photos, "--labels", "folder")
    assert said.code == 0 and "120 pictures" in said.out and "rose" in said.out and "16 x 16, 1 channel" in said.out
    told = json.loads(command("data", "check", photos, "--labels", "folder", "--json").out)
    assert told["pictures"] == 120 and sum(told["classes"].values()) == 120 and told["sizes"] == {"16x16": 120}


def test_doctor(command):
    said = command("doctor")
    assert said.code == 0
    for text in (sfumato.__version__, "python", "torch", "cpu ", "ms with 1", "bf16", "cache", "free here"):
        assert text in said.out, text
    assert all(f"[{extra}]" in said.out for extra in extras())


def test_doctor_weighs_every_cache(command, tmp_path, monkeypatch):
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path))
    for kind in ("evaluation", "rooms"):
        (tmp_path / kind / "deep").mkdir(parents=True)
        (tmp_path / kind / "deep" / "file").write_bytes(bytes(3_000_000))
    said = command("doctor").out
    assert "evaluation 3.0 MB, rooms 3.0 MB" in said.replace("3 MB", "3.0 MB") and "data 0" not in said


def test_doctor_warns():
    assert not warnings_of(("2.13.0+cpu", False), None, 10**12)
    assert "torchvision" in warnings_of(("2.13.0+cpu", False), "0.28.0", 10**12)[0]
    assert not warnings_of(("2.13.0+cpu", False), "0.28.0+cpu", 10**12)
    assert not warnings_of(("2.13.0", True), "0.28.0", 10**12)
    assert "disk" in warnings_of(("2.13.0", True), None, 10**9)[0]


def test_words_for_numbers():
    assert [duration(s) for s in (0.2, 45, 60, 200, 3600, 9000, 86400, 400000)] == [
        "under a second",
        "45 s",
        "1 min",
        "3.3 min",
        "1 h",
        "2.5 h",
        "24 h",
        "4.6 days",
    ]
    assert [size(n) for n in (12, 1500, 2e6, 1.4e9, 83.1e9)] == ["12 bytes", "1.5 kB", "2.0 MB", "1.4 GB", "83.1 GB"]
    assert [amount(1, "class"), amount(10, "class"), amount(1797, "picture")] == [
        "1 class",
        "10 classes",
        "1,797 pictures",
    ]
