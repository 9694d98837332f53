"""A phase's arguments as torch's class takes them: durations as ticks, absent lengths filled in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from lrtrain import lookup
from lrtrain.config.checks import HORIZONS
from lrtrain.config.duration import PATTERN
from lrtrain.config.expression import Expression
from lrtrain.config.schedule_checks import cycles_momentum, no_momentum
from lrtrain.config.scheduler_arguments import FORMULAS, PER_GROUP, counts_of
from lrtrain.config.yaml import Loc
from lrtrain.errors import ConfigError, Problem
from lrtrain.schedule.curve import GroupLR
from lrtrain.schedule.layout import Stretch

Where = Callable[..., str]


@dataclass(frozen=True, slots=True)
class Scheduler:
    """One scheduler with every argument it is built with; for a chain also those of its members."""

    name: str
    args: dict[str, Any]
    given: frozenset[str] = frozenset()
    """The arguments that stand in the config, rather than being filled in."""
    members: tuple[Scheduler, ...] = ()

    def for_columns(self, groups: Sequence[int]) -> dict[str, Any]:
        """The arguments, with lists cut down to the groups that stand for a column each."""
        if self.members:
            return {"schedulers": [(member.name, member.for_columns(groups)) for member in self.members]}
        return {
            key: [value[g] for g in groups] if key in PER_GROUP and isinstance(value, list) else deepcopy(value)
            for key, value in self.args.items()
        }

    @property
    def flat(self) -> tuple[Scheduler, ...]:
        """The scheduler itself, or the members of a chain."""
        return self.members or (self,)

    @property
    def cycles_momentum(self) -> bool:
        """Whether any of it sets the momentum too."""
        return any(cycles_momentum(one.name, one.args) for one in self.flat)


def resolve(stretch: Stretch, groups: Sequence[GroupLR], where: Where) -> Scheduler:
    """The scheduler of a phase, ready to be built.

    Raises:
        ConfigError: with every argument that does not fit this run's length or parameter groups.
    """
    phase, problems = stretch.phase, list[Problem]()
    if phase.name == "ChainedScheduler":
        members = []
        for i, child in enumerate(phase.args["schedulers"]):
            data = {"name": child} if isinstance(child, str) else dict(child)
            members.append(
                _resolve(data.pop("name"), data, stretch, (*stretch.loc, "schedulers", i), groups, where, problems)
            )
        scheduler = Scheduler(phase.name, {}, members=tuple(members))
    else:
        scheduler = _resolve(phase.name, phase.args, stretch, stretch.loc, groups, where, problems)
    if problems:
        raise ConfigError(problems)
    return scheduler


def _resolve(
    name: str,
    given: dict[str, Any],
    stretch: Stretch,
    loc: Loc,
    groups: Sequence[GroupLR],
    where: Where,
    problems: list[Problem],
) -> Scheduler:
    args: dict[str, Any] = {}
    for key, value in given.items():
        try:
            args[key] = _convert(name, key, value, stretch)
        except ValueError as error:
            problems.append(Problem(f"{key}: {error}", where(*loc, key)))
    horizon = HORIZONS.get(name)
    if horizon is not None and horizon not in given:
        if stretch.steps % stretch.tick_steps:
            problems.append(
                Problem(
                    f"{name} ticks once an epoch and fills its phase, which lasts "
                    f"{stretch.lasting(stretch.steps // stretch.tick_steps)} and a part of one",
                    where(*loc),
                    f"use `every: step`, or give {horizon}",
                )
            )
        args[horizon] = stretch.ticks
    if name in ("OneCycleLR", "CyclicLR"):
        args.setdefault("max_lr", [group.lr for group in groups])
    scheduler = Scheduler(name, args, frozenset(given))
    problems += [
        Problem(what, where(*loc, *([key] if key in given else [])), hint)
        for key, what, hint in _misfits(scheduler, stretch, groups)
    ]
    if cycles_momentum(name, args):
        problems += lacking_momentum(name, groups, where(*loc))
    return scheduler


def lacking_momentum(name: str, cycled: Sequence[GroupLR], where: str) -> list[Problem]:
    """The refusal of a scheduler that cycles the momentum of groups, one of which has none."""
    for group in cycled:
        if not group.momentum:
            why = "neither momentum nor betas" if group.momentum is None else "momentum 0"
            return [no_momentum(name, f"the optimizer's group {group.name} has {why}", where)]
    return []


def _convert(name: str, key: str, value: Any, stretch: Stretch) -> Any:
    if key in counts_of(name):
        return [stretch.count(item) for item in value] if isinstance(value, list) else stretch.count(value)
    if key in FORMULAS and not lookup.is_path(name):
        variable = FORMULAS[key]
        return (
            [Expression.parse(item, variable) for item in value]
            if isinstance(value, list)
            else Expression.parse(value, variable)
        )
    if lookup.is_path(name):
        return _ticks_where_durations(value, stretch)
    return float(value) if key == "pct_start" else value


def _ticks_where_durations(value: Any, stretch: Stretch) -> Any:
    """Code from outside: what reads as a duration is one, everything else is passed on as it is."""
    if isinstance(value, list):
        return [_ticks_where_durations(item, stretch) for item in value]
    return stretch.count(value) if isinstance(value, str) and re.match(PATTERN, value) else value


def _misfits(
    scheduler: Scheduler, stretch: Stretch, groups: Sequence[GroupLR]
) -> Iterator[tuple[str, str, str | None]]:
    """What contradicts the run's length or its groups: (argument, what, hint)."""
    args = scheduler.args
    for key in PER_GROUP:
        value = args.get(key)
        if isinstance(value, list) and len(value) != len(groups):
            names = ", ".join(group.name for group in groups)
            yield (
                key,
                f"{key} has {len(value)} values for {len(groups)} parameter groups ({names})",
                "give one for each",
            )
            return
    if "milestones" in args:
        late = [tick for tick in args["milestones"] if tick >= stretch.ticks]
        if late:
            yield (
                "milestones",
                f"the milestone at {stretch.lasting(late[0])} is not before the phase's end, which comes "
                f"after {stretch.lasting(stretch.ticks)}",
                "move it, leave it out, or make the phase longer",
            )
        elif args["milestones"] != sorted(set(args["milestones"])):
            yield "milestones", f"milestones must rise; in ticks they are {args['milestones']}", None
    if scheduler.name in ("OneCycleLR", "CyclicLR"):
        yield from _peak_misfits(scheduler, groups)
    if scheduler.name == "OneCycleLR":
        yield from _one_cycle_misfits(args, stretch)
    peaks = args["max_lr"] if scheduler.name == "CyclicLR" else [group.lr for group in groups]
    for key in ("eta_min", "base_lr"):
        if key in args:
            yield from _floor_misfits(
                key, args[key], peaks if isinstance(peaks, list) else [peaks] * len(groups), groups
            )


