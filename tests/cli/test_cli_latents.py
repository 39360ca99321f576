"""Models of latents, as the released DiT are: sampled in Python, and never taken for pictures by a command."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from sfumato.core.random import Seeds
from sfumato.engine.run import RunFolder
from sfumato.engine.state import write_final
from sfumato.errors import UserError
from sfumato.networks.dit import DiTConfig
from sfumato.papers.dit import PRESETS, DiT
from sfumato.recipe import Ask
from sfumato.registry import config_dict
from sfumato.weights.dit import config_of, convert, to_official
from tests.papers.tools import loud

WHY = "this model is of latents, 4 x 16 x 16 numbers, whose autoencoder is not here yet"
SMALL = DiTConfig(patch=4, width=64, depth=1, heads=1, channels=4)


@pytest.fixture(scope="module")
def released(place):
    """A folder to share, made of an official checkpoint of the release's kind, but small."""
    config = replace(PRESETS["XL/2-256"].config, shape=(4, 16, 16), classes=("aster", "rose", "tulip"), network=SMALL)
    made, recipe = loud(DiT(config)), DiT(config)
    network = made.denoiser.network
    official = to_official(network.state_dict(), made.label.embedding.weight.detach(), network.config, 16)
    found = convert(official, config_of(official))
    recipe.denoiser.network.load_state_dict(found.network)
    recipe.label.embedding.weight.data.copy_(found.label)
    told = {"paper": "dit", "preset": "XL/2-256", "config": config_dict(config), "classes": list(config.classes)}
    (place / "runs" / "released").mkdir(parents=True)
    return write_final(RunFolder(place / "runs" / "released"), dict(recipe.state_dict()), told)


@pytest.fixture(scope="module")
def rgba(place):
    """Pictures with as many channels as latents have."""
    folder = place / "rgba"
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 255, (6, 16, 16, 4), np.uint8)):
        home = folder / ("aster", "rose", "tulip")[i % 3]
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(home / f"{i}.png")
    return folder


def test_python_samples_them_and_says_that_they_are_no_pictures(released):
    recipe = sfumato.load(released)
    *_, state = recipe.sample(Ask(2, labels=(1,), guidance=2.0), rng=Seeds(0))
    assert state.x.shape == (2, 4, 16, 16) and bool(torch.isfinite(state.x).all())
    with pytest.raises(UserError, match="no pictures: this model is of latents"):
        recipe.picture(state)


VERBS = [
    ("sample", "RUN", "--n", "1"),
    ("edit", "RUN", "PICTURE", "--strength", "0.5"),
    ("interpolate", "RUN", "PICTURE", "PICTURE"),
    ("encode", "RUN", "PICTURE"),
    ("likelihood", "RUN", "RGBA", "--labels", "folder"),
    ("evaluate", "RUN", "RGBA", "--n", "4"),
    ("bench", "samplers", "RUN"),
    ("train", "dit", "RGBA", "--labels", "folder", "--alpha", "keep", "--from", "RUN"),
    ("train", "discriminator_guidance", "RGBA", "--labels", "folder", "--alpha", "keep", "--from", "RUN"),
    ("train", "adm", "RGBA", "--labels", "folder", "--alpha", "keep", "--stage", "classifier", "--from", "RUN"),
]


@pytest.mark.parametrize("words", VERBS, ids=lambda words: " ".join(words[:2]))
def test_no_command_takes_them_for_pictures(words, released, rgba, place, mistake, monkeypatch):
    monkeypatch.chdir(place)
    named = {"RUN": str(released), "RGBA": str(rgba), "PICTURE": str(next(rgba.glob("*/*.png")))}
    before = sorted(place.rglob("*"))
    assert WHY in mistake(*(named.get(word, word) for word in words))
    assert [path for path in sorted(place.rglob("*")) if path not in before and "cache" not in path.parts] == []


@pytest.mark.parametrize("preset", ["XL/2-256", "XL/2-512"])
def test_their_presets_are_refused_before_anything_is_read(preset, rgba, mistake, tmp_path):
    words = (rgba, "--alpha", "keep", "--channels", 4, "--out", tmp_path / "run")
    assert "take --preset tiny or another that is of pictures" in mistake("train", "dit", *words, "--preset", preset)
    assert "this model is of latents" in mistake("reproduce", "dit", "--preset", preset)
    assert "this model is of latents" in mistake("train", "dit", tmp_path / "nowhere", "--preset", preset)
    assert not (tmp_path / "run").exists()


def test_a_report_is_made_without_samples(released, command, tmp_path):
    said = command("report", released, "--out", tmp_path / "report.html")
    assert said.code == 0, said
    assert WHY in (tmp_path / "report.html").read_text()
