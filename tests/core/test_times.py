"""Draws of t that follow their losses, and the improved-diffusion code's respacings."""

import json
from pathlib import Path

import pytest
import torch

from sfumato.core import times
from sfumato.core.random import Seeds
from sfumato.core.schedules import VP, Discrete

OFFICIAL = json.loads((Path(__file__).parent.parent / "reference" / "improved_diffusion.json").read_text())


@pytest.mark.parametrize(("T", "text", "kept"), OFFICIAL["respacings"], ids=lambda value: str(value)[:12])
def test_respacings_are_the_official_ones(T, text, kept):
    spacing = times.Respacing(text)
    assert spacing.entries(T) == kept and spacing.steps == len(kept)
    grid = spacing(Discrete.cosine(T), len(kept), 1.0, 0.0)
    assert (grid[:-1] * T - 1).round().long().tolist() == kept[::-1] and grid[-1] == 0.0
    assert spacing(Discrete.cosine(T), len(kept), 0.0, 1.0).tolist()[: len(kept) + 1] == grid.flip(0).tolist()


def test_known_respacings():
    assert times.Respacing("250").entries(1000)[:4] == [0, 4, 8, 12] and times.Respacing("250").entries(1000)[-1] == 999
    assert times.Respacing("ddim25").entries(1000) == list(range(0, 1000, 40))
    assert times.Respacing("1000").entries(1000) == list(range(1000))


def test_strided_is_even_between_both_ends_of_the_table():
    table = Discrete.linear()
    assert torch.equal(times.strided(table, 250, 1.0, 0.0), times.Respacing("250")(table, 250, 1.0, 0.0))
    assert times.strided(table, 1, 1.0, 0.0).tolist() == [1.0, 0.0]
    assert times.strided(table, 1000, 1.0, 0.0).tolist() == pytest.approx(torch.linspace(1, 0, 1001).tolist())
    within = times.strided(table, 10, 0.5, 0.0)
    assert within[0] == 0.5 and within[-1] == 0.0 and (within.diff() < 0).all()


@pytest.mark.parametrize("text", ["", "ddim", "a", "10,", "-5", "1.5", "ddim5,5", "0", "9" * 5000])
def test_what_is_no_respacing_is_refused(text):
    with pytest.raises(ValueError):
        times.Respacing(text)


def test_impossible_respacings_are_refused():
    for text, steps, says in [("60", 60, "60 of 50"), ("ddim40", 40, "no stride"), ("10", 9, "takes 10 steps, not 9")]:
        with pytest.raises(ValueError, match=says):
            times.Respacing(text)(Discrete.linear(50), steps, 1.0, 0.0)
    with pytest.raises(ValueError, match="table"):
        times.strided(VP(), 10, 1.0, 0.0)


def entry(k, T=5):
    return (torch.as_tensor(k) + 1).double() / T


def test_shares_are_the_official_ones():
    drawn = times.SecondMoment(5, keep=3)
    for step in OFFICIAL["history"]:
        drawn.remember(entry(step["t"]), torch.tensor(step["loss"]))
        assert drawn.shares().tolist() == pytest.approx(step["p"], rel=1e-6)
    assert drawn.eval().shares().tolist() == [0.2] * 5


def test_draws_follow_their_shares_and_leave_the_mean_alone():
    drawn, size = times.SecondMoment(4, keep=2), torch.tensor([1.0, 2.0, 3.0, 10.0])
    rng = Seeds.at(0, range(20_000))
    t, weight = drawn.draw(rng)
    assert (weight == 1).all() and torch.bincount((t * 4).long() - 1).tolist() == pytest.approx([5000] * 4, abs=300)
    for _ in range(2):
        drawn.remember(entry(range(4), 4), size)
    t, weight = drawn.draw(rng)
    k = (t * 4).round().long() - 1
    assert torch.bincount(k).tolist() == pytest.approx((20_000 * size / 16).tolist(), abs=300)
    assert float((weight * size[k]).mean()) == pytest.approx(4.0, rel=2e-3)  # the plain mean, without its variance
    assert float((weight * size[k]).std()) < 0.05 < float(size.std())
    assert torch.equal(drawn.draw(Seeds.at(0, range(90)))[0][10:20], drawn.draw(Seeds.at(0, range(10, 20)))[0])


def test_a_batch_with_more_losses_of_an_entry_than_are_kept_keeps_the_last():
    drawn = times.SecondMoment(2, keep=3)
    drawn.remember(entry([0, 1, 0, 0, 0, 0], 2), torch.tensor([1.0, 9.0, 2.0, 3.0, 4.0, 5.0]))
    assert sorted(drawn.history[0].tolist()) == [3.0, 4.0, 5.0] and drawn.count.tolist() == [5, 1]
    drawn.remember(entry([0, 0], 2), torch.tensor([6.0, 7.0]))
    assert sorted(drawn.history[0].tolist()) == [5.0, 6.0, 7.0]


def test_the_history_does_not_depend_on_how_a_batch_is_cut():
    whole, parts = times.SecondMoment(6, keep=4), times.SecondMoment(6, keep=4)
    rng = Seeds(3)
    for _ in range(10):
        t, loss = times.entries(Seeds.at(rng.seed, range(12)), 6), rng.uniform(12)
        whole.remember(t, loss)
        for part in (slice(0, 5), slice(5, 6), slice(6, 12)):
            parts.remember(t[part], loss[part])
    assert torch.equal(whole.history, parts.history) and torch.equal(whole.count, parts.count)


def test_losses_of_zero_are_drawn_evenly():
    drawn = times.SecondMoment(3, keep=1)
    drawn.remember(entry(range(3), 3), torch.zeros(3))
    assert drawn.shares().tolist() == pytest.approx([1 / 3] * 3)
