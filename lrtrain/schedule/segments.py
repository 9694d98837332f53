"""The curve of one phase, and phases end to end."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import numpy as np

from lrtrain import lookup
from lrtrain.config.schedule_checks import DEFAULT_MONITOR
from lrtrain.schedule.curve import Curve, GroupLR, Table
from lrtrain.schedule.layout import Stretch
from lrtrain.schedule.plateau import Live, Plateau
from lrtrain.schedule.torch_schedulers import build, tabulate


def segment(stretch: Stretch, name: str, args: dict[str, Any], groups: Sequence[GroupLR]) -> Curve:
    """The curve of one phase, as if it were the whole run; momentum only where the phase cycles it.

    Args:
        stretch: the phase in its place.
        name: of the scheduler.
        args: what it is built with, lists having a value for each of `groups`.
        groups: one for each column.

    Raises:
        ValueError: a value is no learning rate; says at which step.
    """
    momentum = None
    if name == "ReduceLROnPlateau":
        Live(Plateau(DEFAULT_MONITOR, args), groups)
        lr = _times_base(np.ones(stretch.ticks), groups)
    elif is_shape(name):
        shape = lookup.find("scheduler", name)
        factors = [float(shape(t, stretch.ticks, **args)) for t in range(stretch.ticks)]
        lr = _times_base(np.array(factors), groups)
    else:
        lr, momentum = tabulate(partial(build, name, args), groups, stretch.ticks)
    if momentum is not None and bool((momentum == _own_momentum(groups)).all()):
        momentum = None
    columns = tuple(range(len(groups)))
    try:
        return Curve(_held(lr, stretch), columns, None if momentum is None else _held(momentum, stretch))
    except ValueError as error:
        raise ValueError(f"{error} of the phase") from None


def joined(segments: Sequence[Curve], groups: Sequence[GroupLR], columns: tuple[int, ...]) -> Curve:
    """All phases end to end; beside one that cycles the momentum, the others hold the optimizer's own.

    Args:
        segments: one for each phase, a column for each of `groups`.
        groups: one for each column; frozen ones get LR 0.
        columns: the column of each parameter group of the optimizer.
    """
    cycled = any(part.momentum is not None for part in segments)
    own = _own_momentum(groups)
    whole = reduce(operator.add, [part.cycling(own) if cycled else part for part in segments])
    whole = replace(whole, columns=columns)
    frozen = np.arange(len(whole))[:, None] < np.array([group.frozen_steps for group in groups])
    return replace(whole, lr=np.where(frozen, 0.0, whole.lr)) if frozen.any() else whole


def is_shape(name: str) -> bool:
    """Whether a scheduler is a function f(t, steps): factors of each group's own LR."""
    if not lookup.is_path(name):
        return name in lookup.ours("scheduler")
    found = lookup.find("scheduler", name)
    return inspect.isfunction(found) and list(inspect.signature(found).parameters)[:2] == ["t", "steps"]


def _times_base(factors: Table, groups: Sequence[GroupLR]) -> Table:
    """Factors of the base LR, shape (ticks,), times each group's: shape (ticks, columns)."""
    table: Table = factors[:, None] * np.array([group.lr for group in groups])
    return table


def _held(table: Table, stretch: Stretch) -> Table:
    """A row for each tick becomes a row for each step."""
    return np.repeat(table, stretch.tick_steps, axis=0)[: stretch.steps]


def _own_momentum(groups: Sequence[GroupLR]) -> Table:
    return np.array([group.momentum for group in groups], dtype=np.float64)
