"""Every example once an epoch, in an order that depends on (seed, epoch) only."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sfumato.engine.order import Order, feed, share
from tests.engine.toy import Pictures


@given(n=st.integers(1, 60), batch=st.integers(1, 90), seed=st.integers(0, 2**40))
def test_every_epoch_is_a_permutation(n: int, batch: int, seed: int) -> None:
    order = Order(n, batch, seed)
    row = np.concatenate([order.indices(step) for step in range(-(-3 * n // batch))])
    for epoch in range(3):
        assert sorted(row[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert np.array_equal(Order(n, batch, seed).indices(2), order.indices(2))


@given(n=st.integers(1, 60), batch=st.integers(1, 60), size=st.integers(1, 9))
def test_the_batch_size_and_the_processes_do_not_change_the_order(n: int, batch: int, size: int) -> None:
    one, many = Order(n, 1, 5), Order(n, batch, 5)
    assert many.indices(1).tolist() == [int(one.indices(p)[0]) for p in many.positions(1)]
    parts = [many.indices(1)[share(batch, rank, size)] for rank in range(size)]
    assert np.array_equal(np.concatenate(parts), many.indices(1))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_epochs_and_seeds_differ() -> None:
    order = Order(1000, 1000, 0)
    for other in (order.indices(1), Order(1000, 1000, 1).indices(0)):
        assert np.mean(order.indices(0) == other) < 0.02


def test_the_order_is_the_same_on_every_machine() -> None:
    assert Order(12, 12, 8).indices(0).tolist() == [11, 7, 6, 5, 0, 4, 10, 3, 2, 1, 9, 8]


def test_preparing_ahead_changes_nothing() -> None:
    data, order = Pictures(11), Order(11, 4, 3)
    plain = list(feed(data, order, slice(0, 4), 2, 9))
    for workers in (1, 2, 5):
        for a, b in zip(plain, feed(data, order, slice(0, 4), 2, 9, workers=workers), strict=True):
            assert a.step == b.step and a.positions == b.positions and a.content["image"].equal(b.content["image"])
