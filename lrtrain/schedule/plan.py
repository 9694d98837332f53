"""A schedule becomes a plan: the whole table, known before the first step, and a live tail if any."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from lrtrain import lookup
from lrtrain.config.schedule_checks import DEFAULT_MONITOR, check_schedule
from lrtrain.config.scheduler_arguments import PER_GROUP
from lrtrain.config.schema import RunConfig, monitor_mode
from lrtrain.errors import CheckpointError, ConfigError, LrtrainError, Problem
from lrtrain.schedule import notes
from lrtrain.schedule.arguments import Scheduler, resolve
from lrtrain.schedule.curve import Curve, GroupLR, Table
from lrtrain.schedule.layout import Stretch, lay_out
from lrtrain.schedule.plateau import Live, Plateau
from lrtrain.schedule.torch_schedulers import build, tabulate

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
            return tuple(
                0.0 if t < group.frozen_steps else lr for group, lr in zip(self.groups, live.lrs, strict=True)
            )
        row = self.curve.lr[t].tolist()
        return tuple([row[column] for column in self.curve.columns])

    def write(self, optimizer: Optimizer, t: int, live: Live | None) -> None:
        """Put what step t trains with into the optimizer: LR, and momentum or beta1 where they cycle."""
        momentum = None if self.curve.momentum is None else self.curve.momentum[t].tolist()
        for group, lr, column in zip(
            optimizer.param_groups, self.lrs(t, live), self.curve.columns, strict=True
        ):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
            if momentum is None:
                continue
            if "betas" in group:
                group["betas"] = (momentum[column], *group["betas"][1:])
            else:
                group["momentum"] = momentum[column]


def make_plan(config: RunConfig, groups: Sequence[GroupLR], steps_per_epoch: int) -> Plan:
    """Everything about the LR of a run, before its first step.

    Args:
        config: the run.
        groups: one for each parameter group, in the optimizer's order.
        steps_per_epoch: optimizer steps in one pass over the training data.

    Raises:
        ConfigError: with every problem of the schedule.
    """
    problems = check_schedule(config)
    if problems:
        raise ConfigError(problems)
    stretches = lay_out(config, steps_per_epoch)
    resolved: list[tuple[Stretch, Scheduler]] = []
    for stretch in stretches:
        try:
            resolved.append((stretch, resolve(stretch, groups, config.where)))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return _assemble(config, tuple(groups), resolved)


def _assemble(
    config: RunConfig, groups: tuple[GroupLR, ...], resolved: list[tuple[Stretch, Scheduler]]
) -> Plan:
    columns, speakers = _shared_columns(groups, [scheduler for _, scheduler in resolved])
    distinct = [groups[g] for g in speakers]
    problems: list[Problem] = []
    tables: list[tuple[Table, Table | None]] = []
    for stretch, scheduler in resolved:
        try:
            tables.append(_tables(stretch, scheduler, distinct, scheduler.for_columns(speakers)))
        except LrtrainError as error:
            problems += error.problems
        except Exception as error:
            what = f"{stretch.phase.name} cannot be computed: {error or type(error).__name__}"
            problems.append(Problem(what, config.where(*stretch.loc), _hint(error)))
    if problems:
        raise ConfigError(problems)
    curve = _joined(tables, distinct, columns)
    last, scheduler = resolved[-1]
    live = last.phase.name == "ReduceLROnPlateau"
    monitor = last.phase.monitor or DEFAULT_MONITOR
    plateau = Plateau(monitor, {**scheduler.args, "mode": monitor_mode(monitor)}) if live else None
    highest = max(range(len(groups)), key=lambda g: groups[g].lr)
    total, steps_per_epoch = len(curve), last.steps_per_epoch
    return Plan(
        curve, groups, steps_per_epoch, total, _spans(resolved, tables, columns[highest], plateau),
        (*(note for stretch, one in resolved for note in notes.phase_notes(stretch, one, groups)),
         *notes.frozen_notes(groups, total, steps_per_epoch)),
        last.start if live else None, plateau)


def _shared_columns(
    groups: Sequence[GroupLR], schedulers: Sequence[Scheduler]
) -> tuple[tuple[int, ...], list[int]]:
    """The column of each group, and the first group of each column: shared where nothing tells them apart."""
    lists = [value for scheduler in schedulers for one in scheduler.flat for key, value in one.args.items()
             if key in PER_GROUP and isinstance(value, list)]
    keys = [(group.lr, group.momentum, group.frozen_steps, *(repr(values[g]) for values in lists))
            for g, group in enumerate(groups)]
    distinct = list(dict.fromkeys(keys))
    return tuple(distinct.index(key) for key in keys), [keys.index(key) for key in distinct]


def _tables(stretch: Stretch, scheduler: Scheduler, groups: Sequence[GroupLR],
            args: dict[str, Any]) -> tuple[Table, Table | None]:
    """LR and, where the phase cycles it, momentum of one phase, each of shape (steps, columns)."""
    name, momentum = scheduler.name, None
    if name == "ReduceLROnPlateau":
        Live(Plateau(DEFAULT_MONITOR, args), groups)
        lr = _by_factor(np.ones(stretch.ticks), groups)
    elif _is_shape(name):
        shape = lookup.find("scheduler", name)
        lr = _by_factor(np.array([shape(t, stretch.ticks, **args) for t in range(stretch.ticks)]), groups)
    else:
        lr, momentum = tabulate(partial(build, name, args), groups, stretch.ticks)
    own = np.array([group.momentum for group in groups], dtype=np.float64)
    cycled = momentum if momentum is not None and bool((momentum != own).any()) else None
    held = [None if table is None else np.repeat(table, stretch.tick_steps, axis=0)[: stretch.steps]
            for table in (lr, cycled)]
    assert held[0] is not None
    checked = Curve(held[0], tuple(range(len(groups))), held[1])
    return checked.lr, checked.momentum


def _is_shape(name: str) -> bool:
    if not lookup.is_path(name):
        return name in lookup.ours("scheduler")
    found = lookup.find("scheduler", name)
    return inspect.isfunction(found) and list(inspect.signature(found).parameters)[:2] == ["t", "steps"]


def _by_factor(factors: Table, groups: Sequence[GroupLR]) -> Table:
    """Factors of the base LR, shape (ticks,), times each group's, shape (ticks, columns)."""
    table: Table = factors.astype(np.float64)[:, None] * np.array([group.lr for group in groups])
    return table


