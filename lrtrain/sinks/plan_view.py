"""The plan, before the first step: what will be trained, on what, and with which LR."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from lrtrain.config.schema import Named
from lrtrain.errors import printable
from lrtrain.schedule.draw import draw, far_apart
from lrtrain.schedule.plan import Plan
from lrtrain.sinks.console import Screen, counted, number
from lrtrain.sinks.run_dir import RunDir

if TYPE_CHECKING:  # it imports torchvision, and a preview shows curves without
    from lrtrain.build import Job


def show_plan(job: Job, screen: Screen, run_dir: RunDir | None = None, *, drawn: bool = False) -> None:
    """Print everything that is known before training; of the LR only the notes where it was `drawn` already."""
    if run_dir is not None:
        screen.print(f"training into {run_dir}", "bold")
    screen.facts(_facts(job))
    if len(job.groups) > 1:
        screen.print()
        screen.print(_groups(job))
    if drawn:
        _show_notes(job.plan, screen)
    else:
        show_curve(job.plan, screen)
    screen.print()


def show_curve(plan: Plan, screen: Screen, height: int = 8) -> None:
    """Draw the LR of every group that differs, and say in words what follows from the schedule."""
    series = curve_series(plan)
    logarithmic = far_apart(series)
    screen.print()
    screen.print(
        draw(
            series,
            width=min(screen.width, 100),
            height=height,
            unicode=screen.unicode,
            steps_per_epoch=plan.steps_per_epoch,
            live_from=plan.live_from,
            monitor=monitor(plan),
            log_y=logarithmic,
            notes=["logarithmic"] if logarithmic else (),
        )
    )
    _show_notes(plan, screen)


def _show_notes(plan: Plan, screen: Screen) -> None:
    for note in plan.notes:
        screen.print(f"note: {note}", "yellow")


def show_extension(before: Plan, now: Plan, policy: str, screen: Screen) -> None:
    """Draw the LR of the group with the highest one as it will be, and as it was planned where that differs."""
    column = now.curve.columns[max(range(len(now.groups)), key=lambda g: now.groups[g].lr)]
    lr, planned = now.curve.lr[:, column], before.curve.lr[:, column]
    old = np.full(len(now.curve), np.nan)
    old[: len(planned)] = np.where(planned == lr[: len(planned)], np.nan, planned)
    words = f"extended by {policy}: {before.total_steps:,} steps become {now.total_steps:,}"
    screen.print(f"\n{words}", "bold")
    series = {"LR as it will be": lr}
    if np.isfinite(old).any():
        series["as it was planned"] = old
    picture = draw(
        series, width=min(screen.width, 100), height=8, unicode=screen.unicode, steps_per_epoch=now.steps_per_epoch
    )
    screen.print(picture)
    if len(series) == 1:
        screen.print(f"the first {len(planned):,} steps stay as planned")


def monitor(plan: Plan) -> str:
    """The metric that the live tail watches; val_loss where there is no tail."""
    return plan.plateau.monitor if plan.plateau is not None else "val_loss"


def curve_series(plan: Plan) -> dict[str, NDArray[np.float64]]:
    """One LR curve for each column of the table, named by its groups."""
    members: dict[int, list[str]] = {}
    for group, column in zip(plan.groups, plan.curve.columns, strict=True):
        members.setdefault(column, []).append(group.name)
    if len(members) == 1:
        return {"LR": plan.curve.lr[:, 0]}
    return {_short(names): plan.curve.lr[:, column] for column, names in members.items()}


def _short(names: list[str]) -> str:
    return printable(names[0] if len(names) == 1 else f"{names[0]} +{len(names) - 1}")


def _facts(job: Job) -> Iterator[tuple[str, str]]:
    config, plan = job.config, job.plan
    yield "model", f"{config.model.name}, {job.built.parameters:,} parameters"
    for note in job.built.notes:
        yield "", note
    yield from _data(job)
    for i, words in enumerate(job.batches.kept_words):
        yield ("cache" if i == 0 else ""), words
    per_step = f" in {config.accumulate} parts" if config.accumulate > 1 else ""
    yield "batch", f"{config.batch_size} images a step{per_step}, {plan.steps_per_epoch:,} steps an epoch"
    yield "device", _device(job)
    yield "optimizer", _optimizer(job)
    extras = [
        f"{key} {value:g}"
        for key in ("label_smoothing", "mixup", "cutmix", "ema", "clip_norm")
        if (value := getattr(config, key))
    ]
    if extras:
        yield "with", ", ".join(extras)
    for i, phase in enumerate(plan.phases):
        yield ("schedule" if i == 0 else ""), phase.words
    epochs = plan.total_steps / plan.steps_per_epoch
    yield "length", f"{counted(epochs, 'epoch')}, {counted(plan.total_steps, 'step')}"


def _data(job: Job) -> Iterator[tuple[str, str]]:
    source = job.source
    counts = source.counts()
    sizes = sorted(counts["train"].values())
    held_back = f", {len(source.test):,} test held back" if source.test is not None else ""
    each = f"{sizes[0]:,}" if sizes[0] == sizes[-1] else f"{sizes[0]:,} to {sizes[-1]:,}"
    yield (
        "data",
        (
            f"{job.config.dataset.name}: {len(source.train):,} train, {len(source.val):,} val "
            f"({source.val_from}){held_back}"
        ),
    )
    names = ", ".join(source.classes[:6]) + (", ..." if len(source.classes) > 6 else "")
    yield "", f"{len(source.classes)} classes of {each} images: {names}"
    for note in source.notes:
        yield "", note
    transforms = job.config.dataset.transforms
    shapes = {"train": job.pipeline.shape, "val": job.pipeline.val_shape}
    for name, split in (("train", transforms.train), ("val", transforms.val)):
        words = ", ".join(_transform(item) for item in split or ())
        yield name, f"{words} -> {'x'.join(map(str, shapes[name]))}"


def _transform(item: Named) -> str:
    args = " ".join(f"{key}={value}" for key, value in item.args.items() if item.name not in ("Normalize", "ToDtype"))
    return f"{item.name}({args})" if args else item.name


def _device(job: Job) -> str:
    device = job.device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type}, {counted(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else device.type
    if job.state.world.size > 1:
        name = f"{job.state.world.size} processes, each {name}"
    precision = job.recipe.precision
    graph = ", CUDA graph" if job.state.graphs is not None else ""
    return f"{name}, {precision}{' autocast' if precision != 'fp32' else ''}, channels-last{graph}"


def _optimizer(job: Job) -> str:
    section = job.config.optimizer
    args = ", ".join(f"{key} {value}" for key, value in section.args.items())
    lr = f", LR {number(section.lr)}" if len(job.groups) == 1 else f", {len(job.groups)} groups"
    return f"{section.name}{lr}" + (f", {args}" if args else "")


def _groups(job: Job) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    rows = [
        (
            printable(group.name),
            number(group.lr),
            f"{sum(parameter.numel() for parameter in group.parameters):,}",
            str(group.frozen_until) if spec.frozen_steps else "",
            printable(", ".join(f"{key} {value}" for key, value in group.options.items())),
        )
        for group, spec in zip(job.groups, job.plan.groups, strict=True)
    ]
    titles = ("group", "LR", "weights", "frozen until", "own options")
    said = [column for column in range(len(titles)) if any(row[column] for row in rows)]  # the rest would take room
    for column in said:
        table.add_column(titles[column], justify="right" if 0 < column < 4 else "left", overflow="fold")
    for row in rows:
        table.add_row(*(row[column] for column in said))
    return table
