"""Batches made ahead of the training loop, on a thread of their own."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")

DEPTH = 2  # batches that wait while one is trained on


def ahead(items: Generator[T, None, None], depth: int = DEPTH) -> Iterator[T]:
    """What a generator yields, in its order, made on a thread while the caller works with what it has.

    The generator runs on that thread alone; it must not use generators of random numbers that the caller uses too.
    When the caller stops, so does the thread, before this function returns.

    Args:
        items: is closed at the end.
        depth: how many may wait.

    Raises:
        Exception: whatever the generator raises, after what it yielded before.
    """
    waiting: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    ended = threading.Event()

    def work() -> None:
        try:
            with contextlib.closing(items):
                for item in items:
                    waiting.put((item, None))
                    if ended.is_set():
                        return
            waiting.put((None, StopIteration()))
        except BaseException as error:
            waiting.put((None, error))

    thread = threading.Thread(target=work, name="lrtrain-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        ended.set()
        while thread.is_alive():
            with contextlib.suppress(queue.Empty):
                waiting.get(timeout=0.01)
        thread.join()
