"""What is measured beside training speed: each function answers with rows and thresholds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

from bench_parts.measure import Found, in_turns, run_command, run_task
from bench_parts.measures.start_up import commands
from bench_parts.rows import Check, Row, good_of, ratio, row_of
from bench_parts.task import Task
from bench_parts.training import images_per_second

Tell = Callable[[str], object]
Outcome = tuple[list[Row], list[Check]]


def lr_control(base: Task, repeats: int, tell: Tell) -> Outcome:
    """Seconds a step for writing the LR of 2 and of 50 groups, as a share of a small CNN's step."""
    task = replace(base, part="measures.lr_control", model="small_cnn")
    variant = {"precision": "auto", "channels_last": True}
    tasks = {f"{groups} groups": replace(task, variant={**variant, "groups": groups}) for groups in (2, 50)}
    rows, checks = [], []
    for name, found in in_turns(tasks, repeats, run_task, tell).items():
        row = _compared("LR control", f"Plan.write, {name}", "us a step", found, "bare small CNN step", scale=1e6)
        rows.append(row)
        share = row.ratios.get("bare small CNN step")
        percent = None if share is None else 100 * share
        checks.append(Check(f"LR control, {name}, of a small CNN's step", percent, 1.0, at_least=False, unit=" %"))
    return rows, checks


def start_up(folder: Path, threads: int, repeats: int, tell: Tell) -> Outcome:
    """Seconds from typing a command to its end; the first run of each is not counted."""
    wanted = commands(folder)

    def run(name: str) -> Found:
        return run_command(wanted[name].words, wanted[name].code, threads, str(folder))

    found = in_turns({name: name for name in wanted}, repeats + 1, run, tell)
    rows = {
        name: row_of("start-up", name, "s", answers[1:] if len(answers) > 1 else answers)
        for name, answers in found.items()
    }
    torch = rows["python -c 'import torch'"]
    for row in rows.values():
        value = ratio(row, torch)
        if value is not None and row is not torch:
            row.ratios["import torch"] = value
    preview = next(row for name, row in rows.items() if "preview" in name)
    return list(rows.values()), [Check(preview.name, preview.median, 3.0, at_least=False, unit=" s")]


def checkpoint(base: Task, warm_up: int, every: int, repeats: int, tell: Tell) -> Outcome:
    """What saving every so many steps costs a fit of resnet18: how much longer the steps are that saves fall into.

    Both are of one run, whose steps lie seconds apart. Two runs one after the other differ by more than the saves take.
    """
    variant = {"precision": "auto", "checkpoint": {"every": f"{every}step"}}
    name = f"fit, checkpoint every {every} steps"
    found = in_turns({name: replace(base, part="contestants.lrtrain_fit", variant=variant)}, repeats, run_task, tell)
    good = good_of(found[name])
    rates = [images_per_second(one, warm_up, base.steps) for one in good]
    stalls = [_stall(one["seconds"], warm_up, every) for one in good]
    rows = [
        row_of("checkpoint", name, "images/s", found[name], rates),
        Row("checkpoint", "a step with a save, longer than the median by", "s", [each for each, _ in stalls]),
        Row("checkpoint", f"time lost to checkpoints every {every} steps", "%", [lost for _, lost in stalls]),
    ]
    return rows, [Check(rows[-1].name, rows[-1].median, 3.0, at_least=False, unit=" %")]


def _stall(seconds: list[float], warm_up: int, every: int) -> tuple[float, float]:
    """By how many seconds a save makes a step longer, the mean over saves, and the percentage of the whole time.

    Args:
        seconds: when each step ended; a save lies between the ends of steps `every` and `every + 1`, counted from 1.
        warm_up: steps that do not count.
        every: steps from save to save.
    """
    durations = {i: seconds[i] - seconds[i - 1] for i in range(max(warm_up, 1), len(seconds))}
    saves = [duration for i, duration in durations.items() if i % every == 0]
    plain = median(duration for i, duration in durations.items() if i % every)
    longer = sum(saves) - len(saves) * plain
    return longer / len(saves), 100 * longer / sum(durations.values())


def range_test(base: Task, repeats: int, tell: Tell) -> Outcome:
    """Seconds of 100 steps of a range test, over 100 plain steps."""
    task = replace(base, part="measures.range_test", variant={"precision": "auto"})
    found = in_turns({"range test": task}, repeats, run_task, tell)["range test"]
    return [_compared("range test", "range test, resnet18", "s for 100 steps", found, "plain steps")], []


def evaluation(base: Task, repeats: int, tell: Tell) -> Outcome:
    """Images/s of an evaluation, over the bare forward pass."""
    task = replace(base, part="measures.evaluation", variant={"precision": "auto"})
    found = in_turns({"evaluation": task}, repeats, run_task, tell)["evaluation"]
    return [_compared("evaluation", "evaluate, resnet18", "images/s", found, "bare forward")], []


def cache(base: Task, repeats: int, tell: Tell) -> Outcome:
    """Images/s of filling the cache, over one pass of torch's DataLoader with PIL transforms."""
    task = replace(base, part="measures.cache", variant={"precision": "auto"})
    found = in_turns({"cache": task}, repeats, run_task, tell)["cache"]
    return [_compared("cache", "filling the cache from JPEG", "images/s", found, "plain DataLoader pass")], []


def gpu_steps(base: Task, repeats: int, tell: Tell) -> Outcome:
    """How long the GPU idles in a step, bare and in lrtrain, and how often the host waits for it."""
    never = f"{base.steps}step"
    variants = {
        "bare loop": {"of": "bare", "precision": "auto", "channels_last": True},
        "lrtrain fit": {"of": "lrtrain_fit", "precision": "auto", "log_every": never, "checkpoint": {"every": never}},
    }
    tasks = {name: replace(base, part="measures.gpu_steps", variant=variant) for name, variant in variants.items()}
    rows, checks = [], []
    for name, found in in_turns(tasks, repeats, run_task, tell).items():
        good = good_of(found)
        title = f"GPU, {base.model} at {base.size} px, batch {base.batch}"
        shares = [100 * (1 - one["value"] / one["beside"]) for one in good]
        row = row_of(title, f"{name}: no kernel runs", "% of a step", found, shares)
        if good:
            one = good[-1]
            row.note = (
                f"{one['value']:.2f} of {one['beside']:.2f} ms busy, {one['kernels']:.0f} kernels a step; "
                f"the host waited {one['waits']} times in 20 steps {' '.join(one['waited_in'])}".rstrip()
            )
            checks.append(
                Check(
                    f"{title}, {name}, waits of the host in 20 steps", float(one["waits"]), 1.0, at_least=False, unit=""
                )
            )
        rows.append(row)
    return rows, checks


def _compared(section: str, name: str, unit: str, found: list[Found], other: str, scale: float = 1.0) -> Row:
    """A row whose ratio is over what the same process measured beside it."""
    row = row_of(section, name, unit, found, [scale * one["value"] for one in good_of(found)])
    value = ratio(row, row_of(section, other, unit, found, [scale * one["beside"] for one in good_of(found)]))
    if value is not None:
        row.ratios[other] = value
    return row
