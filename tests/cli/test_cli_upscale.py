"""`sfumato upscale`: a run of adm's stage upsampler at work, and what is refused."""

import numpy as np
import pytest
import torch

import sfumato
from sfumato.core.random import Seeds
from sfumato.data.pictures import read_settings
from sfumato.papers.adm import Enlarge
from tests.cli.conftest import SMALL, quietly


@pytest.fixture(scope="session")
def enlarges(place, photos):
    """A run that enlarges 4 x 4 to 16 x 16, told kinds of flowers."""
    out = place / "runs" / "enlarges"
    quietly("train", "adm", photos, "--labels", "folder", "--stage", "upsampler", "--out", out, "--steps", 30, *SMALL)
    return out


@pytest.fixture
def small_picture(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = np.array([[20, 60, 90, 30], [40, 220, 250, 60], [10, 200, 255, 80], [0, 30, 70, 20]], np.uint8)
    image.fromarray(pixels).save(tmp_path / "small.png")
    return tmp_path / "small.png"


def opened(path):
    return np.asarray(pytest.importorskip("PIL.Image").open(path))


def test_it_enlarges_as_the_recipe_does(enlarges, small_picture, command, tmp_path):
    words = ("--n", 2, "--seed", 5, "--label", "rose", "--steps", 3, "--threads", 1, "--out", tmp_path / "out")
    said = command("upscale", enlarges, small_picture, *words)
    assert said.code == 0 and "from 4 x 4 to 16 x 16, told rose" in said.out, said
    recipe = sfumato.load(enlarges)
    own = recipe.sampler()
    low = torch.from_numpy(opened(small_picture).copy())[None, None] / 255
    rose = recipe.config.classes.index("rose")
    ask = Enlarge(2, (rose, rose), low=low, sampler=type(own)(3, own.spacing, own.variance))
    *_, state = recipe.sample(ask, rng=Seeds(5))
    expected = (recipe.picture(state)[:, 0] * 255).round()
    for i in range(2):
        path = tmp_path / "out" / f"seed_{5 + i:08d}.png"
        assert float((torch.from_numpy(opened(path).copy()).float() - expected[i]).abs().max()) <= 1
    settings = read_settings(path)["request"]
    assert settings["edit"] == "upscale" and settings["label"] == "rose"
    assert (tmp_path / "out" / "grid.png").exists() and "canary" not in str(settings)


def test_a_larger_picture_is_brought_down_and_said(enlarges, photos, command, tmp_path):
    large = next((photos / "rose").iterdir())
    said = command("upscale", enlarges, large, "--steps", 2, "--out", tmp_path / "out")
    assert said.code == 0 and "16 x 16, the run takes 4 x 4: resized and cropped" in said.err, said
    assert opened(tmp_path / "out" / "seed_00000000.png").shape == (16, 16)


def test_without_classes_too(place, photos, small_picture, command, mistake, tmp_path):
    out = place / "runs" / "enlarges-plain"
    quietly("train", "adm", photos, "--labels", "none", "--stage", "upsampler", "--out", out, "--steps", 2, *SMALL)
    assert command("upscale", out, small_picture, "--steps", 2, "--out", tmp_path / "a").code == 0
    assert "knows no classes" in mistake("upscale", out, small_picture, "--label", "rose")


def test_mistakes_are_sentences(enlarges, run, small_picture, mistake, tmp_path):
    assert "a run and a picture" in mistake("upscale", enlarges)
    assert "enlarges none" in mistake("upscale", run, small_picture)
    assert "no picture" in mistake("upscale", enlarges, tmp_path / "nothing.png")
    assert "no class 'oak'" in mistake("upscale", enlarges, small_picture, "--label", "oak")
    assert "--guidance makes a class stronger" in mistake("upscale", enlarges, small_picture, "--guidance", 2)
    assert "makes no pictures by itself" in mistake("sample", enlarges)
    assert "makes pictures by itself" in mistake("edit", enlarges, small_picture, "--strength", "0.5")
    assert not (enlarges / "upscaled").exists()