def _peak_misfits(scheduler: Scheduler, groups: Sequence[GroupLR]) -> Iterator[tuple[str, str, str | None]]:
    peak = scheduler.args["max_lr"]
    distinct = {group.lr for group in groups}
    if not isinstance(peak, list) and len(distinct) > 1:
        lrs = ", ".join(f"{group.name} {group.lr:g}" for group in groups)
        yield (
            "max_lr",
            f"max_lr: {peak:g} would give every parameter group the same LR, but they differ ({lrs})",
            "leave max_lr out, so that each group's own LR is its peak, or give a list",
        )


def _one_cycle_misfits(args: dict[str, Any], stretch: Stretch) -> Iterator[tuple[str, str, str | None]]:
    total, part = args["total_steps"], args.get("pct_start", 0.3)
    if total != stretch.ticks:
        yield (
            "total_steps",
            f"OneCycleLR's total_steps is {stretch.lasting(total)}, but its phase lasts "
            f"{stretch.lasting(stretch.ticks)}; they must be equal",
            "leave total_steps out",
        )
    elif part * total == 1:
        yield (
            "pct_start",
            f"pct_start: {part:g} of {total} ticks is a rise from tick 0 to tick 0, which torch divides by",
            f"a rise of two ticks is pct_start: {2 / total:.6g}" if total > 2 else "make the phase longer",
        )


def _floor_misfits(
    key: str, floor: Any, peaks: Sequence[float], groups: Sequence[GroupLR]
) -> Iterator[tuple[str, str, str | None]]:
    floors = floor if isinstance(floor, list) else [floor] * len(groups)
    for group, low, high in zip(groups, floors, peaks, strict=True):
        if low > high:
            yield (
                key,
                f"{key} {low:g} is above the LR {high:g} of parameter group {group.name}, which would rise",
                "eta_min is one LR for all groups; polynomial_floor, rex and wsd have one relative to each"
                if key == "eta_min"
                else "lower base_lr, or give a list with one for each group",
            )
            return
