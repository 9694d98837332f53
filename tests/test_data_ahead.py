"""Batches made ahead arrive as they would have otherwise."""

from __future__ import annotations

import threading
import time

import pytest

from lrtrain.data.ahead import DEPTH, ahead


def numbers(n, made=None, closed=None):
    try:
        for i in range(n):
            if made is not None:
                made.append((i, threading.current_thread().name))
            yield i
    finally:
        if closed is not None:
            closed.append(True)


def own_threads():
    return [thread for thread in threading.enumerate() if thread.name == "lrtrain-ahead"]


@pytest.mark.parametrize("n", [0, 1, DEPTH, 100])
def test_everything_arrives_in_order_and_was_made_on_the_thread(n):
    made = []
    assert list(ahead(numbers(n, made))) == list(range(n))
    assert [i for i, _ in made] == list(range(n))
    assert {name for _, name in made} <= {"lrtrain-ahead"}
    assert own_threads() == []


def test_no_more_are_made_than_may_wait():
    made = []
    items = ahead(numbers(100, made), depth=3)
    assert next(items) == 0
    deadline = time.monotonic() + 5
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 5  # the one that was taken, three that wait, and one in hand
    items.close()


def test_when_the_caller_stops_so_does_the_thread():
    closed = []
    items = ahead(numbers(10_000_000, closed=closed))
    assert [next(items), next(items)] == [0, 1]
    items.close()
    assert closed == [True]
    assert own_threads() == []


def test_an_error_comes_after_what_was_made_before_it():
    def failing():
        yield from numbers(3)
        raise ValueError("the third image")

    items = ahead(failing())
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the third image"):
        next(items)
    assert own_threads() == []
