"""Decay with the square root of time, which needs no planned end."""

import math


def inverse_sqrt(t: int, steps: int, *, timescale: int) -> float:
    """Fall as 1 / sqrt(t), from 1.

    f(t) = sqrt(timescale / (timescale + t)). After a linear warm-up of W steps, timescale W is that of
    Vaswani et al. 2017 (arXiv:1706.03762); Zhai et al. 2022 (arXiv:2106.04560) take 10,000 steps.

    Args:
        t: tick in the phase, from 0.
        steps: length of the phase in ticks; the curve does not depend on it.
        timescale: ticks after which the LR has fallen to 1 / sqrt(2).

    >>> inverse_sqrt(30, 100, timescale=10)
    0.5
    """
    return math.sqrt(timescale / (timescale + t))
