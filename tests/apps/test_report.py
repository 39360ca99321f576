"""The report: true to the run, whole by itself, harmless, never an error for what is missing."""

import errno
import json
import os
import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sfumato
from sfumato.apps.report import Wanted, write_report
from sfumato.apps.report.history import read_warnings
from sfumato.cli.flags import for_paper
from sfumato.cli.parse import parse
from sfumato.cli.samplers import own_sampler
from sfumato.engine.run import RunFolder, as_yaml, read_config
from sfumato.engine.state import write_final
from sfumato.engine.train import fresh
from sfumato.errors import UserError
from sfumato.metrics.receipt import Figure, Receipt
from sfumato.registry import config_from, paper
from tests.apps.reading import Page

pytestmark = pytest.mark.usefixtures("one_thread")
RUNS = Path(__file__).parent.parent.parent / "benchmarks" / "runs"
KEPT = sorted(path.name for path in RUNS.iterdir() if (path / "config.yaml").exists())
HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a\x1b[31m\u202eb", "`rm`", "{{7*7}}")


def quick(home, steps=2):
    return replace(own_sampler(sfumato.load(home)), steps=steps)


def report(home, out, **wanted):
    wanted = {"n": 0, "data": "none", **wanted}
    return Page(write_report(home, out / "report.html", Wanted(**wanted)).read_text("utf8"))


def logged(home):
    return [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """The kept run of letters as a run that was trained here: with its secrets, warnings, previews and receipts."""
    home = tmp_path_factory.mktemp("canary-place") / "letters"
    shutil.copytree(RUNS / "letters", home / "final")
    (home / "final" / "metrics.jsonl").rename(home / "metrics.jsonl")
    shutil.copy(home / "final" / "config.yaml", home)
    secret = {"host": "canary-host", "system": "canary-system"}
    private = {"data": "/canary/home/jane/photos", "seed": 7, "machine": secret, "command": ["sfumato", "/canary/x"]}
    (home / "run.yaml").write_text(as_yaml({**private, "decided": {"precision": "fp32", "threads": 2}}))
    (home / "log.txt").write_text(
        "2026-01-01 10:00:00 The loss or its gradient is not finite in step 1,200, with canary/patient.png: skipped.\n"
        "2026-01-01 10:00:01 The pictures of step 100 look like noise: train longer.\n"
        "2026-01-01 10:00:02 Ended: /canary/disk is full.\n2026-01-01 10:00:03 About canary and nothing else.\n"
    )
    (home / "evaluation").mkdir()
    lite0 = "lite0@64 (232 features, clean, 5793442442f2)"
    figures = (
        Figure("fid", 31.42, 10_000, 1_354, lite0, low=30.6, high=32.3, floor=1.93),
        Figure("fid.infinity", 29.8, 10_000, 1_354, lite0, low=28.9, high=30.7, floor=0.0),
        Figure("pr.recall", 0.61, 500, 500, lite0, lower_is_better=False, warning="n = 500 is <b>small</b>."),
    )
    made = Receipt(figures, {"model": "ddpm-letters", "sampler": "ddim", "steps": 50, "calls": 50}, {"name": "glyphs"})
    made.write(home / "evaluation" / "20260101T100000Z_abcd.json")
    inception = replace(figures[0], features="inception@299 (2048 features, tf1, 1234)", value=55.5)
    Receipt((inception,), {"model": "ddpm-letters"}, {}).write(home / "evaluation" / "20250101T100000Z_abcd.json")
    return home


@pytest.fixture(scope="module")
def page(letters, tmp_path_factory):
    out = tmp_path_factory.mktemp("page")
    wanted = Wanted(9, 5, quick(letters), guidance=2.0, data="glyphs", features=False)
    return Page(write_report(letters, out / "report.html", wanted).read_text("utf8"))


# -- whole by itself ---------------------------------------------------------------------------------------------------


def test_it_loads_nothing(page):
    """No address but data: in what a browser loads; links lead to arXiv and within the page."""
    for tag, attributes in page.elements:
        for name in ("src", "srcset", "poster", "action", "data", "xlink:href"):
            assert str(attributes.get(name, "data:")).startswith("data:"), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert {a["href"].split("/abs/")[0] for a in page.of("a") if "://" in a["href"]} == {"https://arxiv.org"}
    assert all(a["href"].startswith(("#", "https://arxiv.org/abs/")) for a in page.of("a"))
    assert not page.of("link") and not page.of("iframe") and "url(" not in page.source and "@import" not in page.source
    targets = {a.get("id") for _, a in page.elements}
    assert all(a["href"][1:] in targets for a in page.of("a") if a["href"].startswith("#"))


def test_only_its_own_script_may_run(page):
    import base64
    import hashlib

    policy = next(a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    code = re.search(r"<script>(.*)</script>", page.source, re.S)[1]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy and len(page.of("script")) == 1


def test_it_names_no_paths_hosts_or_users(page, letters):
    for secret in (
        "canary",
        "jane",
        "patient",
        str(letters.parent),
        socket.gethostname() * (len(socket.gethostname()) > 3),
    ):
        assert not secret or secret not in page.source, secret


def test_every_picture_says_what_it_is(page):
    assert len(page.of("img")) > 9 and all(a.get("alt") and a.get("width") for a in page.of("img"))
    assert len(page.of("svg")) >= 6 and all(a.get("aria-label") or a.get("aria-hidden") for a in page.of("svg"))


def test_all_parts_are_there(page):
    assert page.sections() == ["samples", "way", "figures", "nearest", "curves", "health", "run", "again", "cite"]
    assert {a["href"][1:] for a in page.of("a")} >= set(page.sections())


# -- true to the run ---------------------------------------------------------------------------------------------------


def test_curves_are_the_numbers_of_the_run(page, letters):
    rows = logged(letters)
    for name in ("loss", "norm", "lr", "rate"):
        assert page.lines()[name] == {row["step"]: row[name] for row in rows if name in row}, name
    lag = {row["step"]: row["ema_lag"] for row in rows if "ema_lag" in row}
    assert page.lines()["ema_lag"] == lag


@pytest.mark.parametrize("name", KEPT)
def test_every_kept_run_gets_a_report(name, tmp_path):
    home = RUNS / name
    found = report(home, tmp_path, n=2, sampler=quick(home))
    rows = logged(home)
    assert found.lines()["loss"] == {row["step"]: row["loss"] for row in rows if "loss" in row}
    held = {row["step"]: row["held/model"] for row in rows if "held/model" in row}
    assert found.lines().get("held-out loss", {}) == held
    assert {"samples", "way", "curves", "health", "run", "again", "cite"} <= set(found.sections())
    count = sum(p.numel() for p in sfumato.load(home).parameters())
    assert read_config(home)["paper"] in found.text and f"{count / 1e6:.3g} M" in found.text


def test_what_the_run_is_stands_there(page, letters):
    config = read_config(letters)
    for said in ("Denoising Diffusion Probabilistic Models", "Ho, Jain, Abbeel", "2,100", "1,354", "1.67 M", "67,200"):
        assert said in page.text, said
    assert str(config["training"]["lr"]) in page.text and "@article{ho2020ddpm" in page.text
    assert f"{sum(p.numel() for p in sfumato.load(letters).parameters()) / 1e6:.3g} M" in page.text


def test_samples_are_those_of_their_seeds(page, letters):
    """The page's pictures are, bit for bit, what the model makes from the seeds that it names."""
    import base64
    import io

    from PIL import Image

    recipe = sfumato.load(letters)
    ask = sfumato.Ask(n=9, sampler=quick(letters), guidance=2.0)
    *_, last = recipe.sample(ask, rng=sfumato.Seeds(5))
    truth = (recipe.picture(last)[:, 0].numpy() * 255).round().astype(np.uint8)
    shown = [a for a in page.of("img") if str(a["alt"]).startswith("Sample with seed") and "," in str(a["alt"])]
    for i, attributes in enumerate(shown[:9]):
        assert attributes["alt"] == f"Sample with seed {5 + i}, class {recipe.config.classes[5 + i]}"
        raw = base64.b64decode(attributes["src"].partition(",")[2])
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(raw))), truth[i])


