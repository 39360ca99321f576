"""What users get wrong: one sentence that says what to do, exit code 2."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

TRAINING = [
    (["train"], "train ddpm photos/"),
    (["train", "ddpm"], "Give data"),
    (["train", "ddmp", "PHOTOS"], "did you mean 'ddpm'?"),
    (["train", "zzz", "PHOTOS"], "`sfumato papers`"),
    (["train", "ddpm", "PHOTOS", "--sise", "8"], "did you mean '--size'?"),
    (["train", "ddpm", "PHOTOS", "--config.network.widhts", "8"], "did you mean '--config.network.widths'?"),
    (["train", "ddpm", "PHOTOS", "--training.clp", "8"], "did you mean '--training.clip'?"),
    (["train", "ddpm", "PHOTOS", "extra"], "--help"),
    (["train", "ddpm", "PHOTOS", "--preset", "tinny"], "did you mean 'tiny'?"),
    (["train", "ddpm", "PHOTOS", "--size", "0"], "from 1 to 8192"),
    (["train", "ddpm", "PHOTOS", "--size=-4"], "from 1 to 8192"),
    (["train", "ddpm", "PHOTOS", "--size", "4x100000"], "from 1 to 8192"),
    (["train", "ddpm", "PHOTOS", "--size", "big"], "as 64 or 96x64"),
    (["train", "ddpm", "PHOTOS", "--steps", "0"], "at least 1"),
    (["train", "ddpm", "PHOTOS", "--steps", "ten"], "--steps N"),
    (["train", "ddpm", "PHOTOS", "--steps"], "needs a value"),
    (["train", "ddpm", "PHOTOS", "--lr", "0"], "greater than 0"),
    (["train", "ddpm", "PHOTOS", "--batch", "0"], "from 1 on, or auto"),
    (["train", "ddpm", "PHOTOS", "--batch", "many"], "from 1 on, or auto"),
    (["train", "ddpm", "PHOTOS", "--precision", "fp16"], "fp32, bf16"),
    (["train", "ddpm", "PHOTOS", "--device", "abacus"], "cuda"),
    (["train", "ddpm", "PHOTOS", "--holdout", "2"], "between 0 and 1"),
    (["train", "ddpm", "PHOTOS", "--labels", "foldr"], "folder"),
    (["train", "classifier_free", "PHOTOS", "--labels", "none"], "these pictures have no labels: give --labels folder"),
    (["train", "ddpm", "PHOTOS", "--config.predict", "w"], "eps, x0, v"),
    (["train", "ddpm", "PHOTOS", "--config.shape", "3", "8", "8"], "--size"),
    (["train", "ddpm", "PHOTOS", "--config.T", "0"], "at least 1"),
    (["train", "ddpm", "PHOTOS", "--config.network.widths=-4"], "--config.FIELD"),
    (["train", "ddpm", "PHOTOS", "--report-to", "paper"], "tensorboard"),
    (["train", "ddpm", "NOWHERE"], "give a folder of pictures"),
    (["train", "--resume", "NOWHERE"], "give the folder of a run"),
    (["train", "--resume", "PHOTOS"], "sfumato train PAPER DATA"),
    (["train", "ddpm", "PHOTOS", "--from", "NOWHERE"], "give the folder of a run"),
    (["train", "foo", "PHOTOS", "--out", "ddpm"], "no paper called 'foo'"),
    (["train", "--out", "ddpm"], "train ddpm photos/"),
    (["data"], None),
    (["data", "chek", "PHOTOS"], "data check"),
    (["data", "check"], "data check photos/"),
    (["data", "check", "NOWHERE"], "give a folder of pictures"),
    (["papers", "ddpmm"], "did you mean 'ddpm'?"),
    (["cite"], "sfumato cite ddpm"),
    (["cite", "dim"], "did you mean 'ddim'?"),
    (["inspect"], "PNG"),
    (["inspect", "NOWHERE"], "give a run"),
    (["inspect", "nowhere.png"], "no file or folder 'nowhere.png'"),
    (["demo", "--word", "a b"], "--word"),
    (["demo", "--wrod", "ab"], "did you mean '--word'?"),
    (["sample"], "runs/NAME"),
    (["sample", "NOWHERE"], "give the folder of a run"),
]


@pytest.mark.parametrize(
    ("words", "advice"),
    [case for case in TRAINING if case[1]],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes(words, advice, place, photos, mistake, monkeypatch):
    monkeypatch.chdir(place)
    named = {"PHOTOS": str(photos), "NOWHERE": "nowhere"}
    assert advice in mistake(*(named.get(word, word) for word in words))
    assert not (place / "runs" / "ddpm-canary-photos").exists()  # nothing is left behind


SAMPLING = [
    (["--n", "0"], "at least 1"),
    (["--n", "-3"], "at least 1"),
    (["--steps", "0"], "at least 1"),
    (["--seed", "-1"], "at least 0"),
    (["--label", "rosé"], "did you mean 'rose'?"),
    (["--label", "oak"], "aster, rose, tulip"),
    (["--eta", "0.5"], "--sampler ddim"),
    (["--sampler", "ddim", "--eta", "3"], "from 0"),
    (["--sampler", "dimm"], "did you mean 'ddim'?"),
    (["--size", "0"], "from 1 to 8192"),
    (["--spacing", "leading"], "has none: use uniform"),
    (["--guidance", "nan"], "1 is off"),
    (["--like", "nowhere.png"], 'sfumato: No such file: "nowhere.png"'),
]


@pytest.mark.parametrize(
    ("words", "advice"), SAMPLING, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_mistakes_of_sampling(words, advice, place, run, mistake, monkeypatch):
    monkeypatch.chdir(place)
    assert advice in mistake("sample", run, *words)
    assert not (run / "pictures").exists()


def test_labels_and_guidance_need_classes(plain, mistake):
    assert "--labels folder" in mistake("sample", plain, "--guidance", "2")
    assert "--labels folder" in mistake("sample", plain, "--label", "rose")


def test_more_steps_than_a_table_has(plain, mistake):
    assert "at most 50 steps" in mistake("sample", plain, "--spacing", "leading", "--steps", "51")


def test_empty_folders_and_folders_without_pictures(tmp_path, mistake):
    assert "no pictures" in mistake("train", "ddpm", tmp_path)
    (tmp_path / "notes.txt").write_text("none here")
    assert "no pictures" in mistake("train", "ddpm", tmp_path)


def test_unreadable_pictures(tmp_path, photos, mistake, command):
    (tmp_path / "a.png").write_bytes(b"no picture at all")
    assert "none of 1 picture could be used" in mistake("train", "ddpm", tmp_path)
    for picture in sorted(photos.glob("rose/*.png"))[:5]:
        shutil.copy(picture, tmp_path)
    assert "a.png" in mistake("train", "ddpm", tmp_path, "--strict")
    checked = command("data", "check", tmp_path)
    assert checked.code == 0 and "a.png" in checked.out and "5 pictures" in checked.out


def test_a_run_is_not_overwritten(run, photos, mistake):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert f"--resume {run}" in mistake("train", "ddpm", photos, "--out", run)
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_out_must_be_a_folder_that_can_be_made(place, photos, run, mistake):
    picture = next(photos.rglob("*.png"))
    assert "give a folder" in mistake("train", "ddpm", photos, "--out", picture)
    assert "give a folder" in mistake("sample", run, "--n", "1", "--out", picture)
    assert "give a folder" in mistake("sample", run, "--n", "1", "--out", picture / "below")
    if sys.platform == "linux":
        assert "--out" in mistake("sample", run, "--n", "1", "--out", "/proc/sfumato")
        assert "--out" in mistake("train", "ddpm", photos, "--out", "/proc/sfumato", "--size", "8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(run, photos, mistake):
    assert "--device cpu" in mistake("train", "ddpm", photos, "--device", "cuda")
    assert "--device cpu" in mistake("sample", run, "--device", "cuda:1")


def test_what_a_run_keeps_for_life(run, photos, mistake):
    for words in (["ddpm", photos], ["--preset", "tiny"], ["--size", "8"], ["--flip", "auto"], ["--seed", "4"]):
        assert "--from" in mistake("train", "--resume", run, *words)
    assert "--from" in mistake("train", "--resume", run, "--out", "x")
    assert "batch" in mistake("train", "--resume", run, "--batch", "8", "--steps", "41")
    assert "done 40 steps" in mistake("train", "--resume", run, "--steps", "10")


def damaged(run: Path, copy: Path, file: str, content: bytes | None) -> Path:
    shutil.copytree(run, copy)
    (copy / file).unlink() if content is None else (copy / file).write_bytes(content)
    return copy


@pytest.mark.parametrize("file", ["final/model.safetensors", "final/manifest.json", "final/config.yaml"])
@pytest.mark.parametrize("content", [None, b"", b"\x00" * 100])
def test_damaged_models(file, content, run, tmp_path, mistake, command):
    copy = damaged(run, tmp_path / "copy", file, content)
    assert "step_00000040" in mistake("sample", copy, "--n", "1")  # says which checkpoint is whole
    assert command("inspect", copy).code == 2
    assert (
        command(
            "sample", copy / "checkpoints" / "step_00000040", "--n", 1, "--steps", 2, "--out", tmp_path / "out"
        ).code
        == 0
    )


@pytest.mark.parametrize("file", ["config.yaml", "run.yaml"])
@pytest.mark.parametrize("content", [None, b"", b"[1, 2", b"paper: ddpm\n", b"\xff\xfe\x00", b"a: &a [*a, *a]\n"])
def test_damaged_descriptions(file, content, run, tmp_path, mistake):
    copy = damaged(run, tmp_path / "copy", file, content)
    mistake("train", "--resume", copy, "--steps", "41")
    if file == "config.yaml":
        mistake("sample", copy, "--n", "1")
        mistake("inspect", copy)
        mistake("cite", copy)


def test_a_model_of_an_unknown_paper(run, tmp_path, mistake):
    text = (run / "config.yaml").read_text()
    copy = damaged(run, tmp_path / "copy", "config.yaml", text.replace("paper: ddpm", "paper: ddqm").encode())
    assert "ddqm" in mistake("train", "--resume", copy) and "update sfumato" in mistake("cite", copy)


def test_data_that_has_moved(photos, tmp_path, mistake, command):
    data = shutil.copytree(photos / "rose", tmp_path / "data")
    words = [
        "--steps",
        "1",
        "--out",
        tmp_path / "run",
        "--config.network.widths",
        "8",
        "--batch",
        "4",
        "--sample-every",
        "0",
    ]
    assert command("train", "ddpm", data, *words).code == 0
    shutil.move(data, tmp_path / "elsewhere")
    assert "run.yaml" in mistake("train", "--resume", tmp_path / "run", "--steps", "2")


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["--sampler", "sscs"], "use"),
        (["--sampler", "pndm"], "use auto, lms or unipc"),
        (["--sampler", "unipcc"], "did you mean 'unipc'?"),
    ],
)
def test_samplers_that_cannot_walk_a_run(words, advice, run, mistake):
    """Refused before the network is asked, and with the name of one that can."""
    assert advice in mistake("sample", run, *words)


def test_mistakes_of_bench(run, mistake, tmp_path):
    assert "did you mean 'heun'?" in mistake("bench", "samplers", run, "--samplers", "heunn")
    assert "sfumato bench samplers RUN" in mistake("bench", "sampling", run)
    assert "at least 1" in mistake("bench", "samplers", run, "--calls", "0")
