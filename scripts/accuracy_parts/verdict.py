"""Whether two ways of training reach the same accuracy."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CONFIDENCE = 0.95
WIDEST = 1.0  # points of accuracy: what a difference must at most be known to


@dataclass(frozen=True)
class Comparison:
    """Test accuracies of both ways, in %, one a seed, and where their mean difference lies.

    Attributes:
        difference: mean of `ours` less mean of `plain`, in points.
        low, high: the interval of the difference.
    """

    name: str
    ours: tuple[float, ...]
    plain: tuple[float, ...]
    difference: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval, in points."""
        return (self.high - self.low) / 2

    @property
    def reasons(self) -> list[str]:
        """What speaks against their being the same, in words; nothing where the verdict is `met`."""
        found = []
        if not self.low <= 0 <= self.high:
            found.append("0 is outside the interval")
        if not self.half_width <= WIDEST:
            found.append(f"the interval is wider than +-{WIDEST:g} points, take more --seeds or --epochs")
        return found

    @property
    def verdict(self) -> str:
        """The words met or not met."""
        return "not met" if self.reasons else "met"

    def dump(self) -> dict[str, Any]:
        """As plain data."""
        return {**dataclasses.asdict(self), "half_width": self.half_width, "verdict": self.verdict}


def compare(name: str, ours: Sequence[float], plain: Sequence[float]) -> Comparison:
    """Welch's interval of the difference of two means (Welch 1947), at least two values each.

    Not of pairs: runs of one seed share their first weights and nothing else, too little to make up for the half of
    the degrees of freedom that pairs would cost. Where the weights do matter, this interval is the wider one.
    """
    difference = statistics.mean(ours) - statistics.mean(plain)
    low = high = difference
    if len({*ours}) > 1 or len({*plain}) > 1:  # of values without any spread scipy makes nan
        from scipy import stats

        interval = stats.ttest_ind(list(ours), list(plain), equal_var=False).confidence_interval(CONFIDENCE)
        low, high = float(interval.low), float(interval.high)
    return Comparison(name, tuple(ours), tuple(plain), difference, low, high)