def _joined(
    tables: Sequence[tuple[Table, Table | None]], groups: Sequence[GroupLR], columns: tuple[int, ...]
) -> Curve:
    """All phases end to end; beside one that cycles the momentum, the others hold the optimizer's own."""
    lr = np.concatenate([lr for lr, _ in tables])
    for column, group in enumerate(groups):
        lr[: group.frozen_steps, column] = 0.0
    if all(momentum is None for _, momentum in tables):
        return Curve(lr, columns)
    own = np.array([group.momentum for group in groups], dtype=np.float64)
    momentum = np.concatenate(
        [np.broadcast_to(own, lr.shape) if cycled is None else cycled for lr, cycled in tables]
    )
    return Curve(lr, columns, momentum)


def _spans(
    resolved: Sequence[tuple[Stretch, Scheduler]],
    tables: Sequence[tuple[Table, Table | None]],
    column: int,
    plateau: Plateau | None,
) -> tuple[Span, ...]:
    spans = []
    for (stretch, scheduler), (table, _) in zip(resolved, tables, strict=True):
        lr = table[:, column]
        live = plateau is not None and scheduler.name == "ReduceLROnPlateau"
        words = (
            notes.plateau_words(plateau, stretch, lr) if live and plateau else notes.phase_words(stretch, lr)
        )
        spans.append(Span(scheduler.name, stretch.start, stretch.stop, words))
    return tuple(spans)


def _hint(error: Exception) -> str | None:
    if isinstance(error, TypeError) and "metrics" in str(error):
        return "only ReduceLROnPlateau can watch a metric; what other schedulers do must be known in advance"
    return (
        "its arguments lead to a number that is no learning rate"
        if isinstance(error, ArithmeticError)
        else None
    )
