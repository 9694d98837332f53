"""Evaluation of a split, beside the bare forward pass on batches that are ready."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch

from bench_parts.contestants.lrtrain_fit import config_of
from bench_parts.task import Task

READY = 8  # batches


def measure(task: Task) -> dict[str, Any]:
    """Images/s of `evaluate` over all test images, and of the same network's forward pass alone."""
    from lrtrain.build import Job, build
    from lrtrain.config.load import load
    from lrtrain.engine.evaluate import autocast, evaluate

    file = Path("evaluation.yaml")
    file.write_text(json.dumps(config_of(task)))
    job: Job = build(load(file, []))
    model, precision = job.state.evaluated.eval(), job.recipe.precision
    ready = [batch.images for batch in itertools.islice(job.batches.evaluate("val"), READY)]

    def forward(batches: int) -> int:
        images = 0
        for x in itertools.islice(itertools.cycle(ready), batches):
            with torch.no_grad(), autocast(x.device, precision):
                model(x)
            images += len(x)
        return images

    def evaluated() -> int:
        *_, last = evaluate(model, job.batches.evaluate("val"), len(job.source.val), precision)
        return last.done

    forward(READY)
    began = time.perf_counter()
    images = evaluated()
    value = images / (time.perf_counter() - began)
    began = time.perf_counter()
    images = forward(-(-images // task.batch))
    return {"value": value, "beside": images / (time.perf_counter() - began)}
