"""Reflected exponential: holds the LR high for long, then falls ever faster."""


def rex(t: int, steps: int, *, floor: float = 0.0) -> float:
    """Fall to the floor, slowly first.

    f(t) = floor + (1 - floor) (1 - p) / (1 - p / 2) with p = t / steps. Chen et al. 2022 (arXiv:2107.04197).

    Args:
        t: tick in the phase, from 0.
        steps: length of the phase in ticks.
        floor: where the decay ends, as a ratio of the base LR.

    >>> rex(2, 4)
    0.6666666666666666
    """
    p = t / steps
    return floor + (1 - floor) * (1 - p) / (1 - p / 2)
