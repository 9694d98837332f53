"""`lrtrain preview`: the LR of every group at every step, without training."""

from __future__ import annotations

from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from lrtrain import lookup
from lrtrain.config.duration import Duration
from lrtrain.config.schema import RunConfig
from lrtrain.data.open import epoch_steps, open_source
from lrtrain.errors import ConfigError, EnvironmentFault, printable
from lrtrain.optim.build import declared_momentum
from lrtrain.schedule.csv import write_csv
from lrtrain.schedule.draw import far_apart
from lrtrain.schedule.figure import check_suffix, save_curve
from lrtrain.schedule.plan import GroupLR, Plan, make_plan
from lrtrain.sinks.console import Screen, number
from lrtrain.sinks.plan_view import curve_series, monitor, show_curve
from lrtrain.writing import replacing

MOST_ROWS = 20


def run(config: RunConfig, csv: Path | None, plot: Path | None, at: Sequence[str]) -> None:
    """Show, write and draw the plan."""
    if plot is not None:
        check_suffix(plot)
    times = [(text, _duration(text)) for text in at]
    plan = plan_only(config)
    screen = Screen()
    if times:
        _show_at(plan, times, screen)
    else:
        for span in plan.phases:
            screen.print(span.words)
        show_curve(plan, screen, height=10)
        screen.print()
        screen.print(_table(plan))
        screen.print("\nimages and weights were not looked at: `lrtrain check` does that")
    if csv is not None:
        try:
            with replacing(csv) as whole, TextIOWrapper(whole, encoding="utf-8", newline="") as file:
                write_csv(plan, file)
        except OSError as error:
            hint = "name a file in a folder that is there, with --csv"
            raise EnvironmentFault(f"cannot write: {error.strerror}", str(csv), hint) from error
        screen.print(f"\nwrote {plan.total_steps:,} rows to {csv}")
    if plot is not None:
        momentum = None if plan.curve.momentum is None else {"momentum": plan.curve.momentum[:, 0]}
        series = curve_series(plan)
        save_curve(
            plot,
            series,
            plan.steps_per_epoch,
            momentum=momentum,
            monitor=monitor(plan),
            title=f"{config.optimizer.name}, {plan.total_steps:,} steps",
            live_from=plan.live_from,
            phases=[(span.name, span.start, span.stop) for span in plan.phases],
            log_y=far_apart(series),
        )
        screen.print(f"\ndrew {plot}")


def plan_only(config: RunConfig) -> Plan:
    """The plan of a run; images are not read, and the model is built only where groups are made of its parameters."""
    source = open_source(config.dataset, config.seed, config.where)
    per_epoch = epoch_steps(source, config.batch_size, config.drop_last, config.where)
    optimizer = config.optimizer
    if optimizer.groups or optimizer.layer_decay is not None or lookup.is_path(optimizer.name):
        from lrtrain.build import model_and_plan  # which imports torchvision: two seconds

        return model_and_plan(config, source, per_epoch)[1]
    return make_plan(config, [GroupLR("default", optimizer.lr, declared_momentum(optimizer, config.where))], per_epoch)


def _duration(text: str) -> Duration:
    try:
        return Duration.parse(text)
    except ValueError as error:
        raise ConfigError(str(error), f"--at {text}", "such as --at 3.5ep, --at 300step or --at 10%") from None


def _show_at(plan: Plan, times: Sequence[tuple[str, Duration]], screen: Screen) -> None:
    for text, duration in times:
        t = duration.to_steps(plan.steps_per_epoch, plan.total_steps)
        if t >= plan.total_steps:
            raise ConfigError(
                f"{text} is step {t:,}, after the run's last, {plan.total_steps - 1:,}",
                f"--at {text}",
                f"the run is {plan.total_steps / plan.steps_per_epoch:g}ep long; steps count from 0",
            )
        for group, lr in zip(plan.groups, plan.lrs(t, plan.start_live()), strict=True):
            name = "" if len(plan.groups) == 1 else f"  {group.name}"
            screen.print(f"{text}  step {t:,}{name}  LR {lr!r}")


def _table(plan: Plan) -> Table:
    """The LR by epoch, or by group where several groups differ."""
    return _by_epoch(plan) if plan.curve.lr.shape[1] == 1 else _by_group(plan)


def _by_epoch(plan: Plan) -> Table:
    """The LR that each epoch starts and ends with; where there are many, every n-th."""
    starts = list(range(0, plan.total_steps, plan.steps_per_epoch))
    every = -(-len(starts) // MOST_ROWS)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("epoch" if every == 1 else f"every {every}. epoch", justify="right")
    for title in ("steps", "LR"):
        table.add_column(title, overflow="fold")
    if plan.curve.momentum is not None:
        table.add_column("momentum")
    for i in sorted({*range(0, len(starts), every), len(starts) - 1}):
        start, stop = starts[i], min(starts[i] + plan.steps_per_epoch, plan.total_steps)
        tables = [plan.curve.lr] if plan.curve.momentum is None else [plan.curve.lr, plan.curve.momentum]
        cells = [_course(values[start:stop, 0]) for values in tables]
        table.add_row(str(i + 1), f"{start:,}..{stop - 1:,}", *cells)
    return table


def _course(values: NDArray[np.float64]) -> str:
    """First and last value, and between them the highest where that is neither."""
    first, last, highest = (float(value) for value in (values[0], values[-1], values.max()))
    return " -> ".join(map(number, (first, highest, last) if highest > max(first, last) else (first, last)))


def _by_group(plan: Plan) -> Table:
    """Where each group's LR starts, peaks and ends."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("group", overflow="fold")
    for title in ("first LR", "peak LR", "at step", "last LR"):
        table.add_column(title, justify="right", overflow="fold")
    for i, group in enumerate(plan.groups):
        lr = plan.curve.of_group(i)
        row = [number(float(lr[0])), number(float(lr.max())), f"{int(lr.argmax()):,}", number(float(lr[-1]))]
        table.add_row(printable(group.name), *row)
    return table
