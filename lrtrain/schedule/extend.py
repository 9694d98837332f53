"""A run that goes on for longer than it was planned: three ways in which its LR may go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from lrtrain.config.schema import Extension, RunConfig
from lrtrain.errors import ConfigError
from lrtrain.schedule.curve import NEVER, Curve, GroupLR
from lrtrain.schedule.layout import MOST_STEPS, lasting

if TYPE_CHECKING:
    from lrtrain.schedule.plan import Plan, Span

    Planned = Callable[[RunConfig, int], Plan]

_MOST = 100


def extended(config: RunConfig, planned: Planned) -> Plan:
    """The plan of a run that was made longer, once or several times.

    With T steps planned before, `at` steps taken when it was extended and T' steps now, step t trains with

      - hold: the old LR for t < T, then that of the last step, T - 1;
      - rescale: the old LR for t < at, then that of the same schedule planned for T' steps;
      - restart: the old LR for t < T, then the same schedule from its beginning over the T' - T further steps.

    A group stays frozen up to the step of the run that its `frozen_until` names, or where the LR 0 of a group that has
    not come there is held.

    Args:
        config: the run; `epochs` and `steps` say what was planned at first.
        planned: the plan of a config that is not extended, after so many steps of the run.

    Raises:
        ConfigError: ReduceLROnPlateau is the tail, and does not fit the policy.
    """
    first = config.model_copy(update={"extended": None})
    extensions = config.extended or ()
    again, was = 0, 0  # steps that are planned once more, and the length before
    for extension in extensions:
        again += {"hold": 0, "rescale": extension.steps, "restart": max(0, extension.steps - was)}[extension.policy]
        was = extension.steps
    if len(extensions) > _MOST or again > MOST_STEPS:
        what = f"a run is extended {_MOST} times at most, and by rescale and restart for {MOST_STEPS:,} steps together"
        raise ConfigError(what, config.where("extended"), "begin another run from its weights")
    plan = planned(first, 0)
    for number, extension in enumerate(extensions):
        where = config.where("extended", number)
        if extension.steps <= plan.total_steps or extension.at > plan.total_steps:
            what = f"a run of {plan.total_steps:,} steps cannot be extended at {extension.at:,} to {extension.steps:,}"
            raise ConfigError(what, where, "extended is written by `lrtrain fit --resume --extend`; leave it as it is")
        plan = _longer(plan, extension, first, planned, where)
    return plan


def former_ends(config: RunConfig, first_steps: int) -> tuple[int, ...]:
    """The steps at which the run had ended before it was extended.

    Args:
        config: the run.
        first_steps: its length as `epochs` and `steps` say, in optimizer steps.
    """
    lengths = (first_steps, *(extension.steps for extension in config.extended or ()))
    return tuple(e.at for e, length in zip(config.extended or (), lengths, strict=False) if e.at == length)


def _longer(plan: Plan, extension: Extension, first: RunConfig, planned: Planned, where: str) -> Plan:
    total, at, old = extension.steps, extension.at, plan.total_steps
    if extension.policy == "hold":
        return _held(plan, total)
    rescale = extension.policy == "rescale"
    before = 0 if rescale else old
    after = _again(first, total - before, before, planned, extension.policy, where)
    groups = tuple(map(partial(_thawed, at if rescale else old, before), plan.groups, after.groups))
    if rescale:
        if after.live_from != plan.live_from:
            raise ConfigError("ReduceLROnPlateau would begin at another step", where, "extend it with `hold`")
        curve = _followed(plan, _part(plan.curve, 0, at), _part(after.curve, at, total))
        phases = (*_cut(plan.phases, 0, at), *_cut(after.phases, at, total))
        return replace(plan, curve=curve, groups=groups, total_steps=total, phases=phases, notes=after.notes)
    if plan.live_from is not None:
        raise ConfigError("ReduceLROnPlateau can only be the last phase", where, "extend it with `hold`")
    again = tuple(replace(span, start=span.start + old, stop=span.stop + old) for span in after.phases)
    curve = _followed(plan, plan.curve, _in_columns(after.curve, plan.curve.columns))
    phases, notes = (*plan.phases, *again), (*plan.notes, *after.notes)
    return replace(plan, curve=curve, groups=groups, total_steps=total, phases=phases, notes=notes)


def _thawed(at: int, before: int, was: GroupLR, again: GroupLR) -> GroupLR:
    """A group that goes on at step `at` as one that was planned again, whose steps count from `before`."""
    if was.frozen_steps <= at:
        return was
    return replace(was, frozen_steps=max(at, before + again.frozen_steps))


def _again(first: RunConfig, steps: int, before: int, planned: Planned, policy: str, where: str) -> Plan:
    """The schedule once more, over so many steps."""
    try:
        return planned(first.model_copy(update={"epochs": None, "steps": steps}), before)
    except ConfigError as error:
        over = "the longer run's" if policy == "rescale" else "the added"
        what = f"--extend {policy}: the schedule does not fit {over} {steps:,} steps: {error.problems[0].what}"
        raise ConfigError(what, where, "make the run longer still, or extend it with `hold`") from error


def _held(plan: Plan, total: int) -> Plan:
    added = total - plan.total_steps
    lr, momentum = plan.curve.lr, plan.curve.momentum
    tail = None if momentum is None else np.repeat(momentum[-1:], added, axis=0)
    curve = plan.curve + Curve(np.repeat(lr[-1:], added, axis=0), plan.curve.columns, tail)
    last = plan.phases[-1]
    if plan.live_from is not None:
        phases = (*plan.phases[:-1], replace(last, stop=total))
    else:
        words = f"hold  {lr[-1].max():.3g} for {lasting(added, plan.steps_per_epoch)}"
        phases = (*plan.phases, replace(last, name="hold", start=plan.total_steps, stop=total, words=words))
    # Of a group that is still frozen the LR that stays is 0.
    groups = tuple(replace(g, frozen_steps=NEVER) if g.frozen_steps >= plan.total_steps else g for g in plan.groups)
    return replace(plan, curve=curve, groups=groups, total_steps=total, phases=phases)


def _followed(plan: Plan, curve: Curve, after: Curve) -> Curve:
    """Two curves end to end. Only one may cycle the momentum: a cycle of a single step can be the optimizer's own."""
    if (curve.momentum is None) == (after.momentum is None):
        return curve + after
    columns = plan.curve.columns
    own = np.array([plan.groups[columns.index(c)].momentum for c in range(curve.lr.shape[1])], dtype=np.float64)
    return curve.cycling(own) + after.cycling(own)


def _part(curve: Curve, start: int, stop: int) -> Curve:
    momentum = None if curve.momentum is None else curve.momentum[start:stop]
    return Curve(curve.lr[start:stop], curve.columns, momentum)


def _in_columns(curve: Curve, columns: tuple[int, ...]) -> Curve:
    """The same LRs in other columns: begun again less is frozen, and groups that only that told apart share one."""
    own = [curve.columns[columns.index(column)] for column in range(max(columns) + 1)]
    return Curve(curve.lr[:, own], columns, None if curve.momentum is None else curve.momentum[:, own])


def _cut(phases: tuple[Span, ...], start: int, stop: int) -> tuple[Span, ...]:
    return tuple(_within(span, start, stop) for span in phases if span.start < stop and span.stop > start)


def _within(span: Span, start: int, stop: int) -> Span:
    """The part of a phase between two steps, which says so."""
    if start <= span.start and span.stop <= stop:
        return span
    begins, ends = max(span.start, start), min(span.stop, stop)
    return replace(span, start=begins, stop=ends, words=f"{span.words}: of these, steps {begins:,} to {ends - 1:,}")