def test_figures_carry_what_they_depend_on(page):
    text = page.text
    for said in (
        "31.42",
        "30.6 to 32.3",
        "1.93",
        "10,000",
        "5793442442f2",
        "ddim in 50 steps",
        "n = 500 is <b>small</b>.",
    ):
        assert said in text, said
    assert "Frechet distance (lite0@64)" in text and text.count("FID") == 1, "only Inception's is called FID"
    assert "Frechet distance at infinite n (lite0@64)" in text and "fid.infinity" not in text


def test_warnings_are_told_without_names(page, letters):
    found = read_warnings(letters / "log.txt")
    assert found == (
        "A step had no finite loss or gradient and was skipped, in step 1,200.",
        "Preview pictures looked like noise, in step 100.",
        "The run ended with an error.",
    )
    assert all(said in page.text for said in found)


@pytest.mark.parametrize("name", KEPT)
def test_the_command_makes_the_same_model_and_training(name, tmp_path):
    """Read back by the parser of `sfumato train`, it gives the run's config and training again."""
    config = read_config(RUNS / name)
    text = next(line for line in report(RUNS / name, tmp_path).text.splitlines() if "sfumato train" in line)
    words = text[text.index("sfumato train") :].split()[2:]
    found = paper(config["paper"])
    preset = found.presets[config["preset"]]
    data = {"shape": tuple(config["config"]["shape"]), "classes": tuple(config["config"]["classes"])}
    flags = parse(for_paper(found, replace(preset.config, **data), preset.training), "train", words)
    assert flags.config == config_from(found.config, config["config"])
    steps = flags.steps or flags.training.steps
    made = replace(flags.training, steps=steps, warmup=min(flags.training.warmup, steps // 10))
    assert made == config_from(type(preset.training), config["training"])


# -- harmless ----------------------------------------------------------------------------------------------------------


def test_hostile_names_do_nothing(tmp_path):
    preset = paper("ddpm").presets["tiny"]
    config = replace(preset.config, shape=(1, 8, 8), classes=HOSTILE)
    config = replace(config, network=replace(config.network, widths=(8, 8)))
    home = tmp_path / "<img src=x onerror=alert(1)>"
    home.mkdir()
    recipe = fresh("ddpm", config, 0)
    told = {"format": 1, "paper": "ddpm", "preset": '"><b>', "config": sfumato.registry.config_dict(config)}
    told |= {"classes": list(HOSTILE), "version": "<i>1</i>", "data": {"examples": 5, "shape": [1, 8, 8]}}
    final = write_final(RunFolder(home), dict(recipe.state_dict()), told)
    shutil.copy(final / "config.yaml", home)
    (home / "metrics.jsonl").write_text('{"step": 1, "</script><script>alert(1)//": 2.0, "loss": 1.0}\n')
    found = report(home, tmp_path, n=5, sampler=quick(home))
    assert {tag for tag, _ in found.elements} <= TAGS
    assert not [a for _, a in found.elements if any(name.startswith("on") for name in a)]
    assert len(found.of("script")) == 1 and "\x1b" not in found.source and "\u202e" not in found.source
    assert all(str(a["src"]).startswith("data:image/") for a in found.of("img"))
    assert HOSTILE[0] in found.text and HOSTILE[1] in found.text, "they are shown as they are"


TAGS = {
    *("html", "head", "meta", "title", "style", "script", "body", "main", "header", "nav", "section", "footer", "div"),
    *("h1", "h2", "h3", "p", "a", "b", "i", "small", "cite", "br", "span", "ul", "li", "dl", "dt", "dd", "pre", "code"),
    *("figure", "figcaption", "img", "svg", "path", "circle", "table", "thead", "tbody", "tr", "th", "td"),
    *("details", "summary"),
}


# -- never an error ----------------------------------------------------------------------------------------------------


def copied(letters, tmp_path):
    home = tmp_path / "again"
    shutil.copytree(letters, home)
    return home


def test_a_run_without_weights_says_so(letters, tmp_path):
    home = copied(letters, tmp_path)
    shutil.rmtree(home / "final")
    rows = logged(home)[:4]
    (home / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 90, "lo')
    found = report(home, tmp_path, n=4)
    assert "Still training, or stopped: 80 of 2,100 steps." in found.text
    assert "There are no weights that can be opened" in found.text and "way" not in found.sections()
    assert found.lines()["loss"] == {row["step"]: row["loss"] for row in rows}


def test_how_far_a_run_has_come(letters, tmp_path):
    """A final/ by itself is at its end; a run that is lengthened is where its old final/ was."""
    shutil.copytree(letters / "final", tmp_path / "shared")
    assert "Trained to the end: 2,100 steps." in report(tmp_path / "shared", tmp_path).text
    home = copied(letters, tmp_path)
    text = (home / "config.yaml").read_text()
    (home / "config.yaml").write_text(text.replace("steps: 2100", "steps: 5000"))
    assert "stopped: 2,100 of 5,000 steps" in report(home, tmp_path).text


def test_a_damaged_model_says_so(letters, tmp_path):
    home = copied(letters, tmp_path)
    weights = home / "final" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "There are no weights that can be opened" in report(home, tmp_path, n=4).text


def test_only_a_config(letters, tmp_path):
    (tmp_path / "bare").mkdir()
    shutil.copy(letters / "config.yaml", tmp_path / "bare")
    found = report(tmp_path / "bare", tmp_path, n=4)
    assert found.sections() == ["samples", "figures", "curves", "run", "again", "cite"]
    assert "metrics.jsonl" in found.text


@pytest.mark.parametrize(
    "line",
    [
        "paper: paper_of_tomorrow",
        "paper: ddpm\nconfig: {unknown: 1}\ntraining: {steps: many}",
        "paper: ''\ndata: {shape: 3}",
    ],
)
def test_runs_of_other_versions(line, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.yaml").write_text(line + ("" if "config" in line else "\nconfig: {}"))
    (tmp_path / "old" / "metrics.jsonl").write_text('{"step": 10, "loss": 0.5}\n[1]\n{"step": true}\n{"step": 20}\n')
    assert report(tmp_path / "old", tmp_path, n=3).lines()["loss"] == {10: 0.5}


def test_damaged_receipts_and_previews_are_passed_over(letters, tmp_path):
    home = copied(letters, tmp_path)
    for i, text in enumerate(("", "[]", '{"format": "sfumato receipt 1", "figures": [{"metric": 3}]}')):
        (home / "evaluation" / f"2027_{i}.json").write_text(text)
    wrong = json.loads((home / "evaluation" / "20260101T100000Z_abcd.json").read_text())
    wrong["figures"][0]["value"] = "31"
    (home / "evaluation" / "2028.json").write_text(json.dumps(wrong))
    (home / "samples").mkdir()
    (home / "samples" / "step_00000010.png").write_bytes(b"not a picture")
    found = report(home, tmp_path)
    assert "4 of the files in evaluation/ could not be read" in found.text and "31.42" in found.text
    assert "grids" not in found.sections()


def test_previews_lose_their_caption_and_enlargement(letters, tmp_path):
    from sfumato.engine.evaluate import write_grid

    home = copied(letters, tmp_path)
    (home / "samples").mkdir()
    pictures = torch.rand(16, 1, 32, 32)
    for step in (1000, 100, 2000):
        write_grid(pictures, home / "samples" / f"step_{step:08d}.png", "step 1,000, loss 0.1\norder abcdef")
    found = report(home, tmp_path)
    shown = [a for a in found.of("img") if str(a["alt"]).startswith("Preview")]
    assert [a["alt"] for a in shown] == ["Preview at step 100", "Preview at step 1,000", "Preview at step 2,000"]
    assert {(a["width"], a["height"]) for a in shown} == {("134", "134")}


def test_where_the_data_were_is_no_longer(letters, tmp_path):
    wanted = Wanted(2, 0, quick(letters))
    text = Page(write_report(letters, tmp_path / "a.html", wanted).read_text("utf8")).text
    assert "no longer where they were" in text
    with pytest.raises(UserError, match="no folder or file"):
        write_report(letters, tmp_path / "b.html", replace(wanted, data=str(tmp_path / "nowhere")))
    assert not (tmp_path / "b.html").exists()


# -- whole or absent ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_the_file_is_whole_or_absent(letters, tmp_path, monkeypatch, error):
    (tmp_path / "report.html").write_text("an older report")

    def fail(handle):
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        report(letters, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "an older report"
