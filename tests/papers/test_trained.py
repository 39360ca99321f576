"""What only a trained model can show: the run kept in benchmarks/runs/letters."""

from pathlib import Path

import numpy as np
import pytest
import torch

import sfumato
from sfumato.core.random import Seeds
from sfumato.recipe import Ask
from sfumato.samplers.ancestral import DDIM, Ancestral, large

ROOT = Path(__file__).parent.parent.parent
RUN = ROOT / "benchmarks" / "runs" / "letters"


@pytest.fixture(scope="module")
def letters():
    return sfumato.load(RUN, verify=True)


def drawn(recipe, ask, rng):
    *_, state = recipe.sample(ask, rng=rng)
    return (recipe.picture(state) * 255).round()


@pytest.mark.parametrize("sampler", [DDIM(20), DDIM(20, eta=1.0), Ancestral(20), Ancestral(20, variance=large)])
def test_seed_8_is_the_same_picture_alone_and_among_others(letters, sampler):
    """Bit-identical at equal batch shape; else at most one grey level on 99.9 % of the pixels."""
    many = drawn(letters, Ask(n=8, guidance=2.0, sampler=sampler), Seeds(5))
    alone = drawn(letters, Ask(n=1, guidance=2.0, sampler=sampler), Seeds(8))
    beside = drawn(letters, Ask(n=8, labels=(8,) * 8, guidance=2.0, sampler=sampler), Seeds.pictures([8] * 8))
    assert float(((many[3] - alone[0]).abs() <= 1).float().mean()) >= 0.999
    assert torch.equal(many[3], beside[0]) and torch.equal(many[3], beside[7])


def test_letters_look_like_their_class(letters):
    """The nearest class mean of the real glyphs is the letter that was asked for, for most of 62 samples (chance:
    1)."""
    data = sfumato.open_data("glyphs", sfumato.DataOptions(size=32))
    batch = data.batch(np.arange(len(data)), None)
    means = torch.stack([batch["image"][batch["label"] == k].mean(0) for k in range(62)]).flatten(1)
    made = drawn(letters, Ask(n=62, guidance=3.0, sampler=DDIM(20)), Seeds(0)) / 127.5 - 1
    nearest = torch.cdist(made.flatten(1), means).argmin(1)
    assert int((nearest == torch.arange(62)).sum()) >= 45


@pytest.mark.slow
def test_a_reader_of_other_fonts_reads_them(letters, monkeypatch):
    """benchmarks/letters.py: the classifier knows half of the font families, reads the other half and then the
    samples."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from letters import measure

    rows = measure(RUN, each=4, guidance=3.0, steps=50)
    assert rows["held-out families read right"] > 0.95
    assert rows["samples read as asked"] >= 0.95
