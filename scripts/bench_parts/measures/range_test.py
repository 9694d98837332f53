"""A range test beside as many plain steps of the same job."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from bench_parts.contestants.lrtrain_fit import config_of
from bench_parts.task import Task

END_LR = 0.1  # low enough that no sweep ends early


def measure(task: Task) -> dict[str, Any]:
    """Seconds a step of `range_test.sweep` (copies and fingerprints included) and of `train`, over `task.steps`."""
    from lrtrain.build import build
    from lrtrain.config.load import load
    from lrtrain.engine.train import train
    from lrtrain.range_test.sweep import sweep, sweep_lrs

    file = Path("range-test.yaml")
    file.write_text(json.dumps(config_of(task)))
    job = build(load(file, []))
    recipe = dataclasses.replace(job.recipe, eval_every=None, checkpoint_every=None)
    warm_up = max(task.steps // 10, 3)
    for _ in train(job.state, job.plan, job.batches, dataclasses.replace(recipe, total_steps=warm_up)):
        pass
    job.state.step = 0
    began = time.perf_counter()
    for _ in train(job.state, job.plan, job.batches, recipe):
        pass
    plain = time.perf_counter() - began
    began = time.perf_counter()
    result = sweep(job, sweep_lrs(1e-7, END_LR, task.steps, "exp"))
    seconds = time.perf_counter() - began
    return {"value": seconds / len(result.losses) * 100, "beside": plain / task.steps * 100}
