"""What each scheduler argument may be: its unit, its range, its words. Torch is not imported."""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from lrtrain import lookup
from lrtrain.config.duration import Duration
from lrtrain.config.expression import Expression
from lrtrain.config.messages import number_hint, shortened, such_as
from lrtrain.config.yaml import Loc
from lrtrain.errors import Problem, quoted

Every = Literal["epoch", "step"]
Where = Callable[..., str]

MOST_TICKS = 10**9
# torch's arguments that count ticks of the scheduler.
COUNTS = {
    "StepLR": ("step_size",),
    "MultiStepLR": ("milestones",),
    "ConstantLR": ("total_iters",),
    "LinearLR": ("total_iters",),
    "PolynomialLR": ("total_iters",),
    "CosineAnnealingLR": ("T_max",),
    "CosineAnnealingWarmRestarts": ("T_0",),
    "CyclicLR": ("step_size_up", "step_size_down"),
    "OneCycleLR": ("total_steps",),
}
# Arguments that torch also takes as a list with one value per parameter group.
PER_GROUP = ("max_lr", "base_lr", "base_momentum", "max_momentum", "min_lr", "lr_lambda")
# Arguments that are a formula, of what.
FORMULAS = {"lr_lambda": "t", "scale_fn": "x"}

_RANGES = {
    "gamma": "(0, inf)",
    "start_factor": "(0, 1]",
    "end_factor": "[0, 1]",
    "power": "(0, inf)",
    "eta_min": "[0, inf)",
    "base_lr": "[0, inf)",
    "max_lr": "(0, inf)",
    "base_momentum": "[0, 1)",
    "max_momentum": "[0, 1)",
    "pct_start": "(0, 1]",
    "div_factor": "(0, inf)",
    "final_div_factor": "(0, inf)",
    "threshold": "[0, inf)",
    "eps": "[0, inf)",
    "min_lr": "[0, inf)",
    "floor": "[0, 1]",
    "ConstantLR.factor": "(0, 1]",
    "ReduceLROnPlateau.factor": "(0, 1)",
}
_REASONS = {
    "start_factor": "torch multiplies the current LR, so a ramp cannot leave 0; start at 1.0e-6 or so",
    "ConstantLR.factor": "torch multiplies the LR by 1/factor at the end, so it cannot come back from 0",
    "pct_start": "it is the part of the cycle in which the LR rises, such as 0.3",
    "gamma": "the LR is multiplied by it: 0 or less ends training",
}
_WORDS: dict[str, tuple[str, ...]] = {
    "anneal_strategy": ("cos", "linear"),
    "scale_mode": ("cycle", "iterations"),
    "threshold_mode": ("rel", "abs"),
    "CyclicLR.mode": ("triangular", "triangular2", "exp_range"),
    "ReduceLROnPlateau.mode": ("min", "max"),
}
_SWITCHES = ("cycle_momentum", "three_phase")
_WHOLE = {"T_mult": 1, "ReduceLROnPlateau.patience": 0, "ReduceLROnPlateau.cooldown": 0}


@dataclass(frozen=True, slots=True)
class Interval:
    """A range of numbers, written `(0, 1]`."""

    text: str

    def __contains__(self, value: float) -> bool:
        low, high = (float(part) for part in self.text[1:-1].split(","))
        above = value >= low if self.text[0] == "[" else value > low
        return above and (value <= high if self.text[-1] == "]" else value < high)

    def __str__(self) -> str:
        low, high = self.text[1:-1].split(", ")
        words = ("at least " if self.text[0] == "[" else "greater than ") + low
        return (
            words if high == "inf" else words + (" and at most " if self.text[-1] == "]" else " and less than ") + high
        )


def counts_of(name: str) -> tuple[str, ...]:
    """The arguments of a scheduler that count its ticks."""
    if name in lookup.ours("scheduler"):
        return tuple(argument for argument, kind in _annotations(name).items() if kind is int)
    return COUNTS.get(name, ())


def check_arguments(name: str, args: dict[str, Any], every: Every | None, loc: Loc, where: Where) -> Iterator[Problem]:
    """What is wrong with the values of one scheduler's arguments; unknown arguments are somebody else's."""
    counts = counts_of(name)
    for key, value in args.items():
        problems = _check_count(key, value, every) if key in counts else _check_value(name, key, value)
        for what, hint in problems:
            yield Problem(what, where(*loc, key), hint or _usual(name, key))
    reason = None if every else why_unit_needed(name, args)
    if reason:
        yield Problem(
            f"{name} needs `every: epoch` or `every: step`: {reason}",
            where(*loc),
            "put `every: epoch` or `every: step` beside it",
        )


def _usual(name: str, key: str) -> str | None:
    takes = lookup.arguments("scheduler", name)
    return such_as(key, None if takes is None else takes.defaults.get(key)) or "leave it out"


def why_unit_needed(name: str, args: dict[str, Any]) -> str | None:
    """Why a scheduler means something else per epoch than per step, or None where its arguments say it."""
    if name == "ExponentialLR":
        return "gamma is a rate per tick"
    if name in ("LambdaLR", "MultiplicativeLR"):
        return "lr_lambda is a formula of t, which counts ticks"
    if name == "CyclicLR":
        if "step_size_up" not in args:
            return "step_size_up is absent, and torch's default is 2000 ticks"
        if args.get("mode") == "exp_range" or args.get("scale_mode") == "iterations":
            return (
                "gamma is a rate per tick"
                if "scale_fn" not in args
                else "scale_fn is a formula of x, which counts ticks"
            )
    return "what its numbers count is not known" if lookup.is_path(name) else None


