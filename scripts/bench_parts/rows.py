"""What was found, as rows of numbers: medians, spreads and ratios."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench_parts.measure import Found


@dataclass
class Row:
    """One line of the table.

    Attributes:
        values: one a repeat, in `unit`; empty where there is nothing but a note.
        ratios: the median over another row's, by what the other is.
        note: why there is nothing, or what else is to be said.
    """

    section: str
    name: str
    unit: str
    values: list[float] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)
    start_up_seconds: float | None = None
    peak_mib: float | None = None
    worker_peak_mib: float | None = None
    loss: list[float] | None = None
    note: str = ""

    @property
    def median(self) -> float | None:
        """The middle of the values."""
        return statistics.median(self.values) if self.values else None

    def dump(self) -> dict[str, Any]:
        """As plain data."""
        return {**dataclasses.asdict(self), "median": self.median}


def row_of(section: str, name: str, unit: str, found: Sequence[Found], values: Sequence[float] | None = None) -> Row:
    """A row from what each repeat answered; `values` where they are not what the answers call "value"."""
    good, errors = good_of(found), [one["error"] for one in found if "error" in one]
    row = Row(section, name, unit, note=f"failed: {errors[0]}" if errors else "")
    if not good:
        return row
    row.values = [one["value"] for one in good] if values is None else list(values)
    for key in ("start_up_seconds", "peak_mib", "worker_peak_mib"):
        if all(key in one for one in good):
            setattr(row, key, statistics.median(one[key] for one in good))
    if good[-1].get("loss"):
        row.loss = good[-1]["loss"]
    return row


def good_of(found: Sequence[Found]) -> list[Found]:
    """The repeats that did not fail."""
    return [one for one in found if "error" not in one]


def ratio(one: Row | None, other: Row | None) -> float | None:
    """The first median over the second; None where one is missing."""
    if one is None or other is None or one.median is None or not other.median:
        return None
    return one.median / other.median


def fastest(rows: Sequence[Row]) -> Row | None:
    """The row with the highest median."""
    return max((row for row in rows if row.values), key=lambda row: row.median or 0.0, default=None)


@dataclass(frozen=True)
class Check:
    """A threshold that was agreed on: `value` must be at least, or else below, `limit`."""

    what: str
    value: float | None
    limit: float
    at_least: bool = True
    unit: str = "x"

    @property
    def verdict(self) -> str:
        """The words met, not met, or not measured."""
        if self.value is None:
            return "not measured"
        met = self.value >= self.limit if self.at_least else self.value < self.limit
        return "met" if met else "not met"

    def dump(self) -> dict[str, Any]:
        """As plain data."""
        return {**dataclasses.asdict(self), "verdict": self.verdict}
