"""Runs of other kinds than ddpm's: what fits them works, what does not is one sentence, and they can be fine-tuned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, quietly
from safetensors.torch import load_file

QUICK = ("--preset", "tiny", "--steps", 2, "--sample-every", 0, "--batch", 8, *SMALL[:3], "--precision", "fp32")


@pytest.fixture(scope="module")
def kinds(place: Path, photos: Path) -> dict[str, Path]:
    """A run of each kind, by a word."""
    home = place / "runs" / "kinds"
    labels = ("--labels", "folder")
    made: dict[str, tuple[object, ...]] = {
        "flow": ("flow_matching", photos),
        "straight": ("flow_matching", photos, "--stage", "reflow", "--from", home / "flow"),
        "edm": ("edm", photos, *labels),
        "distilled": ("consistency", photos, *labels, "--from", home / "edm"),
        "trained": ("consistency", photos, "--config.mode", "training"),
        "resampled": ("improved_ddpm", photos, "--config.resample", "True"),
        "cld": ("cld", photos),
    }
    for name, words in made.items():
        based = QUICK if "--from" not in words else (*QUICK[:8], *QUICK[-2:])  # the network is the base's
        quietly("train", *words, *based, "--out", home / name)
    return {name: home / name for name in made}


@pytest.mark.parametrize("sampler", ["em", "pc"])
def test_a_reverse_sde_cannot_begin_where_a_flow_does(sampler, kinds, mistake, tmp_path):
    sentence = mistake("sample", kinds["flow"], "--sampler", sampler, "--out", tmp_path / "none")
    assert "no signal at t = 1" in sentence and not (tmp_path / "none").exists()
    assert "no signal" in mistake("bench", "samplers", kinds["flow"], "--samplers", sampler)


def test_an_edit_may_begin_later(kinds, photos, command, tmp_path):
    photo = sorted((photos / "rose").iterdir())[0]
    words = ("edit", kinds["flow"], photo, "--sampler", "em", "--steps", 4, "--out", tmp_path, "--strength")
    assert command(*words, 0.5).code == 0
    said = command(*words, 1)
    assert said.code == 2 and "no signal at t = 1" in said.err and "Traceback" not in said.err


def test_steps_that_a_sampler_finds_itself(kinds, command, mistake, tmp_path):
    image = pytest.importorskip("PIL.Image")
    words = ("sample", kinds["flow"], "--n", 2, "--sampler", "ode45", "--strip", "--out", tmp_path)
    said = command(*words)
    assert said.code == 0 and "ode45 in steps of its own" in said.out
    with image.open(tmp_path / "strip.png") as strip:
        assert strip.width > 8 * 16  # nine frames of 16 pixels
        last = np.asarray(strip)[-16:, -16:]
    with image.open(tmp_path / "seed_00000001.png") as picture:
        assert np.array_equal(last, np.asarray(picture))
    assert "2 trial steps did not reach" in mistake(*words, "--steps", 2)


def test_too_few_trials_of_an_encoding(kinds, photos, mistake, tmp_path):
    photo = sorted((photos / "rose").iterdir())[0]
    words = ("encode", kinds["cld"], photo, "--steps", 3, "--out", tmp_path / "z.safetensors")
    assert "3 trial steps did not reach" in mistake(*words)


def test_a_consistency_model_has_no_flow_to_measure(kinds, photos, mistake):
    assert "no flow with a likelihood" in mistake("likelihood", kinds["distilled"], photos)
    assert "no flow to compare" in mistake("bench", "samplers", kinds["distilled"])


APART = [
    (("--size", "8"), "the shape must be that of the run with --from, 1 x 16 x 16, and not 1 x 8 x 8"),
    (("--labels", "none"), "aster, rose, tulip, and not none: give the data and --labels"),
    (("--config.data-std", "0.7"), "0.5, and not 0.7: leave out --config.data_std"),
    (("--config.network.widths", "8", "8"), "leave out --config.network"),
]


@pytest.mark.parametrize(("words", "sentence"), APART, ids=[words[0] for words, _ in APART])
def test_a_model_is_that_of_its_base(words, sentence, kinds, photos, mistake, tmp_path):
    labels = () if "--labels" in words else ("--labels", "folder")
    out = tmp_path / "none"
    asked = ("train", "consistency", photos, *labels, "--from", kinds["edm"], "--out", out, "--preset", "tiny")
    assert sentence in mistake(*asked, *words) and not out.exists()


def test_runs_without_their_scaffold_are_fine_tuned(kinds, photos, command, mistake, tmp_path):
    words = ("--steps", 1, "--batch", 8, "--sample-every", 0, "--lr", 1e-12, "--precision", "fp32", "--from")
    more: dict[str, tuple[object, ...]] = {"trained": (), "resampled": (), "straight": ("--stage", "model")}
    paper = {"trained": "consistency", "resampled": "improved_ddpm", "straight": "flow_matching"}
    for name, stage in more.items():
        out = tmp_path / name
        said = command("train", paper[name], photos, *words, kinds[name], *stage, "--out", out)
        assert said.code == 0, said.err
        before, after = (load_file(run / "final" / "model.safetensors") for run in (kinds[name], out))
        assert before.keys() == after.keys()
        assert all((before[key] - after[key]).abs().max() < 1e-6 for key in before)
    sentence = mistake("train", "flow_matching", photos, *words, kinds["straight"])
    assert "--stage reflow to train upon it, or --stage model" in sentence
    labels = ("--labels", "folder")
    assert "upon a run of edm" in mistake("train", "consistency", photos, *labels, *words, kinds["distilled"])