def _check_count(key: str, value: Any, every: Every | None) -> Iterator[tuple[str, str | None]]:
    if isinstance(value, list) != (key == "milestones"):
        yield (
            f"{key} must be {'one length' if isinstance(value, list) else 'a list'}; got {shortened(value)}",
            None,
        )
        return
    items = value if isinstance(value, list) else [value]
    if not items:
        yield f"{key} is empty", "name at least one point, such as [30ep, 60ep]"
    bare = [item for item in items if isinstance(item, int | float) and not isinstance(item, bool)]
    if every is None and bare and all(math.isfinite(item) and item > 0 for item in bare):
        written = [
            "[" + ", ".join(f"{item:g}{unit}" for item in bare) + "]" if isinstance(value, list) else f"{value:g}{unit}"
            for unit in ("ep", "step")
        ]
        yield (
            f"{key}: {quoted(value)} has no unit",
            f"write {' or '.join(written)}, or put `every: epoch` or `every: step` beside it",
        )
        return
    problems = [problem for item in items for problem in _check_one_count(key, item, every)]
    yield from problems or _check_rising(key, items)


def _check_rising(key: str, items: list[Any]) -> Iterator[tuple[str, str | None]]:
    points = [
        (item, "tick") if isinstance(item, int) else (Duration.parse(item).value, Duration.parse(item).unit)
        for item in items
    ]
    for i in range(1, len(points)):
        (before, unit), (after, other) = points[i - 1], points[i]
        if unit == other and after <= before:
            yield f"{key} must rise: {items[i]} comes after {items[i - 1]}", None


def _check_one_count(key: str, item: Any, every: Every | None) -> Iterator[tuple[str, str | None]]:
    if isinstance(item, int) and not isinstance(item, bool):
        if not 1 <= item <= MOST_TICKS:
            yield f"{key} must be at least 1 tick and at most {MOST_TICKS:,}; got {quoted(item)}", None
    elif isinstance(item, float):
        yield f"{key} must be a {'whole' if math.isfinite(item) else 'finite'} number; got {item}", None
    elif isinstance(item, str) and number_hint(item):
        yield f"{key} must be a number; got {shortened(item)}", number_hint(item)
    else:
        yield from _check_duration(key, item, every)


def _check_duration(key: str, item: Any, every: Every | None) -> Iterator[tuple[str, str | None]]:
    try:
        duration = Duration.parse(item)
    except ValueError as error:
        yield f"{key}: {error}", "a duration is epochs (5ep), steps (300step) or a part of the run (10%)"
        return
    if duration.value == 0:
        yield f"{key} must be longer than zero; got {duration}", None
    elif every == "epoch" and duration.unit == "ep" and duration.value.denominator != 1:
        yield (
            f"{key}: {duration} is not a whole number of epochs, but the scheduler ticks once an epoch",
            "use `every: step`",
        )


def _check_value(name: str, key: str, value: Any) -> Iterator[tuple[str, str | None]]:
    both = f"{name}.{key}"
    words = _WORDS.get(both, _WORDS.get(key)) or _literals(name).get(key)
    if key in FORMULAS:
        yield from _check_formulas(key, value)
    elif words is not None:
        if value not in words:
            yield f"{key} cannot be {shortened(value)}", f"allowed: {', '.join(words)}"
    elif key in _SWITCHES:
        if not isinstance(value, bool):
            yield f"{key} must be true or false; got {shortened(value)}", None
    elif both in _WHOLE or key in _WHOLE:
        low = _WHOLE.get(both, _WHOLE.get(key, 0))
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            unit = " of evaluations" if name == "ReduceLROnPlateau" else ""
            hint = f"such as {key}: {max(low, 2)}"
            yield f"{key} must be a whole number{unit}, at least {low}; got {shortened(value)}", hint
    elif both in _RANGES or key in _RANGES:
        reason = _REASONS.get(both, _REASONS.get(key))
        yield from _check_numbers(key, value, Interval(_RANGES.get(both, _RANGES.get(key, ""))), reason)


def _check_numbers(key: str, value: Any, allowed: Interval, reason: str | None) -> Iterator[tuple[str, str | None]]:
    if isinstance(value, list) and key not in PER_GROUP:
        yield f"{key} must be one number; got {shortened(value)}", None
        return
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, bool) or not isinstance(item, int | float):
            yield f"{key} must be a number; got {shortened(item)}", number_hint(item)
        elif not math.isfinite(item):
            yield f"{key} must be a finite number; got {item}", None
        elif item not in allowed:
            yield f"{key} must be {allowed}; got {quoted(item)}", reason


def _check_formulas(key: str, value: Any) -> Iterator[tuple[str, str | None]]:
    for item in value if isinstance(value, list) and key in PER_GROUP else [value]:
        try:
            Expression.parse(item, FORMULAS[key])
        except ValueError as error:
            yield f"{key}: {error}", f'such as {key}: "0.95 ** {FORMULAS[key]}"'


def _annotations(name: str) -> dict[str, Any]:
    """The types of a shape's own arguments. Shapes import nothing heavy."""
    shape = lookup.find("scheduler", name)
    hints = typing.get_type_hints(shape)
    return {key: hints[key] for key in inspect.signature(shape).parameters if key not in ("t", "steps")}


def _literals(name: str) -> dict[str, tuple[str, ...]]:
    if name not in lookup.ours("scheduler"):
        return {}
    return {
        key: typing.get_args(kind) for key, kind in _annotations(name).items() if typing.get_origin(kind) is Literal
    }
