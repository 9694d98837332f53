"""What it costs per step to put the planned LR into the optimizer, beside a step of a small CNN."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench_parts.contestants import bare
from bench_parts.contestants.lrtrain_fit import config_of
from bench_parts.task import Clock, Task

CALLS = 20_000


def measure(task: Task) -> dict[str, Any]:
    """Seconds of one `Plan.write` with `variant["groups"]` groups, each with an LR of its own, and of one step.

    The schedule is OneCycleLR, the one with most to write: LR and momentum.
    """
    from lrtrain.config.load import load
    from lrtrain.schedule.plan import GroupLR, make_plan

    groups = task.variant["groups"]
    file = Path("lr-control.yaml")
    schedule = {"name": "OneCycleLR"}
    file.write_text(json.dumps({**config_of(replace(task, variant={})), "steps": CALLS, "schedule": schedule}))
    config = load(file, [])
    specs = [GroupLR(f"group{i}", 0.1 / (i + 1), task.momentum) for i in range(groups)]
    plan = make_plan(config, specs, task.per_epoch)
    optimizer = torch.optim.SGD(
        [{"params": [nn.Parameter(torch.zeros(1))], "lr": spec.lr} for spec in specs], lr=0.1, momentum=task.momentum
    )
    chunks = []
    for chunk in range(0, CALLS, CALLS // 20):
        began = time.perf_counter()
        for t in range(chunk, chunk + CALLS // 20):
            plan.write(optimizer, t, None)
        chunks.append((time.perf_counter() - began) / (CALLS // 20))
    return {"value": statistics.median(chunks[1:]), "beside": _step_seconds(task)}


def _step_seconds(task: Task) -> float:
    clock = Clock(task.steps)
    bare.train(task, clock)
    steps = [after - before for before, after in itertools.pairwise(clock.stamps)]
    return statistics.median(steps[len(steps) // 4 :])
