"""A config that names SequentialLR is shown the same thing as a list of phases."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

from lrtrain.config.duration import Duration
from lrtrain.config.scheduler_arguments import counts_of
from lrtrain.config.schema import Phase


def as_phases(phase: Phase) -> str:
    """A SequentialLR as the list of phases that means the same, where its arguments can be read."""
    children, milestones = phase.args.get("schedulers"), phase.args.get("milestones")
    unit = {"epoch": "ep", "step": "step", None: "ep"}[phase.every]
    lengths = _lengths_between(milestones, unit)
    example = "schedule:\n  - {name: LinearLR, for: 5ep, start_factor: 0.01}\n  - {name: CosineAnnealingLR, for: rest}"
    if not isinstance(children, list) or not lengths or len(lengths) != len(children) - 1:
        return "such as\n" + example
    lines = ["schedule:"]
    for child, length in zip(children, [*lengths, "rest"], strict=True):
        data = {"name": child} if isinstance(child, str) else child
        if not isinstance(data, dict) or "name" not in data:
            return "such as\n" + example
        rest = "".join(f", {key}: {_flow(value)}" for key, value in data.items() if key not in ("name", "for"))
        counts = f", every: {phase.every}" if phase.every and counts_of(str(data["name"])) else ""
        lines.append(f"  - {{name: {data['name']}, for: {length}{counts}{rest}}}")
    guessed = phase.every is None and not all(isinstance(m, str) for m in milestones or [])
    return ("if its milestones count epochs:\n" if guessed else "") + "\n".join(lines)


def _lengths_between(milestones: Any, unit: str) -> list[str]:
    try:
        points = [Duration.parse(f"{m}{unit}" if isinstance(m, int) else m) for m in milestones]
    except (TypeError, ValueError):
        return []
    if len({point.unit for point in points}) > 1:
        return []
    starts = [Fraction(0), *(point.value for point in points)]
    gaps = [stop - start for start, stop in itertools.pairwise(starts)]
    return [str(Duration(gap, points[0].unit)) for gap in gaps] if all(gap > 0 for gap in gaps) else []


def _flow(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value).replace("'", "")
