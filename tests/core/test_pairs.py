"""The pairs that reflow keeps: the newest, with the noise of their number."""

import torch

from sfumato.core.pairs import Pairs
from sfumato.core.random import Seeds


def test_the_newest_are_kept_with_their_noise():
    pool = Pairs(6, (2, 3))
    assert len(pool) == 0
    for first in (0, 4, 8):
        numbers = torch.arange(first, first + 4)
        pool.add(numbers.reshape(4, 1, 1).expand(4, 2, 3).float(), numbers)
    assert len(pool) == 6 and sorted(pool.numbers.tolist()) == [6, 7, 8, 9, 10, 11]
    pair = pool.draw(Seeds.at(3, range(500)))
    assert set(pair.numbers.tolist()) == {6, 7, 8, 9, 10, 11} and pair.data.dtype == torch.float32
    assert torch.equal(pair.data[:, 0, 0].long(), pair.numbers)
    again = Pairs.noise(3, pair.numbers.tolist(), (2, 3))
    assert torch.equal(pair.noise, again) and len(torch.unique(pair.noise[:, 0, 0])) == 6


def test_a_draw_is_the_example_s_own():
    pool = Pairs(50, (1,))
    pool.add(torch.randn(50, 1, generator=torch.Generator().manual_seed(0)), torch.arange(50))
    whole, part = pool.draw(Seeds.at(1, range(8))), pool.draw(Seeds.at(1, range(3, 6)))
    assert torch.equal(whole.data[3:6], part.data) and torch.equal(whole.noise[3:6], part.noise)


def test_half_a_pool_draws_from_what_is_there_and_a_state_dict_carries_it():
    pool = Pairs(10, (1,))
    pool.add(torch.ones(4, 1), torch.arange(4))
    assert bool((pool.draw(Seeds.at(0, range(100))).data == 1).all())
    other = Pairs(10, (1,))
    other.load_state_dict(pool.state_dict())
    assert len(other) == 4 and torch.equal(
        other.draw(Seeds.at(0, range(9))).numbers, pool.draw(Seeds.at(0, range(9))).numbers
    )
