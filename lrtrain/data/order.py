"""Which images are in the batch of a step: a pure function of (seed, step)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lrtrain.random import key, permutation


def steps_per_epoch(n: int, batch_size: int, drop_last: bool) -> int:
    """Optimizer steps that one pass over `n` images takes.

    >>> steps_per_epoch(1437, 64, drop_last=False), steps_per_epoch(1437, 64, drop_last=True)
    (23, 22)
    """
    return n // batch_size if drop_last else -(-n // batch_size)


def smallest_part(n: int, batch_size: int, drop_last: bool, accumulate: int = 1, processes: int = 1) -> int:
    """Images of the smallest micro-batch of an epoch: of what a process takes through the model at once.

    >>> smallest_part(1025, 64, drop_last=False), smallest_part(1025, 64, drop_last=True)
    (1, 64)
    """
    last = n - (steps_per_epoch(n, batch_size, drop_last) - 1) * batch_size
    parts = []
    for batch in {min(batch_size, n), batch_size if drop_last else last}:
        for share in {batch // processes, -(-batch // processes)}:
            size = max(-(-share // accumulate), 1)
            parts += [min(size, share), share % size or size]
    return min(parts)


def batch_of_step(seed: int, n: int, batch_size: int, step: int, drop_last: bool) -> NDArray[np.int64]:
    """Indices of the images in the batch of optimizer step `step`, counted from 0 over all epochs.

    Epoch e = step // steps_per_epoch goes through a permutation that depends on (seed, e) alone.
    """
    epoch, batch = divmod(step, steps_per_epoch(n, batch_size, drop_last))
    return epoch_order(seed, n, epoch)[batch * batch_size : (batch + 1) * batch_size].copy()


@lru_cache(maxsize=2)
def epoch_order(seed: int, n: int, epoch: int) -> NDArray[np.int64]:
    """The order of epoch `epoch`, a permutation of `range(n)`."""
    return permutation(key(seed, "order", epoch), n)
