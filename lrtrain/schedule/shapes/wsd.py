"""Warmup, stable, decay."""

import math
from typing import Literal


def wsd(
    t: int, steps: int, *, cooldown: int, shape: Literal["linear", "cosine", "1-sqrt"] = "1-sqrt", floor: float = 0.0
) -> float:
    """Stable at the base LR, then a cooldown to the floor; the warm-up is the phase before (`warmup: 5ep`).

    f(t) = 1 for t < s = steps - cooldown, then floor + (1 - floor) d(p) with p = (t - s) / cooldown
    and d(p) = 1 - p (linear), (1 + cos(pi p)) / 2 (cosine) or 1 - sqrt(p) (1-sqrt). Hu et al. 2024
    (arXiv:2404.06395) for the three parts, Haegele et al. 2024 (arXiv:2405.18392) for 1 - sqrt.

    Args:
        t: tick in the phase, from 0.
        steps: length of the phase in ticks.
        cooldown: length of the decay in ticks.
        shape: how the decay falls.
        floor: where the decay ends, as a ratio of the base LR.

    >>> [wsd(t, 4, cooldown=2, shape="linear") for t in range(4)]
    [1.0, 1.0, 1.0, 0.5]
    """
    if cooldown > steps:
        raise ValueError(f"the cooldown lasts {cooldown:,} ticks, the phase only {steps:,}")
    if t < steps - cooldown:
        return 1.0
    p = (t - (steps - cooldown)) / cooldown
    if shape == "linear":
        decay = 1 - p
    elif shape == "cosine":
        decay = (1 + math.cos(math.pi * p)) / 2
    else:
        decay = 1 - math.sqrt(p)
    return floor + (1 - floor) * decay
