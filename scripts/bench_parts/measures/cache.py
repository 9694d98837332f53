"""How fast the images of a folder are decoded and kept, before the first step."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from bench_parts.contestants.lrtrain_fit import config_of
from bench_parts.contestants.shared import loader
from bench_parts.task import Task


def measure(task: Task) -> dict[str, Any]:
    """Images/s of filling the cache of train and test, and of one pass of the plain DataLoader over train."""
    from lrtrain.config.load import load
    from lrtrain.data.batches import Batches
    from lrtrain.data.build import make_pipeline
    from lrtrain.data.open import open_source

    file = Path("cache.yaml")
    file.write_text(json.dumps(config_of(task)))
    config = load(file, [])
    source = open_source(config.dataset, config.seed, config.where)
    pipeline = make_pipeline(source, config.dataset, seed=config.seed, where=config.where)
    began = time.perf_counter()
    batches = Batches(pipeline, batch_size=task.batch, where=config.where, workers=task.workers, cache="memory")
    value = (len(source.train) + len(source.val)) / (time.perf_counter() - began)
    batches.close()
    began = time.perf_counter()
    images = sum(len(labels) for _, labels in loader(task))
    return {"value": value, "beside": images / (time.perf_counter() - began)}
