"""A case: one thing that is done to a run, and what must be so afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torture_parts.trial import Trial

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """`number` finds it again within its section, with the same seed and the same code."""

    section: str
    number: int
    name: str
    try_it: Callable[[Trial], None]


@dataclass
class Found:
    """What a case has shown.

    Attributes:
        problems: what was not as it must be; empty where all was survived.
        counts: kills, moments looked at, LR values compared, ...
        figures: measured values.
        notes: what is to be read in the table.
    """

    case: Case
    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    figures: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    folder: str = ""


def numbered(section: str, named: Sequence[tuple[str, Callable[[Trial], None]]]) -> list[Case]:
    """Cases from names and functions, in order."""
    return [Case(section, i, name, function) for i, (name, function) in enumerate(named)]


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, evenly spread over all, first and last included."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(most - 1, 1))] for i in range(most)]
