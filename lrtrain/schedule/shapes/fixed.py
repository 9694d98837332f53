"""The LR that never changes."""


def fixed(t: int, steps: int) -> float:
    """Factor 1 throughout: f(t) = 1."""
    return 1.0
