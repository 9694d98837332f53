"""Which images are in which batch."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lrtrain.data.order import batch_of_step, steps_per_epoch

SIZES = st.integers(1, 60)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), n=SIZES, batch_size=SIZES, epoch=st.integers(0, 5))
def test_an_epoch_visits_every_image_exactly_once(seed, n, batch_size, epoch):
    steps = steps_per_epoch(n, batch_size, drop_last=False)
    seen = np.concatenate([batch_of_step(seed, n, batch_size, epoch * steps + b, False) for b in range(steps)])
    assert sorted(seen.tolist()) == list(range(n))


@settings(max_examples=60, deadline=None)
@given(n=SIZES, batch_size=SIZES)
def test_dropping_the_last_batch_leaves_full_batches_only(n, batch_size):
    steps = steps_per_epoch(n, batch_size, drop_last=True)
    assert steps == n // batch_size
    assert all(len(batch_of_step(1, n, batch_size, step, True)) == batch_size for step in range(2 * steps))


def test_the_order_differs_between_epochs():
    first, second = (batch_of_step(1, 100, 100, epoch, False) for epoch in (0, 1))
    assert not np.array_equal(first, second)


def test_the_order_differs_between_seeds():
    assert not np.array_equal(batch_of_step(1, 100, 100, 0, False), batch_of_step(2, 100, 100, 0, False))


def test_the_order_never_changes_between_releases():
    assert batch_of_step(1, 10, 10, 0, False).tolist() == GOLDEN[0]
    assert batch_of_step(1, 10, 10, 1, False).tolist() == GOLDEN[1]


GOLDEN = ([8, 2, 9, 7, 6, 4, 1, 5, 3, 0], [7, 4, 1, 5, 2, 8, 9, 6, 0, 3])
