"""What guidance leads away from, and where, through the command line: as in Python, and repeated from a picture."""

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from sfumato.core.random import Seeds
from sfumato.recipe import Ask

WORDS = ("--n", 2, "--label", "rose", "--steps", 4, "--guidance", 3, "--threads", 1)


def pictures(folder):
    return np.stack([np.asarray(Image.open(folder / f"seed_0000000{i}.png")) for i in (0, 1)])


def in_python(run, **more):
    recipe = sfumato.load(run)
    sampler = recipe.sampler()
    walk = type(sampler)(4, sampler.spacing, sampler.variance)
    *_, state = recipe.sample(Ask(2, labels=(1,), guidance=3.0, sampler=walk, **more), rng=Seeds(0))
    return (recipe.picture(state)[:, 0] * 255).round()


@pytest.mark.parametrize(
    ("words", "more"),
    [
        (("--negative", "tulip"), {"negative": (2,)}),
        (("--guidance-interval", 0.2, 0.7), {"interval": (0.2, 0.7)}),
        (("--guidance-rescale", 0.7), {"rescale": 0.7}),
    ],
    ids=["negative", "interval", "rescale"],
)
def test_the_command_is_what_python_does(words, more, run, command, tmp_path):
    said = command("sample", run, *WORDS, *words, "--out", tmp_path / "a")
    assert said.code == 0, said.err
    made = torch.from_numpy(pictures(tmp_path / "a")).float()
    assert float((made - in_python(run, **more)).abs().max()) <= 1
    assert float((made - in_python(run)).abs().max()) > 1
    again = command(
        "sample", run, "--like", tmp_path / "a" / "seed_00000001.png", "--out", tmp_path / "b", "--threads", 1
    )
    assert again.code == 0, again.err
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b" / "seed_00000001.png")), pictures(tmp_path / "a")[1])


def test_mistakes_are_sentences(run, mistake, tmp_path):
    words = ("sample", run, "--n", 1, "--label", "rose", "--out", tmp_path / "none")
    assert "add --guidance" in mistake(*words, "--negative", "tulip")
    assert "no class 'tulp': did you mean" in mistake(*words, "--guidance", 2, "--negative", "tulp").replace("  ", " ")
    assert "the lower first" in mistake(*words, "--guidance", 2, "--guidance-interval", 0.8, 0.2)
    assert "share" in mistake(*words, "--guidance", 2, "--guidance-rescale", 3)
    assert "there is no run" in mistake(*words, "--guidance", 2, "--weak", tmp_path / "nothing")
    assert "one of them" in mistake(*words, "--guidance", 2, "--negative", "tulip", "--weak", run)
    assert not (tmp_path / "none").exists()


def test_a_weak_run_leads(run, command, mistake, tmp_path):
    """Away from itself is nowhere."""
    said = command("sample", run, *WORDS, "--weak", run, "--out", tmp_path / "a")
    assert said.code == 0, said.err
    assert command("sample", run, *WORDS[:-4], "--threads", 1, "--out", tmp_path / "b").code == 0
    difference = pictures(tmp_path / "a").astype(int) - pictures(tmp_path / "b")
    assert abs(difference).max() <= 1
    like = ("sample", run, "--like", tmp_path / "a" / "seed_00000001.png", "--threads", 1, "--out", tmp_path / "c")
    assert "--weak RUN" in mistake(*like) and command(*like, "--weak", run).code == 0
