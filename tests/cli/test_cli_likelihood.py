"""`sfumato likelihood`: numbers, tables, the strip, interruption, mistakes."""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import sfumato
from sfumato.cli.main import main
from sfumato.core import guidance, losses
from sfumato.core.likelihood import density, dequantised, mean_of, rademacher
from sfumato.core.posterior import small
from sfumato.core.random import Seeds, key
from sfumato.engine import files

ROOT = Path(__file__).parent.parent.parent
FAST = ("--rtol", 0.05, "--threads", 1)


def table(path):
    with path.open(newline="", encoding="utf8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def measured(run, photos, place):
    """Both numbers of twelve pictures of a run that knows classes."""
    out = place / "measured"
    words = ("--labels", "folder", "--n", 12, "--method", "both", "--probes", 2, "--steps", 12, "--strangest", 5)
    assert main([str(word) for word in ("likelihood", run, photos, *words, "--out", out, *FAST)]) == 0
    return out


def test_numbers_of_all_pictures_strangest_first(measured):
    rows = table(measured / "images.csv")
    assert len(rows) == 12 and list(rows[0]) == ["name", "label", "ode", "ode_probe_error", "bound", "bound_decoder"]
    values = [float(row["ode"]) for row in rows]
    assert values == sorted(values, reverse=True) and all(math.isfinite(value) for value in values)
    assert {row["label"] for row in rows} <= {"aster", "rose", "tulip"}
    assert all(row["name"].startswith(row["label"]) for row in rows), "sub-folders are classes"
    assert sorted(path.name for path in measured.iterdir()) == ["images.csv", "steps.csv", "strangest.png"]


def test_bound_of_each_step(measured):
    with (measured / "steps.csv").open(newline="", encoding="utf8") as file:
        head, prior, *steps = csv.reader(file)
    assert head == ["t", "bits", "x0_error", "eps_error"] and prior[0] == "prior"
    assert [float(row[0]) for row in steps] == pytest.approx([1 - i / 12 for i in range(12)], abs=1e-6)
    total = float(prior[1]) + sum(float(row[1]) for row in steps)
    assert total == pytest.approx(np.mean([float(row["bound"]) for row in table(measured / "images.csv")]), abs=1e-5)
    assert float(steps[-1][1]) == pytest.approx(
        np.mean([float(row["bound_decoder"]) for row in table(measured / "images.csv")]), abs=1e-5
    )


def test_the_strip_shows_the_strangest_above_the_most_ordinary(measured, photos):
    rows = table(measured / "images.csv")
    shown = Image.open(measured / "strangest.png")
    assert shown.mode == "L" and not shown.text
    factor = max(1, 640 // (5 * 18 - 2))
    sheet = np.asarray(shown)[::factor, ::factor]
    assert sheet.shape == (2 * 18 - 2, 5 * 18 - 2)
    for y, names in ((0, rows[:5]), (18, rows[:-6:-1])):
        for x, row in enumerate(names):
            real = np.asarray(Image.open(photos / row["name"]).convert("L"))
            assert np.array_equal(sheet[y : y + 16, 18 * x : 18 * x + 16], real), row


def test_the_numbers_are_those_of_the_mathematics(run, photos, measured):
    """Recomputed for one picture from the library: its class, its noise by its name, the run's own chain."""
    row = table(measured / "images.csv")[3]
    recipe = sfumato.load(run)
    data = sfumato.open_data(photos, sfumato.DataOptions(size=16, channels=1, labels="folder"))
    batch = data.batch([list(data.names).index(row["name"])])
    told = recipe.denoiser.given(recipe.label(batch["label"]))

    def seeds(stream):
        return Seeds.pictures([key("likelihood", 0, stream, row["name"])])

    x = dequantised(batch["image"], seeds("levels"))
    with torch.no_grad():
        flow = density(told, x, probes=rademacher(x, seeds("probes"), 2), rtol=0.05, atol=0.05).bits() + 7
        bound = losses.variational_bound(
            guidance.clip(told), batch["image"], torch.linspace(1, 0, 13).double(), rng=seeds("bound"), variance=small
        )
    assert float(row["ode"]) == pytest.approx(float(flow.mean()), abs=2e-4)
    assert float(row["ode_probe_error"]) == pytest.approx(float(flow.std()) / math.sqrt(2), abs=2e-4)
    assert float(row["bound"]) == pytest.approx(float(bound.total), abs=2e-4)


def test_what_is_said(run, photos, command, tmp_path):
    said = command("likelihood", run, photos, "--labels", "folder", "--n", 6, "--out", tmp_path, *FAST)
    assert said.code == 0, said
    rows = table(tmp_path / "images.csv")
    of = mean_of(torch.tensor([float(row["ode"]) for row in rows]))
    assert f"{of.value:.3f} ± {of.error:.3f} bits per dimension (one standard error over 6 pictures)" in said.out
    assert "6 of 120 pictures, read as 16 x 16, gray" in said.out and "x = 2 (k + u) / 256 - 1" in said.out
    assert "-log2 p(x) + 7" in said.out and str(tmp_path / "images.csv") in said.out
    listed = said.out[said.out.index("the strangest first") :].splitlines()[2:8]
    assert [line.split()[0] for line in listed] == [row["name"] for row in rows]
    assert "--holdout 0.02" in said.err, "these pictures were trained on"


def test_a_picture_keeps_its_number_among_others(run, photos, command, tmp_path):
    """And a larger n adds to a smaller one."""
    for n, batch in ((5, 5), (9, 4)):
        words = ("--labels", "folder", "--n", n, "--batch", batch, "--out", tmp_path / str(n))
        assert command("likelihood", run, photos, *words, *FAST).code == 0
    few, many = ({row["name"]: float(row["ode"]) for row in table(tmp_path / str(n) / "images.csv")} for n in (5, 9))
    assert few.keys() < many.keys() and all(many[name] == pytest.approx(few[name], abs=1e-4) for name in few)


def test_only_what_training_kept_aside(run, photos, command, tmp_path):
    words = ("--holdout", 0.1, "--labels", "folder", "--out", tmp_path)
    assert command("likelihood", run, photos, *words, *FAST).code == 0
    data = sfumato.open_data(photos, sfumato.DataOptions(size=16))
    assert {row["name"] for row in table(tmp_path / "images.csv")} == set(data.split(0.1, 0)[1].names)


def test_classes_are_told_by_name(run, photos, place, command, tmp_path):
    """The data's own count of classes is another: tulips alone are class 0 there."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tulip").symlink_to(photos / "tulip")
    (tmp_path / "data" / "aster").mkdir()
    first = sorted((photos / "tulip").iterdir())[0]
    (tmp_path / "data" / "aster" / "liar.png").write_bytes(first.read_bytes())
    words = ("--labels", "folder", "--n", 200, "--out")
    assert command("likelihood", run, photos, *words, tmp_path / "all", *FAST).code == 0
    assert command("likelihood", run, tmp_path / "data", *words, tmp_path / "part", *FAST).code == 0
    everyone, part = (
        {row["name"]: float(row["ode"]) for row in table(tmp_path / of / "images.csv")} for of in ("all", "part")
    )
    same = everyone.keys() & part.keys()
    assert len(same) > 10 and all(part[name] == pytest.approx(everyone[name], abs=1e-4) for name in same)
    untold = command("likelihood", run, photos, "--labels", "none", "--n", 3, "--out", tmp_path / "untold", *FAST)
    assert untold.code == 0 and "the run is told none" in untold.out
    assert list(table(tmp_path / "untold" / "images.csv")[0]) == ["name", "ode"]


def test_names_that_spreadsheets_would_obey_are_inert(plain, photos, command, tmp_path):
    source = tmp_path / "data"
    source.mkdir()
    evil = ["=cmd|' !A0.png", "+1+1.png", "-2+3.png", "@SUM(A1).png", "a, b.png", 'quo"te.png', " =1.png", "-3"]
    pictures = sorted(photos.rglob("*.png"))
    for name, picture in zip([*evil[:-1], "-3.png"], pictures, strict=False):
        (source / name).write_bytes(picture.read_bytes())
    assert command("likelihood", plain, source, "--n", 8, "--out", tmp_path / "out", *FAST).code == 0
    rows = table(tmp_path / "out" / "images.csv")
    assert len(rows) == 8 and all(len(row) == 2 for row in rows)
    for row in rows:
        assert row["name"].strip()[0] not in "=+-@", row
        float(row["ode"])
    assert {row["name"].lstrip("'") for row in rows} == {*evil[:-1], "-3.png"}


def test_one_picture_has_no_error_bar(plain, photos, command, tmp_path):
    picture = sorted(photos.rglob("*.png"))[0]
    said = command("likelihood", plain, picture, "--out", tmp_path, "--method", "bound", "--steps", 5, "--threads", 1)
    assert said.code == 0 and "±" not in said.out and len(table(tmp_path / "images.csv")) == 1, said
    assert "a chain of 5 steps, small variance, x0 clipped" in said.out


def test_the_chain_is_the_runs_own(plain, photos, command, tmp_path):
    said = command("likelihood", plain, photos, "--n", 2, "--method", "bound", "--variance", "large", "--out", tmp_path)
    steps = sfumato.load(plain).sampler().steps
    assert said.code == 0 and f"a chain of {steps} steps, large variance" in said.out


def test_nothing_half_written_after_an_interruption(run, photos, tmp_path):
    out = tmp_path / "out"
    words = ["likelihood", run, photos, "--labels", "folder", "--n", "120", "--rtol", "1e-9", "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sfumato", *map(str, words), "--out", str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    begun = time.monotonic()
    while not out.exists() and time.monotonic() - begun < 60:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in said and "Traceback" not in said
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--n", "0"], "--n is 0"),
        (["--probes", "0"], "--probes is 0"),
        (["--rtol", "1"], "--rtol is 1"),
        (["--eps", "1.5"], "--eps is 1.5"),
        (["--strangest", "0"], "--strangest is 0"),
        (["--steps", "0", "--method", "bound"], "--steps is 0"),
        (["--steps", "1", "--method", "bound"], "--steps is 1"),
        (["--guidance", "2"], "guidance makes no density"),
        (["--guidance=2"], "guidance makes no density"),
        (["--method", "exact"], "--method cannot be 'exact'"),
        (["--size", "64"], "no option --size"),
        (["--variance", "learned", "--method", "bound"], "does not learn its variance"),
        (["--labels", "nothing"], "nothing"),
        (["--split", "tset"], "tset"),
        (["--holdout", "2"], "not a share"),
    ],
)
def test_mistakes(words, sentence, plain, run, photos, mistake, tmp_path):
    which = run if "--labels" in words else plain
    assert sentence in mistake("likelihood", which, photos, "--out", tmp_path / "out", *words)
    assert not (tmp_path / "out" / "images.csv").exists()


def test_mistakes_of_run_and_data(plain, run, photos, mistake, tmp_path):
    assert "needs a run and data" in mistake("likelihood", plain)
    assert "needs a run and data" in mistake("likelihood")
    assert "there is no run" in mistake("likelihood", tmp_path / "absent", photos)
    assert "there is no folder or file" in mistake("likelihood", plain, tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "empty" in mistake("likelihood", plain, tmp_path / "empty")
    (tmp_path / "data" / "rosy").mkdir(parents=True)
    (tmp_path / "data" / "tulip").mkdir()
    for home in ("rosy", "tulip"):
        (tmp_path / "data" / home / "a.png").write_bytes(sorted(photos.rglob("*.png"))[0].read_bytes())
    said = mistake("likelihood", run, tmp_path / "data", "--labels", "folder")
    assert "knows no class 'rosy'" in said and "did you mean 'rose'" in said and "--labels none" in said
    (tmp_path / "file").write_text("")
    assert "is a file" in mistake("likelihood", plain, photos, "--out", tmp_path / "file")


def test_a_flow_that_breaks_is_a_sentence(plain, photos, mistake, tmp_path):
    """Weights that overflow, in a model that is otherwise whole."""
    home = shutil.copytree(plain / "final", tmp_path / "broken")
    weights = load_file(home / "model.safetensors")
    entry = files.write_tensors(home / "model.safetensors", {name: w * 1e20 for name, w in weights.items()})
    manifest = json.loads((home / "manifest.json").read_text())
    manifest["files"]["model.safetensors"] = entry
    (home / "manifest.json").write_text(json.dumps(manifest))
    said = mistake("likelihood", home, photos, "--n", 2, "--out", tmp_path / "out", *FAST)
    assert "the flow cannot be followed" in said and not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_the_kept_fashion_run(data_pack, command, tmp_path):
    """What docs/likelihood.md says, on 64 pictures: the flow's bits lie where they did, and below the bound."""
    source = data_pack / "fashion_mnist" / "test.npz"
    run = ROOT / "benchmarks" / "runs" / "fashion_ddpm"
    said = command("likelihood", run, source, "--method", "both", "--out", tmp_path, "--rtol", 1e-3)
    found = [float(value) for value in re.findall(r"(\d\.\d{3}) ± ", said.out)]
    assert len(found) == 2 and found[0] == pytest.approx(3.96, abs=0.05) and found[1] > found[0]
