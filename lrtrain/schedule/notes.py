"""What a plan says in words: what each phase does, and what follows from it that is easily overlooked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from lrtrain.schedule.arguments import Scheduler
from lrtrain.schedule.curve import GroupLR, Table
from lrtrain.schedule.layout import Stretch
from lrtrain.schedule.plateau import Plateau

# Schedulers that set the LR outright, rather than multiplying what stands there.
_ABSOLUTE = ("LambdaLR", "CosineAnnealingWarmRestarts", "CyclicLR", "OneCycleLR")


def phase_words(stretch: Stretch, lr: Table) -> str:
    """A phase in a line: `LinearLR  0.001 -> 0.1 over 5 epochs (1,955 steps)`.

    Args:
        stretch: the phase.
        lr: its LR in the group with the highest, shape (steps,).
    """
    first, peak, last = float(lr[0]), float(lr.max()), float(lr[-1])
    turns = [first, peak, last] if peak > first and peak > last else [first, last]
    values = [f"{value:.3g}" for value in turns]
    course = " -> ".join(value for value, _ in itertools.groupby(values))
    return (
        f"{stretch.phase.name}  {course} over {stretch.lasting(stretch.ticks)}"
        if stretch.steps % stretch.tick_steps == 0
        else f"{stretch.phase.name}  {course} over {stretch.steps:,} steps"
    )


def plateau_words(plateau: Plateau, stretch: Stretch, lr: Table) -> str:
    """A live tail in a line."""
    factor, patience = plateau.args.get("factor", 0.1), plateau.args.get("patience", 10)
    return (
        f"ReduceLROnPlateau  {float(lr[0]):.3g}, times {factor:g} when {plateau.monitor} "
        "has not improved in more than "
        f"{patience} evaluation{'' if patience == 1 else 's'}, for {stretch.lasting(stretch.steps)}"
    )


def phase_notes(stretch: Stretch, scheduler: Scheduler, groups: Sequence[GroupLR]) -> Iterator[str]:
    """What follows from a phase's arguments, where that is easily overlooked."""
    for one in scheduler.flat:
        for note in (*_length_notes(stretch, one), *_group_notes(one, groups)):
            yield f"{one.name}: {note}"
    for one in scheduler.members[1:]:
        if one.name in _ABSOLUTE:
            yield f"{one.name}: it sets the LR outright, so what stands before it in the chain has no effect"


def _length_notes(stretch: Stretch, one: Scheduler) -> Iterator[str]:
    args, ticks = one.args, stretch.ticks
    if one.name == "StepLR" and args["step_size"] >= ticks:
        size = stretch.lasting(args["step_size"])
        yield f"the LR never changes: step_size is {size}, the phase {stretch.lasting(ticks)}"
    if one.name == "OneCycleLR" and stretch.start > 0:
        yield f"it warms up by itself: it begins at 1/{args.get('div_factor', 25):g} of its peak, whatever came before"
    if one.name == "CosineAnnealingLR":
        if args["T_max"] > ticks:
            yield (
                f"floor never reached: T_max is {stretch.lasting(args['T_max'])}, the phase ends after "
                f"{stretch.lasting(ticks)}"
            )
        elif args["T_max"] < ticks - 1:
            yield f"LR rises again after {stretch.at(args['T_max'])}, where T_max ends"
    if one.name in ("LinearLR", "PolynomialLR") and args["total_iters"] > ticks:
        what = "ramp cut off" if one.name == "LinearLR" else "floor never reached: cut off"
        yield f"{what} at {stretch.at(ticks)}; total_iters is {stretch.lasting(args['total_iters'])}"
    if one.name == "OneCycleLR" and args.get("pct_start", 0.3) * ticks < 1:
        yield "the rise is shorter than one tick, so the LR starts near its peak"
    if one.name == "OneCycleLR" and args.get("three_phase") and args.get("pct_start", 0.3) > 0.5:
        yield "floor never reached: a rise and a fall of pct_start each leave no room for a third phase"
    yield from _cycle_notes(stretch, one)


def _cycle_notes(stretch: Stretch, one: Scheduler) -> Iterator[str]:
    if one.name == "CosineAnnealingWarmRestarts":
        length, factor = one.args["T_0"], one.args.get("T_mult", 1)
    elif one.name == "CyclicLR":
        up = one.args.get("step_size_up", 2000)
        length, factor = up + (one.args.get("step_size_down") or up), 1
    else:
        return
    start = 0
    if factor == 1:
        start = stretch.ticks // length * length
    else:
        while start + length <= stretch.ticks:
            start, length = start + length, length * factor
    done = stretch.ticks - start
    if done:
        part = f"{stretch.lasting(done)} of {stretch.lasting(length)}"
        yield f"the last cycle is cut off at {stretch.at(stretch.ticks)}, after {part}"


def _group_notes(one: Scheduler, groups: Sequence[GroupLR]) -> Iterator[str]:
    differ = len({group.lr for group in groups}) > 1
    for key in ("eta_min", "base_lr", "min_lr"):
        floor = one.args.get(key)
        if differ and isinstance(floor, int | float) and floor > 0:
            yield f"{key} {floor:g} is a shared floor: groups of different LR all end there"
    peak = one.args.get("max_lr") if "max_lr" in one.given else None
    for group, high in zip(groups, peak if isinstance(peak, list) else [peak] * len(groups), strict=True):
        if isinstance(high, int | float) and high != group.lr:
            yield f"max_lr {high:g} takes the place of the LR {group.lr:g} of group {group.name}"
    if one.cycles_momentum:
        low, high = (
            one.args.get("base_momentum", 0.85 if one.name == "OneCycleLR" else 0.8),
            one.args.get("max_momentum", 0.95 if one.name == "OneCycleLR" else 0.9),
        )
        own = ", ".join(dict.fromkeys(f"{group.momentum:g}" for group in groups if group.momentum is not None))
        yield f"momentum (or beta1) cycles between {low} and {high} in place of the optimizer's {own}"
    if one.name == "ReduceLROnPlateau":
        floors = one.args.get("min_lr", 0)
        for group, low in zip(groups, floors if isinstance(floors, list) else [floors] * len(groups), strict=True):
            if low >= group.lr:
                yield f"the LR {group.lr:g} of group {group.name} is never reduced: min_lr is {low:g}"


def frozen_notes(groups: Sequence[GroupLR], total_steps: int, steps_per_epoch: int) -> Iterator[str]:
    """Which groups do not train from the start."""
    for group in groups:
        if group.frozen_steps >= total_steps:
            yield f"group {group.name} never trains: it is frozen for the whole run"
        elif group.frozen_steps:
            epoch = group.frozen_steps / steps_per_epoch
            yield f"group {group.name} is frozen (LR 0) until step {group.frozen_steps:,} (epoch {epoch:.4g})"
