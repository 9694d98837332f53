"""A schedule becomes a plan: the whole table, known before the first step, and a live tail if any."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import ASGD, Optimizer

from lrtrain import lookup
from lrtrain.config.schedule_checks import DEFAULT_MONITOR, check_schedule
from lrtrain.config.scheduler_arguments import PER_GROUP
from lrtrain.config.schema import RunConfig, monitor_mode
from lrtrain.errors import CheckpointError, ConfigError, LrtrainError, Problem
from lrtrain.random import key, seeded
from lrtrain.schedule import notes
from lrtrain.schedule.arguments import Scheduler, lacking_momentum, resolve
from lrtrain.schedule.curve import Curve, GroupLR
from lrtrain.schedule.extend import extended
from lrtrain.schedule.layout import MOST_STEPS, Stretch, lay_out
from lrtrain.schedule.plateau import Live, Plateau
from lrtrain.schedule.segments import is_shape, joined, segment

_MOST_LRS = 100_000_000  # two minutes, and 800 MB

__all__ = ["Curve", "GroupLR", "Live", "Plan", "Span", "make_plan"]


@dataclass(frozen=True, slots=True)
class Span:
    """A phase as tables and figures show it: steps `start` to `stop - 1`, and what it does in words."""

    name: str
    start: int
    stop: int
    words: str


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The LR of every group at every step of a run, and what may change it."""

    curve: Curve
    groups: tuple[GroupLR, ...]
    steps_per_epoch: int
    total_steps: int
    phases: tuple[Span, ...]
    notes: tuple[str, ...]
    """What follows from the schedule and is easily overlooked, in words."""
    live_from: int | None = None
    """First step of a ReduceLROnPlateau tail; there the curve holds the LR as it is without reductions."""
    plateau: Plateau | None = None
    lowerings: tuple[tuple[int, float], ...] = ()
    """Start and factor of each `lowered`, which the live tail's LR follows too."""

    def lowered(self, start: int, factor: float) -> Plan:
        """The plan with every LR from step `start` on (from 0) times `factor`."""
        lr = self.curve.lr.copy()
        lr[start:] *= factor
        note = f"the LR is {factor:g} times as high from step {start:,} on, where training went back to"
        notes, curve = (*self.notes, note), replace(self.curve, lr=lr)
        return replace(self, curve=curve, lowerings=(*self.lowerings, (start, factor)), notes=notes)

    def start_live(self, state: Mapping[str, float | int | str] | None = None) -> Live | None:
        """The live tail, fresh or from a checkpoint's `Live.state()`; None where there is none.

        It is to see the evaluations made after step `live_from`, not those before.

        Raises:
            CheckpointError: the state does not fit the plan.
        """
        if self.plateau is None:
            if state:
                raise CheckpointError(
                    "the checkpoint has a ReduceLROnPlateau state, but this schedule has no such phase",
                    hint="resume with the config that the checkpoint was made with",
                )
            return None
        live = Live(self.plateau, self.groups)
        if state is not None:
            live.restore(state)
        return live

    def lrs(self, t: int, live: Live | None) -> tuple[float, ...]:
        """What step t (from 0) trains with, per group; 0 where the group is frozen."""
        if live is not None and self.live_from is not None and t >= self.live_from:
            lrs = zip(self.groups, live.lrs, strict=True)
            lowered = math.prod(factor for start, factor in self.lowerings if t >= start)
            return tuple(0.0 if t < group.frozen_steps else lr * lowered for group, lr in lrs)
        row = self.curve.lr[t].tolist()
        return tuple([row[column] for column in self.curve.columns])

    def write(self, optimizer: Optimizer, t: int, live: Live | None) -> None:
        """Put what step t trains with into the optimizer: LR, and momentum or beta1 where they cycle."""
        momentum = None if self.curve.momentum is None else self.curve.momentum[t].tolist()
        for group, lr, column in zip(optimizer.param_groups, self.lrs(t, live), self.curve.columns, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
            if isinstance(optimizer, ASGD):
                _write_eta(optimizer, group, lr)
            if momentum is None:
                continue
            if "betas" in group:
                group["betas"] = (momentum[column], *group["betas"][1:])
            else:
                group["momentum"] = momentum[column]


def _write_eta(optimizer: ASGD, group: Mapping[str, Any], lr: float) -> None:
    """ASGD works out what a step trains with at the end of the step before, from that step's LR."""
    for parameter in group["params"]:
        if kept := optimizer.state.get(parameter):
            kept["eta"].fill_(lr / (1 + group["lambd"] * lr * float(kept["step"])) ** group["alpha"])


def run_steps(config: RunConfig, steps_per_epoch: int) -> int:
    """The length of a run in optimizer steps.

    Raises:
        ConfigError: more than `MOST_STEPS`.
    """
    if config.extended:
        return config.extended[-1].steps
    total = config.steps or (config.epochs or 0) * steps_per_epoch
    if total > MOST_STEPS:
        where = config.where("steps" if config.steps else "epochs")
        raise ConfigError(f"the run would have {total:,} steps; at most {MOST_STEPS:,} are planned", where)
    return total


def make_plan(config: RunConfig, groups: Sequence[GroupLR], steps_per_epoch: int) -> Plan:
    """Everything about the LR of a run, before its first step.

    Args:
        config: the run.
        groups: one for each parameter group, in the optimizer's order.
        steps_per_epoch: optimizer steps in one pass over the training data.

    Raises:
        ConfigError: with every problem of the schedule.
    """

    def planned(config: RunConfig, before: int) -> Plan:
        own = [replace(group, frozen_steps=max(0, group.frozen_steps - before)) for group in groups]
        return _planned(config, own, steps_per_epoch)

    def drawn() -> Plan:
        # A scheduler of one's own may draw, and is to draw the same in every process and whenever the run goes on.
        with seeded(key(config.seed, "schedule")):
            return extended(config, planned) if config.extended else planned(config, 0)

    plan = drawn()
    own = any(map(lookup.is_path, lookup.texts(config.dump().get("schedule"))))
    if own and not _alike(plan.curve, drawn().curve):
        what = "the schedule has other LRs whenever it is planned: code of your own draws them by itself, or counts"
        hint = "draw from torch's, numpy's or Python's own generator, which begin alike; keep nothing in the module"
        raise ConfigError(what, config.where("schedule"), hint)
    frozen = notes.frozen_notes(plan.groups, plan.total_steps, steps_per_epoch)
    return replace(plan, notes=(*plan.notes, *frozen))


def _alike(one: Curve, other: Curve) -> bool:
    tables = ((one.lr, other.lr), (one.momentum, other.momentum))
    return all(a is b or (a is not None and b is not None and np.array_equal(a, b)) for a, b in tables)


def _planned(config: RunConfig, groups: Sequence[GroupLR], steps_per_epoch: int) -> Plan:
    run_steps(config, steps_per_epoch)
    problems = check_schedule(config)
    if problems:
        raise ConfigError(problems)
    stretches = lay_out(config, steps_per_epoch)
    resolved: list[tuple[Stretch, Scheduler]] = []
    for stretch in stretches:
        try:
            scheduler = resolve(stretch, groups, config.where)
        except ConfigError as error:
            problems += error.problems
            continue
        resolved.append((stretch, scheduler))
        if (calls := stretch.ticks * len(scheduler.flat)) > MOST_STEPS:
            what = f"{stretch.phase.name} of {len(scheduler.flat):,} schedulers would be asked {calls:,} times"
            where = config.where(*stretch.loc)
            problems.append(Problem(f"{what}; at most {MOST_STEPS:,} are planned", where, "chain fewer"))
    if problems:
        raise ConfigError(problems)
    return _assemble(config, tuple(groups), resolved)


def _assemble(config: RunConfig, groups: tuple[GroupLR, ...], resolved: list[tuple[Stretch, Scheduler]]) -> Plan:
    columns, speakers = _shared_columns(groups, [scheduler for _, scheduler in resolved])
    distinct = [groups[g] for g in speakers]
    if (lrs := sum(stretch.ticks for stretch, _ in resolved) * len(distinct)) > _MOST_LRS:
        what = f"the plan would have {lrs:,} LRs, of {len(distinct):,} groups; at most {_MOST_LRS:,} are planned"
        raise ConfigError(what, config.where("optimizer"), "take fewer groups, no layer_decay, or fewer steps")
    problems: list[Problem] = []
    segments: list[Curve] = []
    for stretch, scheduler in resolved:
        try:
            part = segment(stretch, scheduler.name, scheduler.for_columns(speakers), distinct)
        except LrtrainError as error:
            problems += error.problems
        except Exception as error:
            what = f"{stretch.phase.name} cannot be computed: {error or type(error).__name__}"
            problems.append(Problem(what, config.where(*stretch.loc), _hint(error)))
        else:
            segments.append(part)
            # Of what an import path leads to, only what it did says that it cycles the momentum.
            cycled = [] if part.momentum is None else np.flatnonzero(part.momentum.any(axis=0)).tolist()
            problems += lacking_momentum(scheduler.name, [distinct[g] for g in cycled], config.where(*stretch.loc))
    if problems:
        raise ConfigError(problems)
    curve = joined(segments, distinct, columns)
    (last, scheduler), steps_per_epoch = resolved[-1], resolved[-1][0].steps_per_epoch
    monitor = last.phase.monitor or DEFAULT_MONITOR
    live = scheduler.name == "ReduceLROnPlateau"
    plateau = Plateau(monitor, {**scheduler.args, "mode": monitor_mode(monitor)}) if live else None
    highest = columns[max(range(len(groups)), key=lambda g: groups[g].lr)]
    spans = tuple(
        Span(
            one.name,
            stretch.start,
            stretch.stop,
            notes.plateau_words(plateau, stretch, part.lr[:, highest])
            if plateau and stretch is last
            else notes.phase_words(stretch, part.lr[:, highest]),
        )
        for (stretch, one), part in zip(resolved, segments, strict=True)
    )
    said = [note for stretch, one in resolved for note in notes.phase_notes(stretch, one, groups)]
    return Plan(curve, groups, steps_per_epoch, len(curve), spans, tuple(said), last.start if live else None, plateau)


def _shared_columns(groups: Sequence[GroupLR], schedulers: Sequence[Scheduler]) -> tuple[tuple[int, ...], list[int]]:
    """The column of each group, and the first group of each column: shared where nothing tells them apart.

    A scheduler of the user's own may go by a group's place.
    """
    if any(lookup.is_path(one.name) and not is_shape(one.name) for scheduler in schedulers for one in scheduler.flat):
        return tuple(range(len(groups))), list(range(len(groups)))
    lists = [
        value
        for scheduler in schedulers
        for one in scheduler.flat
        for key, value in one.args.items()
        if key in PER_GROUP and isinstance(value, list)
    ]
    keys = [
        (group.lr, group.momentum, group.frozen_steps, *(repr(values[g]) for values in lists))
        for g, group in enumerate(groups)
    ]
    distinct = list(dict.fromkeys(keys))
    return tuple(distinct.index(key) for key in keys), [keys.index(key) for key in distinct]


def _hint(error: Exception) -> str | None:
    if isinstance(error, TypeError) and "metrics" in str(error):
        return "only ReduceLROnPlateau can watch a metric; what other schedulers do must be known in advance"
    if isinstance(error, ArithmeticError):
        return "its arguments lead to a number that is no learning rate"
    return None
