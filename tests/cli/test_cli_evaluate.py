"""`sfumato evaluate`: what it prints, what it keeps, and a sentence for what cannot be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.cli import evaluate
from sfumato.metrics.receipt import Receipt

ROOT = Path(__file__).parents[2]
QUICK = ("--sampler", "ddim", "--steps", "2", "--n", "6")


@pytest.fixture(scope="module")
def sets(place):
    """a/ and b/ of 24 pictures of equal names, b brighter; c/ of three sizes and another name."""
    rng = np.random.RandomState(0)
    for i in range(24):
        x = rng.randint(0, 200, (24, 24, 3)).astype(np.uint8)
        for name, picture in (("a", x), ("b", x + 40), ("c", x[: 16 + i % 3 * 4])):
            (place / name).mkdir(exist_ok=True)
            Image.fromarray(picture).save(place / name / f"{i:02d}.png")
    os.rename(place / "c" / "00.png", place / "c" / "other.png")
    return place / "a", place / "b", place / "c"


def test_two_folders(sets, command):
    a, b, _ = sets
    said = command("evaluate", a, b, "--metrics", "fid", "kid", "ssim", "psnr", "--out", a.parent / "ab.json")
    assert said.code == 0, said
    for words in ("Frechet distance (lite0@64)", "at infinite n", "KID (lite0@64)", "SSIM", "PSNR, dB", "as many real"):
        assert words in said.out, words
    assert "FID" not in said.out and "features   lite0@64 (scaled, 232 features, clean, " in said.out
    assert "a: 24, 24 x 24, colour" in said.out and "Frechet distance (lite0@64): n = 24 " in said.out
    assert "note: 24 pairs of equal names" in said.err and f"receipt  {a.parent / 'ab.json'}" in said.out
    receipt = Receipt.read(a.parent / "ab.json")
    psnr = next(figure for figure in receipt.figures if figure.metric == "psnr")
    assert psnr.value == pytest.approx(20 * np.log10(255 / 40), rel=1e-6) and psnr.n == 24
    assert str(a.parent) not in (a.parent / "ab.json").read_text() and receipt.samples["name"] == "a"


def test_a_folder_against_itself(sets, command):
    a, _, _ = sets
    said = command("evaluate", a, a, "--metrics", "fid,psnr", "--json")
    figures = {figure["metric"]: figure for figure in json.loads(said.out)["figures"]}
    assert abs(figures["fid"]["value"]) < 1e-4 and "24 of 24 pictures are in the reference" in figures["fid"]["warning"]
    assert figures["psnr"]["value"] is None and figures["psnr"]["warning"] == "All are equal."


def test_sizes_names_and_numbers_that_differ_are_told(sets, command):
    a, _, c = sets
    said = command("evaluate", a, c, "--metrics", "ssim", "--n", "1000")
    assert said.code == 0, said
    assert "both are read at" in said.err and "holds pictures of 3 sizes: all are read at" in said.err
    assert "holds 24 pictures, fewer than --n 1,000: all are taken" in said.err
    assert "note: 23 pairs of equal names" in said.err and f"without a partner in {c}: other.png" in said.err


def test_a_run(run, photos, command, place):
    classes = ("--labels", "folder", "--classes", "data", "--guidance", "1.5")
    said = command("evaluate", run, photos, *QUICK, "--metrics", "fid", "pr", *classes)
    assert said.code == 0, said
    assert "ddpm" in said.out and "averaged weights: 6 pictures" in said.out and "ddim in 2 steps" in said.out
    assert "guidance 1.5" in said.out and "classes as in the data: aster " in said.out
    receipt = Receipt.read(next((run / "evaluation").glob("*.json")))
    assert receipt.samples["steps"] == 2 and receipt.samples["seed"] == 0 and receipt.reference["size"] == 120
    assert receipt.samples["calls"] >= 2 and receipt.cost["training"]["steps"] == 40
    assert str(place) not in (run / "evaluation").glob("*.json").__next__().read_text()
    assert {figure.metric for figure in receipt.figures} == {"fid", "fid.infinity", "pr.precision", "pr.recall"}


def test_stopped_it_says_how_to_go_on(run, photos, command, monkeypatch):
    """At the second look at samples; then the same command finishes, and is not stopped again."""
    whole = evaluate.Shown.__call__

    def stop(self, what, done, total):
        whole(self, what, done, total)
        if what == "looking at samples" and done >= 2:
            raise KeyboardInterrupt

    words = ("evaluate", run, photos, *QUICK, "--batch", "2", "--seed", "5", "--metrics", "kid")
    with monkeypatch.context() as patched:
        patched.setattr(evaluate.Shown, "__call__", stop)
        said = command(*words)
    assert said.code == 130 and "stopped while looking at samples at 2 of 6 pictures. What is done is kept" in said.err
    assert command(*words).code == 0


def test_mistakes_are_sentences(run, photos, sets, mistake, tmp_path):
    a, b, _ = sets
    (tmp_path / "one").mkdir()
    single = np.random.RandomState(1).randint(0, 255, (24, 24, 3)).astype(np.uint8)
    Image.fromarray(single).save(tmp_path / "one" / "x.png")
    np.savez(tmp_path / "stats.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    cases = [
        ((), "needs two sets"),
        ((a,), "needs two sets"),
        ((a, b, "--metrics", "vend"), "no metric 'vend': did you mean 'vendi'?"),
        (("--metrics", "fid", a, b), "needs two sets"),
        ((a, b, "--metrics", "fid", "--steps", "4"), "--steps is for runs"),
        ((a, tmp_path / "absent"), "there is no folder or file"),
        ((a, run), "is a run, and no reference"),
        ((tmp_path / "one", b), "one picture has none"),
        ((a, b, "--metrics", "lpips"), "lpips needs the weights of its trunk"),
        ((a, b, "--metrics", "lpips", "--lpips", "alex:absent.pth"), "no weights file absent.pth"),
        ((a, b, "--metrics", "clip"), "clip needs a CLIP on this machine"),
        ((a, b, "--metrics", "clip", "--clip", tmp_path), "is not the folder of a CLIP"),
        ((a, b, "--metrics", "fvd"), "fvd compares two .npz files"),
        ((a, b, "--metrics", "fid", "fvd"), "ask for fvd alone"),
        ((a, b, "--features", "inception:absent.pth"), "no weights file absent.pth"),
        ((a, b, "--features", "lit0"), "--features lit0 is none of lite0"),
        ((a, b, "--metrics", "sfid"), "sfid needs spatial features"),
        ((a, tmp_path / "stats.npz", "--metrics", "fid"), "Features of 232 and of 2048 numbers"),
        ((tmp_path / "stats.npz", a), "can be a reference only"),
        ((a, b, "--out", "x.txt"), "must be a file that ends in .json"),
        ((run, photos, "--metrics", "ssim"), "a run's samples have no partner"),
        ((run, photos, "--metrics", "fvd"), "fvd of a run waits"),
        ((run, photos, "--size", "8"), "--size is for two sets"),
        ((run, photos, "--label", "ros"), "this run knows no class 'ros': did you mean 'rose'?"),
        ((run, photos, "--sampler", "dpm"), "there is no sampler 'dpm'"),
        ((run, photos, "--n", "0"), "--n is 0"),
        ((run, photos, "--labels", "none", "--classes", "data"), "the reference has no classes to count"),
    ]
    for words, sentence in cases:
        assert sentence in mistake("evaluate", *words), words


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(run, photos, command, tmp_path):
    words = ("evaluate", run, photos, *QUICK, "--metrics", "fid", "kid", "vendi", "--no-cache")
    assert command(*words, "--out", tmp_path / "one.json").code == 0
    start = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29571", "-m", "--")
    done = subprocess.run(
        [*start, "sfumato", *map(str, words), "--batch", "2", "--out", str(tmp_path / "two.json")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    one, two = (Receipt.read(tmp_path / f"{name}.json").figures for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert a.metric == b.metric and b.value == pytest.approx(a.value, rel=1e-6)
