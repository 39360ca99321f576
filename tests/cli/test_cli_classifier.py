"""`sfumato train adm --stage classifier` and `sfumato sample --classifier`: what steers, and what is refused."""

import json

import numpy as np
import pytest
import torch

import sfumato
from sfumato.core import guidance, times
from sfumato.core.random import Seeds
from sfumato.data.pictures import read_settings
from sfumato.recipe import Ask
from sfumato.samplers.ode import Heun
from tests.cli.conftest import SMALL, quietly

READS = ("--stage", "classifier", "--config.reader.widths", "16", "16", "--config.reader.head-width", "8")
READS = (*READS, "--batch", "16", "--precision", "fp32")


@pytest.fixture(scope="session")
def unlabelled(place, photos):
    """A run of the flowers that was told no classes."""
    out = place / "runs" / "unlabelled"
    quietly("train", "ddpm", photos, "--labels", "none", "--out", out, "--steps", 2, *SMALL)
    return out


@pytest.fixture(scope="session")
def kinds(place, photos, unlabelled):
    """A classifier of its noised flowers."""
    out = place / "runs" / "kinds"
    words = ("train", "adm", photos, "--labels", "folder", "--from", unlabelled, "--out", out, "--steps", 60, *READS)
    quietly(*words)
    return out


def test_a_classifier_learns_and_logs_by_noise_level(kinds, command):
    lines = [json.loads(line) for line in (kinds / "metrics.jsonl").read_text().splitlines()]
    seen = [line for line in lines if "accuracy" in line][-1]
    assert {f"accuracy_{k}" for k in (1, 2, 3, 4)} <= seen.keys() and len(seen["levels"]) == 8
    assert seen["accuracy_1"] > 0.6 > 1 / 3  # little noise, three kinds
    assert not list((kinds / "samples").glob("*.png"))
    said = command("inspect", kinds)
    assert said.code == 0 and "adm" in said.out


def test_an_unlabelled_run_is_steered_to_a_label(unlabelled, kinds, command, tmp_path):
    """As guidance.tilt does in Python, to a grey level; and the settings can be repeated."""
    words = ("--n", 2, "--label", "rose", "--steps", 4, "--seed", 3, "--threads", 1)
    said = command(
        "sample", unlabelled, "--classifier", kinds, "--classifier-scale", 3, *words, "--out", tmp_path / "a"
    )
    assert said.code == 0, said
    made = np.stack([np.asarray(image(tmp_path / "a" / f"seed_0000000{i}.png")) for i in (3, 4)])
    recipe, classifier = sfumato.load(unlabelled), sfumato.load(kinds)
    rose = classifier.config.classes.index("rose")

    def steer(denoiser):
        return guidance.tilt(denoiser, classifier.log_prob([rose, rose]), 3.0, interval=classifier.window)

    sampler = recipe.sampler()
    ask = Ask(2, steer=steer, sampler=type(sampler)(4, sampler.spacing, sampler.variance))
    *_, state = recipe.sample(ask, rng=Seeds(3))
    expected = (recipe.picture(state)[:, 0] * 255).round()
    assert float((torch.from_numpy(made).float() - expected).abs().max()) <= 1
    settings = read_settings(tmp_path / "a" / "seed_00000003.png")["request"]
    assert settings["classifier_scale"] == 3 and settings["label"] == "rose"
    like = ("--like", tmp_path / "a" / "seed_00000003.png", "--threads", 1)
    assert command("sample", unlabelled, "--classifier", kinds, *like, "--out", tmp_path / "b").code == 0
    assert np.array_equal(made[0], np.asarray(image(tmp_path / "b" / "seed_00000003.png")))


def image(path):
    return pytest.importorskip("PIL.Image").open(path)


def test_scale_0_is_the_run_itself(unlabelled, kinds, command, tmp_path):
    words = ("--n", 1, "--steps", 3, "--threads", 1, "--no-metadata")
    command("sample", unlabelled, *words, "--out", tmp_path / "a")
    command("sample", unlabelled, *words, "--classifier", kinds, "--classifier-scale", 0, "--out", tmp_path / "b")
    name = "seed_00000000.png"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_run_that_knows_classes_is_told_and_steered(run, place, photos, command, tmp_path):
    out = place / "runs" / "kinds-of-run"
    quietly("train", "adm", photos, "--labels", "folder", "--from", run, "--out", out, "--steps", 2, *READS)
    words = ("--n", 2, "--label", "tulip", "--steps", 3, "--guidance", 2)
    assert command("sample", run, "--classifier", out, *words, "--out", tmp_path).code == 0


def test_a_classifier_has_a_report_without_samples(kinds, command, tmp_path):
    said = command("report", kinds, "--out", tmp_path / "report.html")
    assert said.code == 0 and "tells classes apart" in (tmp_path / "report.html").read_text(), said


