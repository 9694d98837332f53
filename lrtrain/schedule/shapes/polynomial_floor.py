"""torch's PolynomialLR with a floor that keeps the ratios between parameter groups."""


def polynomial_floor(t: int, steps: int, *, power: float = 1.0, floor: float = 0.0) -> float:
    """Fall as a power of the remaining time, to a floor.

    f(t) = floor + (1 - floor) (1 - t / steps)^power. Power 0.9: Chen et al. 2017 (arXiv:1606.00915).

    Args:
        t: tick in the phase, from 0.
        steps: length of the phase in ticks.
        power: 1 falls in a straight line, more falls early.
        floor: where the decay ends, as a ratio of the base LR.

    >>> polynomial_floor(5, 10, power=2.0, floor=0.2)
    0.4
    """
    return floor + (1 - floor) * float((1 - t / steps) ** power)
