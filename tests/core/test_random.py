"""A number depends on its own seed and on nothing else."""

import pytest
import torch

from sfumato.core import times
from sfumato.core.random import Seeds, key


def test_a_picture_seed_is_the_same_alone_and_among_others():
    many = Seeds(5).normal((8, 3, 4, 4))
    assert torch.equal(many[3:4], Seeds(8).normal((1, 3, 4, 4)))
    assert not torch.equal(many[0], many[1])


def test_equal_picture_seeds_give_equal_noise():
    rows = Seeds.pictures([8, 2, 8]).normal((3, 5))
    assert (
        torch.equal(rows[0], rows[2])
        and torch.equal(rows[:1], Seeds(8).normal((1, 5)))
        and not torch.equal(rows[0], rows[1])
    )


def test_a_generator_goes_on_where_it_was():
    rng, again = Seeds(1), Seeds(1)
    first, second = rng.normal((2, 5)), rng.normal((2, 5))
    assert not torch.equal(first, second)
    again.normal((2, 5))
    assert torch.equal(second, again.normal((2, 5)))


def test_training_randomness_is_a_function_of_seed_position_and_stream():
    whole = Seeds.at(3, range(100, 108), "loss")
    parts = [Seeds.at(3, [103], "loss"), Seeds.at(3, [105, 103], "loss")]
    rows = whole.normal((8, 6))
    assert torch.equal(rows[3], parts[0].normal((1, 6))[0]) and torch.equal(rows[3], parts[1].normal((2, 6))[1])
    for other in (Seeds.at(4, [103], "loss"), Seeds.at(3, [104], "loss"), Seeds.at(3, [103], "data")):
        assert not torch.equal(rows[3], other.normal((1, 6))[0])


def test_a_slice_shares_its_generators():
    rng = Seeds.at(0, range(6))
    expected = Seeds.at(0, range(6)).uniform()
    assert torch.equal(rng[2:4].uniform(), expected[2:4])
    assert not torch.equal(rng.uniform()[2:4], expected[2:4])


def test_too_large_a_batch_is_refused():
    with pytest.raises(ValueError, match="hold 2"):
        Seeds.at(0, [1, 2]).normal((3, 1))


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Seeds(7).normal((2, 2)), Seeds(7).uniform(3), Seeds(7).integers(10, 3)
    assert torch.equal(torch.rand(3), expected)


def test_draws_are_uniform_standard_and_independent():
    rng = Seeds.at(0, range(4000))
    u, k, z = rng.uniform(), rng.integers(10), rng.normal((4000, 16))
    assert abs(float(u.mean()) - 0.5) < 4 * 0.2887 / 4000**0.5
    assert (
        float((torch.bincount(k, minlength=10) - 400.0).square().sum() / 400) < 27.9
    )  # chi square, 9 degrees, p 0.001
    assert abs(float(z.mean())) < 4 / 64000**0.5 and abs(float(z.std()) - 1) < 4 / 128000**0.5
    assert abs(float((z[1:] * z[:-1]).mean())) < 4 / 64000**0.5


def test_keys_do_not_collide_by_concatenation():
    assert key(1, 23) != key(12, 3) and key("a", 1) != key("a1") and 0 <= key("x") < 2**63


def test_draws_of_t():
    rng = Seeds.at(0, range(5000))
    t = times.entries(rng, 10)
    assert sorted(t.unique().tolist()) == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert float(times.uniform_draw(rng).min()) > 0.0
    mirrored = times.antithetic(Seeds.at(1, range(10, 18)), 1000) * 1000 - 1
    assert (mirrored[0::2] + mirrored[1::2] == 999).all()
    assert torch.equal(times.antithetic(Seeds.at(1, [13]), 1000) * 1000 - 1, mirrored[3:4])


def test_low_discrepancy_is_even_in_every_batch_and_a_function_of_position():
    t = times.low_discrepancy(Seeds.at(2, range(64)))
    counts = torch.histc(t[16:48].float(), 8, 0.0, 1.0)
    assert counts.min() >= 3 and counts.max() <= 5
    assert (
        torch.equal(times.low_discrepancy(Seeds.at(2, [37])), t[37:38]) and float(t.min()) > 0 and float(t.max()) <= 1
    )