def test_mistakes_are_sentences(run, plain, unlabelled, kinds, photos, mistake, tmp_path):
    steers = ("--classifier", kinds)
    assert "--classifier-scale is nan" in mistake("sample", unlabelled, *steers, "--classifier-scale", "nan")
    assert "give one, --classifier RUN" in mistake("sample", unlabelled, "--classifier-scale", 2)
    assert "is no classifier (it is a run of ddpm)" in mistake("sample", unlabelled, "--classifier", run)
    assert "no class 'oak'" in mistake("sample", unlabelled, *steers, "--label", "oak")
    assert "noises them otherwise" in mistake("sample", plain, *steers)
    assert "makes pictures by itself" in mistake("sample", kinds)
    assert "is no run to upscale with" in mistake("upscale", kinds, next(photos.rglob("*.png")))
    assert "reads pictures of 16 x 16 alone" in mistake("sample", unlabelled, *steers, "--size", 20)
    for scale in ("inf", "1e400", "1e6"):
        assert "--classifier-scale is" in mistake("sample", unlabelled, *steers, "--classifier-scale", scale)
    assert not (unlabelled / "pictures").exists()
    assert "makes pictures by itself" in mistake("interpolate", kinds, tmp_path / "a.png", tmp_path / "b.png")
    there = ("train", "adm", photos, "--stage", "classifier", "--out", tmp_path / "no")
    assert "--from RUN" in mistake(*there, "--labels", "folder")
    assert "--labels folder" in mistake(*there, "--labels", "none", "--from", unlabelled)
    assert "must make pictures" in mistake(*there, "--labels", "folder", "--from", kinds)


def test_a_classifier_of_other_classes_is_refused(run, place, photos, mistake, tmp_path):
    """The run knows three; the folder of this one has lost a kind."""
    shutil = pytest.importorskip("shutil")
    shutil.copytree(photos, tmp_path / "two")
    shutil.rmtree(tmp_path / "two" / "tulip")
    plain = tmp_path / "plain"
    quietly("train", "ddpm", photos, "--labels", "none", "--out", plain, "--steps", 1, *SMALL)
    two = ("train", "adm", tmp_path / "two", "--labels", "folder", "--steps", 1, *READS)
    quietly(*two, "--from", plain, "--out", tmp_path / "kinds")
    said = mistake("sample", run, "--classifier", tmp_path / "kinds")
    assert "other classes (aster, rose) than this run (aster, rose, tulip)" in said
    assert "classes must be that of the run" in mistake(*two, "--from", run, "--out", tmp_path / "no")


# -- discriminators ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def critic(place, photos, unlabelled):
    """A discriminator of that run's pictures."""
    out = place / "runs" / "critic"
    size = ("--config.reader.widths", "16", "16", "--config.reader.head-width", "8", "--config.fakes", 16)
    words = ("--labels", "none", "--from", unlabelled, "--out", out, "--steps", 4, "--batch", 8, *size)
    quietly("train", "discriminator_guidance", photos, *words, "--config.each", 8, "--config.steps", 2)
    return out


def test_a_discriminator_steers_as_tilt_does(unlabelled, critic, command, tmp_path):
    """With both slopes of Heun's method, the first alone, and beside a classifier's; a grey level apart."""
    words = ("--n", 2, "--sampler", "heun", "--steps", 4, "--spacing", "power", "--threads", 1)
    recipe, found = sfumato.load(unlabelled), sfumato.load(critic)
    recipe.requires_grad_(False)
    ratio, window = found.log_ratio(), found.window
    for first, second in ((3.0, 3.0), (2.0, 0.0)):
        out = tmp_path / str(second)
        scales = ("--discriminator-scale", first, "--discriminator-second", second)
        said = command("sample", unlabelled, "--discriminator", critic, *scales, *words, "--out", out)
        assert said.code == 0, said
        slopes = [guidance.tilt(recipe.guided(Ask(2), [0, 1]), ratio, w, interval=window) for w in (first, second)]
        made = Heun(4, times.power, second=lambda _, s=slopes: s[1])(slopes[0], prior(recipe), rng=Seeds(0))
        expected = ((made[:, 0] + 1) * 127.5).clamp(0, 255).round()
        pixels = np.stack([np.asarray(image(out / f"seed_0000000{i}.png")) for i in range(2)])
        assert float((torch.from_numpy(pixels).float() - expected).abs().max()) <= 1
    assert read_settings(out / "seed_00000000.png")["request"]["discriminator_slopes"] == [2, 0]


def prior(recipe):
    return recipe.denoiser.process.prior((2, 1, 16, 16), Seeds(0))


def test_mistakes_with_a_discriminator_are_sentences(run, unlabelled, kinds, critic, mistake):
    steers = ("--discriminator", critic)
    assert "no discriminator (it is a run of adm)" in mistake("sample", unlabelled, "--discriminator", kinds)
    assert "no classifier (it is a run of disc" in mistake("sample", unlabelled, "--classifier", critic)
    assert "--sampler heun" in mistake("sample", unlabelled, *steers, "--discriminator-second", 0)
    assert "--discriminator-scale is inf" in mistake("sample", unlabelled, *steers, "--discriminator-scale", "inf")
    assert "knows other classes (none)" in mistake("sample", run, *steers)
